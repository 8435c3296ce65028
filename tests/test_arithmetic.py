"""Facts about parameters, FLOPs and memory: what is computed is what is there."""
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from small_runs import ROOT, LiveStorages, refusal
from torch._subclasses.fake_tensor import FakeTensorMode

import hellaswag
import train_gpt2
from support.arithmetic import (CARDS, HELLASWAG_PREDICTIONS, HELLASWAG_TOKENS, count_parameters, flops_per_token,
                                largest_batch, mfu, peak, phases, total)


@pytest.mark.parametrize("card, peak", [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("Tesla T4", 65),
    ("Tesla V100-SXM2-16GB", 125), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA L4", 121), ("NVIDIA L40S", 362),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA A10G", None),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("Pretended GPU", None), ("", None)])
def test_the_share_of_a_cards_peak(card, peak):
    """124M at T = 1024 takes 8.55e8 FLOPs a token, for 100,000 tokens/s 8.6% of an H100. Unknown cards show nothing."""
    config = train_gpt2.GPTConfig(vocab_size=50257)
    flops = flops_per_token(config, 1024)
    assert flops == pytest.approx(8.55e8, rel=1e-3)
    expected = f" | mfu {100 * flops * 100_000 / (peak * 1e12):.1f}%" if peak else ""
    assert mfu(card, config, 1024, 100_000) == expected


SMALL = dict(block_size=256, n_layer=3, n_head=2, n_embd=128)


def autocast(dtype):
    """What train_gpt2 makes of a dtype's name, on the CPU."""
    return torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_activations_are_counted_right(dtype):
    """What autograd keeps for backward, counted tensor by tensor, is what the estimate says: 36 or 64 C bytes."""
    gpt_config = train_gpt2.GPTConfig(vocab_size=512, **SMALL)
    model, kept = train_gpt2.GPT(gpt_config), {}
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(t):
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    x = torch.zeros(4, 256, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast(dtype):
        _, loss = model(x, x)
    needs = phases(gpt_config, train_gpt2.TrainConfig(B=4, T=256), 1, dtype)["step"]
    copies = needs["16-bit weights"][0] if dtype == "bfloat16" else 0
    expected = needs["activations"][0] + 4 * 256 * 512 * 4 + copies
    assert loss.isfinite() and sum(kept.values()) == pytest.approx(expected, rel=0.02)


def beside_the_weights(model):
    """Counts what is alive, as LiveStorages does, but not the weights, which operations may return as views."""
    live = LiveStorages()
    live.sizes = {p.untyped_storage()._cdata: 0 for p in model.parameters()}
    return live


def own_needs(phase, gpt_config, config, dtype):
    """The bytes that a phase needs beside the state, without the allowance."""
    needs = phases(gpt_config, config, 1, dtype)[phase]
    return total(needs) - needs["state"][0] - needs["allowance"][0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("vocab_size", [128, 16384])
def test_what_a_step_and_its_validation_need(vocab_size, dtype):
    """
    The most bytes alive at once in eager code, for a vocabulary whose logits are nothing and for one whose logits are
    nearly all: never above the estimate, and not far below it. (16-bit copies are made in the first forward.)
    """
    gpt_config = train_gpt2.GPTConfig(vocab_size=vocab_size, **SMALL)
    config, model = train_gpt2.TrainConfig(B=16, T=256), train_gpt2.GPT(gpt_config)
    x = torch.zeros(16, 256, dtype=torch.long)
    with beside_the_weights(model) as live, torch.no_grad(), autocast(dtype):
        model(x, x)
    assert 0.7 < live.peak / own_needs("validation", gpt_config, config, dtype) < 1
    with beside_the_weights(model) as live, autocast(dtype):
        _, loss = model(x, x)
        loss.backward()
    gradients = 4 * count_parameters(gpt_config)
    assert 0.95 < live.peak / (own_needs("step", gpt_config, config, dtype) + gradients) < 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("vocab_size", [128, 16384])
def test_what_samples_need(vocab_size, dtype):
    """Four rows of 208 tokens, the longest that training writes: the last token's forward is the largest."""
    gpt_config = train_gpt2.GPTConfig(vocab_size=vocab_size, **SMALL)
    model = train_gpt2.GPT(gpt_config)
    with beside_the_weights(model) as live, autocast(dtype):
        model.generate(torch.zeros(4, 207, dtype=torch.long), 2)
    assert 0.8 < live.peak / own_needs("samples", gpt_config, train_gpt2.TrainConfig(B=4), dtype) < 1


class Blocks(LiveStorages):
    """
    How PyTorch hands out a card's memory, for large tensors: a new tensor takes the smallest free block it fits into,
    and leaves the rest as a free block. Only if it fits nowhere, memory is taken from the card, and never given back.
    """

    def __init__(self):
        super().__init__()
        self.taken, self.places, self.free = 0, {}, []  # a block: (bytes, number of its segment, start)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = set(self.sizes)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for key in self.sizes.keys() - before:
            self.place(key, self.sizes[key])
        return result

    def place(self, key, size):
        fitting = [block for block in self.free if block[0] >= size]
        if fitting:
            self.free.remove(min(fitting))
            room, segment, start = min(fitting)
        else:
            room, segment, start = size, self.taken, 0  # what was taken before: a number of its own
            self.taken += size
        self.places[key] = (size, segment, start)
        if room > size:
            self.free.append((room - size, segment, start + size))

    def gone(self, key):
        super().gone(key)
        size, segment, start = self.places.pop(key)
        for block in [b for b in self.free if b[1] == segment and start in (b[2] + b[0], b[2] - size)]:
            self.free.remove(block)
            size, start = size + block[0], min(start, block[2])
        self.free.append((size, segment, start))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_hellaswag_needs(dtype):
    """
    Two batches of 124M: 3,968 predictions, then the most that a batch may have, 16,384 tokens and 4,096 predictions.
    What is alive at once is less than two thirds, but PyTorch takes what the estimate says: the second batch's logits
    do not fit into the block of the first one's. (Tensors without contents: only their sizes are computed.)
    """
    gpt_config = train_gpt2.GPTConfig()
    first, second = ([hellaswag.Item([7] * context, [[8] * ending] * 4, 0)] * 16 for context, ending in
                     ((1024 - 4 * 61, 62), (1024 - 4 * 63, 64)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = train_gpt2.GPT(gpt_config).eval()
        blocks = Blocks()
        blocks.sizes = {p.untyped_storage()._cdata: 0 for p in model.parameters()}
        with blocks, torch.no_grad(), autocast(dtype):
            for items in (first, second):
                [batch] = hellaswag.make_batches(items, HELLASWAG_TOKENS, 1024)
                losses = hellaswag.batch_losses(model, batch, torch.device("cpu"))
    assert len(batch) * len(batch[0].ids) == HELLASWAG_TOKENS and len(losses) == HELLASWAG_PREDICTIONS
    needs = own_needs("hellaswag", gpt_config, train_gpt2.TrainConfig(B=16), dtype)
    assert blocks.taken == pytest.approx(needs, rel=0.05) and blocks.peak < 0.67 * needs


def test_a_compiled_step_needs_what_was_measured():
    """
    124M, B=64 and T=1024 on an H200: 31.1 GB in all when compiled. The estimate is above, because it must never be
    below, and at most a fifth above. Eager code needs 40 GB for the logits and their gradients alone.
    """
    gpt_config, config = train_gpt2.GPTConfig(), train_gpt2.TrainConfig(B=64)
    phase, compiled = peak(gpt_config, config, 1, compiled=True)
    assert phase == "step" and 31.1e9 < compiled < 1.2 * 31.1e9
    assert phases(gpt_config, config, 1)["step"]["logits"][0] == 64 * 1024 * 50304 * 12


def test_the_largest_batch_of_hellaswag_is_known():
    """The estimate's figures are those of hellaswag.py, which support cannot import."""
    assert hellaswag.BATCH_TOKENS["cuda"] == HELLASWAG_TOKENS and hellaswag.BATCH_PREDICTIONS == HELLASWAG_PREDICTIONS


def table_of_batches():
    """The table that --estimate prints -> (preset, GPUs, card in GB, B, flags) for each cell that has a B"""
    cells = []
    for preset in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        values = {name: train_gpt2.PRESETS[preset][name] for name in ("n_layer", "n_head", "n_embd")}
        for n in (1, 2, 4, 8):
            for card in CARDS:
                cell = largest_batch(train_gpt2.GPTConfig(**values), train_gpt2.TrainConfig(), n, card)
                if cell != "-":
                    B, flags = f"{cell} ".split(" ")[:2]
                    cells.append((train_gpt2.GPTConfig(**values), n, card, int(B), flags))
    return cells


def test_where_a_step_fits_evals_do():
    """
    For every B that is recommended, on cards of 8 to 80 GB: no eval needs 2% more than an eager step. Validation and
    HellaSwag, which are not compiled, may need a little more than a compiled step of a few rows.
    """
    cells = table_of_batches()
    assert len(cells) > 70
    for gpt_config, n, card, B, flags in cells:
        config = train_gpt2.TrainConfig(B=B, shard="all" if "s" in flags else "no", offload="o" in flags,
                                        activation_checkpointing="a" in flags)
        needs = {phase: total(of_phase)
                 for phase, of_phase in phases(gpt_config, config, n, compiled="s" not in flags).items()}
        assert max(needs.values()) <= 0.93e9 * card
        assert max(needs.values()) <= (1.02 if "s" in flags else 1.12) * needs["step"], (gpt_config, n, card, B, flags)
        assert max(needs["samples"], needs["save"]) < needs["step"]


def test_several_processes_hold_more():
    """DDP's buckets beside the gradients, 4 bytes a parameter, and NCCL's buffers; shares have no buckets."""
    gpt_config, config = train_gpt2.GPTConfig(), train_gpt2.TrainConfig(B=64)
    alone, together = (phases(gpt_config, config, n)["step"] for n in (1, 8))
    assert together["DDP's buckets"][0] == 4 * count_parameters(gpt_config) and "DDP's buckets" not in alone
    assert together["NCCL's buffers"][0] == 1e9
    assert "DDP's buckets" not in phases(gpt_config, replace(config, shard="all"), 8)["step"]


@pytest.fixture
def estimate(capsys):
    """estimate("--shard") -> what train_gpt2.py prints with --estimate; like --help, it ends with exit code 0."""
    def run(*flags):
        with pytest.raises(SystemExit) as end:
            train_gpt2.run(["--estimate", *flags])
        assert not end.value.code
        return capsys.readouterr().out
    return run


def test_what_large_models_need(estimate):
    """
    1558M parameters: 24.9 GB of weights, gradients and moments; an eighth of that on each of eight GPUs. After the
    lines for these settings comes the table of the largest B for each preset and card.
    """
    out = estimate("--preset=gpt2-xl")
    assert out.startswith("B 8, T 1024, --shard=no\n") and "state 24.92 (16 bytes * 1558M)" in out
    out = estimate("--preset=gpt2-xl", "--shard", "--activation_checkpointing")
    eight = out[out.index("8 GPU(s)") :]
    assert all(f"    {phase} " in eight for phase in ("step", "validation", "hellaswag", "samples", "save"))
    assert eight.count("state 3.12 (16 bytes * 1558M / 8)") == 5
    assert refusal(train_gpt2.run, ["--estimate", "--B=0"]) == "--B=0: must be at least 1"
    table = out.splitlines()
    assert len([line for line in table if line.startswith("| gpt2")]) == 16 and "| gpt2-xl | 1 |" in "\n".join(table)


def test_an_estimate_says_what_it_assumes(estimate):
    """Compiled code, but not with --shard: it needs 2 bytes a logit where eager code needs 12."""
    for flags, said, logits in ((["--B=8"], "the step compiled", 2), (["--no-compile"], "the step not compiled", 12),
                                (["--shard"], "the step not compiled", 12)):
        out = estimate(*flags)
        assert said in out and f" tokens * {logits} * 50,304)" in out[: out.index("    validation ")]


def test_an_estimate_loads_nothing_twice():
    """The table needs configs only: neither play.py nor a second train_gpt2, under its own name, is imported for it."""
    code = ("import runpy, sys; sys.argv = ['train_gpt2.py', '--estimate']\n"
            "try:\n    runpy.run_path('train_gpt2.py', run_name='__main__')\n"
            "except SystemExit as e:\n    print(e.code or 0, 'play' in sys.modules, 'train_gpt2' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
    assert "state 1.99 (16 bytes * 124M)" in out and out.endswith("\n0 False False\n"), out
