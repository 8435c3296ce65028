"""Facts about fineweb.py: any corpus becomes token shards, and nothing that happens meanwhile changes a byte."""
import gzip
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import ROOT, contents, plain, refusal, shards, some_documents, stream, write_jsonl

import fineweb
from support.console import UserError
from support.files import MARK
from support.shards import load_meta
from support.tokenizer import gpt2_tokenizer, load_tokenizer, make_tokenizer, train_bpe

FINEWEB_EDU = "--dataset=HuggingFaceFW/fineweb-edu"  # the corpus that is read where no files are given
WIKI = os.path.join(ROOT, "..", "shared", "data", "wiki_docs.jsonl")


@pytest.fixture
def fineweb_refuses(make):
    """fineweb_refuses("name", *flags): the same must be refused -> the line that says why."""
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


def write_parquet(path, docs, kind):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"id": range(len(docs)), "text": pa.array(docs, getattr(pa, kind)())})
    pq.write_table(table, path, row_group_size=7)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "string.parquet", "large_string.parquet", "*.txt"])
def test_the_format_of_the_files_does_not_matter(name, make, tmp_path):
    """The same documents, in the same order, give the same shards from .jsonl, .jsonl.gz, .parquet and .txt files."""
    docs, folder = some_documents(), tmp_path / "files"
    folder.mkdir()
    if name.endswith(".gz"):
        write_jsonl(folder / name, docs)
    elif name.endswith(".parquet"):
        write_parquet(folder / name, docs, name.split(".")[0])
    else:
        docs = [doc.replace("\0", "") for doc in docs]  # in a .txt a zero tells that it is no text
        for i, doc in enumerate(docs):
            (folder / f"{i:04d}.txt").write_bytes(doc.encode())
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


@pytest.mark.parametrize("lines", [[], [""], ["", "  "], [json.dumps({"text": ""})]],
                         ids=["no line", "an empty line", "blank lines", "one empty document"])
def test_an_empty_corpus_is_refused(lines, fineweb_refuses, corpus):
    corpus.write_text("\n".join(lines))
    assert "tokens has none left to train on" in fineweb_refuses("out")


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
    """Broken UTF-8 and halves of surrogate pairs, counted; a null byte and a byte order mark are nothing special."""
    corpus.write_bytes(b'\xef\xbb\xbf{"text": "mark"}\n{"text": "caf\xe9"}\n'
                       b'{"text": "half \\ud83d, whole \\ud83d\\ude00"}\r\n{"text": "a raw \x00 byte"}\n')
    expected = ["mark", "caf\ufffd", "half \ufffd, whole 😀", "a raw \0 byte"]
    assert stream(make("out")) == plain(expected)
    assert "2 documents with U+FFFD" in capsys.readouterr().out


@pytest.mark.parametrize("line", ['{"text": "cut', "[1, 2]", '{"text": 5}', '{"txt": "a"}', "null", "[" * 100_000],
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
    assert "line 1: a JSON array, where each line must be an object" in fineweb_refuses("out")


def test_a_truncated_file_ends_the_run(fineweb_refuses, tmp_path):
    path = write_jsonl(tmp_path / "files" / "a.jsonl.gz", some_documents())
    path.write_bytes(path.read_bytes()[:-5000])
    line = fineweb_refuses("out", f"--files={path}")
    assert f"cannot read {path} after row" in line
    assert "get it again" in line and "goes on" not in line, "the same command meets the same damage"


def test_a_file_that_is_no_parquet(fineweb_refuses, tmp_path):
    (tmp_path / "a.parquet").write_text("PAR1")
    assert "cannot read" in fineweb_refuses("out", f"--files={tmp_path}/*.parquet")


# ----------------------------------------------------------------------------------------------------
# stopped, and gone on

class Died(BaseException):
    """What a power cut is to the program: nothing catches it."""


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("after", [False, True], ids=["before a rename", "after a rename"])
def test_dead_at_every_rename_and_gone_on(after, kind, make, tmp_path, monkeypatch):
    """What is on the disk changes at renames. Die right before or after each of them: the shards do not tell."""
    flags = ["--shard_size=8000"]
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


@pytest.mark.parametrize("flag, said", [
    ("--shard_size=4000", "another shard_size (3000, not 4000)"),
    ("--tokenizer=char", "another tokenizer (gpt2, not char)"),
    ("--files={root}/tests/*.txt", "another source"), ("--part=1/1000", "another parts (1, not 1000)"),
], ids=lambda v: v.split("=")[0])
def test_other_settings_are_refused(flag, said, make, fineweb_refuses, tmp_path):
    """A directory of shards that half belong to something else would be worse than none."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.txt").write_text("another text")
    before = contents(make("out"))
    assert said in fineweb_refuses("out", flag.format(root=tmp_path)) and contents(tmp_path / "out") == before


def test_a_grown_corpus_is_another_source(make, fineweb_refuses, corpus):
    make("out")
    with open(corpus, "a") as f:
        f.write(json.dumps({"text": "one more"}))
    assert "another source" in fineweb_refuses("out")


def test_shards_of_another_program_are_not_touched(fineweb_refuses, tmp_path):
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "out" / "edufineweb_train_000001.npy", np.zeros(10, np.uint16))
    assert "holds shards without a meta.json" in fineweb_refuses("out")


def test_a_shard_that_has_gone(make, fineweb_refuses):
    out = make("out", "--max_shards=3")
    shards(out)[1].unlink()
    assert "edufineweb_train_000001.npy is missing: delete" in fineweb_refuses("out")


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
    assert len(list((tmp_path / "out").iterdir())) == 5  # and meta.json, .lock
    monkeypatch.setattr(np, "save", save)
    assert contents(make("out")) == contents(make("undisturbed"))


@pytest.mark.parametrize("flags, said", [
    (["--files=nowhere/*.jsonl"], "there is no such file"),
    (["--files={root}/*.csv"], "a.csv is none of .txt, .jsonl, .jsonl.gz, .parquet"),
    (["--shard_size=0"], "must be at least 1"), (["--workers=-1"], "must be at least 0"),
    (["--max_shards=1"], "try --max_shards=2"), (["--part=9/8"], "--part=3/8"), (["--part=x"], "--part=3/8"),
    (["--part=1/2"], "try --part=1/1"), (["--shards=3"], "unrecognized arguments"),
    (["--tokenizer=words"], "neither gpt2, char, bpe:8000"), (["--tokenizer=bpe:10"], "at least bpe:257"),
    (["--tokenizer={root}/a.json"], "not a usable tokenizer.json"), (["--out={root}/a.csv"], "cannot write to"),
    (["--check=nowhere"], "nowhere has no meta.json"),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_wrong_flags(flags, said, fineweb_refuses, tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "a.json").write_text("{}")
    assert said in fineweb_refuses("out", *(flag.format(root=tmp_path) for flag in flags))


def test_without_a_network(fineweb_refuses, monkeypatch):
    """One line that says what to do, at once."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    err = fineweb_refuses("out", FINEWEB_EDU)
    assert "cannot load HuggingFaceFW/fineweb-edu sample-10BT from http://127.0.0.1:9" in err
    assert "set HF_ENDPOINT to a mirror" in err and "--files=" in err


# ----------------------------------------------------------------------------------------------------
# datasets, parts, processes

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
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kw: open(os.devnull))
    files[2].insert(100, "the line goes dead")
    err = fineweb_refuses("out", FINEWEB_EDU)
    assert "cannot read piece 2 of the dataset after row 100 (ConnectionError: Read timed out)" in err
    assert len(shards(tmp_path / "out")) > 10 and "the same command goes on" in err
    files[2].pop(100)
    assert stream(make("out", FINEWEB_EDU)) == plain([doc for file in files for doc in file])
    assert asked[0] == (("HuggingFaceFW/fineweb-edu",), dict(name="sample-10BT", split="train", streaming=True))


@pytest.mark.parametrize("tokenizer", ["gpt2", "char", "bpe:300"])
def test_parts_hold_each_document_once(tokenizer, make, tmp_path, capsys):
    """Made by machines that know nothing of each other, they sort into one stream; only the first has validation."""
    docs = some_documents()
    for i in range(7):
        write_jsonl(tmp_path / "split" / f"{i}.jsonl", docs[i * 30 : i * 30 + 30])
    together = tmp_path / "together"
    for k in (1, 2, 3):
        part = make(f"part{k}", f"--files={tmp_path}/split/*.jsonl", f"--part={k}/3", f"--tokenizer={tokenizer}")
        assert bool(list(part.glob("*_val_*"))) == (k == 1)
        if k == 3:
            assert check(together, capsys) == (1, "part 3 of 3 is missing\n")
        shutil.copytree(part, together, dirs_exist_ok=True)
    names = [path.name for path in shards(together)]
    assert "edufineweb_train_333333.npy" in names and "edufineweb_train_666666.npy" in names
    assert check(together, capsys)[0] == 0
    assert stream(together) == plain(docs, load_meta(str(together)))


def test_where_processes_are_spawned(corpus, tmp_path):
    """Windows and macOS start processes by importing the program again. This one starts none: it may be one of them."""
    process = multiprocessing.get_context("spawn").Process(
        target=fineweb.main, args=([f"--files={corpus}", f"--out={tmp_path / 'out'}"],))
    process.start()
    process.join()
    assert process.exitcode == 0 and stream(tmp_path / "out") == plain(some_documents())


# ----------------------------------------------------------------------------------------------------
# --check

def check(folder, capsys):
    """-> exit code and output of --check"""
    capsys.readouterr()
    try:
        fineweb.main([f"--check={folder}"])
    except UserError as e:
        return e.exit_code, capsys.readouterr().out
    return 0, capsys.readouterr().out


def change(offset, value):
    def damage(path):
        tokens = np.load(path)
        tokens[offset] = value
        np.save(path, tokens)
    return damage


@pytest.mark.parametrize("damage, said", [
    (lambda path: None, "every shard is as it was made"),
    (lambda path: path.unlink(), "edufineweb_train_000002.npy is missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:-2]), "000002.npy is not a token shard"),
    (lambda path: path.write_bytes(b""), "000002.npy is not a token shard"),
    (lambda path: np.save(path, np.load(path)[:-1]), "of shape (2999,), not 3,000 tokens of uint16"),
    (lambda path: np.save(path, np.load(path).astype(np.uint32)), "holds uint32"),
    (change(7, 60000), "token 60000 at offset 7: there are only 50257"),
    (change(7, 50256), "documents, not"),
    (change(7, 11), "000002.npy has changed since it was made"),
    (lambda path: path.rename(path.with_name("edufineweb_train_000099.npy")), "000099.npy is in no meta.json"),
    (lambda path: os.mkfifo(path.with_name("edufineweb_train_000099.npy")), "000099.npy is in no meta.json"),
], ids=["nothing", "missing", "truncated", "empty", "shorter", "wider", "an id too large", "another document",
        "another token", "renamed", "a pipe"])
def test_check_names_what_is_wrong(damage, said, make, capsys):
    out = make("out")
    damage(out / "edufineweb_train_000002.npy")
    code, output = check(out, capsys)
    assert said in output and code == (0 if "every" in said else 1)


def test_check_sees_an_unfinished_run(make, fineweb_refuses, corpus, tmp_path, capsys):
    with open(corpus, "a") as f:
        f.write("{")
    fineweb_refuses("out", "--strict")
    assert check(tmp_path / "out", capsys) == (1, "part 1 of 1 is not finished: the command that began it goes on\n")


# ----------------------------------------------------------------------------------------------------
# tokenizers

@pytest.fixture(scope="module")
def bpe():
    return load_tokenizer({"name": "bpe", "json": train_bpe(some_documents(), 400)})


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_text_to_tokens_to_text_is_the_identity(text, bpe):
    """For any text, also one that spells a special token: a document cannot inject what separates documents."""
    text += "<|endoftext|>"
    for t in (gpt2_tokenizer(), make_tokenizer("char", [text]), bpe):
        ids = t.encode(text)
        assert t.decode(ids) == text and t.eot not in ids and max(ids) < t.n_vocab
        assert [list(ids) for ids in t.encode_batch([text, "", text])] == [ids, [], ids]


def test_bpe_learned_from_the_corpus(make, bpe):
    """bpe:400 has 400 tokens; two runs, even in different processes, learn the same ones; tokenizer.json keeps them."""
    out = make("out", "--tokenizer=bpe:400")
    assert (out / "tokenizer.json").read_text(encoding="utf-8") == bpe.spec["json"]
    code = ("import sys; from small_runs import some_documents; from support.tokenizer import train_bpe; "
            "sys.stdout.buffer.write(train_bpe(some_documents(), 400).encode())")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((ROOT, os.path.join(ROOT, "tests")))}
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env).stdout
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


def test_another_tokenizer_file_of_the_same_name(make, fineweb_refuses, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(word_tokenizer(10))
    make("out", f"--tokenizer={path}")
    path.write_text(word_tokenizer(11))
    assert "another tokenizer (mine.json" in fineweb_refuses("out", f"--tokenizer={path}")


def test_help_is_the_docstring_and_every_flag():
    command = [sys.executable, os.path.join(ROOT, "fineweb.py"), "--help"]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    assert fineweb.__doc__.strip().splitlines()[0] in out
    assert all(f"--{name}" in out for name in fineweb.ShardConfig.__dataclass_fields__)


# --- what a clumsy user does ----------------------------------------------------------------------

@pytest.fixture
def two_files(tmp_path):
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
def make_two(tmp_path, two_files):
    """make_two("name", "--workers=1") makes shards of 3,000 tokens of the corpus -> their directory."""
    def run(name, *flags):
        fineweb.main([f"--files={two_files}", "--shard_size=3000", f"--out={tmp_path / name}", *flags])
        return tmp_path / name
    return run


def run_elsewhere(two_files, out, *flags):
    """The same in a process of its own -> exit code, what it says on stderr"""
    command = [sys.executable, os.path.join(ROOT, "fineweb.py"), f"--files={two_files}",
               "--shard_size=3000", f"--out={out}", *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.returncode, result.stderr


@pytest.mark.parametrize("mine, theirs, code", [
    ("1/1", "1/1", 2), ("1/2", "1/2", 2), ("1/2", "2/2", 0),
])
def test_one_run_in_a_directory(mine, theirs, code, make_two, two_files, tmp_path, monkeypatch):
    """
    A second run with the same --out is refused while the first is at work. Parts of one corpus may
    be made at the same time: each writes files of its own.
    """
    write_shard, results = fineweb.write_shard, []

    def meanwhile(path, tokens):
        if not results:
            results.append(run_elsewhere(two_files, tmp_path / "out", f"--part={theirs}"))
        return write_shard(path, tokens)
    monkeypatch.setattr(fineweb, "write_shard", meanwhile)
    make_two("out", f"--part={mine}")
    exit_code, said = results[0]
    assert exit_code == code
    if code:
        advice = f"another run is writing to {tmp_path / 'out'}: wait for it, or choose another"
        assert advice in said and said.count("\n") == 1
    monkeypatch.undo()
    make_two("alone", f"--part={mine}")
    if code == 0:
        make_two("alone", f"--part={theirs}")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


@pytest.mark.parametrize("mine, theirs", [("1/1", "1/2"), ("1/2", "1/1"), ("1/2", "1/3")])
def test_runs_that_cut_the_corpus_differently_see_each_other(mine, theirs, make_two, two_files, tmp_path, monkeypatch):
    """At the very start too, when neither has written a meta.json: the second one is refused."""
    choose, results = fineweb.choose_tokenizer, []

    def meanwhile(config, pieces):
        if not results:
            results.append(None)
            results[0] = refusal(make_two, "out", f"--part={theirs}")
        return choose(config, pieces)
    monkeypatch.setattr(fineweb, "choose_tokenizer", meanwhile)
    make_two("out", f"--part={mine}")
    assert "another run is writing to" in results[0]


def interrupted(make_two, monkeypatch):
    """A run that a full disk has ended after its third shard -> the directory"""
    write_shard = fineweb.write_shard

    def fails(path, tokens):
        if path.endswith("_000003.npy"):
            raise OSError(28, "No space left on device")
        return write_shard(path, tokens)
    monkeypatch.setattr(fineweb, "write_shard", fails)
    refusal(make_two, "out")
    monkeypatch.setattr(fineweb, "write_shard", write_shard)


@pytest.mark.parametrize("where, said", [(0, "edited since"), (-20, "edited since"), (None, "been modified since")])
def test_a_file_edited_to_the_same_size_between_two_runs(where, said, make_two, tmp_path, monkeypatch):
    """Half of the shards would be of another text: seen by a hash of the ends, or by the time of the change."""
    interrupted(make_two, monkeypatch)
    path = tmp_path / "corpus" / "1.jsonl"
    before = os.stat(path).st_mtime
    if where is not None:
        data = bytearray(path.read_bytes())
        data[where] ^= 1
        path.write_bytes(data)
        os.utime(path, (before, before))
    else:
        os.utime(path, (before + 5, before + 5))
    assert said in refusal(make_two, "out")


def test_what_an_older_version_has_begun_goes_on(make_two, tmp_path, monkeypatch):
    """Its meta.json has neither a hash nor a time: names and sizes are compared, as they were then."""
    interrupted(make_two, monkeypatch)
    path = tmp_path / "out" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["modified"], meta["settings"]["ends"]
    path.write_text(json.dumps(meta))
    make_two("out")
    assert stream(tmp_path / "out") == stream(make_two("alone"))


def test_a_tokenizer_that_makes_a_token_of_a_document(tmp_path):
    """Words of a thousand letters, each again and again: each becomes one token, and nothing is left to learn."""
    words = ["".join(random.Random(seed).choices("abcdefgh", k=1100)) for seed in range(2)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", words * 30)
    flags = [f"--files={corpus}", "--shard_size=1000"]
    said = refusal(fineweb.main, [*flags, f"--out={tmp_path / 'out'}", "--tokenizer=bpe:4000"])
    assert "--tokenizer=bpe:4000 makes" in said and "whole documents" in said
    fineweb.main([*flags, f"--out={tmp_path / 'out'}", "--tokenizer=bpe:300"])


def test_a_fault_of_ours_is_not_taken_for_a_damaged_file(make_two, monkeypatch):
    """Only what a library raises is what a file is blamed for."""
    def fault(*args):
        raise NameError("of ours")
    monkeypatch.setattr(fineweb, "read_rows", fault)
    with pytest.raises(NameError):
        make_two("out")


def test_a_finished_directory_needs_no_lock(make_two, monkeypatch, capsys):
    """It may lie on a disk that cannot be written to."""
    make_two("out")

    def cannot(*args):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(fineweb, "lock_part", cannot)
    capsys.readouterr()
    make_two("out")
    assert capsys.readouterr().out.startswith("everything is there already")


def test_the_next_command_trains_on_what_was_made(corpus, tmp_path, monkeypatch, capsys):
    """Also from the default directory: --preset=laptop alone would take input.txt. It is a line to copy."""
    monkeypatch.chdir(tmp_path)
    flags = [f"--files={corpus}", "--tokenizer=char"]
    fineweb.main(flags)
    assert "next: python train_gpt2.py --data_root=edu_fineweb10B --preset=laptop" in capsys.readouterr().out
    fineweb.main([*flags, "--out=my shards"])
    assert "next: python train_gpt2.py --data_root='my shards' --preset=laptop" in capsys.readouterr().out


SENTENCE = "Être, ou ne pas être: là est la question. "


@pytest.mark.parametrize("data", [SENTENCE.encode("latin-1"), SENTENCE.encode("utf-16"),
                                  gzip.compress(SENTENCE.encode()), np.random.default_rng(0).bytes(999),
                                  b"to be " * 300 + bytes(50)],
                         ids=["Latin-1", "UTF-16", "gzip", "random", "a hole"])
def test_what_is_no_text_in_utf8_is_refused(data, make_two, refused, tmp_path):
    """By train_gpt2.py and by fineweb.py. Otherwise a model would train on U+FFFD and zeros, without a word."""
    path = tmp_path / "my text.txt"
    path.write_bytes(data)
    said = f"{path} is not UTF-8 at byte "
    assert said in refused(f"--data_root={path}")
    assert said in refusal(make_two, "out", f"--files={tmp_path}/my*.txt")
    assert not list((tmp_path / "out").glob("*.npy"))


@pytest.mark.parametrize("text, said", [
    ("", "is empty (0 characters): give a text to train on"),
    ("\ufeff", "is empty (0 characters): give a text to train on"),
    ("To be", "is too short (5 characters): it has 4 tokens to train on and 1 for validation, and "
              "a batch needs B * T + 1"),
    ("To be, or not to be", "has 17 tokens: too short for a row of 32: try a smaller --T"),
], ids=["nothing", "a mark", "a word", "a line"])
def test_a_text_of_a_few_characters(text, said, refused, tmp_path):
    """The error says how many tokens there are, and how many are needed."""
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert said in refused(f"--data_root={tmp_path / 'a.txt'}")


@pytest.mark.parametrize("size", [10**14, 2**32 + 1])
def test_a_shard_too_large_for_a_file_is_refused_at_once(size, make_two, tmp_path):
    """Nothing is written, so that the corrected command does not meet what it has left."""
    line = refusal(make_two, "out", f"--shard_size={size}")
    assert line == f"--shard_size={size}: must be at most {2**32}"
    assert not (tmp_path / "out").exists()


def test_a_shard_too_large_for_the_memory(make_two, tmp_path, monkeypatch):
    """The buffer is asked for before meta.json is written."""
    empty = np.empty

    def small_machine(shape, *args, **kwargs):
        if shape == 8_000_000_000:
            raise MemoryError("Unable to allocate 14.9 GiB")
        return empty(shape, *args, **kwargs)
    monkeypatch.setattr(np, "empty", small_machine)
    line = refusal(make_two, "out", "--shard_size=4000000000")
    assert "too large for the memory here (Unable to allocate 14.9 GiB): try --shard_size=1" in line
    assert contents(tmp_path / "out") == {}


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
def test_a_run_without_a_shard_is_no_obstacle(wrong, right, make_two, tmp_path, monkeypatch):
    """
    A run that ended before its first shard leaves a meta.json. Whatever its settings were, the
    corrected command does what it does in an empty directory.
    """
    write_shard = fineweb.write_shard

    def full(path, tokens):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(fineweb, "write_shard", full)
    small = small_tokenizer(tmp_path)
    refusal(make_two, "out", *(flag.format(small=small) for flag in WRONG[wrong]))
    assert list(contents(tmp_path / "out"))
    monkeypatch.setattr(fineweb, "write_shard", write_shard)
    assert contents(make_two("out", *right)) == contents(make_two("alone", *right))


def test_shards_that_no_meta_json_speaks_of_yet(make_two, tmp_path, monkeypatch):
    """
    The first two shards are there before meta.json speaks of them. What a run has left that died
    right then does not end up among the shards of another part.
    """
    def die(*args):
        raise Died
    with monkeypatch.context() as patch:
        patch.setattr(fineweb.ShardWriter, "save_meta", die)
        with pytest.raises(Died):
            make_two("out")
    assert len(list((tmp_path / "out").glob("*.npy"))) == 2
    assert contents(make_two("out", "--part=2/2")) == contents(make_two("alone", "--part=2/2"))


def test_a_run_without_a_shard_that_is_still_running(make_two, two_files, tmp_path, monkeypatch):
    """It is an obstacle: who removed its meta.json would have two corpora in one directory."""
    write_shard, results = fineweb.write_shard, []

    def meanwhile(path, tokens):
        if not results:
            results.append(run_elsewhere(two_files, tmp_path / "out", "--part=2/2"))
        return write_shard(path, tokens)
    monkeypatch.setattr(fineweb, "write_shard", meanwhile)
    make_two("out")
    exit_code, said = results[0]
    assert exit_code == 2 and "another run is writing to" in said
    assert contents(tmp_path / "out") == contents(make_two("alone"))


def test_a_tokenizer_json_of_ones_own_in_the_directory(make_two, tmp_path):
    """It is neither overwritten nor left beside shards that another tokenizer has made."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text("mine")
    line = refusal(make_two, "out", "--tokenizer=bpe:300")
    assert "tokenizer.json is not the tokenizer of these shards: choose another --out" in line
    assert contents(tmp_path / "out") == {"tokenizer.json": b"mine"}


def test_a_parquet_without_the_column_names_those_that_are_there(make_two, tmp_path):
    """It said "IndexError: Index 0 out of bounds"."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "body": ["to be", "or not"]}), path)
    line = refusal(make_two, "out", f"--files={path}")
    assert line == f"{path} has no column 'text': with --text_key choose one of id, body"
    assert list(make_two("out", f"--files={path}", "--text_key=body").glob("*.npy"))


def test_there_are_no_machines_with_100000_cores(make_two, tmp_path):
    """The system would refuse the threads one day, in the middle of the work."""
    assert refusal(make_two, "out", "--workers=100000") == "--workers=100000: must be at most 1024"
    assert not (tmp_path / "out").exists()


def test_only_what_killed_runs_have_left_is_deleted(make_two, tmp_path):
    """`--out=.` deleted every *.tmp* file in the directory, its own input among them."""
    out = tmp_path / "out"
    out.mkdir()
    with subprocess.Popen(["true"]) as dead:
        pass
    mine = ["data.tmp.jsonl", "notes.tmp2024", f"notes.txt{MARK}{dead.pid}", f"meta.json{MARK}{os.getppid()}"]
    left = [f"meta.json{MARK}{dead.pid}", f"edufineweb_train_000001.npy{MARK}{dead.pid}"]
    for name in (*mine, *left):
        (out / name).write_text("{}")
    make_two("out")
    assert all((out / name).exists() for name in mine) and not any((out / name).exists() for name in left)


@pytest.mark.parametrize("name", ["a[1].jsonl", "caf\udce9.jsonl", "what?.jsonl"])
def test_a_file_is_taken_as_it_is_called(name, tmp_path, monkeypatch):
    """Signs of a glob pattern in a name that is there, a name in Latin-1: its shards are made, and made once."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / name, some_documents(5))
    for _ in range(2):
        fineweb.main([f"--files={name}", "--out=shards"])
    assert len(shards(tmp_path / "shards")) == 2


def test_a_missing_package_is_not_a_missing_network(tmp_path, monkeypatch):
    """It said "set HF_ENDPOINT to a mirror", or that the file cannot be read."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError):
        fineweb.main([f"--out={tmp_path / 'shards'}"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModuleNotFoundError):
        fineweb.main([f"--files={tmp_path / 'a.parquet'}", f"--out={tmp_path / 'shards'}"])
