"""Facts about training: the schedule, the log, resuming, several processes. Real runs of a tiny model."""
import re
import types

import pytest
from small_runs import assert_same_bits

import train_gpt2
from train_gpt2 import TrainConfig, get_lr, load_checkpoint


def test_learning_rate():
    """A step at 1/715 of the maximum, the maximum after 715 steps, halfway down in the middle, a tenth at the end."""
    config = TrainConfig()
    assert get_lr(0, config) == pytest.approx(8.3916e-07, rel=1e-4)
    assert get_lr(714, config) == config.max_lr == get_lr(715, config)
    assert get_lr((715 + 19073) // 2, config) == pytest.approx((6e-4 + 6e-5) / 2)
    assert get_lr(19073, config) == config.min_lr == get_lr(10**6, config)
    assert get_lr(0, TrainConfig(warmup_steps=0, max_lr=3e-4, min_lr=3e-4)) == pytest.approx(3e-4)


def test_the_optimizer_is_the_one_that_was_asked_for(train, tmp_path):
    """Betas and weight decay reach AdamW; norms and biases are not decayed."""
    train("log", "--max_steps=1", "--save_every=1", "--beta1=0.8", "--beta2=0.9", "--weight_decay=0.3")
    groups = load_checkpoint(str(tmp_path / "log" / "model_00001.pt"))["optimizer"]["param_groups"]
    assert [(tuple(g["betas"]), g["weight_decay"]) for g in groups] == [((0.8, 0.9), 0.3), ((0.8, 0.9), 0.0)]


def test_the_log_and_the_console(train, tmp_path, capsys):
    """log.txt has `step stream value` lines, the console has the lecture's line; evals stand before the step."""
    log = train("log", "--max_steps=4", "--eval_every=2")
    steps = list(range(4))
    assert all(list(log[stream]) == steps for stream in ("train", "lr", "norm", "dt")) and list(log["val"]) == [0, 2, 4]
    assert log["train"][3] < log["train"][0]
    line = (r"step     0 \| loss: \d\.\d{6} \| lr \d\.\d{4}e-\d\d \| norm: \d\.\d{4} \| "
            r"dt: [\d.]+ms \| tok/sec: [\d.]+\n")
    out = capsys.readouterr().out
    assert re.search(line, out) and out.index("step     0 | validation") < out.index("step     0 | loss")
    assert re.search(r"step     2 \| validation loss: \d\.\d{4} \| \d+\.\d min left", out)
    assert (tmp_path / "log" / "settings.json").exists()


def test_the_clock_covers_the_step_only(train, monkeypatch):
    """An eval that takes a thousand seconds changes no dt. (Looking at this clock takes a millisecond.)"""
    clock = types.SimpleNamespace(now=0.0)

    def tick(seconds=0.001):
        clock.now += seconds
        return clock.now

    def slow_eval(*args):
        return tick(1000)
    monkeypatch.setattr(train_gpt2, "evaluate_val_loss", slow_eval)
    monkeypatch.setattr(train_gpt2.time, "time", tick)
    log = train("log", "--max_steps=3", "--eval_every=1")
    assert clock.now > 4000 and all(dt == 1.0 for dt in log["dt"].values())


@pytest.mark.parametrize("flags", [("--dtype=float32",), ("--dtype=bfloat16",), ("--dtype=float32", "--dropout=0.1"),
                                   ("--dtype=bfloat16", "--dropout=0.1")], ids=" ".join)
def test_resuming_changes_nothing(flags, train, tmp_path):
    """8 steps, then all state from the file, 2 more: bit for bit the 10 steps in one go, and the same log."""
    whole = train("whole", "--save_every=10", *flags)
    train("parts", "--save_every=4", *flags)
    (tmp_path / "parts" / "model_00010.pt").unlink()  # what came after step 8 is lost, but for its lines in the log
    parts = train("parts", "--resume=auto", "--save_every=4", *flags)
    assert_same_bits(tmp_path / "whole" / "model_00010.pt", tmp_path / "parts" / "model_00010.pt")
    del whole["dt"], parts["dt"]
    assert whole == parts


def test_start_from_other_weights(train, tmp_path):
    """--init_from takes a checkpoint's weights and shape, not its step: a new run that begins where the other ended."""
    first = train("first", "--save_every=10", "--eval_every=10")
    second = train("second", f"--init_from={tmp_path / 'first' / 'model_00010.pt'}", "--eval_every=10", "--max_steps=1")
    assert second["val"][0] == first["val"][10] and second["lr"][0] == first["lr"][0]
