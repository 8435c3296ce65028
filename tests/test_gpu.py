"""
The lines that only a GPU runs, run without one: what torch would say of a card is pretended in one place, the Card that
find_card returns, so that no typing error waits for the rented machine. (What a kernel computes is not tested here.)
"""
import re
from dataclasses import replace

import pytest
import torch
from small_runs import H100, refusal
from torch.utils._python_dispatch import TorchDispatchMode

import train_gpt2
from support import processes
from train_gpt2 import DataLoaderLite, TrainConfig, choose_dtype, load_checkpoint, setup_distributed


@pytest.mark.parametrize("capability, dtype", [
    ((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((7, 0), torch.float16),
    ((6, 1), torch.float32)])
def test_dtype_by_compute_capability(capability, dtype):
    """bfloat16 from the A100 on, float16 on V100 and T4, float32 before."""
    card = replace(H100, capability=capability)
    chosen, reason = choose_dtype(TrainConfig(), card)
    assert chosen == dtype and f"{capability[0]}.{capability[1]}" in reason
    assert choose_dtype(TrainConfig(dtype="float32"), card) == (torch.float32, "as asked for")


def test_processes_with_cards_meet_over_nccl(monkeypatch):
    """And over gloo for what is in the CPU's memory, as with --offload."""
    met = []
    monkeypatch.setattr(train_gpt2, "find_card", lambda *args: H100)
    monkeypatch.setattr(train_gpt2, "meet", lambda *args: met.append(args))
    words = dict(RANK="11", LOCAL_RANK="3", WORLD_SIZE="16", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    process = setup_distributed(TrainConfig())
    assert (process.rank, process.num_processes, process.device) == (11, 16, H100.device)
    assert met == [("cpu:gloo,cuda:nccl", 600)]


def test_a_mac_has_no_torchrun(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    process = setup_distributed(TrainConfig())
    assert process.device == torch.device("mps") and process.dtype == torch.float32
    for name, value in dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="x", MASTER_PORT="1").items():
        monkeypatch.setenv(name, value)
    assert "without torchrun" in refusal(setup_distributed, TrainConfig())


def test_batches_for_a_gpu_are_pinned(monkeypatch):
    """So that they can be copied while the GPU computes."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t.shape) or t)
    DataLoaderLite([torch.arange(100).numpy()], 2, 8, device_type="cuda").next_batch()
    assert pinned == [(2, 8), (2, 8)]


def test_float16_skips_a_step_whose_gradients_overflow(train, tmp_path, monkeypatch):
    """float16 ends at 65,504. With too large a scale the step is left out, the scale halved, the weights unchanged."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, 2.0**60, enabled=enabled))
    train("log", "--dtype=float16", "--max_steps=1", "--save_every=1")
    torch.manual_seed(1337)
    saved = load_checkpoint(str(tmp_path / "log" / "model_00001.pt"))
    fresh = train_gpt2.GPT(train_gpt2.GPTConfig(**saved["config"]))
    assert saved["scaler"]["scale"] == 2.0**59
    assert all(saved["model"][name].equal(w) for name, w in fresh.state_dict().items())


def test_float16_with_a_good_scale_trains(train):
    """The losses follow those of float32 to float16's three digits; the scaler takes its scale out before clipping."""
    half, full = train("half", "--dtype=float16"), train("full")
    assert all(abs(half["train"][s] - full["train"][s]) < 0.05 for s in range(10))
    assert half["norm"][0] == pytest.approx(full["norm"][0], rel=0.02) and half["train"][9] < half["train"][0] - 0.5


def test_the_whole_program_on_a_pretended_gpu(train, monkeypatch, capsys):
    """
    A card with an H100's answers whose tensors live on the CPU, from the choice of the dtype to the last sample: it
    decides like an H100, waits for the device once a step, and shows what share of its peak is used.
    """
    waits = []
    card = replace(H100, device=torch.device("cpu"))
    monkeypatch.setattr(train_gpt2, "find_card", lambda *args: card)
    monkeypatch.setattr(processes.Card, "synchronize", lambda self: waits.append(self.name))
    log = train("log", "--dtype=auto", "--eval_every=5", "--save_every=5", "--no-compile")
    assert log["train"][9] < log["train"][0] and waits == [card.name] * 10
    out = capsys.readouterr().out
    assert "cuda, bfloat16 (native at compute capability 9.0)" in out
    assert len(re.findall(r"\| mfu \d+\.\d%", out)) == 10


class Waits(TorchDispatchMode):
    """Notes in `calls` each time that a tensor's value is asked for: on a GPU the program would wait for it."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.calls.append("waits")
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_gpu_once(train, monkeypatch):
    """
    Nothing in THE STEP asks for a number before its end, in any of its micro steps, so the GPU always has work queued.
    The step begins with its seed; after scaler.update() comes `synchronize`, and then the loss and norm are printed.
    """
    calls = []
    manual_seed, update = torch.manual_seed, torch.amp.GradScaler.update
    monkeypatch.setattr(torch, "manual_seed", lambda seed: calls.append("begins") or manual_seed(seed))
    monkeypatch.setattr(torch.amp.GradScaler, "update", lambda scaler: calls.append("ends") or update(scaler))
    with Waits(calls):
        train("log", "--max_steps=3", "--val_tokens=100")
    ends = [i for i, call in enumerate(calls) if call == "ends"]
    assert len(ends) == 3
    for i in ends:
        assert calls[i - 1] == "begins", "a value was asked for in the midst of the step"
        assert calls[i + 1] == "waits", "printing the loss asks for its value: waiting is seen here"
