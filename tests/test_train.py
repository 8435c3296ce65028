"""Facts about training: the schedule, the log, several processes. Real runs of a tiny model."""
import re
import types

import pytest
import torch
from conftest import read_log

import train_gpt2
from train_gpt2 import GPT, TrainConfig, get_lr


def test_learning_rate():
    """A step at 1/715 of the maximum, the maximum after 715 steps, halfway down in the middle, a tenth at the end."""
    config = TrainConfig()
    assert get_lr(0, config) == pytest.approx(8.3916e-07, rel=1e-4)
    assert get_lr(714, config) == config.max_lr == get_lr(715, config)
    assert get_lr((715 + 19073) // 2, config) == pytest.approx((6e-4 + 6e-5) / 2)
    assert get_lr(19073, config) == config.min_lr == get_lr(10**6, config)
    assert get_lr(0, TrainConfig(warmup_steps=0, max_lr=3e-4, min_lr=3e-4)) == pytest.approx(3e-4)


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
    assert re.search(r"step     2 \| validation loss: \d\.\d{4} \| \d+ min left", out)
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


def test_a_new_run_moves_the_old_one_aside(train, tmp_path, capsys):
    """Nothing of a run is lost by starting another one in the same place; --max_steps=0 neither writes nor moves."""
    first = train("log", "--max_steps=2", "--save_every=2")
    train("log", "--max_steps=3")
    assert "held another run" in capsys.readouterr().out
    [old] = (tmp_path / "log").glob("old_*")
    assert read_log(old) == first and (old / "model_00002.pt").exists()
    before = sorted(tmp_path.rglob("*"))
    train("log", "--max_steps=0")
    assert sorted(tmp_path.rglob("*")) == before and "validation loss" in capsys.readouterr().out


def test_only_the_newest_checkpoints_are_kept(train, tmp_path):
    train("log", "--save_every=2", "--keep_last=3")
    assert sorted(p.name for p in (tmp_path / "log").glob("*.pt")) == [f"model_{s:05d}.pt" for s in (6, 8, 10)]


def test_two_processes_take_exactly_the_steps_of_one(train, torchrun, tmp_path):
    """
    Losses and validation losses agree to 1e-5 over ten steps, with two micro steps in each process. (Set the sync flag
    after the forward instead of before it, and this fails: the gradients of all but the first micro step are lost.)
    """
    one = train("one", "--eval_every=5", "--B=4")
    result = torchrun(2, "two", "--eval_every=5", "--B=2", "--total_batch_size=256")
    assert result.returncode == 0, result.stderr
    two = read_log(tmp_path / "two")
    for stream, tolerance in (("train", 1e-5), ("norm", 2e-4), ("val", 1.01e-4)):
        assert one[stream].keys() == two[stream].keys()
        for step in one[stream]:
            assert abs(one[stream][step] - two[stream][step]) <= tolerance, (stream, step)


def test_nothing_is_compiled_after_the_first_step(train, monkeypatch):
    """The compiled model sees one shape only: evals, samples and HellaSwag go through the plain one."""
    needs_a_compiler()
    from torch._dynamo.utils import counters
    item = {"ctx": "The cat", "endings": ["sat down on it.", "sat.", "ran away from all that.", "is"], "label": 0}
    monkeypatch.setattr(train_gpt2.hellaswag, "try_download", lambda: None)
    monkeypatch.setattr(train_gpt2.hellaswag, "load_examples", lambda: [item] * 3)
    torch._dynamo.reset()
    counters.clear()
    log = train("log", "--compile", "--max_steps=4", "--eval_every=2", "--hellaswag", "--tokenizer=gpt2", "--n_embd=16")
    assert list(log["hella"]) == [0, 2, 4] and counters["stats"]["unique_graphs"] == 1


def test_compiled_steps_are_those_of_plain_python(train):
    """Compiling changes the speed only: the losses agree to float32's rounding."""
    needs_a_compiler()
    plain, compiled = train("plain", "--max_steps=5"), train("compiled", "--compile", "--max_steps=5")
    assert all(abs(plain["train"][s] - compiled["train"][s]) < 1e-4 for s in range(5))


def test_where_compiling_fails_training_goes_on(train, monkeypatch, capsys):
    """No C++ compiler, no Triton: one warning, and the same losses without it."""
    def compile_nothing(module):
        def forward(*args):
            raise torch._dynamo.exc.BackendCompilerFailed(compile_nothing, RuntimeError("no compiler here"), None)
        monkeypatch.setattr(broken := GPT(module.config), "forward", forward)
        return broken
    plain = train("plain", "--max_steps=3")
    monkeypatch.setattr(torch, "compile", compile_nothing)
    capsys.readouterr()
    broken = train("broken", "--max_steps=3", "--compile")
    assert capsys.readouterr().out.count("going on without torch.compile") == 1
    assert plain["train"] == broken["train"]


def needs_a_compiler():
    import torch._inductor.cpp_builder as cpp_builder
    try:
        cpp_builder.get_cpp_compiler()
    except Exception as e:
        pytest.skip(f"torch.compile needs a C++ compiler here: {e}")
