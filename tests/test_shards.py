"""Facts about a directory of shards: the tokenizer comes with it, and whatever is wrong with it is said in one line."""
import json
import os
import shlex
import shutil
import struct

import numpy as np
import pytest
from small_runs import ROOT, TINY, fuzz, read_log, refusal, shards, write_shards

import fineweb
import train_gpt2
from support.shards import list_shards, load_data, shards_tokenizer
from support.tokenizer import BPETokenizer, load_tokenizer, train_bpe
from train_gpt2 import DataLoaderLite, load_tokens


@pytest.mark.parametrize("tokenizer, rows", [("gpt2", 50304), ("char", 128), ("bpe:300", 384)])
def test_training_picks_the_tokenizer_up(tokenizer, rows, make, tmp_path, capsys):
    """The size of the model, the samples, the checkpoint: all from meta.json. HellaSwag is for GPT-2's only."""
    out = make("out", f"--tokenizer={tokenizer}")
    flags = [f for f in TINY if f != "--no-hellaswag"] if tokenizer != "gpt2" else TINY
    flags = [*flags, f"--data_root={out}", f"--log_dir={tmp_path / 'log'}", "--max_steps=3", "--save_every=3"]
    train_gpt2.run(flags)
    assert ("no HellaSwag" in capsys.readouterr().out) == (tokenizer != "gpt2")
    _, _, checkpoint = train_gpt2.load_model(str(tmp_path / "log"))
    assert checkpoint["config"]["vocab_size"] == rows
    assert load_tokenizer(checkpoint["tokenizer"]).encode("to be") == shards_tokenizer(str(out)).encode("to be")
    train_gpt2.run([*flags, "--resume=auto", "--max_steps=4"])
    assert len(read_log(tmp_path / "log")["train"]) == 4


# --- damaged --------------------------------------------------------------------------------------

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


def test_a_missing_validation_shard_is_named(tmp_path, make, refused):
    """Also where notes lie beside it: nobody is told to make shards of them."""
    out = make("out")
    (out / "notes.txt").write_text("notes")
    (out / "edufineweb_val_000000.npy").unlink()
    assert "edufineweb_val_000000.npy is missing" in refused(f"--data_root={out}")


def hostile(key, value):
    def damage(out):
        meta = json.loads((out / "meta.json").read_text())
        (meta["shards"][1] if key in meta["shards"][1] and key != "tokens" else meta)[key] = value
        (out / "meta.json").write_text(json.dumps(meta))
    return damage


@pytest.mark.parametrize("damage", [
    lambda out: (out / "meta.json").write_text("{"), lambda out: (out / "meta.json").write_text("[]"),
    lambda out: (out / "meta.json").write_bytes(b"\xff\xfe\0"),
    hostile("name", "../../etc/passwd"), hostile("name", "/dev/zero"), hostile("name", "edufineweb_train_999999.npy"),
    hostile("dtype", "object"), hostile("dtype", "uint32"), hostile("n_vocab", 7), hostile("n_vocab", "7"),
    hostile("tokenizer", {"name": "../x"}), hostile("tokenizer", {"name": "bpe", "file": "/etc/passwd"}),
    hostile("tokenizer", {"name": "char"}), hostile("tokenizer", 5), hostile("shards", 5), hostile("shards", [5]),
    lambda out: shutil.copy(shards(out)[-1], shards(out)[1]),
    lambda out: shards(out)[1].unlink(),
], ids=range(18))
def test_a_damaged_directory_is_refused_when_training_starts(damage, make):
    """Names, headers and sizes are checked: one line, whoever made the directory."""
    out = make("out")
    damage(out)
    refusal(load_data, str(out), "gpt2", 32)


def test_a_shard_that_no_meta_json_speaks_of_is_not_trained_on(make, capsys):
    """Another corpus' shard, put beside: its name is said. Without any meta.json, as the original, all count."""
    out = make("out")
    listed = list_shards(str(out), "train")
    assert [os.path.basename(path) for path in listed] == [path.name for path in shards(out)[1:]]
    shutil.copy(shards(out)[1], out / "edufineweb_train_000999.npy")
    capsys.readouterr()
    assert list_shards(str(out), "train") == listed
    assert "1 train shard(s)" in (said := capsys.readouterr().out) and "edufineweb_train_000999.npy" in said
    (out / "meta.json").unlink()
    assert len(list_shards(str(out), "train")) == len(listed) + 1


def unreadable(monkeypatch, path):
    """From now on it cannot be opened, whoever asks."""
    really_open = open

    def cannot(name, *args, **kwargs):
        if os.fspath(name) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(name, *args, **kwargs)
    monkeypatch.setattr("builtins.open", cannot)


@pytest.mark.parametrize("name", ["meta.json", "edufineweb_train_000001.npy"])
def test_what_cannot_be_read_is_not_called_damaged(name, make, monkeypatch):
    """Its owner is somebody else, or the disk is away: nobody is told to delete it."""
    out = make("out")
    unreadable(monkeypatch, out / name)
    said = f"{out / name} cannot be read (Permission denied)"
    for line in (refusal(load_data, str(out), "gpt2", 32), refusal(make, "out")):
        assert said in line and "delete" not in line
    if name.endswith(".npy"):
        assert fineweb.check_directory(str(out)) == [said]


def test_a_metadata_json_of_ones_own_is_no_meta_json(make):
    out = make("out")
    listed = list_shards(str(out), "train")
    (out / "metadata.json").write_text("{}")
    assert list_shards(str(out), "train") == listed


def test_the_end_of_a_name_is_its_split(tmp_path):
    """my_val_train_000001.npy is to train on, and not for validation, too."""
    write_shards(tmp_path, [500, 1000])
    path = str(tmp_path / "my_val_train_000002.npy")
    shutil.copy(tmp_path / "edufineweb_train_000001.npy", path)
    assert path in list_shards(str(tmp_path), "train") and path not in list_shards(str(tmp_path), "val")


# --- made to attack, or changed at random ---------------------------------------------------------

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
        tokens[:], np.load(path, allow_pickle=False)), n)


def test_mutated_shards(tmp_path):
    """Bytes changed or cut off: one line, or what numpy reads from these bytes; no traceback. (5,000: -m slow.)"""
    fuzz_shards(tmp_path, 200)


@pytest.mark.slow
def test_thousands_of_mutated_shards(tmp_path):
    fuzz_shards(tmp_path, 5000)


def test_mutated_meta_json(tmp_path):
    """One line, or the tokenizer. (A text that is still JSON and has all keys may load.)"""
    (tmp_path / "docs.txt").write_text("to be or not to be " * 50)
    fineweb.main([f"--files={tmp_path}/docs.txt", f"--out={tmp_path}/shards", "--tokenizer=char"])
    fuzz(tmp_path / "shards" / "meta.json", lambda: shards_tokenizer(str(tmp_path / "shards")),
         lambda tokenizer: tokenizer.spec["name"] in ("char", "gpt2"), 200)


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
    assert np.array_equal(shard[:], stream)
    harm(tmp_path / "edufineweb_train_000001.npy")
    assert said in refusal(lambda: [loader.next_batch() for _ in range(60)])


def test_input_txt_from_another_directory(tmp_path, monkeypatch):
    """The line says where we looked, and where the file is."""
    monkeypatch.chdir(tmp_path)
    line = refusal(list_shards, "input.txt", "train")
    assert f"there is no input.txt in {tmp_path}: try --data_root={os.path.join(ROOT, 'input.txt')}" in line


@pytest.mark.parametrize("name", ["docs.jsonl", "my docs.JSONL", "docs.jsonl.gz", "docs.parquet"])
def test_documents_are_not_one_text(name, tmp_path):
    """A model of characters would train on braces and quotes: fineweb.py takes the texts out of them."""
    (tmp_path / name).write_text('{"text": "to be"}\n' * 100)
    line = refusal(load_data, str(tmp_path / name), "char", 32)
    assert f"python fineweb.py --files={shlex.quote(str(tmp_path / name))} --out=shards" in line


def test_a_directory_of_texts_is_for_fineweb(tmp_path):
    """The line is one to copy."""
    (tmp_path / "my texts").mkdir()
    (tmp_path / "my texts" / "a.txt").write_text("to be " * 1000)
    line = refusal(load_data, str(tmp_path / "my texts"), "char", 32)
    assert f"python fineweb.py --files='{tmp_path}/my texts/*.txt' --out=shards makes some" in line


def test_a_directory_brings_its_own_tokenizer(make):
    """Whatever --tokenizer says."""
    data = load_data(str(make("out", "--tokenizer=char")), "gpt2", 32)
    assert data.tokenizer.spec["name"] == "char" and {shard.n_vocab for shard in data.train} == {data.tokenizer.n_vocab}


def test_a_run_records_the_tokenizer_of_its_shards(make, tmp_path, capsys):
    """--tokenizer=char beside shards of GPT-2's tokens is not silently ignored, and not what settings.json says."""
    train_gpt2.run([*TINY, f"--data_root={make('out')}", f"--log_dir={tmp_path / 'log'}", "--max_steps=1"])
    assert "the tokenizer is gpt2, the one that" in capsys.readouterr().out
    settings = json.loads((tmp_path / "log" / "settings.json").read_text())
    assert settings["train_config"]["tokenizer"] == settings["tokenizer"]["name"] == "gpt2"


def test_a_model_goes_on_with_a_text_that_lacks_some_of_its_characters(checkpoint, text, tmp_path):
    """The ids are the model's. A character that it lacks is one line."""
    _, tokenizer, start = train_gpt2.load_model(checkpoint)
    less = text.read_text(encoding="utf-8").replace("e", "")
    (tmp_path / "less.txt").write_text(less, encoding="utf-8")
    data = load_data(str(tmp_path / "less.txt"), "char", 32, start)
    assert data.tokenizer.spec == tokenizer.spec
    assert tokenizer.decode(np.concatenate(data.train + data.val).tolist()) == less
    (tmp_path / "more.txt").write_text(less + "µ", encoding="utf-8")
    assert "has no 'µ'" in refusal(load_data, str(tmp_path / "more.txt"), "char", 32, start)
    assert "the model's vocabulary" in refusal(load_data, str(tmp_path / "less.txt"), "gpt2", 32, start)


def test_a_text_for_a_model_with_a_tokenizer_of_its_own(tmp_path, text):
    """A Hugging Face directory's, say: --tokenizer has no name for it."""
    bpe = BPETokenizer(train_bpe([text.read_text(encoding="utf-8")], 300))
    data = load_data(str(text), "gpt2", 32, {"tokenizer": bpe.spec})
    assert bpe.decode(np.concatenate(data.train + data.val).tolist()) == text.read_text(encoding="utf-8")


@pytest.mark.parametrize("text, said", [
    ("", "is too short (0 characters): it has 0 tokens to train on and 0 for validation"),
    ("\ufeff", "is too short (0 characters): it has 0 tokens to train on and 0 for validation"),
    ("To be", "is too short (5 characters): it has 4 tokens to train on and 1 for validation, and "
              "a batch needs B * T + 1"),
    ("To be, or not to be", "has 17 tokens: too short for a row of 32: try a smaller --T"),
], ids=["nothing", "a mark", "a word", "a line"])
def test_a_text_of_a_few_characters(text, said, tmp_path):
    """The error says how many tokens there are, and how many are needed."""
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert said in refusal(load_data, str(tmp_path / "a.txt"), "char", 32)
