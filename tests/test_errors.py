"""Everything a user can get wrong ends in one line on stderr and exit code 2: no traceback, no hang, nothing lost."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_runs import ROOT, refusal, write_shards

import train_gpt2
from train_gpt2 import TrainConfig
from support.settings import choose_batch


@pytest.mark.parametrize("flags, said", [
    (["--data_root=nowhere"], "no train shards in nowhere: run python fineweb.py, or try --preset=laptop"),
    (["--total_batch_size=1000"], "--total_batch_size=1024"),
    (["--B=3"], "--total_batch_size=288"),
    (["--T=64"], "try --T=32"),
    (["--n_embd=33"], "not divisible by n_head 2"),
    (["--no_such_flag=1"], "unrecognized arguments: --no_such_flag=1"),
    (["--max_step=3"], "unrecognized arguments"),
    (["--preset=gpt5"], "invalid choice: 'gpt5'"),
    (["--dtype=int8"], "invalid choice: 'int8'"),
    (["--tokenizer=words"], "invalid choice: 'words'"),
    (["--device=abacus"], "--device=abacus is not available here: try --device="),
    (["--device=cuda:x"], "--device=cuda:x is not available here"),
    (["--max_steps=many"], "invalid int value: 'many'"),
    (["--max_steps=-1"], "must be at least 0"),
    (["--B=0"], "--B=0: must be at least 1"),
    (["--max_lr=nan"], "--max_lr=nan"),
    (["--dropout=1.5"], "--dropout=1.5"),
    (["--grad_clip=0"], "--grad_clip=0"),
    (["--max_lr=1e-4"], "min_lr 0.001 is above max_lr 0.0001: try --min_lr=1e-05"),
    (["--resume=gone.pt"], "gone.pt is not a usable checkpoint"),
    (["--init_from=gone.pt"], "gone.pt is not a usable checkpoint"),
    (["--vocab_size=10"], "vocabulary"),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_wrong_flags(flags, said, refused):
    assert said in refused(*flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none(refused):
    assert "--device=cuda is not available here: try --device=" in refused("--device=cuda")


@pytest.mark.parametrize("damage, said", [
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a token shard"),
    (lambda path: path.write_bytes(path.read_bytes()[:20]), "not a token shard"),
    (lambda path: path.write_bytes(b""), "not a token shard"),
    (lambda path: np.save(path, np.zeros(1000, dtype=np.int64)), "int64"),
    (lambda path: np.save(path, np.zeros((10, 100), dtype=np.uint16)), "(10, 100)"),
    (lambda path: np.save(path, np.array([{"a": 1}] * 9), allow_pickle=True), "not a token shard"),
    (lambda path: np.save(path, np.zeros(0, dtype=np.uint16)), "(0,)"),
], ids=["truncated", "half a header", "empty file", "int64", "two dimensions", "pickled objects", "no tokens"])
def test_a_damaged_shard(damage, said, tmp_path, refused):
    """Found when the run starts, before the first step, and named."""
    write_shards(tmp_path / "shards", [500, 1000, 1000])
    damage(tmp_path / "shards" / "edufineweb_train_000002.npy")
    err = refused(f"--data_root={tmp_path / 'shards'}")
    assert said in err and "edufineweb_train_000002.npy" in err


def test_ids_beyond_the_vocabulary(tmp_path, refused):
    """Checked slice by slice as they are read: on a GPU such an id would be an assertion deep inside a kernel."""
    write_shards(tmp_path / "shards", [500, 600])
    path = tmp_path / "shards" / "edufineweb_train_000001.npy"
    tokens = np.load(path)
    tokens[555] = 50257
    np.save(path, tokens)
    err = refused(f"--data_root={tmp_path / 'shards'}")
    assert "edufineweb_train_000001.npy has token 50257 at offset 555" in err


def test_a_text_too_short_for_one_batch(text, refused):
    text.write_text("to be, or not to be")
    assert "too short for a batch" in refused()


@pytest.mark.parametrize("damage, flags, said", [
    (lambda path: path.write_bytes(path.read_bytes()[:-1000]), [], "not a usable checkpoint"),
    (lambda path: path.write_bytes(b"PK" + bytes(1000)), [], "not a usable checkpoint"),
    (lambda path: path.write_bytes(flipped(path.read_bytes())), [], "not a usable checkpoint"),
    (lambda path: None, ["--n_layer=1"], "n_layer is 2, not 1"),
    (lambda path: None, ["--tokenizer=gpt2"], "vocabulary"),
], ids=["truncated", "zeros", "a flipped bit", "another depth", "another tokenizer"])
def test_a_checkpoint_that_cannot_be_resumed(damage, flags, said, tmp_path, train, refused):
    train("log", "--save_every=10")
    path = tmp_path / "log" / "model_00010.pt"
    damage(path)
    assert said in refused(f"--resume={path}", *flags)


def test_another_preset_than_the_checkpoints(train, tmp_path):
    """--preset=gpt2-medium --resume=auto beside a small model's checkpoint must not silently train the small model."""
    train("log", "--save_every=10")
    line = refusal(train_gpt2.run, ["--preset=debug", f"--log_dir={tmp_path / 'log'}", "--resume=auto"])
    assert "of another model: n_layer is 2, not 12" in line


def flipped(data):
    """One bit in the middle of a weight: nothing but a checksum can see it."""
    middle = len(data) // 3
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_a_log_directory_that_cannot_be_written(text, refused):
    assert "cannot write to" in refused(f"--log_dir={text}/log") and text.exists()


def test_out_of_memory_names_half_the_batch(train, refused, monkeypatch):
    """Nothing is retried with another batch behind your back: the line says what to type."""
    def forward(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    monkeypatch.setattr(train_gpt2.GPT, "forward", forward)
    assert refused() == "out of memory with --B=4: try --B=2"


def test_the_batch_size_that_fits():
    """Without --B the largest one that divides is taken; with it, another total is proposed."""
    assert choose_batch(TrainConfig(), {}, 1) == (64, 8)
    assert choose_batch(TrainConfig(), {}, 8) == (64, 1)
    assert choose_batch(TrainConfig(total_batch_size=6 * 1024), {}, 1) == (6, 1)
    assert choose_batch(TrainConfig(total_batch_size=6 * 1024), {}, 2) == (3, 1)
    assert choose_batch(TrainConfig(B=5, total_batch_size=15 * 1024), {"B": 5}, 3) == (5, 1)
    refusal(choose_batch, TrainConfig(B=48), {"B": 48}, 1)
    refusal(choose_batch, TrainConfig(), {}, 3)  # no power of two is a multiple of three


def test_help_lists_every_flag_with_its_default():
    """--help is the docstring of the file, then each field of both configs with its reason."""
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), "--help"]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0 and train_gpt2.__doc__.strip().splitlines()[0] in out.stdout
    for cls in (train_gpt2.GPTConfig, train_gpt2.TrainConfig):
        for name, field in cls.__dataclass_fields__.items():
            assert f"--{name}" in out.stdout and f"[{field.default}]" in out.stdout
