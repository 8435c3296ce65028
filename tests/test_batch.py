"""Facts about B: it divides a step, it fits into every card, and the program says why it is what it is."""
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from small_runs import H100, ROOT, refusal

import train_gpt2
from support.batch import choose_batch
from train_gpt2 import GPTConfig, TrainConfig, replace


def choose(free=math.inf, processes=1, given=None, dtype=torch.bfloat16, hellaswag=True, preset="gpt2", **settings):
    """choose_batch with 124M's shape, or a preset's; free in bytes."""
    values = {name: train_gpt2.PRESETS[preset][name] for name in ("n_layer", "n_head", "n_embd")}
    plan = SimpleNamespace(gpt_config=GPTConfig(**values), config=TrainConfig(**settings), given_flags=given or {},
                           with_hellaswag=hellaswag)
    return choose_batch(plan, SimpleNamespace(num_processes=processes, dtype=dtype), free)


def test_a_whole_number_of_micro_batches_makes_a_step(capsys):
    """Without --B the largest one that divides is taken, and said if it is not the usual one; --B itself is obeyed."""
    assert choose() == (64, 8)
    assert choose(processes=8) == (64, 1)
    assert choose(B=5, total_batch_size=15 * 1024, given={"B": 5}, processes=3) == (5, 1)
    assert capsys.readouterr().out == ""
    assert choose(total_batch_size=6 * 1024) == (6, 1)
    assert capsys.readouterr().out == ("B 6: the largest up to 64 of which whole micro batches make 6144 tokens on 1 "
                                       "process(es)\n")
    assert choose(total_batch_size=6 * 1024, processes=2) == (3, 1)


def test_a_batch_that_does_not_divide_names_the_nearest_step():
    assert "try --total_batch_size=540672" in refusal(lambda: choose(B=48, given={"B": 48}))
    assert "= 3072: try --total_batch_size=525312" in refusal(lambda: choose(processes=3))  # no power of two does


@pytest.mark.parametrize("free, processes, B, line", [
    # what cards of 6 to 80 GB have free, in GB, when nobody else is there
    (6.1, 1, 2, "B 2: needs 5.2 of 6.1 GB free; 4 would need 6.5"),
    (8.1, 1, 4, "B 4: needs 6.5 of 8.1 GB free; 8 would need 8.9"),
    (15.6, 1, 16, "B 16: needs 14.3 of 15.6 GB free; 32 would need 25.1"),
    (25.0, 1, 16, "B 16: needs 14.3 of 25.0 GB free; 32 would need 25.1"),
    (42.0, 1, 32, "B 32: needs 25.1 of 42.0 GB free; 64 would need 46.8"),
    (84.0, 1, 64, "B 64: needs 46.8 of 84.0 GB free"),
    (84.0, 8, 64, "B 64: needs 48.4 of 84.0 GB free"),
    (15.6, 8, 8, "B 8: needs 10.5 of 15.6 GB free; 16 would need 15.9"),
])
def test_the_largest_batch_that_fits(free, processes, B, line, capsys):
    """One line says what was chosen and why not more: on 80 GB the lecture's 64, on 16 GB 16 (8 beside DDP)."""
    assert choose(free * 1e9, processes)[0] == B
    assert capsys.readouterr().out.strip() == line


def test_what_fits_depends_on_the_run():
    """Float32 keeps more; forgetting activations keeps less; a given B is taken at its word."""
    assert choose(15.6e9, dtype=torch.float32)[0] == 8
    assert choose(25e9, activation_checkpointing=True)[0] == 32
    assert choose(15.6e9, B=64, given={"B": 64})[0] == 64
    assert choose(15.6e9, B=8)[0] == 8  # a checkpoint's is kept where more would fit


def test_a_model_that_does_not_fit_names_the_flags():
    """124M on 4 GB, gpt2-xl on 16 GB: not with one row. To evaluate it only, 4 bytes a parameter do."""
    for free, preset in ((4.1e9, "gpt2"), (15.6e9, "gpt2-xl")):
        line = refusal(lambda: choose(free, preset=preset))  # noqa: B023 (called at once)
        assert re.search(rf"even with --B=1 a run needs \d+\.\d \(step\) of {free / 1e9} GB free", line)
        assert all(flag in line for flag in ("--shard", "--offload", "--activation_checkpointing"))
    assert choose(15.6e9, preset="gpt2-xl", B=8, max_steps=0)[0] == 8
    assert choose(15.6e9, preset="gpt2-xl", shard="all", offload=True, activation_checkpointing=True)[0] >= 4


# --- the whole program, on pretended cards ---------------------------------------------------------

# 4,096 tokens a step in rows of 256; nearly all its memory is for the logits of 8,064 ids
FLAGS = ("--tokenizer=char --dtype=float32 --no-compile --n_embd=32 --n_head=2 --n_layer=1 --block_size=256 --T=256 "
         "--total_batch_size=4096 --vocab_size=8064 --warmup_steps=0 --eval_every=0 --val_tokens=256 --no-hellaswag "
         "--save_every=1").split()


@pytest.fixture
def on_a_card(monkeypatch, text, tmp_path, capsys):
    """on_a_card(2e9, "--flag") trains where this machine's CPU says it has so many bytes free -> what it prints"""
    monkeypatch.setitem(train_gpt2.PRESETS["gpt2"], "B", 16)

    def run(free, *flags):
        card = replace(H100, device=torch.device("cpu"), free=free)
        monkeypatch.setattr(train_gpt2, "find_card", lambda *args: card)
        train_gpt2.run([*FLAGS, f"--data_root={text}", f"--log_dir={tmp_path / 'log'}", *flags])
        return capsys.readouterr().out
    return run


def test_a_run_takes_what_its_card_has_left(on_a_card, tmp_path):
    """
    All 16 rows on an empty card. Gone on with where another process fills most of it, half of them, and why is said;
    that is the run's from then on. --B wins. The data goes on where it was.
    """
    assert "B 16: needs 1.3 of 84.0 GB free\n" in on_a_card(84e9, "--max_steps=1")
    assert "B 8: needs 1.2 of 1.3 GB free; 16 would need 1.3\n" in on_a_card(1.32e9, "--max_steps=2", "--resume=auto")
    assert "B 8: needs 1.2 of 84.0 GB free\n" in on_a_card(84e9, "--max_steps=3", "--resume=auto")
    out = on_a_card(1.32e9, "--max_steps=4", "--resume=auto", "--B=16")
    assert "B 8 -> 16" in out and "needs" not in out
    saved = train_gpt2.load_checkpoint(str(tmp_path / "log" / "model_00004.pt"))
    assert saved["train_config"]["B"] == 16 and saved["position"] == 4 * 4096


def test_a_card_that_is_too_full(on_a_card):
    line = refusal(on_a_card, 1e9, "--max_steps=1")
    assert line.startswith("even with --B=1 a run needs 1.1 (step) of 1.0 GB free on the fullest card: try")


SCRIPT = """
import dataclasses, os, sys
sys.path.insert(0, {root!r})
import train_gpt2
ask = train_gpt2.find_card
def find_card(*args):
    return dataclasses.replace(ask(*args), free=(84e9, 2.42e9)[int(os.environ["RANK"])])
train_gpt2.find_card = find_card
train_gpt2.PRESETS["gpt2"]["B"] = 8
train_gpt2.run(sys.argv[1:])
"""


def test_the_fullest_card_decides_for_all(tmp_path, text):
    """Two processes, one with 84 GB free and one with 2.4: both take the rows that fit into the fuller card."""
    (tmp_path / "two.py").write_text(SCRIPT.format(root=ROOT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(tmp_path / "two.py"), *FLAGS, "--device=cpu", f"--data_root={text}", "--max_steps=1",
               f"--log_dir={tmp_path / 'log'}"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert "B 4: needs 2.2 of 2.4 GB free; 8 would need 2.3" in result.stdout
    assert "4096 tokens a step = B 4 * T 256 * 2 process(es) * 2 micro step(s)" in result.stdout
