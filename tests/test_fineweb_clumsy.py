"""
Facts about clumsy hands at fineweb.py, and at a text file to train on: one line says what to do,
and nothing is lost.
"""
import gzip
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_runs import ROOT, refusal

import fineweb
from support.tokenizer import gpt2_tokenizer, train_bpe


def contents(folder):
    """Every file of a directory with its bytes, but for locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir()
            if not path.name.startswith(".lock")}


@pytest.fixture
def corpus(tmp_path):
    """Two .jsonl files of 40 documents each -> the pattern that means both."""
    with open(os.path.join(ROOT, "input.txt"), encoding="utf-8") as f:
        text = f.read(80_000)
    (tmp_path / "corpus").mkdir()
    for i in range(2):
        lines = [json.dumps({"text": text[start : start + 1000]}) + "\n"
                 for start in range(40_000 * i, 40_000 * (i + 1), 1000)]
        (tmp_path / "corpus" / f"{i}.jsonl").write_text("".join(lines))
    return f"{tmp_path}/corpus/*.jsonl"


@pytest.fixture
def make(tmp_path, corpus):
    """make("name", "--workers=1") makes shards of 3,000 tokens of the corpus -> their directory."""
    def run(name, *flags):
        fineweb.main([f"--files={corpus}", "--shard_size=3000", f"--out={tmp_path / name}", *flags])
        return tmp_path / name
    return run


# --------------------------------------------------------------------------------------------------
# two runs at the same time

def run_elsewhere(corpus, out, *flags):
    """The same in a process of its own -> exit code, what it says on stderr"""
    command = [sys.executable, os.path.join(ROOT, "fineweb.py"), f"--files={corpus}",
               "--shard_size=3000", f"--out={out}", *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.returncode, result.stderr


@pytest.mark.parametrize("mine, theirs, code", [
    ("1/1", "1/1", 2), ("1/2", "1/2", 2), ("1/2", "2/2", 0),
])
def test_one_run_in_a_directory(mine, theirs, code, make, corpus, tmp_path, monkeypatch):
    """
    A second run with the same --out is refused while the first is at work. Parts of one corpus may
    be made at the same time: each writes files of its own.
    """
    write_shard, results = fineweb.write_shard, []

    def meanwhile(path, tokens):
        if not results:
            results.append(run_elsewhere(corpus, tmp_path / "out", f"--part={theirs}"))
        return write_shard(path, tokens)
    monkeypatch.setattr(fineweb, "write_shard", meanwhile)
    make("out", f"--part={mine}")
    exit_code, said = results[0]
    assert exit_code == code
    if code:
        advice = f"another run is writing to {tmp_path / 'out'}: wait for it, or choose another"
        assert advice in said and said.count("\n") == 1
    monkeypatch.undo()
    make("alone", f"--part={mine}")
    if code == 0:
        make("alone", f"--part={theirs}")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_finished_directory_needs_no_lock(make, monkeypatch, capsys):
    """It may lie on a disk that cannot be written to."""
    make("out")

    def cannot(*args):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(fineweb, "lock_part", cannot)
    capsys.readouterr()
    make("out")
    assert capsys.readouterr().out.startswith("everything is there already")


# --------------------------------------------------------------------------------------------------
# a text that is none

SENTENCE = "Être, ou ne pas être: là est la question. "
CHINESE = "话说天下大势，分久必合，合久必分。"


def packed(pack):
    """What gzip, torch.save, ... make of something small -> bytes"""
    file = io.BytesIO()
    pack(file)
    return file.getvalue()


def parquet():
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    return packed(lambda file: pq.write_table(pa.table({"text": [SENTENCE] * 100}), file))


NO_UTF8 = {
    "UTF-16 LE": (lambda: ("\ufeff" + SENTENCE * 99).encode("utf-16-le"), "is in UTF-16 LE, not"),
    "UTF-16 BE": (lambda: ("\ufeff" + SENTENCE * 99).encode("utf-16-be"), "is in UTF-16 BE, not"),
    "UTF-32": (lambda: ("\ufeff" + SENTENCE * 99).encode("utf-32-le"), "is in UTF-32 LE, not"),
    "UTF-16 without a mark": (lambda: ("to be " * 99).encode("utf-16-be"), "is in UTF-16BE, not"),
    "GBK": (lambda: (CHINESE * 99).encode("gbk"), "of its 3,366 bytes cannot be read"),
    "Latin-1": (lambda: (SENTENCE * 99).encode("latin-1"), "convert it from its encoding"),
    "random": (lambda: np.random.default_rng(0).bytes(9999), "of its 9,999 bytes cannot be read"),
    "gzip": (lambda: gzip.compress(SENTENCE.encode() * 99), "seems to be a gzip file"),
    "parquet": (parquet, "seems to be a parquet file: python fineweb.py --files="),
    "checkpoint": (lambda: packed(lambda file: torch.save({"a": 1}, file)), "for --init_from"),
    "shard": (lambda: packed(lambda file: np.save(file, np.arange(99, dtype=np.uint16))),
              "seems to be a numpy array, perhaps a shard: give the directory"),
}


@pytest.mark.parametrize("kind", NO_UTF8)
def test_what_is_no_text_in_utf8_is_refused(kind, make, refused, tmp_path):
    """
    By train_gpt2.py and by fineweb.py: what it seems to be, and how to convert it. It trained
    without a word, on U+FFFD and zeros.
    """
    data, said = NO_UTF8[kind]
    path = tmp_path / "my text.txt"
    path.write_bytes(data())
    assert said in refused(f"--data_root={path}")
    assert said in refusal(make, "out", f"--files={tmp_path}/my*.txt")
    assert not list((tmp_path / "out").glob("*.npy"))


def test_the_command_that_converts_a_text(refused, tmp_path, monkeypatch):
    """It is a line to copy, and what it makes is refused no more."""
    (tmp_path / "my text.txt").write_text("\ufeff" + SENTENCE * 500, encoding="utf-16-le")
    monkeypatch.chdir(tmp_path)
    line = refused("--data_root=my text.txt")
    command = line.partition("not in UTF-8: ")[2]
    assert command == "iconv -f UTF-16 -t UTF-8 'my text.txt' > 'my text.utf8.txt'"
    if shutil.which("iconv"):
        subprocess.run(command, shell=True, check=True)
        assert (tmp_path / "my text.utf8.txt").read_text(encoding="utf-8") == SENTENCE * 500


@pytest.mark.parametrize("packed", [False, True], ids=[".jsonl", ".jsonl.gz"])
def test_a_jsonl_in_utf16_is_named(packed, make, tmp_path):
    """Its lines are no JSON, but that is not what is wrong with it."""
    lines = "".join(json.dumps({"text": SENTENCE}) + "\n" for _ in range(9))
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    data = lines.encode("utf-16")
    path.write_bytes(gzip.compress(data) if packed else data)
    line = refusal(make, "out", f"--files={path}")
    assert f"{path} is in UTF-16 LE, not in UTF-8: " in line and "a.utf8.jsonl" in line
    assert ("gunzip -c" in line) == packed


def test_a_few_bad_bytes_are_mended_and_said(train, make, tmp_path, capsys):
    """One byte in a thousand may be wrong: it becomes U+FFFD, and a line says how many did."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"to be, or not to be. " * 500 + b"caf\xe9")
    train("log", f"--data_root={path}", "--max_steps=1")
    said = capsys.readouterr().out
    assert f"{path}: what is no UTF-8 becomes U+FFFD (1 of 10,507 bytes)" in said
    out = make("out", f"--files={path}")
    assert "1 documents with U+FFFD" in capsys.readouterr().out
    tokens = [i for name in sorted(out.glob("*.npy"), key=lambda name: name.name[-10:])
              for i in np.load(name).tolist()]
    assert tokens[1:] == gpt2_tokenizer().encode(path.read_bytes().decode(errors="replace"))


@pytest.mark.parametrize("text, said", [
    ("", "is empty (0 characters): give a text to train on"),
    ("\ufeff", "is too short (1 characters): it has 0 tokens to train on and 1 for validation"),
    ("To be", "is too short (5 characters): it has 4 tokens to train on and 1 for validation, and "
              "a batch needs B * T + 1"),
    ("To be, or not to be", "a split of 17 tokens is too short for a batch of 128"),
], ids=["nothing", "a mark", "a word", "a line"])
def test_a_text_of_a_few_characters(text, said, refused, tmp_path):
    """
    How many tokens there are, and how many a batch needs. A smaller --B is proposed only where a
    smaller --B helps.
    """
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    line = refused(f"--data_root={tmp_path / 'a.txt'}")
    assert said in line and ("try a smaller --B or --T" in line) == ("a split of" in said)


# --------------------------------------------------------------------------------------------------
# a first command that was wrong

@pytest.mark.parametrize("size", [10**14, 2**32 + 1])
def test_a_shard_too_large_for_a_file_is_refused_at_once(size, make, tmp_path):
    """Nothing is written, so that the corrected command does not meet what it has left."""
    line = refusal(make, "out", f"--shard_size={size}")
    assert f"--shard_size={size}: must be at least 1 and at most" in line
    assert not (tmp_path / "out").exists()


def test_a_shard_too_large_for_the_memory(make, tmp_path, monkeypatch):
    """The buffer is asked for before meta.json is written."""
    empty = np.empty

    def small_machine(shape, *args, **kwargs):
        if shape == 8_000_000_000:
            raise MemoryError("Unable to allocate 14.9 GiB")
        return empty(shape, *args, **kwargs)
    monkeypatch.setattr(np, "empty", small_machine)
    line = refusal(make, "out", "--shard_size=4000000000")
    assert "too large for the memory here (Unable to allocate 14.9 GiB): try --shard_size=1" in line
    assert contents(tmp_path / "out") == {}


class Died(BaseException):
    """What a power cut is to the program: nothing catches it."""


def small_tokenizer(tmp_path):
    """A tokenizer.json under another name -> its path"""
    path = tmp_path / "small.json"
    path.write_text(train_bpe(["to be or not to be"], 270), encoding="utf-8")
    return path


WRONG = {
    "text_key": ["--text_key=content"],
    "shard_size": ["--shard_size=1000000"],
    "tokenizer": ["--tokenizer=bpe:300"],
    "tokenizer.json": ["--tokenizer={small}"],
    "part": ["--part=2/2"],
}


@pytest.mark.parametrize("right", [[], ["--tokenizer=bpe:290"], ["--part=1/2", "--val_tokens=7"]],
                         ids=["gpt2", "bpe", "part"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_run_without_a_shard_is_no_obstacle(wrong, right, make, tmp_path, monkeypatch):
    """
    A run that ended before its first shard leaves a meta.json. Whatever its settings were, the
    corrected command does what it does in an empty directory.
    """
    write_shard = fineweb.write_shard

    def full(path, tokens):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(fineweb, "write_shard", full)
    small = small_tokenizer(tmp_path)
    refusal(make, "out", *(flag.format(small=small) for flag in WRONG[wrong]))
    assert list(contents(tmp_path / "out"))
    monkeypatch.setattr(fineweb, "write_shard", write_shard)
    assert contents(make("out", *right)) == contents(make("alone", *right))


def test_shards_that_no_meta_json_speaks_of_yet(make, tmp_path, monkeypatch):
    """
    The first two shards are there before meta.json speaks of them. What a run has left that died
    right then does not end up among the shards of another part.
    """
    def die(*args):
        raise Died
    with monkeypatch.context() as patch:
        patch.setattr(fineweb.ShardWriter, "save_meta", die)
        with pytest.raises(Died):
            make("out")
    assert len(list((tmp_path / "out").glob("*.npy"))) == 2
    assert contents(make("out", "--part=2/2")) == contents(make("alone", "--part=2/2"))


def test_a_run_without_a_shard_that_is_still_running(make, corpus, tmp_path, monkeypatch):
    """It is an obstacle: who removed its meta.json would have two corpora in one directory."""
    write_shard, results = fineweb.write_shard, []

    def meanwhile(path, tokens):
        if not results:
            results.append(run_elsewhere(corpus, tmp_path / "out", "--part=2/2"))
        return write_shard(path, tokens)
    monkeypatch.setattr(fineweb, "write_shard", meanwhile)
    make("out")
    exit_code, said = results[0]
    assert exit_code == 2 and "another run is writing to" in said
    assert contents(tmp_path / "out") == contents(make("alone"))


def test_a_tokenizer_json_of_ones_own_in_the_directory(make, tmp_path):
    """It is neither overwritten nor left beside shards that another tokenizer has made."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text("mine")
    line = refusal(make, "out", "--tokenizer=bpe:300")
    assert "tokenizer.json is not the tokenizer of these shards: choose another --out" in line
    assert contents(tmp_path / "out") == {"tokenizer.json": b"mine"}


def test_a_parquet_without_the_column_names_those_that_are_there(make, tmp_path):
    """It said "IndexError: Index 0 out of bounds"."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "body": ["to be", "or not"]}), path)
    line = refusal(make, "out", f"--files={path}")
    assert line == f"{path} has no column 'text': with --text_key choose one of id, body"
    assert list(make("out", f"--files={path}", "--text_key=body").glob("*.npy"))


@pytest.mark.parametrize("flag, most", [
    ("--max_shards=2000000", "1e+06"), ("--val_tokens=5000000000", "4.29497e+09"),
    ("--workers=100000", "1024"),
])
def test_limits_stand_beside_the_flags(flag, most, make, tmp_path):
    """Six digits in the name of a shard, 2**32 tokens in a file, a thread for any core."""
    assert refusal(make, "out", flag) == f"{flag}: must be at least 0 and at most {most}"
    assert not (tmp_path / "out").exists()
