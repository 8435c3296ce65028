"""
The processes of a run: which GPU each one takes, how they meet, their sums, and the signals that
stop them. Come here when a run hangs at its start, does not stop, or refuses your GPU.
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

from support.console import UserError, is_first_process, one_line, print0

# --- the device -----------------------------------------------------------------------------------

@dataclass
class Card:
    """
    The device of this process, as torch describes it. Only find_card asks torch, so tests can
    pretend to have any card.
    """
    kind: str  # cuda, mps or cpu
    device: torch.device  # where tensors go
    name: str = ""  # as CUDA reports it: NVIDIA H100 80GB HBM3
    capability: tuple = (0, 0)  # of a CUDA GPU: 9.0 is Hopper, 8.0 Ampere, 7.5 Turing
    archs: tuple = ()  # the GPU architectures that this PyTorch was built for
    native_bfloat16: bool = False  # does this CPU multiply bfloat16 natively?
    free: float = math.inf  # free memory in bytes, known on CUDA only

    def synchronize(self):
        """
        Wait until the GPU (CUDA's or a Mac's) has finished what is queued. Signals are handled
        only after that, which is soon enough.
        """
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def find_card(name, local_rank, num_processes):
    """
    name: --device; local_rank: the number of this process on its machine -> Card. Under torchrun
    each process takes the GPU with its own number.
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
        can = torch.cpu.get_capabilities()
        native = bool(can.get("amx_bf16") or can.get("avx512_bf16"))
        return Card("cpu", device, native_bfloat16=native)
    if device.type == "mps":
        return Card("mps", device)
    if num_processes > 1 or device.index is None:
        device = torch.device("cuda", local_rank)
    if device.index >= torch.cuda.device_count():
        raise UserError(f"there is no GPU {device.index}, only {torch.cuda.device_count()}: one "
                        "process for each", who="me")
    torch.cuda.set_device(device)
    gpu = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    if gpu.is_integrated:  # GB10, Jetson: CUDA counts the page cache as used
        free = min(available_memory(otherwise=free), total)
        print0(f"{gpu.name} shares the system's memory: {free / 1e9:.1f} GB of it are available")
    archs = tuple(torch.cuda.get_arch_list())
    return Card("cuda", device, gpu.name, (gpu.major, gpu.minor), archs, free=free)


def available_memory(otherwise):
    """Bytes that Linux can give to a program, page cache included -> int; or else `otherwise`"""
    with contextlib.suppress(OSError), open("/proc/meminfo") as f:
        for line in f:
            if line.startswith("MemAvailable:"):  # followed by a number and kB
                return 1024 * int(line.split()[1])
    return otherwise


def check_kernels(card):
    """UserError if this PyTorch has no code, or wrong code, for the GPU. AMD's are not checked."""
    if card.kind == "mps" and torch.__version__ < (2, 12):
        raise UserError(f"PyTorch {torch.__version__} computes wrong attention on Apple's GPUs: "
                        "pip install --upgrade torch, or add --device=cpu")
    if card.kind != "cuda" or torch.version.hip is not None:
        return
    newest = (0, 0)
    # code for sm_xy runs on x.y and later minor versions of x; compute_xy (PTX) on all later GPUs
    for kind, x, y in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(card.archs)):
        arch = int(x), int(y)
        if (kind == "compute" or arch[0] == card.capability[0]) and arch <= card.capability:
            return
        newest = max(newest, arch)
    advice = "one before 2.15, built for CUDA 12.6"
    if card.capability > min(newest, (9, 0)):  # the builds for CUDA 12.6 end at 9.0
        advice = "a newer build, for CUDA 12.8 or later"
    major, minor = card.capability
    raise UserError(f"this PyTorch has no code for compute capability {major}.{minor}: install "
                    f"{advice}")


# --- the other processes --------------------------------------------------------------------------

def join_processes(device, shard, timeout_s):
    """
    Find out which process this is, choose its device, and wait at most timeout_s seconds for the
    other processes of the run. device, shard: --device and --shard
    -> rank, number of processes, Card (with `free` of the GPU that has the least free memory)
    """
    rank, local_rank, num_processes = read_ranks()
    card = find_card(device, local_rank, num_processes)
    check_kernels(card)
    if is_distributed() or shard != "no":
        if card.kind == "mps":
            raise UserError("a Mac has one GPU: run python train_gpt2.py, without torchrun and "
                            "--shard")
        meet(card, timeout_s)
    card.free = min_over_processes(card.free)
    return rank, num_processes, card


def sum_over_processes(value):
    """A collective. value: a number or a tensor with one number -> float"""
    return reduce_over_processes(value, dist.ReduceOp.SUM)


def min_over_processes(value):
    """A collective. value: a number or a tensor with one number -> float"""
    return reduce_over_processes(value, dist.ReduceOp.MIN)


def reduce_over_processes(value, op):
    """A collective. value: a number or a tensor with one number; op: of dist.ReduceOp -> float"""
    if not dist.is_initialized():
        return float(value)
    # NCCL sums tensors on GPUs; gloo sums Python numbers, without waiting for the GPU
    value = torch.as_tensor(value, dtype=torch.float64)
    dist.all_reduce(value, op)
    return value.item()


def texts_of_processes(name, text, limit_s):
    """
    A collective. Each process passes a text and gets the texts of all -> list of str, by rank. It
    waits up to limit_s seconds, while a sum would give up after --dist_timeout_s; then it raises
    DistStoreError. name: a name that was not used before
    """
    if not dist.is_initialized():
        return [text]
    store = dist.distributed_c10d._get_default_store()
    store.set(f"{name} {dist.get_rank()}", text)
    keys = [f"{name} {rank}" for rank in range(dist.get_world_size())]
    store.wait(keys, timedelta(seconds=limit_s))
    return [store.get(key).decode() for key in keys]


TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def read_ranks():
    """
    torchrun's variables -> rank (among all processes), local_rank (among those of this machine),
    number of processes; 0, 0, 1 without torchrun. UserError if only some of them are set: the
    process would train on a part of each batch, and nobody would notice.
    """
    given = [name for name in TORCHRUN if name in os.environ]
    missing = [name for name in TORCHRUN if name not in os.environ]
    if not given:
        return 0, 0, 1
    if missing:
        raise UserError(f"{', '.join(given)} of torchrun's variables are set, "
                        f"{', '.join(missing)} are not: start with torchrun, or unset them",
                        who="me")
    return tuple(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def is_distributed():
    """Did torchrun start this process, alone or with others?"""
    return "RANK" in os.environ


def meet(card, timeout_s):
    """
    Wait at most timeout_s seconds for all processes of the run. On GPUs, then try a first sum:
    between some consumer cards peer-to-peer copies never arrive, or arrive damaged.
    """
    # NCCL for tensors on GPUs, gloo for tensors on CPUs. Without GPUs gloo does everything, so you
    # can try distributed training on a laptop
    backend = "cpu:gloo,cuda:nccl" if card.kind == "cuda" else "gloo"
    limit = timedelta(seconds=timeout_s)

    def first_meeting():
        dist.init_process_group(backend, timeout=limit, **meeting_place(limit))

    def first_sum():
        ones = torch.ones(2**20, device=card.device)
        dist.all_reduce(ones)
        if not (ones == dist.get_world_size()).all():
            raise RuntimeError("the sum is wrong")
    # PyTorch's own limit ends this with a reason; 5 seconds later we give up without one
    reason = wait_for(first_meeting, timeout_s + 5)
    if reason:
        raise UserError(f"the processes of this run did not meet within "
                        f"--dist_timeout_s={timeout_s}: {reason}", who="me", exit_code=1)
    # at its own limit NCCL would end the process without a line, so our limit is shorter
    reason = wait_for(first_sum, 0.9 * timeout_s) if card.kind == "cuda" else None
    if reason:
        raise UserError(f"the GPUs of this run could not make a first sum within "
                        f"--dist_timeout_s={timeout_s} ({reason}): try NCCL_P2P_DISABLE=1 before "
                        "the same line; NCCL_DEBUG=INFO says more", exit_code=1)


def wait_for(function, seconds):
    """
    Call a function of PyTorch that waits in C++, where Ctrl-C has no effect. It runs in a second
    thread, so that this one can be interrupted -> None, or why the function failed (str)
    """
    failure = []

    def call():
        try:
            function()
        except Exception as e:  # torch's, of many kinds: no such host, a port in use, nobody came
            failure.append(one_line(e))
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(0.05)
    if thread.is_alive():
        return "no answer"
    return failure[0] if failure else None


def meeting_place(limit):
    """Where the processes of a run find each other -> arguments of init_process_group"""
    from torch.distributed import HashStore, PrefixStore
    from torch.distributed.rendezvous import rendezvous
    if not is_distributed():
        return dict(store=HashStore(), rank=0, world_size=1)
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
        return {}
    # After a restart, torchrun's store still contains the addresses of the dead processes, and
    # whoever reads them waits in vain. So each attempt uses names of its own. (With several
    # machines the attempts are not numbered alike.)
    store, rank, world_size = next(iter(rendezvous("env://", timeout=limit)))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dict(store=PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=world_size)


def explain(e, phase, advice):
    """
    The exception that ended a run -> a UserError that explains it, or the exception itself if it is
    a bug. phase, advice: what the run was doing, and what to try if memory ran out there
    """
    # the messages of CUDA and of the CPU. (We do not try a smaller batch: it might go unnoticed)
    if "out of memory" in str(e) or "can't allocate memory" in str(e):
        during = f" in {phase}" if phase else ""
        return UserError(f"out of memory{during}: try {advice or 'a smaller --B'}", who="me")
    if isinstance(e, dist.DistError) or isinstance(e, RuntimeError) and "gloo" in str(e):
        return UserError(f"lost another process: {str(e)[:200]}", who="me", exit_code=1)
    return e


@contextlib.contextmanager
def orderly_end(phase, advice):
    """Wraps a program that does not train: explains exceptions, and leaves the process group."""
    try:
        yield
    except RuntimeError as e:
        raise explain(e, phase, advice) from e
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


# --- signals --------------------------------------------------------------------------------------

# Ctrl-C; a machine is taken away; the connection is lost; the time of a Slurm job runs out (USR1,
# USR2); the limit on CPU time is reached; Ctrl-\
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGQUIT")


class Signal(NamedTuple):
    """A signal that this process received."""
    name: str  # SIGTERM
    when: float  # as time.time() gives it


class Signals:
    """
    Between catch() and restore(), the first signal that asks a run to stop is only noted, and the
    run stops after its step. A second one ends the process at once.
    """

    def __init__(self):
        self.noted = []  # of Signal
        self.before = {}  # signal number -> the handler to restore

    def catch(self):
        for name in STOP_SIGNALS:
            number = getattr(signal, name, None)  # Windows lacks some of them
            # under nohup, SIGHUP is ignored: a lost connection must not stop the run
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.note)

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before.clear()

    def note(self, number, frame):
        # Ctrl-C under torchrun is two signals: SIGINT from the terminal and SIGTERM from torchrun.
        # Within a second they count as one
        if self.noted and not (is_distributed() and time.time() - self.noted[0].when < 1):
            os._exit(128 + number)
        self.noted.append(Signal(signal.Signals(number).name, time.time()))
        if len(self.noted) == 1 and is_first_process():  # a handler must not call print
            with contextlib.suppress(OSError):  # the terminal is gone, or the disk is full
                os.write(2, b"stopping after this step; the same again stops at once\n")


# --- memory ---------------------------------------------------------------------------------------

def keep_freed_memory():
    """
    Make glibc keep up to 2 GB of freed memory, in blocks below 16 MB. Each step frees its
    gradients; if they were returned to the kernel, it would zero their pages again in the next
    step, which takes a tenth of a small step's time. Other C libraries have no such setting.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            # M_MMAP_THRESHOLD: above a block's gradients, below the MLP's activations at T=1024
            mallopt(-3, 2**24)
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
