"""
torch.compile, tried once before it is relied on. Come here when a run says that it goes on without
it.
"""
import contextlib

import torch
from torch.nn.parallel import DistributedDataParallel as DDP


def try_compiled(model, B, T, device, autocast):
    """
    Compile a model by its first forward and backward, on zeros (B, T) -> None, or a line that says
    what failed: no C++ compiler, no Triton, an operation that Dynamo or Inductor lack. In DDP it
    does not meet the other processes, where compiling may fail.
    """
    error = None
    x, y = torch.zeros(2, B, T, dtype=torch.long, device=device)
    alone = model.no_sync() if isinstance(model, DDP) else contextlib.nullcontext()
    try:
        with alone, autocast:
            _, loss = model(x, y)
            loss.backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as e:  # Dynamo's and Inductor's errors are such
        error = f"{type(e).__name__}: {e}".splitlines()[0]
    model.zero_grad(set_to_none=True)
    return error
