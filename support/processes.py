"""
Processes: what torchrun says, where they meet, what they are told by signals, how one explains the
end of another; and the card of each. Come here when a run hangs at its start, does not stop, or
refuses your card.
"""
import contextlib
import ctypes
import math
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from support.console import UserError, is_first_process, one_line

# --- the card -------------------------------------------------------------------------------------

@dataclass
class Card:
    """
    What torch says about the device of this process. It is asked once, in find_card; a test
    pretends another.
    """
    kind: str  # cuda, mps or cpu
    device: torch.device  # where tensors go
    name: str = ""  # as cuda calls it: NVIDIA H100 80GB HBM3
    capability: tuple = (0, 0)  # of a CUDA card: 9.0 is Hopper, 8.0 Ampere, 7.5 Turing
    archs: tuple = ()  # what this PyTorch has code for
    native_bfloat16: bool = False  # does a CPU multiply it?
    free: float = math.inf  # bytes that nobody uses; on CUDA only do we ask

    def synchronize(self):
        """
        Wait until the device has done what was queued, be it CUDA's or a Mac's. Python's signal
        handlers do not run meanwhile. Asking an event in a loop would let them, but help nobody: a
        signal is only noted, and a step whose other process has died never ends. torchrun kills it.
        """
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def find_card(name, local_rank, num_processes):
    """
    --device and torchrun's LOCAL_RANK -> the Card of this process: of several on a machine, each
    has its own.
    """
    best = "cpu"
    if torch.cuda.is_available():
        best = "cuda"
    elif torch.backends.mps.is_available():
        best = "mps"
    if name == "auto":
        name = best
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name) or not name.startswith(("cpu", best)):
        raise UserError(f"--device={name} is not available here: try --device={best}")
    device = torch.device(name)
    if device.type == "cpu":
        can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = bool(can.get("amx_bf16") or can.get("avx512_bf16"))
        return Card("cpu", device, native_bfloat16=native)
    if device.type == "mps":
        return Card("mps", device)
    if num_processes > 1 or device.index is None:
        device = torch.device("cuda", local_rank)
    if device.index >= torch.cuda.device_count():
        raise UserError(f"there is no GPU {device.index}, only {torch.cuda.device_count()}: one "
                        "process for each",
                        who="me")
    torch.cuda.set_device(device)
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    free, _ = torch.cuda.mem_get_info(device)
    archs = tuple(torch.cuda.get_arch_list())
    return Card("cuda", device, name, capability, archs, free=free)


def check_kernels(card):
    """UserError unless this PyTorch was built for the card. AMD's are not checked."""
    if card.kind != "cuda" or torch.version.hip is not None:
        return
    major, minor = card.capability
    # code for sm_xy runs on x.y and later of the same x; compute_xy, which is PTX, on all later
    # ones
    for kind, x, y in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(card.archs)):
        if (kind == "compute" or int(x) == major) and (int(x), int(y)) <= (major, minor):
            return
    raise UserError(f"this PyTorch has no code for compute capability {major}.{minor}: install "
                    "one before 2.15, built for CUDA 12.6")


# --- where processes meet -------------------------------------------------------------------------

def join_processes(device, shard, timeout_s):
    """
    Find out which process this is, find its card, and wait for the other processes of the run, at
    most timeout_s seconds. device, shard: --device and --shard
    -> rank, number of processes, Card. Its `free` is that of the fullest card of the run.
    """
    rank, local_rank, num_processes = read_ranks()
    card = find_card(device, local_rank, num_processes)
    check_kernels(card)
    if is_distributed() or shard != "no":
        if card.kind == "mps":
            raise UserError("a Mac has one GPU: run python train_gpt2.py, without torchrun and "
                            "--shard")
        # NCCL for GPU tensors, gloo for CPU tensors. With gloo alone everything distributed runs on
        # a laptop, too
        meet("cpu:gloo,cuda:nccl" if card.kind == "cuda" else "gloo", timeout_s)
    card.free = min_over_processes(card.free)
    return rank, num_processes, card


def sum_over_processes(value):
    """A collective. value: a number or a tensor with one number -> float"""
    return reduce_over_processes(value, dist.ReduceOp.SUM)


def min_over_processes(value):
    """A collective. value: a number or a tensor with one number -> float"""
    return reduce_over_processes(value, dist.ReduceOp.MIN)


def reduce_over_processes(value, op):
    if not dist.is_initialized():
        return float(value)
    # a tensor on the GPU is reduced by NCCL; a number of the CPU by gloo, while the GPU goes on
    value = torch.as_tensor(value, dtype=torch.float64)
    dist.all_reduce(value, op)
    return value.item()


TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what it tells us
ADVICE = "start with torchrun, or unset them"


def read_number(name, least=0, most=10**8):
    """A variable of torchrun's that must be a number -> int. Raises UserError."""
    text = os.environ[name]
    is_number = text.isdecimal() and text.isascii() and len(text) < 10
    if not is_number or not least <= int(text) <= most:
        raise UserError(f"torchrun's variable {name} is {text[:50]!r}, not a number from {least} "
                        f"to {most}: {ADVICE}", who="me")
    return int(text)


def read_ranks():
    """
    What torchrun says, or one process -> rank (which of all this one is), local_rank (of those on
    its machine), how many there are. Its variables come all or not at all: with some of them we
    would train on a part of each batch, and nobody would notice.
    """
    given = [name for name in TORCHRUN if name in os.environ]
    if not given:
        return 0, 0, 1
    if missing := [name for name in TORCHRUN if name not in os.environ]:
        raise UserError(f"{', '.join(given)} of torchrun's variables are set, "
                        f"{', '.join(missing)} are "
                        f"not: {ADVICE}", who="me")
    rank = read_number("RANK")
    local_rank = read_number("LOCAL_RANK")
    num_processes = read_number("WORLD_SIZE")
    # these two are used later, where a mistake would read as processes that did not meet
    read_number("MASTER_PORT", least=1, most=2**16 - 1)
    if "GROUP_WORLD_SIZE" in os.environ:
        read_number("GROUP_WORLD_SIZE")
    if not (local_rank <= rank < num_processes):
        raise UserError(f"there is no process {rank} (LOCAL_RANK {local_rank}) among "
                        f"{num_processes}: "
                        f"{ADVICE}", who="me")
    return rank, local_rank, num_processes


def is_distributed():
    """Has torchrun started this process, alone or with others?"""
    return "RANK" in os.environ


def meet(backend, timeout_s):
    """
    Wait until all processes of the run are there, at most timeout_s seconds: from then on they can
    all_reduce. PyTorch waits in C++, where Python's signals do not reach it; so another thread
    waits, and this one listens to Ctrl-C.
    """
    failure = []

    def wait():
        try:
            limit = timedelta(seconds=timeout_s)
            dist.init_process_group(backend, timeout=limit, **meeting_place(limit))
        except Exception as e:  # torch's, of many kinds: no such host, a port in use, nobody came
            failure.append(e)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    # the library's own limit comes first, with its reason
    deadline = time.monotonic() + timeout_s + 5
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(0.05)
    if failure or thread.is_alive():
        reason = one_line(failure[0]) if failure else "no answer"
        raise UserError(f"the processes of this run did not meet within "
                        f"--dist_timeout_s={timeout_s}: "
                        f"{reason}", who="me", exit_code=1)


def meeting_place(limit):
    """Where the processes of a run find each other -> arguments of init_process_group"""
    from torch.distributed import HashStore, PrefixStore
    from torch.distributed.rendezvous import rendezvous
    if not is_distributed():
        return dict(store=HashStore(), rank=0, world_size=1)
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
        return {}
    # after a restart the addresses of the dead are still in torchrun's store, and who reads them
    # waits in vain: so each attempt has names of its own. (On several machines the attempts are not
    # counted alike.)
    store, rank, world_size = next(iter(rendezvous("env://", timeout=limit)))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dict(store=PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=world_size)


def is_out_of_memory(e):
    """Is it that exception, in the GPU's words or in the CPU's?"""
    words = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
    return any(text in str(e) for text in words)


def explain(e, phase, advice):
    """
    An exception that ended a run -> the UserError that explains it, or the exception itself if it
    is a bug. phase, advice: what was going on, and what to try if memory ran out there
    """
    if is_out_of_memory(e):  # nothing is tried for the user, who may not be looking
        during = f" in {phase}" if phase else ""
        return UserError(f"out of memory{during}: try {advice or 'a smaller --B'}", who="me")
    if isinstance(e, dist.DistError) or isinstance(e, RuntimeError) and "gloo" in str(e):
        return UserError(f"lost another process: {str(e)[:200]}", who="me", exit_code=1)
    return e


@contextlib.contextmanager
def orderly_end(phase, advice):
    """Around a program that does not train: explain what ends it, and leave the other processes."""
    try:
        yield
    except RuntimeError as e:
        raise explain(e, phase, advice) from e
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


# --- signals --------------------------------------------------------------------------------------

# Ctrl-C; a machine that is taken away; a lost connection; a Slurm job whose time is running out
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class Signal(NamedTuple):
    """A signal that has come."""
    name: str  # SIGTERM
    when: float  # by time.time()


class Signals:
    """
    Notes the signals that ask a run to stop, in `noted`, between catch() and restore(). A second
    one ends the process at once.
    """

    def __init__(self):
        self.noted = []  # of Signal
        self.before = {}  # signal number -> the handler to restore

    def catch(self):
        for name in STOP_SIGNALS:
            number = getattr(signal, name, None)  # Windows has not all of them
            # nohup ignores SIGHUP: a lost connection is no reason to stop
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.note)

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before.clear()

    def note(self, number, frame):
        # torchrun passes on a Ctrl-C that the terminal has sent us already: within a second it is
        # the same one
        if self.noted and not (is_distributed() and time.time() - self.noted[0].when < 1):
            os._exit(128 + number)
        self.noted.append(Signal(signal.Signals(number).name, time.time()))
        if len(self.noted) == 1 and is_first_process():  # (print is not allowed in a handler)
            with contextlib.suppress(OSError):  # the terminal has gone, or the disk is full
                os.write(2, b"stopping after this step; the same again stops at once\n")


# --- memory ---------------------------------------------------------------------------------------

def keep_freed_memory():
    """
    Ask the C library to keep up to 2 GB of freed memory in pieces below 16 MB. Each step frees its
    gradients; given back, they come again page by page, zeroed by the kernel: a tenth of a small
    step's time. Only glibc can be asked.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            # M_MMAP_THRESHOLD: above a block's gradients, below the MLP's activations at T=1024
            mallopt(-3, 2**24)
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
