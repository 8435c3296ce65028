"""Facts about which run a run is: a restart takes up its own, and a run that goes back takes its branch with it."""
import json
import os

import pytest
import torch
from small_runs import read_log

from support import checkpoints, identity


@pytest.fixture
def launched(monkeypatch):
    """launched("a", attempt): what torchrun tells the processes that it starts."""
    def set_variables(name, attempt):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
    return set_variables


def run_of(path):
    return checkpoints.read(str(path))["run"]


def test_a_run_has_a_number_and_keeps_it(train, tmp_path):
    """In settings.json and in each checkpoint. Resumed, it is the same run; a new one, or one elsewhere, is another."""
    log = tmp_path / "log"
    train("log", "--max_steps=4", "--save_every=2")
    number = run_of(log / "model_00002.pt")
    train("log", "--resume=auto", "--max_steps=6", "--save_every=2")
    assert number == run_of(log / "model_00006.pt") == json.loads((log / "settings.json").read_text())["run"]
    train("log2", f"--resume={log / 'model_00006.pt'}", "--max_steps=8", "--save_every=2")
    train("log", "--max_steps=2", "--save_every=2")
    assert len({number, run_of(tmp_path / "log2" / "model_00008.pt"), run_of(log / "model_00002.pt")}) == 3


def test_a_run_that_goes_back_takes_its_branch_with_it(train, tmp_path, capsys):
    """
    --resume=log/model_00004.pt among 2 to 8: what came after it moves aside, with a copy of the log, and is said; the
    new checkpoints stay, and auto goes on from them.
    """
    log, often = tmp_path / "log", ["--save_every=2", "--keep_last=2"]
    first = train("log", "--max_steps=8", "--save_every=2", "--keep_last=9")
    second = train("log", f"--resume={log / 'model_00004.pt'}", "--max_steps=6", "--max_lr=5e-3", *often)
    [aside] = log.glob("old_*")
    assert f"going back to step 4: the 2 newer checkpoint(s) of {log}" in capsys.readouterr().out
    assert sorted(path.name for path in aside.glob("*.pt")) == ["model_00006.pt", "model_00008.pt"]
    assert read_log(aside) == first and json.loads((aside / "settings.json").read_text())["run"]
    assert sorted(path.name for path in log.glob("*.pt")) == ["model_00004.pt", "model_00006.pt"]
    assert list(second["train"]) == list(range(6)) and second["lr"][5] != first["lr"][5]
    train("log", "--resume=auto", "--max_steps=7")
    assert "model_00006.pt: 6 steps are done" in capsys.readouterr().out


def test_auto_does_not_take_a_checkpoint_of_another_run(train, refused, tmp_path, capsys):
    """Somebody's checkpoint with a higher number, put into log_dir, is passed over; alone there, it is refused."""
    train("other", "--max_steps=9", "--save_every=9")
    train("log", "--max_steps=2", "--save_every=2")
    stranger = tmp_path / "log" / "model_00009.pt"
    stranger.write_bytes((tmp_path / "other" / "model_00009.pt").read_bytes())
    train("log", "--resume=auto", "--max_steps=3")
    out = capsys.readouterr().out
    assert "model_00009.pt is of another run" in out and "model_00002.pt: 2 steps are done" in out
    (tmp_path / "log" / "model_00002.pt").unlink()
    stranger.write_bytes((tmp_path / "other" / "model_00009.pt").read_bytes())
    assert f"go on with it by --resume={stranger}" in refused("--resume=auto")


def test_a_restart_goes_on_with_its_own_run(train, launched, tmp_path, capsys):
    """torchrun starts the processes again after a crash: from the newest checkpoint, though --resume was not given."""
    launched("a", 0)
    train("log", "--max_steps=4", "--save_every=2")
    launched("a", 1)
    log = train("log", "--max_steps=6", "--save_every=2")
    assert list(log["train"]) == list(range(6)) and "4 steps are done" in capsys.readouterr().out


def test_a_restart_does_not_go_on_with_an_old_run(train, launched, tmp_path, capsys):
    """It died before its log was begun: what lies in log_dir is another run, perhaps one that has ended."""
    train("log", "--max_steps=6", "--save_every=6")
    launched("b", 1)
    log = train("log", "--max_steps=5")
    assert "held another run" in capsys.readouterr().out and list(log["train"]) == list(range(5))


def test_a_restart_goes_back_to_the_checkpoint_that_was_named(train, launched, tmp_path, capsys):
    """--resume=log/model_00002.pt, and the first attempt died early: not to the newer one, which was left behind."""
    train("log", "--max_steps=6", "--save_every=2", "--keep_last=9")
    launched("c", 1)
    log = train("log", f"--resume={tmp_path / 'log' / 'model_00002.pt'}", "--max_steps=4", "--save_every=2")
    assert "model_00002.pt: 2 steps are done" in capsys.readouterr().out and list(log["train"]) == list(range(4))
    launched("c", 2)  # and once its log is begun, to its own newest
    train("log", f"--resume={tmp_path / 'log' / 'model_00002.pt'}", "--max_steps=5")
    assert "model_00004.pt: 4 steps are done" in capsys.readouterr().out


def test_a_restart_before_the_first_checkpoint_begins_again_in_its_log(train, launched, tmp_path):
    """The steps that a crash has cost come again, in the same log: there was no other run."""
    launched("d", 0)
    train("log", "--max_steps=3")
    launched("d", 1)
    assert list(train("log", "--max_steps=5")["train"]) == list(range(5))
    assert not list((tmp_path / "log").glob("old_*"))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "{\"run\": [1]}"])
def test_settings_that_say_nothing(text, tmp_path):
    """A settings.json that somebody has edited is no reason to end: the run has no number then."""
    (tmp_path / "settings.json").write_text(text)
    run, launch = identity.read(str(tmp_path))
    assert launch == "" and run in ("", [1]) and not identity.is_restart(str(tmp_path))


def test_a_launch_on_several_machines_has_no_parent(launched, monkeypatch):
    """After a restart the first process may be on another machine, where torchrun is another process."""
    launched("e", 0)
    assert identity.launch() == f"e {os.getppid()}"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert identity.launch() == "e"


def test_a_number_that_is_no_text_is_not_kept(train, tmp_path):
    train("log", "--max_steps=2", "--save_every=2")
    path = tmp_path / "log" / "model_00002.pt"
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "run": torch.zeros(3)}, path)
    (tmp_path / "log" / "settings.json").unlink()
    train("log", "--resume=auto", "--max_steps=4", "--save_every=2")
    assert isinstance(run_of(tmp_path / "log" / "model_00004.pt"), str)
