"""Facts about the data: tokenizers, shards, and the one stream that all processes read."""
import numpy as np
import pytest
import torch
from small_runs import write_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from train_gpt2 import DataLoaderLite, load_tokens


def load(folder):
    return [load_tokens(path) for path in sorted(folder.glob("*_train_*.npy"))]


def test_y_is_x_moved_by_one():
    """The target of a token is the token after it; a row's last target is the next row's first token."""
    x, y = DataLoaderLite([np.arange(100)], B=2, T=8).next_batch()
    assert x.dtype == y.dtype == torch.int64
    assert x.tolist() == [list(range(8)), list(range(8, 16))]
    assert y.tolist() == [list(range(1, 9)), list(range(9, 17))]


@pytest.mark.parametrize("B, processes", [(12, 1), (4, 1), (1, 12), (3, 2), (2, 3), (1, 4)])
def test_a_step_is_the_same_tokens_for_every_split_of_the_work(B, processes, tmp_path):
    """Whatever B and the number of processes: step s reads the same tokens in the same order, across shards too."""
    stream = write_shards(tmp_path, [10, 101, 7, 50])
    T, tokens_per_step = 4, 48
    loaders = [DataLoaderLite(load(tmp_path), B, T, rank, processes) for rank in range(processes)]
    for step in range(20):  # 960 tokens: six epochs of 158
        read = [loader.next_batch()[0] for _ in range(tokens_per_step // (B * T * processes)) for loader in loaders]
        expected = np.take(stream, np.arange(step * tokens_per_step, (step + 1) * tokens_per_step), mode="wrap")
        assert torch.cat(read).flatten().tolist() == expected.tolist()


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6), start=st.integers(0, 10**9), n=st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_the_shards_are_one_circular_stream(sizes, start, n):
    """Reading n tokens anywhere is reading the concatenation of all shards, again and again from its beginning."""
    stream = np.random.default_rng(0).integers(0, 1000, sum(sizes))
    loader = DataLoaderLite(np.split(stream, np.cumsum(sizes)[:-1]), B=0, T=0)
    assert loader.read(start, n).tolist() == np.take(stream, np.arange(start, start + n), mode="wrap").tolist()


def test_no_drift_after_two_million_steps(tmp_path):
    """The position is an integer number of tokens, 10**12 of them: nothing is rounded."""
    stream = write_shards(tmp_path, [10, 1000, 999])
    loader = DataLoaderLite(load(tmp_path), B=4, T=8, process_rank=1, num_processes=2)
    loader.position = 2_000_000 * 524_288
    x, _ = loader.next_batch()
    expected = (2_000_000 * 524_288 + 4 * 8 + np.arange(32)) % 1999
    assert x.flatten().tolist() == stream[expected].tolist()
    assert loader.position == 2_000_000 * 524_288 + 64


def test_a_shard_is_mapped_not_loaded(tmp_path):
    """Private memory stays the same however large the shard: the file's pages belong to the file cache."""
    def private_kb():
        with open("/proc/self/status") as f:
            return next((int(line.split()[1]) for line in f if line.startswith("RssAnon")), 0)

    try:
        private_kb()
    except OSError:
        pytest.skip("needs /proc to see the memory of a process")
    write_shards(tmp_path, [10, 50_000_000])  # 100 MB
    before = private_kb()
    loader = DataLoaderLite(load(tmp_path), B=64, T=1024)
    for _ in range(200):
        loader.next_batch()
    assert private_kb() - before < 20_000


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_shards_of_both_widths(dtype, tmp_path):
    """uint16 for vocabularies up to 65,536, uint32 for larger ones."""
    write_shards(tmp_path, [4, 40], dtype=dtype)
    assert load(tmp_path)[0].dtype == dtype
    assert DataLoaderLite(load(tmp_path), 1, 8).next_batch()[0].tolist() == [list(range(4, 12))]
