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
from support.processes import sum_over_processes


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


def compiles_in_all_processes(model, B, T, process):
    """
    A collective. Compile a model by its first forward and backward, on zeros (B, T) -> bool. Where
    it fails (no C++ compiler, no Triton, something that Dynamo or Inductor lack) a warning says
    why, and from then on the model runs as eager code. DDP does not average here, because compiling
    may fail in one process only.
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
    except (RuntimeError, OSError) as e:  # Dynamo's and Inductor's errors; those of their cache
        error = f"{type(e).__name__}: {e}".splitlines()[0]
    model.zero_grad(set_to_none=True)
    failures = sum_over_processes(error is not None)
    if failures > 0:
        torch.compiler.set_stance("force_eager")
        print0(f"warning: going on without torch.compile: {error or 'it fails in another process'}")
    return failures == 0
