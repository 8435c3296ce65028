"""Facts about checkpoints: the newest good one is found, the original's load, and no file does harm."""
import os
import shutil
import sys

import pytest
import torch
from small_runs import fuzz, refusal, write_shards

import train_gpt2
from support import checkpoints
from support.checkpoints import identify_stream
from support.runlog import is_checkpoint
from train_gpt2 import GPT, DataLoaderLite, GPTConfig, load_tokens


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
    before = sorted((tmp_path / "log").iterdir())
    refusal(train, "log", "--resume=auto")
    assert sorted((tmp_path / "log").iterdir()) == before


def test_only_the_newest_checkpoints_are_kept(train, tmp_path):
    train("log", "--save_every=2", "--keep_last=3")
    assert sorted(p.name for p in (tmp_path / "log").glob("*.pt")) == [f"model_{s:05d}.pt" for s in (6, 8, 10)]


def test_a_newer_one_that_somebody_has_put_there_counts_for_nothing(train, tmp_path, monkeypatch):
    """It appears during the run, with a higher step: the run's own are kept, and it stays."""
    real = train_gpt2.get_lr

    def put(step, config):
        (tmp_path / "log" / "model_99999.pt").write_text("mine")
        return real(step, config)
    monkeypatch.setattr(train_gpt2, "get_lr", put)
    train("log", "--max_steps=4", "--save_every=1", "--keep_last=1")
    assert sorted(p.name for p in (tmp_path / "log").glob("*.pt")) == ["model_00004.pt", "model_99999.pt"]
    assert (tmp_path / "log" / "model_99999.pt").read_text() == "mine"


@pytest.mark.parametrize("name, ours", [
    ("model_00005.pt", True), ("model_123456.pt", True), ("model_000005.pt", False), ("model_00000.pt", False),
    ("model_٠٠٠٠١.pt", False), ("model_best.pt", False), ("model_00005_backup.pt", False), ("model_5.pt", False)])
def test_names_of_ours(name, ours):
    """A name is ours if we would write it so: to the last zero."""
    assert is_checkpoint(name) == ours


def test_an_old_checkpoint_that_cannot_be_deleted(train, tmp_path, monkeypatch, capsys):
    """The new one was saved all the same: a warning says what is wrong, and the exit code is 0."""
    def refuse(path):
        raise PermissionError(1, "Operation not permitted", path)
    monkeypatch.setattr(os, "remove", refuse)
    train("log", "--max_steps=2", "--save_every=1", "--keep_last=1")
    assert "model_00001.pt could not be deleted (Operation not permitted)" in capsys.readouterr().out


def flipped(data):
    """One bit in the middle of a weight: nothing but a checksum can see it."""
    middle = len(data) // 3
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


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


@pytest.mark.parametrize("saved", [3, {"weights": {}}])
def test_a_file_that_is_no_checkpoint(saved, tmp_path, play_refuses):
    """torch.save writes anything; a checkpoint has a model and its config."""
    torch.save(saved, tmp_path / "other.pt")
    assert "it has no model and config" in play_refuses("info", tmp_path / "other.pt")


def test_weights_without_moments_are_not_resumed(checkpoint, refused):
    """AdamW would start again from zero without a word, for all of the weights or for some: --init_from does that."""
    saved = torch.load(checkpoint, weights_only=True)
    torch.save({name: value for name, value in saved.items() if name != "optimizer"}, checkpoint)
    assert f"start from its weights with --init_from={checkpoint}" in refused(f"--resume={checkpoint}")
    del saved["optimizer"]["state"]["transformer.wpe.weight"]
    torch.save(saved, checkpoint)
    assert "1 parameters have no moments" in refused(f"--resume={checkpoint}")


def test_weights_that_are_nan_are_refused(checkpoint, play_refuses):
    saved = torch.load(checkpoint, weights_only=True)
    saved["model"]["transformer.wpe.weight"][0, 0] = torch.nan
    torch.save(saved, checkpoint)
    assert "transformer.wpe.weight has numbers that are nan or infinite" in play_refuses("info", checkpoint)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_numbers_with_a_fraction(dtype, checkpoint, play_refuses):
    """int8 and bool would load without a word, as other weights; every floating type of 16 bits or more is welcome."""
    file = torch.load(checkpoint, weights_only=True)
    name = "transformer.h.0.ln_1.weight"
    file["model"][name] = file["model"][name].to(dtype)
    torch.save(file, checkpoint)
    if dtype.is_floating_point:
        assert checkpoints.read(checkpoint)["model"][name].dtype == dtype
    else:
        assert f"{name} is {str(dtype)[6:]}" in play_refuses("info", checkpoint)


# --- those of the original build-nanogpt ----------------------------------------------------------

def save_as_the_original(path, monkeypatch, **extra):
    cls = type("GPTConfig", (), {"__module__": "__main__", "__qualname__": "GPTConfig"})
    monkeypatch.setattr(sys.modules["__main__"], "GPTConfig", cls, raising=False)
    config = cls()
    config.__dict__ = dict(block_size=16, vocab_size=128, n_layer=1, n_head=2, n_embd=32)
    model = GPT(GPTConfig(**vars(config)))
    torch.save({"model": model.state_dict(), "config": config, "step": 19072, "val_loss": 3.0663, **extra}, path)
    return model


def test_a_checkpoint_of_the_original_loads(tmp_path, monkeypatch):
    """{'model', 'config': GPTConfig instance, 'step', 'val_loss'}, which torch.load refuses since torch 2.6."""
    model = save_as_the_original(tmp_path / "model_19072.pt", monkeypatch)
    c = checkpoints.read(str(tmp_path / "model_19072.pt"))
    assert (c["step"], c["val_loss"], c["config"]["n_embd"], c["tokenizer"]) == (19072, 3.0663, 32, {"name": "gpt2"})
    assert all(c["model"][name].equal(w) for name, w in model.state_dict().items())


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_with_code_in_it_runs_nothing(tmp_path, monkeypatch):
    """A pickle can name any function and have it called. Ours are read as plain data: one line, and nothing has run."""
    save_as_the_original(tmp_path / "bad.pt", monkeypatch, extra=Attack(str(tmp_path / "owned")))
    refusal(checkpoints.read, str(tmp_path / "bad.pt"))
    assert not (tmp_path / "owned").exists()


# --- damaged at random -----------------------------------------------------------------------------

@pytest.fixture
def checkpoint_bytes(train, tmp_path):
    """A checkpoint of a tiny run, as bytes."""
    train("made", "--max_steps=1", "--save_every=1", "--n_embd=8", "--n_layer=1")
    return (tmp_path / "made" / "model_00001.pt").read_bytes()


def test_a_damaged_end_of_the_zip_file(tmp_path, checkpoint_bytes):
    """is_zipfile raises an error of its own where the record of 64-bit sizes names a second disk."""
    data = bytearray(checkpoint_bytes)
    data[data.rindex(b"PK\x06\x07") + 16] = 2
    (tmp_path / "bad.pt").write_bytes(data)
    assert "none, or a part of one" in refusal(checkpoints.read, str(tmp_path / "bad.pt"))


def fuzz_checkpoints(folder, data, n):
    """Right are the very weights: every record has a checksum."""
    path = os.path.join(folder, "model_00001.pt")
    with open(path, "wb") as f:
        f.write(data)
    weights = {name: w.clone() for name, w in checkpoints.read(path)["model"].items()}
    fuzz(path, lambda: checkpoints.read(path),
         lambda checkpoint: all(checkpoint["model"][name].equal(w) for name, w in weights.items()), n)


def test_mutated_checkpoints(tmp_path, checkpoint_bytes):
    """One line, or the very weights: every record has a checksum. (2,000 of them: -m slow.)"""
    fuzz_checkpoints(tmp_path, checkpoint_bytes, 100)


@pytest.mark.slow
def test_thousands_of_mutated_checkpoints(tmp_path, checkpoint_bytes):
    fuzz_checkpoints(tmp_path, checkpoint_bytes, 2000)


# --- the data that it was made on -----------------------------------------------------------------

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


def test_a_text_may_not_grow(train, text, refused):
    """Its last tenth is for validation. With more text behind it, that tenth would be trained on."""
    train("log", "--save_every=5", "--max_steps=5")
    text.write_text(text.read_text() + text.read_text()[:5000])
    line = refused("--resume=auto")
    assert "22,500 tokens, and it had 18,000" in line and "--init_from=" in line


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


def test_the_flags_of_the_optimizer_win_over_the_file(train, tmp_path):
    """AdamW's groups come back with its moments; weight decay and betas are those of the command line all the same."""
    train("log", "--max_steps=2", "--save_every=2")
    train("log", "--resume=auto", "--max_steps=4", "--save_every=2", "--weight_decay=20", "--beta1=0.5")
    groups = checkpoints.read(str(tmp_path / "log" / "model_00004.pt"))["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {20.0, 0.0}
    assert all(group["betas"] == (0.5, 0.95) for group in groups)


@pytest.mark.parametrize("flags", [["--max_steps=5"], ["--max_steps=0"]])
def test_a_run_does_not_end_before_its_checkpoint(flags, train, refused, tmp_path):
    """Steps done cannot be undone: nothing is written, no line of the log is lost; the way to evaluate is named."""
    train("log", "--save_every=10")
    before = {path: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    line = refused("--resume=auto", *flags)
    assert "model_00010.pt has done 10 steps" in line and "--init_from=" in line and "--max_steps=0" in line
    assert {path: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before
    train("log", "--resume=auto")  # all steps done: an eval, and no error


# --- nanoGPT's ------------------------------------------------------------------------------------

def save_nanogpt(path, model, bias, **changes):
    """A GPT in the format of nanoGPT's train.py, after torch.compile, which puts a prefix before each name."""
    c = model.config
    args = dict(block_size=c.block_size, vocab_size=c.vocab_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd,
                dropout=0.0, bias=bias) | changes
    weights = {f"_orig_mod.{name}": w for name, w in model.state_dict().items() if bias or not name.endswith(".bias")}
    torch.save({"model": weights, "optimizer": {"state": {}}, "model_args": {k: v for k, v in args.items() if v != ""},
                "iter_num": 2000, "best_val_loss": 3.1, "config": {"out_dir": "out", "compile": True}}, path)


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpt(bias, tmp_path):
    """Without biases it is the model whose biases are zero. A run cannot be resumed: only the weights count."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=50304, n_layer=2, n_head=2, n_embd=8)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if bias or not name.endswith(".bias"):
                p.add_(0.1 * torch.randn_like(p))
    save_nanogpt(tmp_path / "ckpt.pt", model, bias)
    again, tokenizer, _ = train_gpt2.load_model(str(tmp_path / "ckpt.pt"))
    idx = torch.randint(50257, (2, 16))
    assert again(idx)[0].equal(model(idx)[0]) and tokenizer.spec["name"] == "gpt2"
    line = refusal(checkpoints.read_state, str(tmp_path / "ckpt.pt"), "")
    assert "--init_from=" in line


def test_a_checkpoint_of_nanogpt_that_lacks_something(tmp_path):
    """Its vocabulary is in a pickle beside it, which could run any code: the line asks for the text."""
    model = GPT(GPTConfig(block_size=16, vocab_size=65, n_layer=1, n_head=1, n_embd=8))
    save_nanogpt(tmp_path / "ckpt.pt", model, False)
    line = refusal(checkpoints.read, str(tmp_path / "ckpt.pt"))
    assert "vocabulary of 65" in line and "meta.pkl" in line and "--tokenizer=char" in line
    save_nanogpt(tmp_path / "ckpt.pt", model, False, n_head="")
    assert "its model_args have no n_head" in refusal(checkpoints.read, str(tmp_path / "ckpt.pt"))
