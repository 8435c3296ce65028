"""Facts about B: it divides a step, it fits into every card, and the program says why it is what it is."""
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_runs import H100, ROOT, refusal

import train_gpt2
from support import batch, checkpoints, processes
from support.batch import choose_batch
from train_gpt2 import GPTConfig, TrainConfig


def choose(free=math.inf, processes=1, dtype=torch.bfloat16, hellaswag=True, compiled=True, preset="gpt2", max_B=64,
           **settings):
    """choose_batch with 124M's shape, or a preset's; free in bytes."""
    values = {name: train_gpt2.PRESETS[preset][name] for name in ("n_layer", "n_head", "n_embd")}
    process = SimpleNamespace(num_processes=processes, dtype=dtype, card=replace(H100, free=free))
    return choose_batch(GPTConfig(**values), TrainConfig(hellaswag=hellaswag, **settings), max_B, process, compiled)


def test_a_whole_number_of_micro_batches_makes_a_step(capsys):
    """Without --B the largest one that divides is taken, and said if it is not the usual one; --B itself is obeyed."""
    assert choose() == 64
    assert choose(processes=8) == 64
    assert choose(B=5, total_batch_size=15 * 1024, processes=3) == 5
    assert capsys.readouterr().out == ""
    assert choose(total_batch_size=6 * 1024) == 6
    assert capsys.readouterr().out == ("B 6: the largest up to 64 of which whole micro-batches make 6144 tokens on 1 "
                                       "process(es)\n")
    assert choose(total_batch_size=6 * 1024, processes=2) == 3


def test_a_batch_that_does_not_divide_names_the_nearest_step():
    assert "try --total_batch_size=540672" in refusal(lambda: choose(B=48))
    assert "= 3072: try --total_batch_size=525312" in refusal(lambda: choose(processes=3))  # no power of two does


@pytest.mark.parametrize("free, num_processes, B, line", [
    # what cards of 6 to 80 GB have free, in GB, when nobody else is there
    (6.1, 1, 2, "B 2: needs 4.9 of 6.1 GB free, compiled; 4 would need 5.8"),
    (8.1, 1, 4, "B 4: needs 5.8 of 8.1 GB free, compiled; 8 would need 8.2"),
    (11.6, 1, 8, "B 8: needs 8.2 of 11.6 GB free, compiled; 16 would need 11.3"),
    (15.6, 1, 16, "B 16: needs 11.3 of 15.6 GB free, compiled; 32 would need 19.2"),
    (25.0, 1, 32, "B 32: needs 19.2 of 25.0 GB free, compiled; 64 would need 35.0"),
    (42.0, 1, 64, "B 64: needs 35.0 of 42.0 GB free, compiled"),
    (84.0, 8, 64, "B 64: needs 36.6 of 84.0 GB free, compiled"),
    (15.6, 8, 16, "B 16: needs 13.0 of 15.6 GB free, compiled; 32 would need 20.9"),
])
def test_the_largest_batch_that_fits(free, num_processes, B, line, capsys):
    """One line says what was chosen and why not more: from 40 GB on the lecture's 64, on 16 GB 16."""
    assert choose(free * 1e9, num_processes) == B
    assert capsys.readouterr().out.strip() == line


def test_what_fits_depends_on_the_run():
    """Eager code keeps more, float32 too; recomputing activations keeps less; a given B is taken at its word."""
    assert choose(15.6e9) == 16
    assert choose(15.6e9, compiled=False) == 8
    assert choose(15.6e9, dtype=torch.float32) == 8
    assert choose(15.6e9, activation_checkpointing=True) == 32
    assert choose(15.6e9, B=64) == 64
    assert choose(15.6e9, max_B=8) == 8  # a checkpoint's is kept where more would fit


def test_a_model_that_does_not_fit_names_the_flags():
    """124M on 4 GB, gpt2-xl on 16 GB: not with one row. To evaluate it only, 4 bytes a parameter do."""
    for free, preset in ((4e9, "gpt2"), (15.6e9, "gpt2-xl")):
        line = refusal(lambda: choose(free, preset=preset))  # noqa: B023 (called at once)
        assert re.search(rf"even with --B=1 a run needs \d+\.\d \(\w+\) of {free / 1e9} GB free", line)
        assert all(flag in line for flag in ("--shard", "--offload", "--activation_checkpointing"))
    assert choose(15.6e9, preset="gpt2-xl", max_B=8, max_steps=0) == 4
    assert choose(15.6e9, preset="gpt2-xl", compiled=False, shard="all", offload=True,
                  activation_checkpointing=True) >= 4


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
        monkeypatch.setattr(processes, "find_card", lambda *args: card)
        train_gpt2.run([*FLAGS, f"--data_root={text}", f"--log_dir={tmp_path / 'log'}", *flags])
        return capsys.readouterr().out
    return run


def test_a_run_takes_what_its_card_has_left(on_a_card, tmp_path):
    """
    All 16 rows on an empty card. Gone on with where another process fills most of it, half of them, and why is said;
    that is the run's from then on. --B wins. The data goes on where it was.
    """
    assert "B 16: needs 1.5 of 84.0 GB free, not compiled\n" in on_a_card(84e9, "--max_steps=1")
    assert "B 8: needs 1.2 of 1.4 GB free, not compiled; 16 would need 1.5\n" in on_a_card(1.4e9, "--max_steps=2",
                                                                                       "--resume=auto")
    assert "B 8: needs 1.2 of 84.0 GB free, not compiled\n" in on_a_card(84e9, "--max_steps=3", "--resume=auto")
    out = on_a_card(1.4e9, "--max_steps=4", "--resume=auto", "--B=16")
    assert "B 8 -> 16" in out and "needs" not in out
    saved = checkpoints.read(str(tmp_path / "log" / "model_00004.pt"))
    assert saved["train_config"]["B"] == 16 and saved["position"] == 4 * 4096


def test_where_compiling_fails_fewer_rows_fit(on_a_card, monkeypatch):
    """B is chosen again, and said again, because eager code needs more for the logits. A typed B stays."""
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(batch, "compiles_in_all_processes", lambda *args: False)
    out = on_a_card(1.45e9, "--max_steps=1", "--compile")
    assert re.search(r"B 16: .*, compiled\nB 8: .*, not compiled; 16 would need", out)
    assert "4096 tokens a step = B 8 * T 256 * 1 process(es) * 2 micro step(s)" in out
    assert "= B 16 * " in on_a_card(1.45e9, "--max_steps=1", "--compile", "--B=16")


def test_a_card_that_is_too_full(on_a_card):
    line = refusal(on_a_card, 1e9, "--max_steps=1")
    assert line.startswith("even with --B=1 a run needs 1.0 (samples) of 1.0 GB free on the fullest card: try")


SCRIPT = """
import dataclasses, os, sys
sys.path.insert(0, {root!r})
import train_gpt2
from support import processes
ask = processes.find_card
def find_card(*args):
    return dataclasses.replace(ask(*args), free=(84e9, 2.42e9)[int(os.environ["RANK"])])
processes.find_card = find_card
train_gpt2.PRESETS["gpt2"]["B"] = 8
train_gpt2.run(sys.argv[1:])
"""


@pytest.mark.slow
def test_the_fullest_card_decides_for_all(tmp_path, text):
    """Two processes, one with 84 GB free and one with 2.4: both take the rows that fit into the fuller card."""
    (tmp_path / "two.py").write_text(SCRIPT.format(root=ROOT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(tmp_path / "two.py"), *FLAGS, "--device=cpu", f"--data_root={text}", "--max_steps=1",
               f"--log_dir={tmp_path / 'log'}"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert "B 4: needs 2.2 of 2.4 GB free, not compiled; 8 would need 2.3" in result.stdout
    assert "4096 tokens a step = B 4 * T 256 * 2 process(es) * 2 micro step(s)" in result.stdout
