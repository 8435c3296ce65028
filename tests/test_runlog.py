"""Facts about the record of a run: each step stands in it once, and nothing of another run is lost."""
import os
import resource
import shutil
import subprocess
import sys

import pytest
from small_runs import ROOT, TINY, read_log, refusal, write_shards

import train_gpt2
from support import checkpoints, runlog
from support.files import MARK


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


def test_a_resumed_log_has_each_step_once(train, tmp_path):
    """Lines from the resumed step on go, half a line at the end too; somebody's notes stay, whatever their letters."""
    train("log", "--save_every=5", "--keep_last=9")
    (tmp_path / "log" / "model_00010.pt").unlink()
    path = tmp_path / "log" / "log.txt"
    path.write_bytes(b"a note: \xff no UTF-8\n" + path.read_bytes() + b"10 val 9.9\n4 tr")
    with subprocess.Popen(["true"]) as dead:
        pass
    (tmp_path / "log" / f"model_00010.pt{MARK}{dead.pid}").write_bytes(b"what a killed process left")
    train_gpt2.run([*TINY, f"--data_root={tmp_path / 'text.txt'}", f"--log_dir={tmp_path / 'log'}", "--resume=auto"])
    lines = path.read_bytes().splitlines()
    assert lines[0] == b"a note: \xff no UTF-8" and b"4 tr" not in lines and b"10 val 9.9" not in lines
    steps = [int(line.split()[0]) for line in lines[1:] if b" train " in line]
    assert steps == list(range(10)) and not list((tmp_path / "log").glob("*.tmp*"))


def test_a_run_that_goes_on_elsewhere_moves_what_it_finds_there_aside(train, tmp_path):
    """--resume=log/model_5.pt --log_dir=log2: the log of another run in log2 is not taken for its own."""
    train("log", "--save_every=5", "--max_steps=5")
    other = train("log2", "--max_steps=8")
    log = train("log2", f"--resume={tmp_path / 'log' / 'model_00005.pt'}", "--max_steps=7")
    assert list(log["train"]) == [5, 6]
    [old] = (tmp_path / "log2").glob("old_*")
    assert read_log(old) == other


def test_two_runs_cannot_write_to_one_directory(train, refused, tmp_path):
    """The second one says so and stops, before it moves or writes anything; when the first has ended it may."""
    log_dir = str(tmp_path / "log")
    first = runlog.open_log(log_dir, "data", {}, None, tensorboard=False)
    first.write(0, train="1.0")
    assert "another run is writing to" in refused()
    assert "another run is writing to" in refused("--resume=auto")
    assert (tmp_path / "log" / "log.txt").read_text() == "0 train 1.0\n"
    del first
    train("log", "--max_steps=1")


def test_a_full_disk_stops_no_training(train, tmp_path, monkeypatch, capsys):
    """While files cannot grow, each attempt is reported, training goes on, and lines of the log wait for space."""
    real = train_gpt2.get_lr

    def filling_up(step, config):  # the system's own limit on the size of a file stands for the end of the disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 if 4 <= step < 8 else resource.RLIM_INFINITY, -1))
        return real(step, config)
    monkeypatch.setattr(train_gpt2, "get_lr", filling_up)
    try:
        log = train("log", "--save_every=2", "--max_steps=10", "--keep_last=9")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, -1))
    out = capsys.readouterr().out
    assert out.count("could not be saved") == 2 and out.count("cannot be written") >= 2
    assert all(list(log[stream]) == list(range(10)) for stream in ("train", "lr", "norm", "dt"))
    names = sorted(p.name for p in (tmp_path / "log").iterdir() if not p.name.startswith("."))
    assert names == ["log.txt", *(f"model_{s:05d}.pt" for s in (2, 4, 10)), "settings.json"]
    assert checkpoints.read(str(tmp_path / "log" / "model_00004.pt"))["step"] == 4


@pytest.mark.parametrize("when", ["get_lr", "evaluate_val_loss"])
def test_a_log_directory_that_is_deleted_is_made_again(when, train, refused, tmp_path, monkeypatch, capsys):
    """During a step or an eval: what comes later is kept, its last checkpoint too, and no other run gets in."""
    real, log_dir, refusals = getattr(train_gpt2, when), tmp_path / "log", []

    steps = iter(range(5))  # both functions are called once for each of them

    def deleted(*args):
        step = next(steps, None)
        if step == 2:
            shutil.rmtree(log_dir)
        if step == 3:
            refusals.append(refused())
        return real(*args)
    monkeypatch.setattr(train_gpt2, when, deleted)
    log = train("log", "--max_steps=4", "--eval_every=1", "--save_every=2")
    assert list(log["train"]) == [2, 3] and f"{log_dir} was deleted" in capsys.readouterr().out
    assert checkpoints.read(str(log_dir / "model_00004.pt"))["step"] == 4 and (log_dir / "settings.json").exists()
    assert "another run is writing to" in refusals[0]


def test_a_log_directory_that_cannot_be_written(text, refused):
    assert "cannot write to" in refused(f"--log_dir={text}/log") and text.exists()


# --- read by other programs -----------------------------------------------------------------------

def test_a_log_is_read_whatever_happened_to_it(tmp_path):
    """Notes, a half line at the end, a step that stands twice (the later one counts), a NaN."""
    (tmp_path / "log.txt").write_text("# tried a new seed\n0 train 4.5\n0 val 4.6\n1 train 4.4\n0 train 4.55\n"
                                      "1 val nan\n2 trai")
    log, run_settings = runlog.read_log(str(tmp_path))
    assert log == {"train": {0: 4.55, 1: 4.4}, "val": {0: 4.6}} and run_settings == {}
    assert runlog.read_log(str(tmp_path / "log.txt"))[0] == log


def test_tensorboard_gets_the_streams_of_the_log(train, tmp_path):
    """--tensorboard: the same steps and values; without it nothing is written."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = train("log", "--tensorboard", "--max_steps=4", "--eval_every=2")
    events = event_accumulator.EventAccumulator(str(tmp_path / "log")).Reload()
    assert set(events.Tags()["scalars"]) == log.keys()
    for stream, values in log.items():
        assert {e.step: pytest.approx(e.value, rel=1e-6) for e in events.Scalars(stream)} == values
    train("plain")
    assert not list((tmp_path / "plain").glob("events*"))


def test_tensorboard_that_is_not_there(train, tmp_path, monkeypatch):
    """One line before anything is written or moved."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in refusal(train, "log", "--tensorboard")
    assert not (tmp_path / "log").exists()


def test_what_is_not_ours_stays_where_it_is(train, tmp_path):
    """A new run moves the old one aside and clears up after killed processes, by whole names; others stay."""
    train("log", "--max_steps=2", "--save_every=2")
    mine = ["notes.tmp2024", "report.tmp1.docx", "model_best.pt", "model_00003_backup.pt", "log.txt.bak",
            f"notes.txt{MARK}1", f"log.txt{MARK}{os.getppid()}", "train_gpt2.py"]
    for name in mine:
        (tmp_path / "log" / name).write_text("mine")
    train("log", "--max_steps=3", "--save_every=1", "--keep_last=1")
    train("log", "--max_steps=4", "--resume=auto", "--save_every=1", "--keep_last=1")
    assert all((tmp_path / "log" / name).read_text() == "mine" for name in mine)
    [old] = (tmp_path / "log").glob("old_*")
    assert sorted(path.name for path in old.iterdir()) == ["log.txt", "model_00002.pt", "settings.json"]
    assert [path.name for path in (tmp_path / "log").glob("model_0000?.pt")] == ["model_00004.pt"]


@pytest.mark.parametrize("name", ["log.txt", "settings.json", "model_00001.pt"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_what_only_looks_like_a_log(name, make, tmp_path, refused):
    """A pipe would keep us waiting for ever, a directory would cost the checkpoint of that name."""
    (tmp_path / "log").mkdir()
    make(tmp_path / "log" / name)
    assert f"{name} is no file: move it away" in refused()
    assert not (tmp_path / "log" / name).is_file()


def test_a_note_may_begin_with_a_number(train, tmp_path):
    """Only lines `step stream value` come again in a resumed run; "2026 was good" does not."""
    train("log", "--max_steps=4", "--save_every=2", "--keep_last=5")
    path = tmp_path / "log" / "log.txt"
    path.write_text(path.read_text() + "2026 was a good year\n2026 was good\n")
    (tmp_path / "log" / "model_00004.pt").unlink()
    with pytest.raises(ValueError):
        train("log", "--resume=auto", "--max_steps=4")  # read_log of the tests knows no notes
    text = path.read_text()
    assert "2026 was a good year\n2026 was good\n" in text and text.count("3 train") == 1


def test_a_log_that_stays_unwritten_is_an_error(train, tmp_path, monkeypatch):
    """Lines that still wait at the end are lost: the exit code says so."""
    def full(path, data):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(runlog, "append", full)
    line = refusal(lambda: train("log", "--max_steps=2"), exit_code=1)
    assert line == "the last checkpoint or the log could not be written"


def test_the_data_do_not_move_aside(tmp_path, text, refused):
    """--data_root=log/log.txt with --log_dir=log: a text by a name of ours would go into old_* as another run's log."""
    (tmp_path / "log").mkdir()
    data = tmp_path / "log" / "log.txt"
    data.write_text(text.read_text())
    assert "choose another --log_dir" in refused(f"--data_root={data}") and data.read_text() == text.read_text()


@pytest.mark.parametrize("folder", ["program", "data", "home"])
def test_a_log_directory_that_is_for_something_else(folder, tmp_path, refused, monkeypatch):
    """All its files were moved into old_*: the shards, or the program itself."""
    write_shards(tmp_path / "shards", [500, 3000])
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert runlog.PROGRAM == ROOT
    monkeypatch.setattr(runlog, "PROGRAM", str(tmp_path / "here"))
    place = {"program": tmp_path / "here", "data": tmp_path / "shards", "home": tmp_path / "me"}[folder]
    line = refused(f"--data_root={tmp_path / 'shards'}", "--tokenizer=gpt2", "--n_embd=8", f"--log_dir={place}")
    assert f"is the folder of {'a' if folder == 'home' else 'the'} {folder}" in line
    assert len(list((tmp_path / "shards").iterdir())) == 2


@pytest.mark.parametrize("line", ["5 train 1e999", "5 train inf", "5 train -1e308", f"{'9' * 500} train 3",
                                  f"{'9' * 5000} train 3", "² train 3", "5 train", "5  train 3", "-5 train 3",
                                  "5 train 3 4", "5 train three"])
def test_a_line_that_is_no_step_stream_value(line, tmp_path):
    """It is somebody's note: numbers without end, or near it, would end the picture of a run."""
    (tmp_path / "log.txt").write_text(f"0 train 4.5\n{line}\n1 train 4.4\n", encoding="utf-8")
    assert runlog.read_log(str(tmp_path))[0] == {"train": {0: 4.5, 1: 4.4}}


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, "{\"train_config\": [1]}", "{\"train_config\": {\"B\": [1]}}"],
                         ids=["list", "deep", "section", "value"])
def test_settings_that_somebody_has_edited(text, tmp_path):
    """What they do not say, or say in another type, is the default."""
    (tmp_path / "log.txt").write_text("0 train 4.5\n")
    (tmp_path / "settings.json").write_text(text)
    log, settings = runlog.read_log(str(tmp_path))
    assert log and isinstance(settings, dict)
    assert runlog.find_setting(settings, "train_config", "B", 64) == 64
    assert runlog.find_setting({"train_config": {"B": 8}}, "train_config", "B", 64) == 8
