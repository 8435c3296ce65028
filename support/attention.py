"""
Which kernels attention may use. Come here to let evals and samples use other ones than training.
"""
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_for_any_shape():
    """
    A context manager for a forward whose shape hardly ever comes again, as HellaSwag's and those of
    samples. On Hopper and later, PyTorch 2.11 and later prefer cuDNN's attention, which makes a
    plan for each new shape; others report 0.44 s for one on a B200 (FunASR, issue 3704). Training
    has one shape, and may use it. What either choice costs we have not measured.
    """
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                        SDPBackend.MATH])
