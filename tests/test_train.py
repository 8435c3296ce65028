"""Facts about training: the schedule, the log, resuming, several processes. Real runs of a tiny model."""
import re
import sys
import types

import pytest
import torch
from small_runs import assert_same_bits, read_log, refusal

import train_gpt2
from train_gpt2 import GPT, GPTConfig, TrainConfig, get_lr, load_checkpoint


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


def test_resume_takes_its_settings_from_the_checkpoint(train, tmp_path, capsys):
    """Flags that are given win, and are named; the rest is as it was. The newest whole checkpoint is used."""
    train("log", "--save_every=5", "--keep_last=5")
    (tmp_path / "log" / "model_00010.pt").write_bytes((tmp_path / "log" / "model_00010.pt").read_bytes()[:10_000])
    capsys.readouterr()
    train_gpt2.run([f"--log_dir={tmp_path / 'log'}", "--resume=auto", "--max_lr=5e-3", "--device=cpu"])
    out = capsys.readouterr().out
    assert "model_00010.pt is not a usable checkpoint" in out and "model_00005.pt: 5 steps are done" in out
    assert "max_lr 0.01 -> 0.005" in out and list(read_log(tmp_path / "log")["train"]) == list(range(10))


def test_a_line_without_a_step_stays_in_the_log(train, tmp_path):
    """Notes that a person left in log.txt survive a resume."""
    train("log", "--save_every=5", "--keep_last=5")
    with open(tmp_path / "log" / "log.txt", "a") as f:
        f.write("# here the power went off\n")
    (tmp_path / "log" / "model_00010.pt").unlink()
    with pytest.raises(ValueError):
        train("log", "--resume=auto")  # read_log does not know what to make of it
    lines = (tmp_path / "log" / "log.txt").read_text().splitlines()
    assert "# here the power went off" in lines and sum(line.startswith("7 train") for line in lines) == 1


def test_only_the_newest_checkpoints_are_kept(train, tmp_path):
    train("log", "--save_every=2", "--keep_last=3")
    assert sorted(p.name for p in (tmp_path / "log").glob("*.pt")) == [f"model_{s:05d}.pt" for s in (6, 8, 10)]


def test_nothing_is_compiled_after_the_first_step(train, monkeypatch):
    """The compiled model sees one shape only: evals, samples and HellaSwag go through the plain one."""
    needs_a_compiler()
    from torch._dynamo.utils import counters
    item = {"ctx": "The cat", "endings": ["sat down on it.", "sat.", "ran away from all that.", "is"], "label": 0}
    monkeypatch.setattr(train_gpt2.hellaswag, "prepare", lambda: None)
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
            raise torch._dynamo.exc.TorchDynamoException("no compiler here")
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


def test_start_from_other_weights(train, tmp_path):
    """--init_from takes a checkpoint's weights and shape, not its step: a new run that begins where the other ended."""
    first = train("first", "--save_every=10", "--eval_every=10")
    second = train("second", f"--init_from={tmp_path / 'first' / 'model_00010.pt'}", "--eval_every=10", "--max_steps=1")
    assert second["val"][0] == first["val"][10] and second["lr"][0] == first["lr"][0]


def save_as_the_original(path, monkeypatch, **extra):
    cls = type("GPTConfig", (), {"__module__": "__main__", "__qualname__": "GPTConfig"})
    monkeypatch.setattr(sys.modules["__main__"], "GPTConfig", cls, raising=False)
    config = cls()
    config.__dict__ = dict(block_size=16, vocab_size=128, n_layer=1, n_head=2, n_embd=32)
    model = GPT(GPTConfig(**vars(config)))
    torch.save({"model": model.state_dict(), "config": config, "step": 19072, "val_loss": 3.0663, **extra}, path)
    return model


def test_a_checkpoint_of_the_original_loads(tmp_path, monkeypatch):
    """{'model', 'config': GPTConfig instance, 'step', 'val_loss'}, which torch.load refuses since torch 2.6."""
    model = save_as_the_original(tmp_path / "model_19072.pt", monkeypatch)
    c = load_checkpoint(str(tmp_path / "model_19072.pt"))
    assert (c["step"], c["val_loss"], c["config"]["n_embd"], c["tokenizer"]) == (19072, 3.0663, 32, {"name": "gpt2"})
    assert all(c["model"][name].equal(w) for name, w in model.state_dict().items())


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_with_code_in_it_runs_nothing(tmp_path, monkeypatch):
    """A pickle can name any function and have it called. Ours are read as plain data: one line, and nothing has run."""
    save_as_the_original(tmp_path / "bad.pt", monkeypatch, extra=Attack(str(tmp_path / "owned")))
    refusal(load_checkpoint, str(tmp_path / "bad.pt"))
    assert not (tmp_path / "owned").exists()
