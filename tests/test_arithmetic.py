"""Facts about parameters, FLOPs and memory: what is computed is what is there."""
import subprocess
import sys

import pytest
import torch
from small_runs import ROOT, refusal

import play
import train_gpt2
from support.arithmetic import flops_per_token, memory, mfu


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


def test_the_activations_are_counted_right():
    """What autograd keeps for backward in bfloat16, counted tensor by tensor, is what the estimate says, to 2%."""
    gpt_config = train_gpt2.GPTConfig(block_size=256, vocab_size=512, n_layer=3, n_head=2, n_embd=128)
    model, kept = train_gpt2.GPT(gpt_config), {}
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(t):
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    x = torch.zeros(4, 256, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        _, loss = model(x, x)
    needs = memory(gpt_config, train_gpt2.TrainConfig(B=4, T=256), 1)
    expected = needs["activations"][0] + 4 * 256 * 512 * 4 + needs["16-bit weights"][0]
    assert loss.isfinite() and sum(kept.values()) == pytest.approx(expected, rel=0.02)


def test_what_large_models_need(capsys):
    """1558M parameters: 24.9 GB of weights, gradients and moments; an eighth of it with shares on eight GPUs."""
    train_gpt2.run(["--preset=gpt2-xl", "--estimate"])
    assert "state 24.92 (16 bytes * 1558M)" in capsys.readouterr().out
    train_gpt2.run(["--preset=gpt2-xl", "--estimate", "--shard", "--activation_checkpointing"])
    line = capsys.readouterr().out.splitlines()[4]
    assert line.startswith("8 GPU(s)") and "state 3.12 (16 bytes * 1558M / 8)" in line
    refusal(train_gpt2.run, ["--estimate", "--B=0"])
    capsys.readouterr()
    play.main(["estimate"])
    table = capsys.readouterr().out.splitlines()
    assert len([line for line in table if line.startswith("| gpt2")]) == 16 and "| gpt2-xl | 1 |" in "\n".join(table)


def test_an_estimate_loads_nothing_twice():
    """The table needs configs only: neither play.py nor a second train_gpt2, under its own name, is imported for it."""
    code = ("import runpy, sys; sys.argv = ['train_gpt2.py', '--estimate']\n"
            "try:\n    runpy.run_path('train_gpt2.py', run_name='__main__')\n"
            "except SystemExit as e:\n    print('exit', e.code, 'play' in sys.modules, 'train_gpt2' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
    assert "state 1.99 (16 bytes * 124M)" in out and out.endswith("exit 0 False False\n"), out
