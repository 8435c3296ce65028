"""
How kernels are chosen: torch.compile, tried once before a run relies on it, and the kernels of
attention in evals. Come here when a run goes on without torch.compile.
"""
import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel as DDP

from support.console import print0
from support.processes import sum_over_processes


def compiles_in_all_processes(model, B, T, process):
    """
    A collective. Compile a model by running its first forward and backward, on zeros of shape
    (B, T) -> bool. If that fails in any process (no C++ compiler, no Triton, a gap in Dynamo or
    Inductor), a warning says why, and the model runs without compiling from then on. DDP must not
    average gradients here, because compiling may fail in one process only.
    """
    error = None
    torch.compiler.set_stance("default")
    x, y = torch.zeros(2, B, T, dtype=torch.long, device=process.device)
    alone = model.no_sync() if isinstance(model, DDP) else contextlib.nullcontext()
    try:
        with alone, process.autocast:
            _, loss = model(x, y)
            loss.backward()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError) as e:  # from Dynamo, Inductor, or Inductor's cache on the disk
        error = f"{type(e).__name__}: {e}".splitlines()[0]
    model.zero_grad(set_to_none=True)
    failures = sum_over_processes(error is not None)
    if failures > 0:
        torch.compiler.set_stance("force_eager")
        print0(f"warning: going on without torch.compile: {error or 'it fails in another process'}")
    return failures == 0


def attention_for_any_shape():
    """
    A context manager for forwards with ever new shapes, as in HellaSwag and generation. On Hopper
    and later, PyTorch 2.11 and later prefer cuDNN's attention, which makes a plan for each new
    shape (0.44 s on a B200, says FunASR's issue 3704). Training has one shape and may use cuDNN.
    """
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                        SDPBackend.MATH])
