"""
The choice of kernels: torch.compile, which is tried once before a run relies on it, and the
attention of evals. Come here when a run goes on without torch.compile.
"""
import contextlib
import os
import threading
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel as DDP

from support.console import print0
from support.processes import min_over_processes, texts_of_processes

REMIND_S = 30  # seconds between two lines "still compiling"


def compile_model(model):
    """
    torch.compile(model), which returns at once and compiles in its first call. Where PyTorch
    refuses (it does not support this Python yet), return the model itself;
    compiles_in_all_processes will print why.
    """
    keep_compiled_code()
    try:
        return torch.compile(model)
    except Exception:  # PyTorch's
        return model


def keep_compiled_code():
    """
    Have PyTorch keep compiled code beside what torch.hub downloads, in ~/.cache/torch/inductor. By
    default it lies in /tmp, where a reboot or the end of a container deletes it. A folder that the
    user has chosen stays.
    """
    folder = os.path.join(os.path.dirname(torch.hub.get_dir()), "inductor")
    with contextlib.suppress(OSError):  # a home that cannot be written to, seen below
        os.makedirs(folder, exist_ok=True)
    if os.access(folder, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)


def compiles_in_all_processes(model, B, T, process, limit_s):
    """
    A collective. Compile the model by running a forward and a backward on zeros of shape (B, T)
    -> did it work in all processes (bool)? If not (no C++ compiler, no Triton, a gap in Dynamo or
    Inductor), a warning says why, and all processes run the model uncompiled from then on.
    limit_s: seconds to wait for a slower process
    """
    error = ""
    x, y = torch.zeros(2, B, T, dtype=torch.long, device=process.device)
    # DDP would average the gradients, and wait for a process in which compiling has failed
    alone = model.no_sync() if isinstance(model, DDP) else contextlib.nullcontext()
    name = f"compiling {min_over_processes(time.time())}"  # the same in all processes
    with reminders():
        try:
            torch.compile(model)  # raises what compile_model has hidden
            torch.compiler.set_stance("default")
            with alone, process.autocast:
                _, loss = model(x, y)
                loss.backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # Dynamo's, Inductor's, Triton's; or the disk of their cache is full
            error = f"{type(e).__name__}: {e}".splitlines()[0]  # a page of hints may follow
        model.zero_grad(set_to_none=True)
        errors = texts_of_processes(name, error, limit_s)
    for rank, error in enumerate(errors):
        if error:
            torch.compiler.set_stance("force_eager")
            print0(f"warning: going on without torch.compile: {error} (process {rank})")
            return False
    return True


@contextlib.contextmanager
def reminders():
    """Say that the run is compiling, and twice a minute that it still is."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "a temporary folder")
    print0(f"compiling: about half a minute the first time; the code is kept in {folder}")
    began, done = time.monotonic(), threading.Event()

    def remind():
        while not done.wait(REMIND_S):
            print0(f"still compiling after {time.monotonic() - began:.0f} s")
    threading.Thread(target=remind, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def attention_for_any_shape():
    """
    A context manager for HellaSwag and generation, where nearly every forward has a new shape.
    PyTorch 2.11 and later prefer cuDNN's attention on Hopper and later GPUs, and cuDNN makes a plan
    for each new shape (0.44 s on a B200, according to FunASR's issue 3704). Training has a single
    shape and may use cuDNN.
    """
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                        SDPBackend.MATH])
