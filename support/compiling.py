"""
torch.compile, tried once before it is relied on. Come here when a run says that it goes on without
it.
"""
import contextlib
import os
import tempfile

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from support.console import print0


def check_cache():
    """
    Where TORCHINDUCTOR_CACHE_DIR names a place that cannot be written, a read-only disk, say, do
    without it: compiled code goes to PyTorch's default place. AdamW, too, loads the compiler, which
    makes the directory while it is imported; failing there, it leaves PyTorch half loaded.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        print0(f"TORCHINDUCTOR_CACHE_DIR={folder} cannot be written ({e.strerror}): compiled code "
               "goes to the default place")
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]


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
    except (RuntimeError, OSError) as e:  # Dynamo's and Inductor's errors; those of their cache
        error = f"{type(e).__name__}: {e}".splitlines()[0]
    model.zero_grad(set_to_none=True)
    return error
