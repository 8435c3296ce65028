"""Facts about fineweb.py: any corpus becomes token shards, and nothing that happens meanwhile changes a byte."""
import json
import multiprocessing
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_runs import ROOT, contents, plain, refusal, shards, some_documents, stream, write_jsonl

import fineweb
from support.shards import shards_tokenizer
from support.tokenizer import gpt2_tokenizer, load_tokenizer, train_bpe

FINEWEB_EDU = "--dataset=HuggingFaceFW/fineweb-edu"  # the corpus that is read where no files are given
WIKI = os.path.join(ROOT, "..", "shared", "data", "wiki_docs.jsonl")


@pytest.fixture
def fineweb_refuses(make):
    """fineweb_refuses("name", *flags): these flags must be refused -> the line that says why."""
    return lambda *args: refusal(make, *args)


# ----------------------------------------------------------------------------------------------------
# what is in the shards

def test_shards_hold_the_documents_in_order(make):
    """Each after an <|endoftext|>; shards of equal size, the first for validation, the last one holds what remains."""
    out, expected = make("out"), plain(some_documents())
    assert stream(out) == expected
    sizes = [len(np.load(path)) for path in shards(out)]
    assert sizes == [3000] * (len(expected) // 3000) + [len(expected) % 3000]
    names = [path.name for path in shards(out)]
    assert names[:2] == ["edufineweb_val_000000.npy", "edufineweb_train_000001.npy"]
    meta = json.loads((out / "meta.json").read_text())
    assert meta["documents"] == len(some_documents()) and meta["tokens"] == len(expected)
    assert meta["bytes"] == sum(len(doc.encode()) for doc in some_documents())
    assert {np.load(path).dtype for path in shards(out)} == {np.dtype("uint16")} and meta["dtype"] == "uint16"


@pytest.mark.parametrize("tokenizer", ["char", "bpe:300"])
def test_one_text_is_split_as_training_splits_it(tokenizer, make, tmp_path):
    """Shard 0 is its last tenth, so that a run on the text and one on its shards measure the same text."""
    text = "To be, or not to be, that is the question. " * 50
    (tmp_path / "book.txt").write_text(text)
    out = make("out", f"--files={tmp_path / 'book.txt'}", f"--tokenizer={tokenizer}", "--shard_size=9999")
    decode = shards_tokenizer(str(out)).decode
    val, train = (decode(np.load(path)) for path in shards(out))
    cut = int(0.9 * len(text))
    assert val == "<|endoftext|>" + text[cut:] and train == "<|endoftext|>" + text[:cut]
    line = refusal(make, "small", f"--files={tmp_path / 'book.txt'}", f"--tokenizer={tokenizer}", "--shard_size=9")
    assert "is less than the validation tenth" in line


def write_parquet(path, docs, kind):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"id": range(len(docs)), "text": pa.array(docs, getattr(pa, kind)())})
    pq.write_table(table, path, row_group_size=7)


@pytest.mark.parametrize("name", ["A.JSONL.gz", "A.JSONL", "string.parquet", "large_string.PARQUET", "*.txt", "*.TXT"])
def test_the_format_of_the_files_does_not_matter(name, make, tmp_path):
    """The same documents, in the same order, give the same shards from .jsonl, .jsonl.gz, .parquet and .txt files."""
    docs, folder = some_documents(), tmp_path / "files"
    folder.mkdir()
    if "JSONL" in name:
        write_jsonl(folder / name, docs)
    elif name.lower().endswith(".parquet"):
        write_parquet(folder / name, docs, name.split(".")[0])
    else:
        docs = [doc.replace("\0", "") for doc in docs]  # in a .txt a zero tells that it is no text
        for i, doc in enumerate(docs):
            (folder / f"{i:04d}{name[1:]}").write_bytes(doc.encode())
    assert stream(make("out", f"--files={folder}/{name}")) == plain(docs)


def test_files_are_read_in_the_order_of_their_names(make, tmp_path):
    docs = some_documents()
    for i in range(5):
        write_jsonl(tmp_path / "split" / f"{i}.jsonl", docs[i * 50 : i * 50 + 50])
    assert stream(make("out", f"--files={tmp_path}/split/*.jsonl")) == plain(docs)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(workers, make):
    assert contents(make("a", f"--workers={workers}")) == contents(make("b", "--workers=2"))


@pytest.mark.parametrize("n, flags, sizes", [
    (100, [], [10, 90]), (100, ["--val_tokens=30"], [30, 70]), (3500, [], [350, 3000, 150]), (2, [], [1, 1]),
    (5999, ["--val_tokens=5000"], [3000, 2999]), (6000, ["--val_tokens=5"], [3000, 3000]), (6001, [], [3000, 3000, 1]),
])
def test_a_corpus_under_two_shards_still_gets_both_splits(n, flags, sizes, make, corpus):
    """Its first tenth, or --val_tokens, is for validation; from two shards on the first shard is."""
    corpus.write_text(json.dumps({"text": " a" * (n - 1)}))
    out = make("out", *flags)
    assert [len(np.load(path)) for path in shards(out)] == sizes and stream(out) == plain([" a" * (n - 1)])


def test_a_document_longer_than_several_shards(make, corpus):
    docs = ["short", " tale" * 10_000, "short"]
    write_jsonl(corpus, docs)
    assert stream(make("out")) == plain(docs)


@pytest.mark.parametrize("lines", [[], ["\ufeff"], ["", "  "], [json.dumps({"text": ""})]],
                         ids=["no line", "a byte order mark", "blank lines", "one empty document"])
def test_an_empty_corpus_is_refused(lines, fineweb_refuses, corpus):
    corpus.write_text("\n".join(lines))
    line = fineweb_refuses("out")
    assert "the corpus has no text" in line or "none are left to train on" in line


@pytest.mark.parametrize("names", [["a.txt"], ["a.txt", "b.txt"]], ids=["one text", "two texts"])
def test_empty_texts_are_refused(names, fineweb_refuses, tmp_path):
    """Two documents without a character would be called shards to train on."""
    for name in names:
        (tmp_path / name).write_text("")
    assert fineweb_refuses("out", f"--files={tmp_path}/*.txt" if names[1:] else f"--files={tmp_path}/a.txt") == (
        "the corpus has no text")


def test_a_text_has_the_line_ends_that_training_reads(make, tmp_path):
    """From Windows or not: the same text has the same shards, and a run on it sees the same characters."""
    text = "To be, or not to be, that is the question.\n" * 50
    for name, ends in (("unix", "\n"), ("windows", "\r\n"), ("mac", "\r")):
        (tmp_path / f"{name}.txt").write_bytes(text.replace("\n", ends).encode())
        make(name, f"--files={tmp_path}/{name}.txt", "--tokenizer=char")
    assert stream(tmp_path / "unix") == stream(tmp_path / "windows") == stream(tmp_path / "mac")


def test_a_million_spaces(make, corpus):
    """More than the regular expression in tiktoken can take at once."""
    docs = ["a" + " " * 2_000_000 + "b", "\n" * 1_500_000]
    write_jsonl(corpus, docs)
    tokens, t = stream(make("out", "--shard_size=10000000")), gpt2_tokenizer()
    assert t.decode(tokens) == "".join("<|endoftext|>" + doc for doc in docs)


@pytest.mark.skipif(not os.path.exists(WIKI), reason="needs ../shared/data/wiki_docs.jsonl")
def test_real_text(tmp_path):
    """915 encyclopedia articles: the shards of fineweb.py are what the plain recipe gives."""
    fineweb.main([f"--files={WIKI}", "--shard_size=200000", f"--out={tmp_path}"])
    with open(WIKI, encoding="utf-8") as f:
        assert stream(tmp_path) == plain(json.loads(line)["text"] for line in f)
    assert fineweb.check_directory(str(tmp_path)) == []


# ----------------------------------------------------------------------------------------------------
# what can be wrong with a row

def test_what_is_no_unicode_becomes_the_replacement_character(make, corpus, capsys):
    """Broken UTF-8 and halves of surrogate pairs, counted. A null byte, a byte order mark, a blank line do no harm."""
    corpus.write_bytes(b'\xef\xbb\xbf{"text": "mark"}\n{"text": "caf\xe9"}\n'
                       b'{"text": "half \\ud83d, whole \\ud83d\\ude00"}\r\n{"text": "a raw \x00 byte"}\n\n')
    expected = ["mark", "caf\ufffd", "half \ufffd, whole 😀", "a raw \0 byte"]
    assert stream(make("out")) == plain(expected)
    assert "2 documents had invalid Unicode" in (said := capsys.readouterr().out) and "skipped" not in said


@pytest.mark.parametrize("line", ['{"text": "cut', "[1, 2]", '{"text": 5}', '{"txt": "a"}', "null",
                                  '{"text": ' + 100_000 * "["],
                         ids=lambda line: line[:12])
def test_a_malformed_row_is_named_skipped_and_counted(line, make, fineweb_refuses, corpus, capsys):
    """Or, with --strict, the end."""
    corpus.write_text("\n".join([json.dumps({"text": "good"}), line, json.dumps({"text": "better"})]))
    assert stream(make("out")) == plain(["good", "better"])
    out, err = capsys.readouterr()
    assert f"skipped: {corpus}, line 2: " in err and "; 1 rows without a text skipped" in out
    assert f"{corpus}, line 2: " in fineweb_refuses("strict", "--strict")


def test_a_wrong_text_key_does_not_skip_a_whole_corpus(fineweb_refuses):
    assert "line 1: no text under 'content', as in every row so far: is --text_key right?" in fineweb_refuses(
        "out", "--text_key=content")


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_that_is_one_json_array_is_named(indent, fineweb_refuses, corpus):
    """On one line or on many, it is not a document a line."""
    corpus.write_text(json.dumps([{"text": "to be"}, {"text": "or not to be"}], indent=indent))
    assert "line 1: a JSON array, but each line must be an object" in fineweb_refuses("out")


def test_a_truncated_file_ends_the_run(fineweb_refuses, tmp_path):
    path = write_jsonl(tmp_path / "files" / "a.jsonl.gz", some_documents())
    path.write_bytes(path.read_bytes()[:-5000])
    line = fineweb_refuses("out", f"--files={path}")
    assert f"cannot read {path} after row" in line
    assert "get it again" in line and "again to continue" not in line, "the same command meets the same damage"


def test_a_file_that_is_no_parquet(fineweb_refuses, tmp_path):
    (tmp_path / "a.parquet").write_text("PAR1")
    assert "cannot read" in fineweb_refuses("out", f"--files={tmp_path}/*.parquet")


@pytest.mark.parametrize("column", [[1, 2], [["to", "be"], ["or"]], [{"a": "to be"}, None], [0.5, 1.5], [None, None]],
                         ids=["int", "list", "struct", "float", "null"])
def test_a_parquet_column_without_texts_gets_the_line_that_jsonl_gets(column, fineweb_refuses, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path)
    line = fineweb_refuses("out", f"--files={path}")
    assert line == f"{path}, line 1: no text under 'text', as in every row so far: is --text_key right?"


def test_a_parquet_without_the_column_names_those_that_are_there(make, fineweb_refuses, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "body": ["to be", "or not"]}), path)
    line = fineweb_refuses("out", f"--files={path}")
    assert line == f"{path} has no column 'text': with --text_key choose one of id, body"
    assert shards(make("out", f"--files={path}", "--text_key=body"))


def test_a_fault_of_ours_is_not_taken_for_a_damaged_file(make, monkeypatch):
    """Only what a library raises is what a file is blamed for."""
    def fault(*args):
        raise NameError("of ours")
    monkeypatch.setattr(fineweb, "read_rows", fault)
    with pytest.raises(NameError):
        make("out")


# ----------------------------------------------------------------------------------------------------
# stopped, and gone on

class Died(BaseException):
    """What a power cut is to the program: nothing catches it."""


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("after", [False, True], ids=["before a rename", "after a rename"])
def test_dead_at_every_rename_and_gone_on(after, kind, make, tmp_path, monkeypatch):
    """What is on the disk changes at renames. Die right before or after each of them: the shards do not tell."""
    flags = ["--shard_size=6000"]
    if kind == "parquet":
        write_parquet(tmp_path / "a.parquet", some_documents(), "string")
        flags += [f"--files={tmp_path}/a.parquet"]
    undisturbed, replace, lives = contents(make("undisturbed", *flags)), os.replace, 0

    def mortal(*args):
        nonlocal lives
        lives -= 1
        if lives < 0 and not after:
            raise Died
        replace(*args)
        if lives < 0:
            raise Died
    monkeypatch.setattr(os, "replace", mortal)
    for deaths in range(40):
        lives = deaths % 5  # 0: dies at the first meta.json, 1: at a shard, 2: at the next shard or meta.json, ...
        try:
            make("killed", *flags, f"--workers={deaths % 3 + 1}")
            break
        except Died:
            pass
    assert deaths > 5 and contents(tmp_path / "killed") == undisturbed


def test_a_second_run_says_that_everything_is_there(make, monkeypatch, capsys):
    """Without reading the corpus or making the tokenizer."""
    before = contents(make("out", "--tokenizer=bpe:300"))
    monkeypatch.setattr(fineweb, "read_batches", None)
    monkeypatch.setattr(fineweb, "make_tokenizer", None)
    capsys.readouterr()
    assert contents(make("out", "--tokenizer=bpe:300")) == before
    assert capsys.readouterr().out.startswith(f"everything is there already: {len(some_documents())} documents")


def test_more_shards_later(make, fineweb_refuses):
    """--max_shards stops early; a larger number, or none, goes on."""
    out = make("out", "--max_shards=2")
    assert [len(np.load(path)) for path in shards(out)] == [3000, 3000] and fineweb.check_directory(str(out)) == []
    assert len(shards(make("out", "--max_shards=4"))) == 4
    assert contents(make("out")) == contents(make("at once"))


def test_no_space_is_seen_before(fineweb_refuses, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "has 0.0 MB free: choose another --out, or fewer shards" in fineweb_refuses("out")


def test_no_space_while_writing(make, fineweb_refuses, monkeypatch, tmp_path):
    """The error names what is missing, finished shards stay, no half shard does, and the same command goes on."""
    save, calls = np.save, []

    def full(f, tokens):
        calls.append(f)
        if len(calls) > 3:
            f.write(b"half")
            raise OSError(28, "No space left on device")
        save(f, tokens)
    monkeypatch.setattr(np, "save", full)
    err = fineweb_refuses("out")
    assert "edufineweb_train_000003.npy, 0.0 MB (No space left on device): 3 finished shards stay" in err
    assert len(list((tmp_path / "out").iterdir())) == 5  # and meta.json, .lock-1
    monkeypatch.setattr(np, "save", save)
    assert contents(make("out")) == contents(make("undisturbed"))


@pytest.mark.parametrize("wrong, right", [("--text_key=content", "--text_key=text"),
                                          ("--tokenizer=bpe:10", "--tokenizer=bpe:300")])
def test_a_run_that_failed_before_its_first_shard_is_no_obstacle(wrong, right, make, fineweb_refuses, tmp_path):
    """Nothing is written before the first shard, so the corrected command finds an empty directory."""
    fineweb_refuses("out", wrong)
    assert contents(tmp_path / "out") == {}
    assert contents(make("out", right)) == contents(make("alone", right))


@pytest.mark.parametrize("right", ["--text_key=text", "--tokenizer=bpe:300"])
def test_a_run_that_died_before_its_first_shard_is_no_obstacle(right, make, tmp_path, monkeypatch):
    """It has left a meta.json without shards, with other settings."""
    def die(*args):
        raise Died
    with monkeypatch.context() as patch:
        patch.setattr(fineweb, "write_shard", die)
        with pytest.raises(Died):
            make("out", "--val_tokens=7")
    assert set(contents(tmp_path / "out")) == {"meta.json"}
    assert contents(make("out", right)) == contents(make("alone", right))


# ----------------------------------------------------------------------------------------------------
# flags

@pytest.mark.parametrize("flags, said", [
    (["--files=nowhere/*.jsonl"], "there is no such file"),
    (["--files={root}/*.csv"], "a.csv is none of .txt, .jsonl, .jsonl.gz, .parquet"),
    (["--files={root}/my texts"], "is a directory: python fineweb.py --files='{root}/my texts/*.TXT'"),
    (["--files={root}/empty"], "python fineweb.py --files='{root}/empty/*.txt'"),
    (["--shard_size=0"], "must be at least 1"), (["--shard_size=4294967297"], "must be at most"),
    (["--workers=-1"], "must be at least 0"),
    (["--max_shards=1"], "try --max_shards=2"), (["--part=9/8"], "--part=3/8"), (["--part=x"], "--part=3/8"),
    (["--part=1/2"], "try --part=1/1"), (["--shards=3"], "unrecognized arguments"),
    (["--tokenizer=words"], "neither gpt2, char, bpe:8000"), (["--tokenizer=bpe:10"], "bpe:257 (a token for each byte"),
    (["--tokenizer={root}/a.json"], "not a usable tokenizer.json"), (["--out={root}/a.csv"], "cannot write to"),
    (["--name=sample-350BT"], "--name has no effect with --files: leave it out"),
    (["--no-stream"], "--stream has no effect with --files"),
    (["--files=a.txt", "--text_key=body"], "--text_key has no effect with --files=a.txt"),
    (["--files=*.TXT", "--strict"], "--strict has no effect with --files=*.TXT"),
    (["--check=nowhere"], "--files has no effect with --check"),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_wrong_flags(flags, said, fineweb_refuses, tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "my texts").mkdir()
    (tmp_path / "my texts" / "A.TXT").write_text("to be")
    (tmp_path / "empty").mkdir()
    assert said.format(root=tmp_path) in fineweb_refuses("out", *(flag.format(root=tmp_path) for flag in flags))


@pytest.mark.parametrize("name", ["a[1].jsonl", "caf\udce9.jsonl", "what?.jsonl"])
def test_a_file_is_taken_as_it_is_called(name, tmp_path, monkeypatch):
    """Signs of a glob pattern in a name, a name in Latin-1: its shards are made, and made once."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / name, some_documents(5))
    for _ in range(2):
        fineweb.main([f"--files={name}", "--out=shards"])
    assert len(shards(tmp_path / "shards")) == 2


def test_a_tilde_is_my_home(tmp_path, monkeypatch, capsys):
    """A shell replaces it in `--out ~/shards`, but not in `--out=~/shards`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "a.jsonl", some_documents(5))
    fineweb.main(["--files=~/a.jsonl", "--out=~/shards"])
    fineweb.main(["--check=~/shards"])
    assert len(shards(tmp_path / "shards")) == 2 and "every shard is as it was made" in capsys.readouterr().out


def test_a_directory_without_shards_cannot_be_checked(tmp_path):
    assert "has no meta.json" in refusal(fineweb.main, [f"--check={tmp_path}"])


def test_help_is_the_docstring_and_every_flag(capsys):
    with pytest.raises(SystemExit):
        fineweb.main(["--help"])
    out = capsys.readouterr().out
    assert fineweb.__doc__.strip().splitlines()[0] in out
    assert all(f"--{name}" in out for name in fineweb.ShardConfig.__dataclass_fields__)


def test_the_next_command_trains_on_what_was_made(corpus, tmp_path, monkeypatch, capsys):
    """Also from the default directory: --preset=laptop alone would take input.txt. It is a line to copy."""
    monkeypatch.chdir(tmp_path)
    flags = [f"--files={corpus}", "--tokenizer=char"]
    fineweb.main(flags)
    assert "next: python train_gpt2.py --data_root=edu_fineweb10B --preset=laptop" in capsys.readouterr().out
    fineweb.main([*flags, "--out=my shards"])
    assert "next: python train_gpt2.py --data_root='my shards' --preset=laptop" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------
# datasets, parts, processes

def test_without_a_network(fineweb_refuses, monkeypatch):
    """One line that says what to do, at once."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    err = fineweb_refuses("out", FINEWEB_EDU)
    assert "cannot load HuggingFaceFW/fineweb-edu sample-10BT: 127.0.0.1:9 does not answer (" in err
    assert "try another mirror" in err and "--files=" in err


def test_a_missing_package_is_not_a_missing_network(tmp_path, monkeypatch):
    """run_program then names the package to install."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError):
        fineweb.main([f"--out={tmp_path / 'shards'}"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModuleNotFoundError):
        fineweb.main([f"--files={tmp_path / 'a.parquet'}", f"--out={tmp_path / 'shards'}"])


@pytest.mark.parametrize("flag", ["--stream", "--no-stream"])
def test_a_dataset_gives_what_its_files_give(flag, make, tmp_path, monkeypatch):
    """Streamed or downloaded, stopped in the middle and gone on. (Here from a directory: the hub needs a network.)"""
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    docs = some_documents()
    for i in range(3):
        write_jsonl(tmp_path / "set" / f"train-{i}.jsonl", docs[i * 80 : i * 80 + 80])
    flags = [f"--dataset={tmp_path / 'set'}", "--name=", flag]
    make("out", *flags, "--max_shards=4")
    assert stream(make("out", *flags)) == plain(docs)


class Pretended:
    """As much of a streamed dataset as fineweb.py uses."""
    def __init__(self, files):
        self.files, self.num_shards = files, len(files)

    def shard(self, num_shards, index, contiguous):
        assert contiguous and num_shards == len(self.files)
        return Pretended([self.files[index]])

    def skip(self, n):
        for text in self.files[0][n:]:
            if text == "the line goes dead":
                raise ConnectionError("Read timed out")
            yield {"text": text, "id": "x"}


def test_fineweb_edu_and_a_connection_that_breaks(make, fineweb_refuses, monkeypatch, tmp_path):
    """What is asked of the hub; and a broken connection costs what was not yet in a shard."""
    datasets = pytest.importorskip("datasets")
    asked, files = [], [some_documents(seed=i) for i in range(4)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kw: asked.append((args, kw)) or Pretended(files))
    monkeypatch.setattr(fineweb, "reach_dataset", lambda dataset, name: None)
    usage = shutil.disk_usage("/")._replace(free=10**12)  # all of it would take 20 GB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    files[2].insert(100, "the line goes dead")
    err = fineweb_refuses("out", FINEWEB_EDU)
    assert "cannot read piece 2 of the dataset after row 100 (ConnectionError: Read timed out)" in err
    assert len(shards(tmp_path / "out")) > 10 and "run the same command again to continue" in err
    files[2].pop(100)
    assert stream(make("out", FINEWEB_EDU)) == plain([doc for file in files for doc in file])
    assert asked[0] == (("HuggingFaceFW/fineweb-edu",), dict(name="sample-10BT", split="train", streaming=True))


@pytest.mark.parametrize("tokenizer", ["gpt2", "char", "bpe:300"])
def test_parts_hold_each_document_once(tokenizer, make, tmp_path):
    """Made by machines that know nothing of each other, they sort into one stream; only the first has validation."""
    docs = some_documents()
    for i in range(7):
        write_jsonl(tmp_path / "split" / f"{i}.jsonl", docs[i * 30 : i * 30 + 30])
    together = tmp_path / "together"
    for k in (1, 2, 3):
        part = make(f"part{k}", f"--files={tmp_path}/split/*.jsonl", f"--part={k}/3", f"--tokenizer={tokenizer}")
        assert bool(list(part.glob("*_val_*"))) == (k == 1)
        if k == 3:
            assert fineweb.check_directory(str(together)) == ["part 3 of 3 is missing"]
        shutil.copytree(part, together, dirs_exist_ok=True)
    names = [path.name for path in shards(together)]
    assert "edufineweb_train_333333.npy" in names and "edufineweb_train_666666.npy" in names
    assert fineweb.check_directory(str(together)) == []
    assert stream(together) == plain(docs, shards_tokenizer(str(together)))


def test_where_processes_are_spawned(corpus, tmp_path):
    """Windows and macOS start processes by importing the program again. This one starts none: it may be one of them."""
    process = multiprocessing.get_context("spawn").Process(
        target=fineweb.main, args=([f"--files={corpus}", f"--out={tmp_path / 'out'}"],))
    process.start()
    process.join()
    assert process.exitcode == 0 and stream(tmp_path / "out") == plain(some_documents())


# ----------------------------------------------------------------------------------------------------
# tokenizers

def test_bpe_learned_from_the_corpus(make):
    """bpe:400 has 400 tokens; two runs, even in different processes, learn the same ones; tokenizer.json keeps them."""
    bpe = load_tokenizer({"name": "bpe", "json": train_bpe(some_documents(), 400)})
    out = make("out", "--tokenizer=bpe:400")
    assert (out / "tokenizer.json").read_text(encoding="utf-8") == bpe.spec["json"]
    code = ("import json, sys; from support.tokenizer import train_bpe; "
            "sys.stdout.buffer.write(train_bpe(json.load(sys.stdin), 400).encode())")
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT,
                               input=json.dumps(some_documents()).encode()).stdout
    assert elsewhere.decode() == bpe.spec["json"]
    assert bpe.n_vocab == 400 and stream(out) == plain(some_documents(), bpe)


def word_tokenizer(size, special="<|endoftext|>"):
    """A tokenizer.json of `size` words, the last of which is a special token."""
    tokenizers = pytest.importorskip("tokenizers")
    t = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(size - 1)}, unk_token="w0"))
    t.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    t.add_special_tokens([special])
    t.enable_truncation(3)
    return t.to_str()


@pytest.mark.parametrize("size, dtype", [(65536, "uint16"), (65537, "uint32")])
def test_a_tokenizer_of_your_own(size, dtype, make, corpus, tmp_path):
    """Any tokenizer.json, the way it cuts texts short switched off; 32 bits for ids that do not fit into 16."""
    (tmp_path / "mine.json").write_text(word_tokenizer(size, "</s>"))
    words = [size - 2, 0, 5, 7, size - 2]
    write_jsonl(corpus, [" ".join(f"w{i}" for i in words)] * 10)
    out = make("out", f"--tokenizer={tmp_path}/mine.json")
    assert stream(out) == [size - 1, *words] * 10 and np.load(shards(out)[0]).dtype == dtype
    assert fineweb.check_directory(str(out)) == []


def test_a_tokenizer_without_an_end_of_text(fineweb_refuses, tmp_path):
    (tmp_path / "mine.json").write_text(word_tokenizer(10, "[PAD]"))
    assert "none of <|endoftext|>" in fineweb_refuses("out", f"--tokenizer={tmp_path}/mine.json")
