"""Facts about what a clumsy user does: each is one line that says what to type, or a warning, and never a surprise."""
import numpy as np
import pytest
import torch
from small_runs import refusal, write_shards

from support.checkpoints import identify_stream
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


@pytest.mark.parametrize("change, said", [
    (lambda text: text.replace("First", "Fifth", 1), "tokens as before, but they are others"),
    (lambda text: text[:-100], "17,910 tokens, and it had 18,000"),
], ids=["another word", "shorter"])
def test_a_run_does_not_go_on_with_other_data(change, said, train, text, refused):
    """The order of the data is part of a run: after the text has changed, --resume says so and stops."""
    train("log", "--save_every=5", "--max_steps=5")
    text.write_text(change(text.read_text()))
    line = refused("--resume=auto")
    assert said in line and "--init_from=" in line


def test_data_may_grow(tmp_path, train, capsys):
    """More shards behind the old ones, as `fineweb.py --max_shards=10` makes after 3: the run goes on with them."""
    stream = write_shards(tmp_path / "shards", [500, 3000, 3000])
    flags = (f"--data_root={tmp_path / 'shards'}", "--tokenizer=gpt2", "--n_embd=8", "--save_every=5")
    train("log", *flags, "--max_steps=5")
    assert len(write_shards(tmp_path / "shards", [500, 3000, 3000, 1000])) == len(stream) + 1000
    capsys.readouterr()
    log = train("log", *flags, "--max_steps=7", "--resume=auto")
    assert list(log["train"]) == list(range(7)) and "has grown from 6,000 to 7,000 tokens" in capsys.readouterr().out


def test_a_stream_is_known_whatever_its_shards(tmp_path):
    """The same tokens in one shard or in five are the same stream."""
    for name, sizes in (("one", [10, 5000]), ("five", [10, 1, 999, 2000, 1500, 500])):
        write_shards(tmp_path / name, sizes)
    one, five = ([load_tokens(str(path)) for path in sorted((tmp_path / name).glob("*_train_*"))]
                 for name in ("one", "five"))
    assert len(five) == 5
    assert identify_stream(DataLoaderLite(one, 1, 8)) == identify_stream(DataLoaderLite(five, 1, 8))
    assert identify_stream(DataLoaderLite(one, 1, 8)) != identify_stream(DataLoaderLite(five[1:], 1, 8))


def test_a_checkpoint_that_names_no_stream_goes_on(tmp_path, train, capsys):
    """Those of older versions: a line, and the run goes on."""
    train("log", "--save_every=5", "--max_steps=5")
    path = tmp_path / "log" / "model_00005.pt"
    saved = torch.load(path, weights_only=True)
    del saved["stream"]
    torch.save(saved, path)
    assert list(train("log", "--resume=auto", "--max_steps=6")["train"]) == list(range(6))
    assert "does not say which data it was made on" in capsys.readouterr().out
