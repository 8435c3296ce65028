"""Facts about a process: which card it takes, how a signal stops it, how it ends when memory does."""
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from small_runs import H100, ROOT, refusal
from torch.torch_version import TorchVersion

import train_gpt2
from support import processes
from support.processes import (
    TORCHRUN,
    Card,
    Signals,
    available_memory,
    check_kernels,
    explain,
    find_card,
    meet,
    min_over_processes,
    read_ranks,
    sum_over_processes,
)

# --- the card -------------------------------------------------------------------------------------

CUDA_126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CUDA_130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
OLDER, NEWER = "one before 2.15, built for CUDA 12.6", "a newer build, for CUDA 12.8 or later"


@pytest.mark.parametrize("capability, archs, install", [
    ((12, 0), CUDA_126, NEWER),  # RTX 50
    ((12, 1), CUDA_126, NEWER),  # GB10
    ((10, 3), CUDA_126, NEWER),
    ((10, 3), ("sm_90", "sm_120"), NEWER),  # between two, and in no build for CUDA 12.6
    ((10, 0), ("sm_90a",), NEWER),
    ((9, 0), ("sm_80", "sm_86"), NEWER),
    ((12, 0), (*CUDA_126, "compute_90"), None),  # PTX is compiled on the spot for later cards
    ((12, 1), CUDA_130, None),  # code for 12.0 runs on 12.1
    ((10, 3), CUDA_130, None),
    ((9, 0), CUDA_126, None),
    ((8, 6), ("sm_80",), None),
    ((7, 0), CUDA_126, None),
    ((7, 0), CUDA_130, OLDER),  # V100
    ((7, 0), (*CUDA_130, "compute_120"), OLDER),
    ((6, 1), CUDA_130, OLDER),  # GTX 1080
    ((6, 1), CUDA_126, None),
    ((8, 0), ("sm_86",), OLDER),
])
def test_a_card_that_this_pytorch_has_no_code_for(capability, archs, install):
    """One line that names the build to install, instead of `no kernel image` in the first layer."""
    card = replace(H100, capability=capability, archs=archs)
    if install is None:
        assert check_kernels(card) is None
    else:
        assert refusal(check_kernels, card).endswith(f"{capability[0]}.{capability[1]}: install {install}")


def test_apples_gpus_need_a_pytorch_that_computes_attention_correctly(monkeypatch):
    """Before 2.12, attention was silently wrong there with several rows of heads of 64 channels, which GPT-2 has."""
    card = Card("mps", torch.device("mps"))
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.0"))
    assert check_kernels(card) is None
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.1"))
    assert refusal(check_kernels, card).endswith("pip install --upgrade torch, or add --device=cpu")
    assert check_kernels(Card("cpu", torch.device("cpu"))) is None


def test_amds_cards_are_not_checked(monkeypatch):
    """ROCm calls them gfx942 and the like, in the same list: nothing to compare a compute capability with."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert check_kernels(replace(H100, capability=(9, 4), archs=("gfx90a", "gfx942"))) is None


@pytest.mark.parametrize("device, waits", [("cuda", 1), ("mps", 1), ("cpu", 0)])
def test_a_step_is_done_when_its_device_is(device, waits, monkeypatch):
    """A Mac's GPU is waited for, too: otherwise dt would be the time that queueing takes."""
    calls = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: calls.append(device))
    Card(device, torch.device(device)).synchronize()
    assert len(calls) == waits


@pytest.fixture
def four_cards(monkeypatch):
    """torch says that there are four H100s -> the devices that were set, as a list."""
    chosen = []
    gpu = SimpleNamespace(name="Pretended GPU", major=9, minor=0, is_integrated=False)
    answers = dict(is_available=True, device_count=4, get_device_properties=gpu, get_arch_list=list(H100.archs),
                   mem_get_info=(84.5e9, 85e9))
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(str(device)))
    return chosen


def test_one_gpu_for_each_process(four_cards):
    """Process 3 of its machine takes GPU 3; a fifth process finds no GPU."""
    card = find_card("auto", local_rank=3, num_processes=16)
    assert (card.kind, card.device, four_cards) == ("cuda", torch.device("cuda", 3), ["cuda:3"])
    assert card.free == 84.5e9  # choose_batch plans with it
    assert "no GPU 4" in refusal(find_card, "auto", 4, 16)


def test_one_process_may_choose_its_gpu(four_cards):
    assert find_card("cuda:2", 0, 1).device == torch.device("cuda", 2)
    assert find_card("auto", 0, 1).device == torch.device("cuda", 0)
    assert four_cards == ["cuda:2", "cuda:0"]


@pytest.mark.parametrize("available, free", [(70e9, 70e9), (100e9, 85e9)])
def test_a_gpu_that_shares_the_systems_memory(available, free, four_cards, monkeypatch, capsys):
    """CUDA counts files that the system remembers as used; the system would give them up. Not more than the GPU has."""
    gpu = SimpleNamespace(name="Pretended GB10", major=12, minor=1, is_integrated=True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4e9, 85e9))
    monkeypatch.setattr(processes, "available_memory", lambda otherwise: available)
    assert find_card("auto", 0, 1).free == free
    assert f"Pretended GB10 shares the system's memory: {free / 1e9} GB of it are available" in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="only Linux says it")
def test_memory_that_is_available_is_more_than_what_is_free():
    page = os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory(otherwise=0) < page * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none(refused):
    assert "--device=cuda is not available here: try --device=" in refused("--device=cuda")


# --- what all processes know together -------------------------------------------------------------

@pytest.mark.parametrize("function, value, op, device", [
    (sum_over_processes, torch.zeros((), device="meta"), dist.ReduceOp.SUM, "meta"),  # a loss on the GPU
    (sum_over_processes, True, dist.ReduceOp.SUM, "cpu"),
    (min_over_processes, 84e9, dist.ReduceOp.MIN, "cpu")])
def test_what_is_on_the_gpu_is_added_up_by_the_gpus(function, value, op, device, monkeypatch):
    """NCCL for a tensor of the card (here: of `meta`), gloo for Python's numbers, which need not wait for the card."""
    class Reduced(Exception):
        pass

    def reduce(tensor, asked):
        assert tensor.device.type == device and tensor.dtype == torch.float64 and asked == op
        raise Reduced
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", reduce)
    with pytest.raises(Reduced):
        function(value)


def never_arrives(tensor):
    threading.Event().wait()


def fails(tensor):
    raise RuntimeError("NCCL error: unhandled system error")


@pytest.mark.parametrize("all_reduce, reason", [
    (never_arrives, "no answer"), (fails, "RuntimeError: NCCL error: unhandled system error"),
    (lambda tensor: None, "RuntimeError: the sum is wrong"), (lambda tensor: tensor.mul_(2), None)])
def test_gpus_that_cannot_reach_each_other(all_reduce, reason, monkeypatch):
    """Two consumer cards whose peer-to-peer copies are broken: the first sum, which tries them, ends with advice."""
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    card = Card("cuda", torch.device("cpu"))
    if reason is None:
        return meet(card, 600)
    line = refusal(meet, card, 600 if reason != "no answer" else 0.2, exit_code=1)
    assert f" ({reason}): try NCCL_P2P_DISABLE=1" in line and "NCCL_DEBUG=INFO" in line


def test_one_process_is_its_own_sum():
    assert sum_over_processes(torch.tensor(2.5)) == 2.5 and min_over_processes(3) == 3.0


# --- the end of a process, and its memory ---------------------------------------------------------

@pytest.fixture
def signals():
    """A Signals; the handlers that were there before come back after the test."""
    signals = Signals()
    yield signals
    signals.restore()


def test_a_second_signal_ends_the_process_at_once(signals, monkeypatch):
    """Ctrl-C twice: whoever does not want to wait for the checkpoint need not."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.getsignal(signal.SIGTERM)
    signals.catch()
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.noted[0].name == "SIGINT" and not ended
    os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [128 + signal.SIGTERM]
    signals.restore()
    assert signal.getsignal(signal.SIGTERM) == before


def test_torchruns_echo_of_a_signal_does_not_count(signals, monkeypatch):
    """On Ctrl-C a process gets SIGINT from the terminal, and SIGTERM from torchrun, which got the same Ctrl-C."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setenv("RANK", "0")
    signals.catch()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert not ended


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGQUIT"])
def test_a_lost_connection_and_a_job_at_its_limit(name, signals):
    """Either asks a run to stop, as SIGTERM does. Where nohup has said that SIGHUP is to be ignored, it is."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        signals.catch()
        os.kill(os.getpid(), number)
        assert [s.name for s in signals.noted] == [name]
        signals.restore()
        signal.signal(number, signal.SIG_IGN)
        signals.catch()
        os.kill(os.getpid(), number)
        assert len(signals.noted) == 1
        signals.restore()
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("said, phase, advice, line", [
    ("CUDA out of memory. Tried to allocate 20.00 GiB.", "HellaSwag", "--no-hellaswag",
     "out of memory in HellaSwag: try --no-hellaswag"),
    ("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory", "", "",
     "out of memory: try a smaller --B")])
def test_out_of_memory_is_explained(said, phase, advice, line):
    """In the GPU's words or in the CPU's: the line says what was going on, and what to try."""
    assert str(explain(RuntimeError(said), phase, advice)) == line


def test_the_end_of_another_process_is_explained():
    """gloo and NCCL say it in many words. The exit code is 1: nothing was typed wrong."""
    error = explain(RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer"), "", "")
    assert str(error).startswith("lost another process: ") and error.exit_code == 1


def test_a_bug_is_not_explained():
    bug = TypeError("unsupported operand")
    assert explain(bug, "validation", "a smaller --B") is bug


@pytest.mark.parametrize("name, flags, line", [
    ("forward", [], "out of memory in a step with --B=4: try --B=2"),
    ("forward", ["--eval_every=1"], "out of memory in validation: try a smaller --B"),
    ("generate", [], "out of memory in writing samples: try a smaller --block_size"),
], ids=["a step", "validation", "samples"])
def test_out_of_memory_names_the_phase(name, flags, line, refused, monkeypatch):
    """Nothing is tried again with another batch behind your back: the line says what to type."""
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    monkeypatch.setattr(train_gpt2.GPT, name, fail)
    assert refused(*flags) == line


@pytest.mark.parametrize("flag", ["--vocab_size=100000000000", "--block_size=100000000000"])
def test_a_model_that_no_memory_holds(flag, refused):
    assert "out of memory in creating the model: try a smaller" in refused(flag)


FAULTS = """
import resource, sys
import numpy as np
from support.processes import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    gradients = [np.full(8_000_000 // 8, 1.0) for _ in range(20)]
    del gradients
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="a setting of glibc's")
def test_freed_memory_is_kept():
    """The same 160 MB again: 39,000 pages of 4 KB that the kernel would have to zero once more, or that are kept."""
    given_back, kept = (int(subprocess.run([sys.executable, "-c", FAULTS, word], cwd=ROOT, check=True, text=True,
                                           capture_output=True).stdout) for word in ("give", "keep"))
    assert kept < 1000 < given_back


# --- who is who -----------------------------------------------------------------------------------

WHOLE = dict(RANK="1", LOCAL_RANK="0", WORLD_SIZE="4", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")


@pytest.fixture
def torchruns_words(monkeypatch):
    """torchruns_words(RANK="0", ...) sets these variables of torchrun's, and no others."""
    def say(**words):
        for name in TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in words.items():
            monkeypatch.setenv(name, value)
    return say


def test_what_torchrun_says(torchruns_words):
    """Nothing: one process. Everything: rank, rank on this machine, how many."""
    torchruns_words()
    assert read_ranks() == (0, 0, 1)
    torchruns_words(**WHOLE)
    assert read_ranks() == (1, 0, 4)


@pytest.mark.parametrize("missing", TORCHRUN)
def test_half_of_what_torchrun_says_is_refused(missing, torchruns_words):
    """WORLD_SIZE=2 without RANK would train on half of each batch, and report half the loss."""
    torchruns_words(**{name: value for name, value in WHOLE.items() if name != missing})
    line = refusal(read_ranks)
    assert f"{missing} are not: start with torchrun" in line
