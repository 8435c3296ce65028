"""Facts about fineweb.py: any corpus becomes token shards, and nothing that happens meanwhile changes a byte."""
import json
import multiprocessing
import os
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
from support.shards import load_meta
from support.tokenizer import gpt2_tokenizer, load_tokenizer, make_tokenizer, train_bpe

WIKI = os.path.join(ROOT, "..", "shared", "data", "wiki_docs.jsonl")


@pytest.fixture
def refused(make):
    """refused("name", *flags): the same must be refused -> the line that says why."""
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
def test_an_empty_corpus_is_refused(lines, refused, corpus):
    corpus.write_text("\n".join(lines))
    assert "tokens has none left to train on" in refused("out")


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
def test_a_malformed_row_is_named_skipped_and_counted(line, make, refused, corpus, capsys):
    """Or, with --strict, the end."""
    corpus.write_text("\n".join([json.dumps({"text": "good"}), line, json.dumps({"text": "better"})]))
    assert stream(make("out")) == plain(["good", "better"])
    out, err = capsys.readouterr()
    assert f"skipped: {corpus}, line 2: " in err and "; 1 rows without a text skipped" in out
    assert f"{corpus}, line 2: " in refused("strict", "--strict")


def test_a_wrong_text_key_does_not_skip_a_whole_corpus(refused):
    assert "line 1: no text under 'content', as in every row so far: is --text_key right?" in refused(
        "out", "--text_key=content")


def test_a_truncated_file_ends_the_run(refused, tmp_path):
    path = write_jsonl(tmp_path / "files" / "a.jsonl.gz", some_documents())
    path.write_bytes(path.read_bytes()[:-5000])
    assert f"cannot read {path} after row" in refused("out", f"--files={path}")


def test_a_file_that_is_no_parquet(refused, tmp_path):
    (tmp_path / "a.parquet").write_text("PAR1")
    assert "cannot read" in refused("out", f"--files={tmp_path}/*.parquet")


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


def test_more_shards_later(make, refused):
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
def test_other_settings_are_refused(flag, said, make, refused, tmp_path):
    """A directory of shards that half belong to something else would be worse than none."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.txt").write_text("another text")
    before = contents(make("out"))
    assert said in refused("out", flag.format(root=tmp_path)) and contents(tmp_path / "out") == before


def test_a_grown_corpus_is_another_source(make, refused, corpus):
    make("out")
    with open(corpus, "a") as f:
        f.write(json.dumps({"text": "one more"}))
    assert "another source" in refused("out")


def test_shards_of_another_program_are_not_touched(refused, tmp_path):
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "out" / "edufineweb_train_000001.npy", np.zeros(10, np.uint16))
    assert "holds shards without a meta.json" in refused("out")


def test_a_shard_that_has_gone(make, refused):
    out = make("out", "--max_shards=3")
    shards(out)[1].unlink()
    assert "edufineweb_train_000001.npy is missing: delete" in refused("out")


def test_no_space_is_seen_before(refused, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "has 0.0 MB free: choose another --out, or fewer shards" in refused("out")


def test_no_space_while_writing(make, refused, monkeypatch, tmp_path):
    """The error names what is missing, finished shards stay, no half shard does, and the same command goes on."""
    save, calls = np.save, []

    def full(f, tokens):
        calls.append(f)
        if len(calls) > 3:
            f.write(b"half")
            raise OSError(28, "No space left on device")
        save(f, tokens)
    monkeypatch.setattr(np, "save", full)
    err = refused("out")
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
def test_wrong_flags(flags, said, refused, tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "a.json").write_text("{}")
    assert said in refused("out", *(flag.format(root=tmp_path) for flag in flags))


def test_without_a_network(refused, monkeypatch):
    """One line that says what to do, at once."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    err = refused("out", "--files=")
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
    flags = ["--files=", f"--dataset={tmp_path / 'set'}", "--name=", flag]
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


def test_fineweb_edu_and_a_connection_that_breaks(make, refused, monkeypatch, tmp_path):
    """What is asked of the hub; and a broken connection costs what was not yet in a shard."""
    datasets = pytest.importorskip("datasets")
    asked, files = [], [some_documents(seed=i) for i in range(4)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kw: asked.append((args, kw)) or Pretended(files))
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kw: open(os.devnull))
    files[2].insert(100, "the line goes dead")
    err = refused("out", "--files=")
    assert "cannot read piece 2 of the dataset after row 100 (ConnectionError: Read timed out)" in err
    assert len(shards(tmp_path / "out")) > 10 and "the same command goes on" in err
    files[2].pop(100)
    assert stream(make("out", "--files=")) == plain([doc for file in files for doc in file])
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


def test_check_sees_an_unfinished_run(make, refused, corpus, tmp_path, capsys):
    with open(corpus, "a") as f:
        f.write("{")
    refused("out", "--strict")
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


def test_a_tokenizer_without_an_end_of_text(refused, tmp_path):
    (tmp_path / "mine.json").write_text(word_tokenizer(10, "[PAD]"))
    assert "none of <|endoftext|>" in refused("out", f"--tokenizer={tmp_path}/mine.json")


def test_another_tokenizer_file_of_the_same_name(make, refused, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(word_tokenizer(10))
    make("out", f"--tokenizer={path}")
    path.write_text(word_tokenizer(11))
    assert "another tokenizer (mine.json" in refused("out", f"--tokenizer={path}")


def test_help_is_the_docstring_and_every_flag():
    command = [sys.executable, os.path.join(ROOT, "fineweb.py"), "--help"]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    assert fineweb.__doc__.strip().splitlines()[0] in out
    assert all(f"--{name}" in out for name in fineweb.ShardConfig.__dataclass_fields__)
