"""Facts about what happens to a run: kills, signals, full disks, numbers that are none, files that mean harm."""
import json
import os
import resource
import shutil
import signal
import struct
import zipfile

import numpy as np
import pytest
import torch
from small_runs import TINY, fuzz, read_log, refusal, write_shards

import fineweb
import train_gpt2
from support import files
from tools import faults
from train_gpt2 import load_checkpoint, load_tokens
from support.shards import load_meta
from support.runlog import open_log
from support.processes import catch_signals


# --- kills and signals ----------------------------------------------------------------------------

def test_a_run_killed_at_any_moment_loses_nothing(tmp_path):
    """SIGKILL twice, once inside a checkpoint write: in the end the same bits. (tools/faults.py does it 200 times.)"""
    assert faults.torture(str(tmp_path), kills=2, steps=100, processes=1, dtype="float32")[0] == 2


def test_a_second_signal_ends_the_process_at_once(monkeypatch):
    """Ctrl-C twice: who does not want to wait for the checkpoint need not. Under torchrun an echo does not count."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    try:
        signals = catch_signals()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals[0][0] == "SIGINT" and not ended
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [128 + signal.SIGTERM] and len(signals) == 1
        monkeypatch.setenv("RANK", "0")
        signals = catch_signals()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # what torchrun makes of the same Ctrl-C
        assert len(ended) == 1
    finally:
        catch_signals(False)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


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
    assert load_checkpoint(str(tmp_path / "log" / "model_00004.pt"))["step"] == 4


def test_every_write_of_a_checkpoint_may_fail(tmp_path, monkeypatch, capsys):
    """The first write fails, then the second, ...: each time the older file stays as it was, no half file is left."""
    model = train_gpt2.GPT(train_gpt2.GPTConfig(block_size=8, vocab_size=16, n_layer=1, n_head=1, n_embd=8))
    optimizer = model.configure_optimizers(0.1, 1e-3)
    path, calls = tmp_path / "model_00001.pt", [0]
    path.write_bytes(b"the older one")
    real = open

    class Disk:
        def __init__(self, f, room):
            self.f, self.room = f, room

        def __getattr__(self, name):
            return getattr(self.f, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.f.close()

        def write(self, data):
            calls[0] += 1
            if calls[0] > self.room:
                raise OSError(28, "No space left on device")
            return self.f.write(data)
    for room in range(1000):
        calls[0] = 0
        monkeypatch.setattr(files, "open", lambda *args, room=room: Disk(real(*args), room), raising=False)
        if train_gpt2.save_checkpoint(str(path), 2, 0.1, model, optimizer, step=1):
            break
        assert path.read_bytes() == b"the older one" and os.listdir(tmp_path) == ["model_00001.pt"]
        assert "could not be saved" in capsys.readouterr().out
    assert room > 10 and torch.load(path, weights_only=True)["step"] == 1


def test_the_last_save_decides_the_exit_code(train, monkeypatch):
    """A run whose last checkpoint could not be written has not succeeded: exit code 1, for the script that waits."""
    monkeypatch.setattr(train_gpt2, "save_checkpoint", lambda *args, **kwargs: False)
    refusal(train, "log", "--max_steps=2", "--save_every=2", exit_code=1)


# --- the log ------------------------------------------------------------------------------------------

def test_a_resumed_log_has_each_step_once(train, tmp_path):
    """Lines from the resumed step on go, half a line at the end too; somebody's notes stay, whatever their letters."""
    train("log", "--save_every=5", "--keep_last=9")
    (tmp_path / "log" / "model_00010.pt").unlink()
    path = tmp_path / "log" / "log.txt"
    path.write_bytes(b"a note: \xff no UTF-8\n" + path.read_bytes() + b"10 val 9.9\n4 tr")
    (tmp_path / "log" / "model_00010.pt.tmp4711").write_bytes(b"what a killed process left")
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


def test_ctrl_c_before_the_first_step_is_no_traceback(train, monkeypatch):
    """There is nothing to save yet: the program just ends (see test_console.py for its exit code)."""
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(train_gpt2, "load_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("log")


def test_two_runs_cannot_write_to_one_directory(train, refused, tmp_path):
    """The second one says so and stops, before it moves or writes anything; when the first has ended it may."""
    log_dir = str(tmp_path / "log")
    first = open_log(log_dir, {"train_config": {"tensorboard": False}}, None)
    first.write(0, train="1.0")
    assert "another run is writing to" in refused()
    assert "another run is writing to" in refused("--resume=auto")
    assert (tmp_path / "log" / "log.txt").read_text() == "0 train 1.0\n"
    del first
    train("log", "--max_steps=1")


# --- numbers ------------------------------------------------------------------------------------------

def test_a_loss_that_is_not_finite_ends_the_run(train, refused):
    """Step, place in the data and the last good checkpoint in one line, before nan is saved or a night is wasted."""
    train("log", "--save_every=5", "--max_steps=5")
    err = refused("--resume=auto", "--max_steps=20", "--max_lr=1e30", "--min_lr=1e30", "--save_every=20")
    assert "nan" in err or "inf" in err
    assert "256 tokens from" in err and "offset" in err and "model_00005.pt" in err


def test_a_gradient_far_above_its_recent_range_is_reported(train, monkeypatch, capsys):
    """A hundred steps are its range: four times above the largest of them is worth a line, no more."""
    real = torch.nn.utils.clip_grad_norm_
    norms = iter([1.0, 2.0, 3.0] * 40)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_",
                        lambda *args: real(*args) * 0 + (50.0 if (n := next(norms, None)) is None else n))
    train("log", "--max_steps=122", "--total_batch_size=128")
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: step 120: norm 50.00, 1.00 to 3.00 before"]


# --- hostile files ------------------------------------------------------------------------------------

@pytest.fixture
def checkpoint(train, tmp_path):
    """A checkpoint of a tiny run, as bytes."""
    train("made", "--max_steps=1", "--save_every=1", "--n_embd=8", "--n_layer=1")
    return (tmp_path / "made" / "model_00001.pt").read_bytes()


def changed(data, path, **values):
    """A checkpoint with other values, well-formed otherwise."""
    path.write_bytes(data)
    torch.save({**torch.load(path, weights_only=True), **values}, path)
    return path


@pytest.mark.parametrize("change", [
    lambda c: dict(config={**c["config"], "n_layer": 10**9}),
    lambda c: dict(config={**c["config"], "n_embd": 2**40}),
    lambda c: dict(config={**c["config"], "vocab_size": -5}),
    lambda c: dict(config={**c["config"], "block_size": "many"}),
    lambda c: dict(config={**c["config"], "n_head": 0}),
    lambda c: dict(config={**c["config"], "surprise": 1}),
    lambda c: dict(config=[1, 2]),
    lambda c: dict(model=[]),
    lambda c: dict(model={**c["model"], "lm_head.weight": torch.zeros(1).expand(10**6, 10**7)}),
    lambda c: dict(model={**c["model"], "lm_head.weight": torch.zeros(128, 8, device="meta")}),
    lambda c: dict(model={**c["model"], "lm_head.weight": torch.full((128, 8), torch.nan)}),
    lambda c: dict(model={**c["model"], "lm_head.weight": "a text"}),
    lambda c: dict(model={}),
    lambda c: dict(step=-1),
    lambda c: dict(step="three"),
    lambda c: dict(position=2**70),
    lambda c: dict(train_config={**c["train_config"], "keep_last": "many"}),
    lambda c: dict(train_config={**c["train_config"], "grad_clip": -1.0}),
    lambda c: dict(train_config=7),
    lambda c: dict(tokenizer={"name": "char", "chars": 5}),
    lambda c: dict(tokenizer="gpt2"),
    lambda c: dict(tokenizer={}),
    lambda c: dict(optimizer={"state": {}, "param_groups": []}),
    lambda c: dict(optimizer=3),
    lambda c: dict(scaler="x"),
], ids=lambda v: "")
def test_a_checkpoint_made_to_attack(change, checkpoint, tmp_path, refused):
    """Sizes that ask for terabytes, views that pretend to be large, numbers that are none: one line, no harm."""
    path = tmp_path / "bad.pt"
    path.write_bytes(checkpoint)
    changed(checkpoint, path, **change(torch.load(path, weights_only=True)))
    refused(f"--resume={path}", "--n_embd=8", "--n_layer=1", "--max_steps=2")


def test_a_checkpoint_that_unpacks_to_any_size(checkpoint, tmp_path, refused):
    """A zip file may hold a kilobyte that unpacks to a terabyte: compressed records are refused unread."""
    path = tmp_path / "bomb.pt"
    path.write_bytes(checkpoint)
    with zipfile.ZipFile(path) as z, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in z.namelist():
            packed.writestr(name, z.read(name))
    assert "compressed" in refused(f"--resume={tmp_path / 'packed.pt'}")


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
@pytest.mark.parametrize("flag", ["--resume=", "--init_from=", "--data_root="])
def test_what_is_no_file(kind, flag, tmp_path, refused):
    """A pipe would keep us waiting for ever, /dev/zero would never end: only regular files are opened."""
    path = tmp_path / f"{kind}.pt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    refused(f"{flag}{path}")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_shard_that_is_no_file(kind, tmp_path, refused):
    write_shards(tmp_path / "shards", [500, 1000])
    path = tmp_path / "shards" / "edufineweb_train_000002.npy"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert "not a token shard" in refused(f"--data_root={tmp_path / 'shards'}")


def npy(header, data=b""):
    """A .npy file with any header."""
    header = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("header", [
    "{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000000,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (-5,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (99999999999999999999999999,), }",
    "{'descr': '>u2', 'fortran_order': False, 'shape': (4,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
    "{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (4,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': 4, }",
    "__import__('os').system('false')",
    "(" * 5000,
])
def test_a_shard_with_a_hostile_header(header, tmp_path):
    path = tmp_path / "edufineweb_train_000001.npy"
    path.write_bytes(npy(header, bytes(8)))
    refusal(load_tokens, str(path))


def fuzz_shards(folder, n):
    """Right is what numpy reads from these bytes."""
    path = os.path.join(folder, "edufineweb_train_000001.npy")
    np.save(path, (np.arange(300) % 97).astype(np.uint16))
    fuzz(path, lambda: load_tokens(path), lambda tokens: tokens.dtype in (np.uint16, np.uint32) and np.array_equal(
        tokens, np.load(path, allow_pickle=False)), n)


def fuzz_checkpoints(folder, data, n):
    """Right are the very weights: every record has a checksum."""
    path = os.path.join(folder, "model_00001.pt")
    with open(path, "wb") as f:
        f.write(data)
    weights = {name: w.clone() for name, w in load_checkpoint(path)["model"].items()}
    fuzz(path, lambda: load_checkpoint(path),
         lambda checkpoint: all(checkpoint["model"][name].equal(w) for name, w in weights.items()), n)


def test_mutated_shards(tmp_path):
    """Bytes changed or cut off: one line, or what numpy reads from these bytes; no traceback. (5,000: -m slow.)"""
    fuzz_shards(tmp_path, 300)


def test_mutated_checkpoints(tmp_path, checkpoint):
    """One line, or the very weights: every record has a checksum. (2,000 of them: -m slow.)"""
    fuzz_checkpoints(tmp_path, checkpoint, 100)


@pytest.mark.parametrize("change", [
    dict(n_layer=10**9), dict(n_embd=2**40, n_head=1), dict(vocab_size=-1), dict(n_positions="many"), dict(n_head=3),
    dict(n_layer=1.5), dict(vocab_size=10**12),
], ids=str)
def test_a_hugging_face_directory_made_to_attack(change, tmp_path):
    """Its config.json may ask for any size: nothing of that size is built."""
    train_gpt2.GPT(train_gpt2.GPTConfig(8, 16, 1, 1, 8)).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refusal(train_gpt2.load_model, str(tmp_path / "hf"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_spec.json"])
def test_mutated_hugging_face_directories(name, tmp_path):
    train_gpt2.GPT(train_gpt2.GPTConfig(8, 16, 1, 1, 8)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_spec.json").write_text(json.dumps({"name": "char", "chars": "abc"}))
    fuzz(tmp_path / name, lambda: train_gpt2.load_model(str(tmp_path)),
         lambda start: all(w.isfinite().all() for w in start["model"].values()), 150)


def test_mutated_meta_json(tmp_path):
    """The names of shards in it are plain names, its numbers are those of files that are there."""
    (tmp_path / "docs.txt").write_text("to be or not to be " * 50)
    fineweb.main([f"--files={tmp_path}/docs.txt", f"--out={tmp_path}/shards", "--tokenizer=char"])
    fuzz(tmp_path / "shards" / "meta.json", lambda: load_meta(str(tmp_path / "shards")),
         lambda tokenizer: tokenizer.spec["name"] in ("char", "gpt2"), 300)


@pytest.mark.slow
def test_thousands_of_mutated_shards(tmp_path):
    fuzz_shards(tmp_path, 5000)


@pytest.mark.slow
def test_thousands_of_mutated_checkpoints(tmp_path, checkpoint):
    fuzz_checkpoints(tmp_path, checkpoint, 2000)


def test_the_newest_good_checkpoint_is_found(train, tmp_path, capsys):
    """A damaged newest one is reported and the one before it used; if all are damaged nothing starts over."""
    whole = train("log", "--save_every=5", "--keep_last=9")
    for step in (10, 5):
        path = tmp_path / "log" / f"model_{step:05d}.pt"
        shutil.copy(path, tmp_path / f"{step}.pt")
        path.write_bytes(path.read_bytes()[:-500])
        if step == 10:
            assert train("log", "--resume=auto", "--save_every=5", "--keep_last=9")["train"] == whole["train"]
            said = capsys.readouterr().out
            assert "model_00010.pt is not a usable checkpoint" in said
            assert "model_00005.pt: 5 steps are done" in said
            path.write_bytes(path.read_bytes()[:-500])
    refusal(train, "log", "--resume=auto")
    assert not list((tmp_path / "log").glob("old_*"))
