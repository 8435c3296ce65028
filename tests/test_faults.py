"""Facts about what happens to a run: kills, signals, full disks, numbers that are none, files that mean harm."""
import os
import signal

import pytest
from small_runs import refusal

import train_gpt2
from tools import faults
from train_gpt2 import load_checkpoint


# --- kills and signals ----------------------------------------------------------------------------

def test_a_run_killed_at_any_moment_loses_nothing(tmp_path):
    """SIGKILL twice, once inside a checkpoint write: in the end the same bits. (tools/faults.py does it 200 times.)"""
    assert faults.torture(str(tmp_path), kills=2, steps=100, processes=1, dtype="float32")[0] == 2


def test_an_eval_does_not_keep_a_stop_waiting(train, monkeypatch, tmp_path, capsys):
    """HellaSwag on a laptop takes half an hour: a signal ends it, and the checkpoint is written."""
    def signalled(signals, real=train_gpt2.end_if_stopped):
        if (tmp_path / "log" / "log.txt").exists() and "3 train" in (tmp_path / "log" / "log.txt").read_text():
            os.kill(os.getpid(), signal.SIGTERM)
        real(signals)
    monkeypatch.setattr(train_gpt2, "end_if_stopped", signalled)
    log = train("log", "--eval_every=4", "--save_every=100")
    assert list(log["train"]) == [0, 1, 2, 3] and list(log["val"]) == [0]
    assert "stopped by SIGTERM: 4 steps are done" in capsys.readouterr().out
    assert load_checkpoint(str(tmp_path / "log" / "model_00004.pt"))["step"] == 4


# --- the disk ---------------------------------------------------------------------------------------

def test_the_last_save_decides_the_exit_code(train, monkeypatch):
    """A run whose last checkpoint could not be written has not succeeded: exit code 1, for the script that waits."""
    monkeypatch.setattr(train_gpt2, "save_checkpoint", lambda *args, **kwargs: False)
    refusal(train, "log", "--max_steps=2", "--save_every=2", exit_code=1)


# --- the log ------------------------------------------------------------------------------------------

def test_ctrl_c_before_the_first_step_is_no_traceback(train, monkeypatch):
    """There is nothing to save yet: the program just ends (see test_console.py for its exit code)."""
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(train_gpt2, "load_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("log")
