"""Facts about what a clumsy user does: each is one line that says what to type, or a warning, and never a surprise."""
import numpy as np
import pytest
from small_runs import refusal, write_shards

from train_gpt2 import DataLoaderLite, load_tokens


@pytest.mark.parametrize("flags, said", [
    (["--val_tokens=10"], "val_tokens 10 is less than one row of T 32: try --val_tokens=32"),
    (["--seed=99999999999999"], "--seed=99999999999999: must be at least 0 and at most 8589934592"),
    (["--dist_timeout_s=99999999999"], "--dist_timeout_s=99999999999: must be at least 1 and at most 10000000"),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_numbers_that_cannot_work(flags, said, refused):
    assert said in refused(*flags)


def test_the_largest_seed_trains(train):
    assert train("log", f"--seed={2**33}", "--max_steps=1")["train"][0] > 4


def test_a_warm_up_longer_than_the_run_is_said(train, capsys):
    """The learning rate would never get to where it was asked to go: no error, but worth a line."""
    train("log", "--warmup_steps=100", "--max_steps=3")
    assert "the warm-up takes 100 steps, the run 3" in capsys.readouterr().out
    train("log2", "--warmup_steps=3", "--max_steps=3")
    assert "warm-up" not in capsys.readouterr().out


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("harm, said", [(cut, "train_000001.npy ends at offset 436"),
                                        (lambda path: path.unlink(), "train_000001.npy cannot be read at offset")])
def test_a_shard_that_changes_while_it_is_read(harm, said, tmp_path):
    """Cut off, or gone from a network disk: a line with file and offset. (With a memory map it was a bus error.)"""
    stream = write_shards(tmp_path, [100, 2000])
    shard = load_tokens(str(tmp_path / "edufineweb_train_000001.npy"))
    loader = DataLoaderLite([shard], B=4, T=8)
    assert loader.next_batch()[0].flatten().tolist() == stream[:32].tolist()
    assert np.array_equal(shard, stream)
    harm(tmp_path / "edufineweb_train_000001.npy")
    assert said in refusal(lambda: [loader.next_batch() for _ in range(60)])
