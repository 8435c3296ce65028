"""Facts about settings: every flag has its help, and what was given wins over what a checkpoint says."""
import os
import subprocess
import sys

import pytest
import torch
from small_runs import ROOT, read_log, refusal

import train_gpt2
from support.settings import choose_batch
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


def test_the_batch_size_that_fits():
    """Without --B the largest one that divides is taken; with it, another total is proposed."""
    assert choose_batch(TrainConfig(), {}, 1) == (64, 8)
    assert choose_batch(TrainConfig(), {}, 8) == (64, 1)
    assert choose_batch(TrainConfig(total_batch_size=6 * 1024), {}, 1) == (6, 1)
    assert choose_batch(TrainConfig(total_batch_size=6 * 1024), {}, 2) == (3, 1)
    assert choose_batch(TrainConfig(B=5, total_batch_size=15 * 1024), {"B": 5}, 3) == (5, 1)
    refusal(choose_batch, TrainConfig(B=48), {"B": 48}, 1)
    refusal(choose_batch, TrainConfig(), {}, 3)  # no power of two is a multiple of three


@pytest.mark.parametrize("flags, said", [
    (["--val_tokens=10"], "val_tokens 10 is less than one row of T 32: try --val_tokens=32"),
    (["--seed=99999999999999"], "--seed=99999999999999: must be at least 0 and at most 8589934592"),
    (["--dist_timeout_s=99999999999"], "--dist_timeout_s=99999999999: must be at least 1 and at most 10000000"),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_numbers_that_cannot_work(flags, said, refused):
    assert said in refused(*flags)


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
