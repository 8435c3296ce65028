"""
Which kernels attention may use. Come here to give evals and generation other kernels than training.
"""
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_for_any_shape():
    """
    A context manager for forwards whose shapes hardly ever repeat, as in HellaSwag and generation.
    On Hopper and later, PyTorch 2.11 and later prefer cuDNN's attention, which makes a plan for
    each new shape; a plan is reported to take 0.44 s on a B200 (FunASR, issue 3704). Training has
    one shape, and may use cuDNN. What either choice costs we have not measured.
    """
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                        SDPBackend.MATH])
