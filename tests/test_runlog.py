"""
Facts about the directory of a run: each step is in the log once, nothing of another run is lost, a restart continues
its own run.
"""
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from small_runs import TINY, contents, read_log, refusal

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


@pytest.mark.parametrize("flag", ["--init_from={log}/model_00002.pt", "--init_from={log}/../log/",
                                  "--init_from={log}/../link.pt", "--data_root={log}/log.txt"])
def test_what_a_run_starts_from_is_not_moved_aside(flag, train, tmp_path):
    """The line names another --log_dir. Otherwise the same command, typed again, would start from its own weights."""
    log = tmp_path / "log"
    train("log", "--max_steps=2", "--save_every=2")
    (tmp_path / "link.pt").symlink_to(log / "model_00002.pt")
    before = {path: path.read_bytes() for path in log.iterdir()}
    flag = flag.format(log=log)
    line = refusal(train, "log", flag, "--max_steps=2", "--max_lr=1e-3", "--T=8", "--block_size=32")
    assert f"holds {flag}, and a new run would move it aside: try --log_dir={log}2" in line
    assert {path: path.read_bytes() for path in log.iterdir()} == before
    train("log2", f"--init_from={log}", "--max_steps=2")


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
    first = runlog.open_log(log_dir, {"train_config": {}}, None, tensorboard=False)
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


def test_a_log_directory_that_cannot_be_written(text, refused):
    assert "cannot write to" in refused(f"--log_dir={text}/log") and text.exists()


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_a_log_directory_that_is_renamed(taken, train, tmp_path, monkeypatch, capsys):
    """
    `mv log mine` in step 4. The run goes on in a new log; if another run has taken the old name by then, in a directory
    of its own: it adds no lines to that run's log, and rotates none of its checkpoints away.
    """
    log, mine = tmp_path / "log", tmp_path / "mine"
    train("other", "--max_steps=2", "--save_every=1")
    real = train_gpt2.get_lr

    def renamed(step, config):
        if step == 4:
            log.rename(mine)
            if taken:
                shutil.copytree(tmp_path / "other", log)
        return real(step, config)
    monkeypatch.setattr(train_gpt2, "get_lr", renamed)
    flags = [*TINY, f"--data_root={tmp_path / 'text.txt'}", f"--log_dir={log}/", "--save_every=3", "--keep_last=1"]
    train_gpt2.run(flags)
    number = json.loads((mine / "settings.json").read_text())["run"]
    after = tmp_path / f"log_{number}" if taken else log
    assert f"was renamed or deleted: log and checkpoints from step 4 on are in {after}" in capsys.readouterr().out
    assert not taken or contents(log) == contents(tmp_path / "other")
    assert [*read_log(mine)["train"], *read_log(after)["train"]][-6:] == list(range(4, 10))
    assert sorted(path.name for path in mine.iterdir()) == [".lock", "log.txt", "model_00003.pt", "settings.json"]
    assert sorted(path.name for path in after.glob("*.pt")) == ["model_00010.pt"]
    assert json.loads((after / "settings.json").read_text())["run"] == number


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


@pytest.mark.parametrize("line", ["5 train inf", "5 train nan", "five train 3", "5 train", "5  train 3", "-5 train 3",
                                  "5 train 3 4", "5 train three"])
def test_a_line_that_is_no_step_stream_value(line, tmp_path):
    """It is somebody's note, or a number that no picture can show."""
    (tmp_path / "log.txt").write_text(f"0 train 4.5\n{line}\n1 train 4.4\n", encoding="utf-8")
    assert runlog.read_log(str(tmp_path))[0] == {"train": {0: 4.5, 1: 4.4}}


# --- which run is this? ---------------------------------------------------------------------------

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
    assert "move it into a directory of its own" in refused("--resume=auto")


def test_a_checkpoint_copied_into_another_run(train, refused, tmp_path):
    """Resumed there by its path, it would go on with that run's log and rotate its checkpoints away: refused."""
    train("other", "--max_steps=9", "--save_every=9")
    train("log", "--max_steps=2", "--save_every=1")
    stranger = tmp_path / "log" / "model_00009.pt"
    shutil.copy(tmp_path / "other" / "model_00009.pt", stranger)
    before = contents(tmp_path / "log")
    line = refused(f"--resume={stranger}", "--max_steps=12", "--save_every=1")
    assert f"holds --resume={stranger}" in line and "--log_dir=" in line
    assert contents(tmp_path / "log") == before


@pytest.mark.parametrize("name, words", [("log.txt", "Dear diary\n"), ("settings.json", '{"editor": "dark"}')])
def test_a_file_of_yours_with_the_name_of_a_log(name, words, refused, tmp_path):
    """An editor, too, writes a settings.json: a run into such a directory is refused, and moves nothing aside."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / name).write_text(words)
    assert f"{name} is not of a training run: choose another --log_dir" in refused()
    assert contents(tmp_path / "log") == {name: words.encode()}


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


def test_a_launch_on_several_machines_has_no_parent(launched, monkeypatch):
    """After a restart the first process may be on another machine, where torchrun is another process."""
    launched("e", 0)
    assert runlog.launch() == f"e {os.getppid()}"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert runlog.launch() == "e"


# --- a run carries its code -----------------------------------------------------------------------

@pytest.fixture
def repository(tmp_path):
    """A folder with one commit -> pathlib.Path"""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    git = ["git", "-C", str(folder), "-c", "user.name=me", "-c", "user.email=me@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    return folder


def test_the_code_of_a_run(repository):
    """The commit, and what has changed since: enough to have the same files again. Other untracked files are data."""
    (repository / "book.txt").write_text("a text to train on\n")
    code = runlog.describe_code(str(repository))
    assert len(code.pop("commit")) == 40 and code == {"clean": True, "diff": "", "untracked": []}
    (repository / "b.py").write_text("y = 1\n")
    assert not runlog.describe_code(str(repository))["clean"]
    (repository / "a.py").write_text("x = 2\n")
    code = runlog.describe_code(str(repository))
    assert "-x = 1\n+x = 2\n" in code["diff"] and code["untracked"] == ["b.py"]
    (repository / "a.py").write_text("x = 2\n" * 100_000)
    assert len(runlog.describe_code(str(repository))["diff"]) == runlog.MOST_DIFF


def test_without_git_nothing_is_said_of_the_code(repository, monkeypatch):
    """Nor of a folder that lies in a repository of something else."""
    (repository / "unpacked").mkdir()
    assert runlog.describe_code(str(repository / "unpacked")) == {}
    assert runlog.describe_code(str(repository.parent)) == {}
    monkeypatch.setenv("PATH", "")
    assert runlog.describe_code(str(repository)) == {}


def test_the_settings_name_code_and_command(train, tmp_path, monkeypatch):
    """What was typed, and which files answered."""
    monkeypatch.setattr(sys, "argv", ["train_gpt2.py", "--preset=laptop", "--data_root=my text.txt"])
    monkeypatch.setattr(runlog, "describe_code", lambda: {"commit": "abc"})
    train("log", "--max_steps=1")
    settings = json.loads((tmp_path / "log" / "settings.json").read_text())
    assert settings["command"] == "python train_gpt2.py --preset=laptop '--data_root=my text.txt'"
    assert settings["code"] == {"commit": "abc"}
