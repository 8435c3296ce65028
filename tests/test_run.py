"""
Facts about the record of a run: training is the same without it, and whatever ends a run, the state of its last turn is
on disk.
"""
import contextlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from small_runs import ROOT, TINY, assert_same_bits, read_log, refusal, stop_in_step

import train_gpt2
from support import checkpoints, settings
from support.run import Run
from support.shards import load_data

# --- training is the same without it --------------------------------------------------------------

EVALS = ("--max_steps=20", "--eval_every=5", "--save_every=5", "--dropout=0.1")


class NoRun:
    """A record that records nothing but what it is told, and is asked for nothing."""

    def __init__(self, *_):
        self.told = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def restore(self, *_, **__):
        return 0

    def turn(self, step, model, **state):
        self.model = model

    def end_if_any_process_stopped(self):
        pass

    def log(self, step, **values):
        values.pop("dt", None)
        self.told.append((step, values))

    def phase(self, name, if_out_of_memory):
        return contextlib.nullcontext()


class Recorded(Run):
    """A real run, which also remembers what it is told."""

    def __init__(self, *args):
        super().__init__(*args)
        self.told = []

    def log(self, step, **values):
        self.told.append((step, {name: value for name, value in values.items() if name != "dt"}))
        super().log(step, **values)


def train_with(kind, argv):
    """What train_gpt2.run does, with another kind of Run -> what it was told, the final weights"""
    found = settings.resolve(argv, "", train_gpt2.GPTConfig, train_gpt2.TrainConfig, train_gpt2.PRESETS,
                             train_gpt2.load_model)
    config = found.config
    data = load_data(config.data_root, config.tokenizer, config.T, found.start)
    gpt_config = replace(found.gpt_config, vocab_size=128)
    with kind(config, found.start) as record:
        train_gpt2.main(gpt_config, *found[1:], data, record)
    return record.told, {name: w.clone() for name, w in record.model.state_dict().items()}


def assert_same_training(a, b):
    (told, weights), (others, other_weights) = a, b
    assert [step for step, values in told if "val" in values] == [0, 5, 10, 15, 20] and len(told) == 25
    assert told == others, "not a digit may differ"
    assert all(w.equal(other_weights[name]) for name, w in weights.items())


def test_training_is_the_same_without_a_record(text, tmp_path):
    """Every loss, norm and rate, and the last bit of the weights: whoever reads train_gpt2.py may skip the seam."""
    argv = [*TINY, *EVALS, f"--data_root={text}", f"--log_dir={tmp_path / 'log'}"]
    assert_same_training(train_with(NoRun, argv), train_with(Recorded, argv))
    assert read_log(tmp_path / "log")["val"].keys() == {0, 5, 10, 15, 20}


SCRIPT = """
import os, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch, test_run
kind, out, *argv = sys.argv[1:]
torch.save(test_run.train_with(getattr(test_run, kind), argv), out + os.environ["RANK"])
"""


@pytest.mark.slow
def test_two_processes_train_the_same_without_a_record(text, tmp_path):
    """With NoRun the processes share nothing but gradients and sums, and take the same steps."""
    (tmp_path / "script.py").write_text(SCRIPT.format(root=ROOT))
    argv = [*TINY, *EVALS, f"--data_root={text}", f"--log_dir={tmp_path / 'log'}"]
    for kind in ("NoRun", "Recorded"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                   str(tmp_path / "script.py"), kind, str(tmp_path / kind), *argv]
        subprocess.run(command, check=True, capture_output=True, timeout=120,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
    for rank in "01":
        a, b = (torch.load(tmp_path / f"{kind}{rank}") for kind in ("NoRun", "Recorded"))
        assert_same_training(a, b)


def test_a_record_draws_no_random_numbers(train, monkeypatch):
    """Saving, logging and stopping leave PyTorch's random state as it is."""
    states = []
    for name in ("turn", "log", "end_if_any_process_stopped"):
        real = getattr(Run, name)

        def watched(self, *args, real=real, **kwargs):
            before = torch.get_rng_state()
            result = real(self, *args, **kwargs)
            states.append(before.equal(torch.get_rng_state()))
            return result
        monkeypatch.setattr(Run, name, watched)
    train("log", "--max_steps=3", "--eval_every=1", "--save_every=1")
    assert len(states) > 12 and all(states)


# --- whatever ends a run --------------------------------------------------------------------------

def fails_at(step, error, monkeypatch):
    """get_lr, which THE STEP calls after backward and before the update, raises at this step."""
    real = train_gpt2.get_lr

    def get_lr(now, config):
        if now == step:
            raise error
        return real(now, config)
    monkeypatch.setattr(train_gpt2, "get_lr", get_lr)


def test_an_exception_before_the_update_saves_the_turn(train, tmp_path, monkeypatch):
    """Step 7 has its gradients when it dies: the weights after 7 updates are saved, and the run continues exactly."""
    whole = train("whole")
    with monkeypatch.context() as m:
        fails_at(7, ValueError("a bug in the step"), m)
        with pytest.raises(ValueError, match="a bug in the step"):
            train("log", "--save_every=100")
    assert [path.name for path in (tmp_path / "log").glob("model_*.pt")] == ["model_00007.pt"]
    continued = train("log", "--save_every=100", "--resume=auto")
    assert continued["train"] == whole["train"]


def test_an_exception_after_the_update_began_saves_nothing(train, tmp_path, monkeypatch):
    """Half of the weights may be new by then: the state of the turn no longer exists."""
    def fails(optimizer, *args, **kwargs):
        raise ValueError("a bug in the optimizer")
    monkeypatch.setattr(torch.optim.AdamW, "step", fails)
    with pytest.raises(ValueError, match="a bug in the optimizer"):
        train("log", "--save_every=100")
    assert not list((tmp_path / "log").glob("model_*.pt"))


def test_what_cannot_be_saved_is_said(train, tmp_path, monkeypatch, capsys):
    """After a CUDA error nothing can be read from the card. Shares of weights need all processes."""
    with monkeypatch.context() as m:
        fails_at(3, RuntimeError("CUDA error: device-side assert triggered"), m)
        with pytest.raises(RuntimeError):
            train("log", "--save_every=100")
    assert "not saved: after a CUDA error nothing can be read from the GPU" in capsys.readouterr().out
    with monkeypatch.context() as m:
        m.setattr(checkpoints, "is_sharded", lambda model: True)
        record = Run(train_gpt2.TrainConfig(save_every=100), None)
        record.process = train_gpt2.Process(0, 2, *[None] * 6)
        record.state = {"model": None, "step": 3}
        record.save_after(KeyError("a bug"))
    assert "not saved: under --shard the weights are spread over all processes" in capsys.readouterr().out
    assert not list((tmp_path / "log").glob("model_*.pt"))


@pytest.mark.parametrize("name, advice", [
    ("wrap_model", "out of memory in creating the model: try a smaller --vocab_size or --n_embd"),
    ("get_lr", "out of memory in a step with --B=4: try --B=2"),
    ("evaluate_val_loss", "out of memory in validation: try "),
    ("print_samples", "out of memory in writing samples: try a smaller --block_size"),
])
def test_out_of_memory_names_the_phase(name, advice, train, monkeypatch):
    """One line, exit code 2, with what to try there."""
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(train_gpt2, name, out_of_memory)
    assert refusal(train, "log", "--max_steps=1").startswith(advice)


@pytest.mark.parametrize("step", [5, 10])
@pytest.mark.parametrize("name", ["evaluate_val_loss", "evaluate_hellaswag", "print_samples"])
def test_an_eval_without_memory_takes_no_weights_with_it(name, step, train, tmp_path, monkeypatch, capsys):
    """In the middle of a run (no save is due) and at its end: the weights before the eval are on disk, to the bit."""
    whole = train("whole", "--save_every=5", "--keep_last=9")
    monkeypatch.setattr(train_gpt2.hellaswag, "prepare", lambda tokenizer: None)
    monkeypatch.setattr(train_gpt2.hellaswag, "load_items_in_all_processes", lambda tokenizer: ["an item"])
    monkeypatch.setattr(train_gpt2, "evaluate_hellaswag", lambda *_: 0.25)
    # calls before the one that fails: at step 0 there are no samples
    results = [4.0] * (step // 5 - (name == "print_samples"))

    def evaluate(*_):
        if not results:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return results.pop()
    with monkeypatch.context() as m:
        m.setattr(train_gpt2, name, evaluate)
        assert "out of memory in" in refusal(train, "log", "--save_every=100", "--eval_every=5", "--hellaswag")
    path = f"model_{step:05d}.pt"
    assert [path.name for path in (tmp_path / "log").glob("model_*.pt")] == [path]
    assert_same_bits(tmp_path / "log" / path, tmp_path / "whole" / path)
    assert step == 10 or "stopped by an error: 5 steps are done; continue with --resume=auto" in capsys.readouterr().out
    assert train("log", "--resume=auto", "--save_every=100")["train"] == whole["train"]


def test_a_signal_ends_the_run_after_its_step(train, tmp_path, monkeypatch, capsys):
    """SIGTERM in step 4: the step is finished, saved, and said. The handlers are those of before afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    real = train_gpt2.get_lr
    monkeypatch.setattr(train_gpt2, "get_lr", lambda step, config: (
        os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None, real(step, config))[1])
    log = train("log", "--save_every=100")
    assert list(log["train"]) == list(range(5)) and signal.getsignal(signal.SIGTERM) == before
    out = capsys.readouterr().out
    assert "stopped by SIGTERM: 5 steps are done; continue with --resume=auto" in out
    assert checkpoints.read(str(tmp_path / "log" / "model_00005.pt"))["position"] == 5 * 256


def test_the_last_save_decides_the_exit_code(train, monkeypatch):
    """A run whose last checkpoint could not be written has not succeeded: exit code 1, for the script that waits."""
    monkeypatch.setattr(checkpoints, "save", lambda log_dir, keep_last, state, *_: state["step"] == 4)
    train("log", "--max_steps=4", "--save_every=2")
    monkeypatch.setattr(checkpoints, "save", lambda log_dir, keep_last, state, *_: state["step"] != 4)
    refusal(train, "log", "--max_steps=4", "--save_every=2", exit_code=1)


def test_a_stop_whose_save_fails_has_not_succeeded(train, monkeypatch):
    """Nobody may switch the machine off because a script has seen exit code 0: the last steps are not on disk."""
    stop_in_step(monkeypatch, 1)
    monkeypatch.setattr(checkpoints, "save", lambda *_: False)
    refusal(train, "log", "--save_every=100", exit_code=1)


# --- the console ----------------------------------------------------------------------------------

def test_the_line_of_a_step(train, capsys, monkeypatch):
    """The lecture's line, to the letter. Where the clock stands still the speed is wrong, and the run goes on."""
    train("log", "--max_steps=1")
    line = (r"step     0 \| loss: \d\.\d{6} \| lr \d\.\d{4}e-\d\d \| norm: \d\.\d{4} \| "
            r"dt: [\d.]+ms \| tok/sec: [\d.]+\n")
    assert re.search(line, capsys.readouterr().out)
    monkeypatch.setattr(train_gpt2.time, "perf_counter", lambda: 1.0)
    assert train("log", "--max_steps=2")["dt"] == {0: 0.0, 1: 0.0}
