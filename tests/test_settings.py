"""Facts about settings: every flag has its help, and what was given wins over what a checkpoint says."""
import os
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from small_runs import ROOT, TINY, read_log, refusal

import train_gpt2
from support.console import UserError
from support.settings import parse_flags
from train_gpt2 import TrainConfig


def test_help_lists_every_flag_with_its_default():
    """--help is the docstring of the file, then each field of both configs with its reason."""
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), "--help"]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0 and train_gpt2.__doc__.strip().splitlines()[0] in out.stdout
    for cls in (train_gpt2.GPTConfig, train_gpt2.TrainConfig):
        for name, field in cls.__dataclass_fields__.items():
            assert f"--{name}" in out.stdout and f"[{field.default}]" in out.stdout


def test_resume_takes_its_settings_from_the_checkpoint(train, tmp_path, capsys):
    """Flags that are given win, and are named; the rest is as it was. The newest whole checkpoint is used."""
    train("log", "--save_every=5", "--keep_last=5")
    (tmp_path / "log" / "model_00010.pt").write_bytes((tmp_path / "log" / "model_00010.pt").read_bytes()[:10_000])
    capsys.readouterr()
    train_gpt2.run([f"--log_dir={tmp_path / 'log'}", "--resume=auto", "--max_lr=5e-3", "--device=cpu"])
    out = capsys.readouterr().out
    assert "model_00010.pt is not a usable checkpoint" in out and "model_00005.pt: 5 steps are done" in out
    assert "max_lr 0.01 -> 0.005" in out and list(read_log(tmp_path / "log")["train"]) == list(range(10))


def test_another_preset_than_the_checkpoints(train, tmp_path):
    """--preset=gpt2-medium --resume=auto beside a small model's checkpoint must not silently train the small model."""
    train("log", "--save_every=10")
    line = refusal(train_gpt2.run, ["--preset=debug", f"--log_dir={tmp_path / 'log'}", "--resume=auto"])
    assert "of another model: n_layer is 2, not 12" in line


@pytest.mark.parametrize("flags, said", [
    (["--val_tokens=10"], "val_tokens 10 is less than one row of T 32: try --val_tokens=32"),
    (["--seed=99999999999999"], "--seed=99999999999999: must be at least 0 and at most 8589934592"),
    (["--weight_decay=1e300"], "--weight_decay=1e+300: must be at least 0 and at most 1000"),
    (["--dist_timeout_s=99999999999"], "--dist_timeout_s=99999999999: must be at least 1 and at most 10000000"),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_numbers_that_cannot_work(flags, said, refused):
    assert said in refused(*flags)


def test_settings_of_odd_types_in_a_checkpoint(train, text, tmp_path, capsys):
    """What is taken from it is checked before it is used, and the file is named; a given flag mends it."""
    train("log", "--max_steps=1", "--save_every=1")
    path = tmp_path / "log" / "model_00001.pt"
    saved = torch.load(path, weights_only=True)
    for name, value in (("data_root", [1]), ("data_root", None), ("B", [2]), ("B", True), ("preset", ["x"])):
        torch.save({**saved, "train_config": {**saved["train_config"], name: value}}, path)
        line = refusal(train_gpt2.run, [f"--resume={path}", "--device=cpu", "--max_steps=2"])
        assert line.startswith(f"{path}: {name}={value}: must be of type")
    odd = {"B": torch.zeros(3), "data_root": "\x1b[31mred"}
    torch.save({**saved, "train_config": {**saved["train_config"], **odd}}, path)
    train_gpt2.run([f"--resume={path}", "--device=cpu", "--max_steps=2", "--B=4", f"--data_root={text}"])
    out = capsys.readouterr().out
    assert "B tensor([0., 0., 0.]) -> 4" in out and "data_root \ufffd[31mred -> " in out and "\x1b" not in out


def test_a_file_does_not_decide_where_we_write(train, text, tmp_path, monkeypatch):
    """A checkpoint from elsewhere says --log_dir=~/.ssh: a run that starts from it writes to log/ here all the same."""
    train("first", "--max_steps=1", "--save_every=1")
    saved = torch.load(tmp_path / "first" / "model_00001.pt", weights_only=True)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "settings.json").write_text("dear")
    saved["train_config"] |= {"log_dir": str(tmp_path / "keys"), "resume": "auto", "device": "abacus", "estimate": True}
    torch.save(saved, tmp_path / "stranger.pt")
    monkeypatch.chdir(tmp_path)
    train_gpt2.run([f"--init_from={tmp_path / 'stranger.pt'}", "--device=cpu"])
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["settings.json"]
    assert (tmp_path / "keys" / "settings.json").read_text() == "dear"
    assert (tmp_path / "log" / "log.txt").exists()


def test_a_run_goes_on_where_its_checkpoint_is(train, tmp_path, monkeypatch):
    """--resume=runs/a/model_00005.pt without --log_dir: in runs/a, wherever that has been moved to."""
    train("first", "--max_steps=1", "--save_every=1")
    (tmp_path / "first").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    train_gpt2.run([f"--resume={tmp_path / 'moved' / 'model_00001.pt'}", "--max_steps=2", "--device=cpu"])
    assert list(read_log(tmp_path / "moved")["train"]) == [0, 1] and not (tmp_path / "log").exists()


@pytest.mark.parametrize("flag", ["--resume=", "--init_from=", "--data_root="])
def test_an_empty_value_is_a_mistake(flag, refused, tmp_path):
    """--resume=$CHECKPOINT with a variable that is not set began a new run, and moved the old one aside."""
    assert f"{flag[:-1]} is empty: is a variable of your shell not set?" in refused(flag)
    assert not (tmp_path / "log").exists()


def test_of_a_flag_that_is_given_twice_the_last_counts(capsys):
    """A script that adds --B=8 to others' flags may mean it; who did not is told."""
    flags = ["--B=4", "--T=64", "--B", "8", "--T=64", "--shard=node", "--shard"]
    _, config, _ = parse_flags(flags, "", train_gpt2.PRESETS, train_gpt2.GPTConfig, TrainConfig)
    assert (config.B, config.T, config.shard) == (8, 64, "all")
    assert capsys.readouterr().out.splitlines() == ["--B is given twice: the last, 8, counts",
                                                    "--shard is given twice: the last, all, counts"]


# --- every flag that may be given with --resume ---------------------------------------------------

class Seen(Exception):
    """Raised by what stands in for a function that cannot run here: it has been called with the new value."""


def seen(*args):
    raise Seen(args)


def differs(log, plain, **_):
    """Other weights after the two steps: what they sent to the log is not what it was."""
    return log["train"][5] != plain["train"][5] or log["norm"][5] != plain["norm"][5]


# flag: what shows that it is in force. The flags that move a place or refuse to are tested by name below
EFFECTS = {
    "--max_lr=0.03": differs, "--min_lr=0.009": differs, "--warmup_steps=5": differs, "--weight_decay=20": differs,
    "--beta1=0.1": differs, "--beta2=0.1": differs, "--grad_clip=1e-6": differs, "--seed=7": differs,
    "--total_batch_size=512": differs, "--T=16": differs, "--dropout=0.4": differs,
    "--dtype=bfloat16": lambda out, **_: "cpu, bfloat16 (as asked for)" in out,
    "--B=2": lambda out, **_: "256 tokens a step = B 2 * T 32" in out,
    "--max_steps=7": lambda log, **_: max(log["train"]) == 6,
    "--eval_every=5": lambda log, **_: list(log["val"]) == [5, 6],
    "--val_tokens=320": lambda log, plain, **_: log["val"][6] != plain["val"][6],
    "--save_every=1": lambda files, **_: "model_00005.pt" in files,
    "--keep_last=1": lambda files, **_: sum(name.endswith(".pt") for name in files) == 1,
    "--tensorboard": lambda files, **_: any(name.startswith("events.") for name in files),
    "--compile": lambda out, **_: "going on without torch.compile: no compiler" in out,
    "--hellaswag": lambda out, **_: "HellaSwag" in out,
    "--init_from=gpt2": lambda out, **_: "resuming from" in out,  # for a first start: a checkpoint wins over it
    "--estimate": lambda out, **_: "GPU(s)" in out,
    "--device=mps": lambda error, **_: "is not available here" in error,
    "--preset=debug": lambda error, **_: "of another model" in error,
    "--tokenizer=gpt2": lambda error, **_: "vocabulary" in error,
    "--data_root=other.txt": lambda error, **_: "the data have changed" in error,
    "--shard=all": lambda error, **_: "'all'" in error,
    "--offload": lambda error, **_: "give --shard too" in error,
    "--activation_checkpointing": lambda error, **_: error == "recomputed",
    "--dist_timeout_s=77": lambda error, **_: error.endswith("77)"),
    "--log_dir=elsewhere": lambda files, **_: files == [],
    "--resume=log/model_00004.pt": lambda out, **_: "4 steps are done" in out,
}


def test_every_flag_is_in_the_list():
    names = {f.name for f in fields(TrainConfig)} | {"dropout"}
    assert {flag.removeprefix("--").split("=")[0] for flag in EFFECTS} == names


@pytest.mark.parametrize("flag", EFFECTS)
def test_a_flag_that_is_given_with_resume_is_in_force(flag, tmp_path, text, monkeypatch, capsys):
    """Or it is refused. None is announced and then forgotten: the optimizer's groups once came back from the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("x" * 100 + text.read_text()[100:])
    first = [*TINY, "--data_root=text.txt", "--log_dir=log", "--dropout=0.1", "--max_steps=4", "--save_every=4"]
    again = ["--resume=auto", "--max_steps=6", "--device=cpu", "--log_dir=log"]
    train_gpt2.run(first)
    shutil.copytree("log", "plain")
    train_gpt2.run([*again, "--log_dir=plain"])
    monkeypatch.setattr(train_gpt2, "try_compiled", lambda *args: "no compiler")
    monkeypatch.setattr(train_gpt2, "shard_model", seen)
    monkeypatch.setattr(train_gpt2, "meet", seen if "dist" in flag else lambda *args: None)
    if "dist" in flag:
        for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR="x", MASTER_PORT=1).items():
            monkeypatch.setenv(name, str(value))
    if "activation" in flag:
        monkeypatch.setattr(train_gpt2, "recompute", lambda *args, **kwargs: seen("recomputed"))
    capsys.readouterr()
    error = ""
    try:
        train_gpt2.run([*again, flag])
    except Seen as e:
        [args] = e.args
        error = "recomputed" if args == ("recomputed",) else str(args)
    except UserError as e:
        error = str(e)
    log = read_log(tmp_path / "log")
    files = sorted(os.listdir("log")) if max(log["train"]) > 3 else []
    assert EFFECTS[flag](log=log, plain=read_log(tmp_path / "plain"), out=capsys.readouterr().out, error=error,
                         files=files)
