"""Facts about writing a directory of shards: one run at a time, what belongs together, and --check."""
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from small_runs import contents, refusal, shards, some_documents, stream, write_jsonl

import fineweb
from support.console import UserError
from support.files import MARK
from support.shard_directory import lock_part
from support.tokenizer import train_bpe


@pytest.fixture
def fineweb_refuses(make):
    """fineweb_refuses("name", *flags): these flags must be refused -> the line that says why."""
    return lambda *args: refusal(make, *args)


# --- what belongs together --------------------------------------------------------------------------

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
    assert "holds shards of another program, without a meta.json" in fineweb_refuses("out")


def test_a_shard_that_has_gone(make, fineweb_refuses):
    out = make("out", "--max_shards=3")
    shards(out)[1].unlink()
    assert "edufineweb_train_000001.npy is missing: copy it again" in fineweb_refuses("out")


def test_another_tokenizer_file_of_the_same_name(make, fineweb_refuses, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(train_bpe(["to be or not to be"], 260))
    make("out", f"--tokenizer={path}")
    path.write_text(train_bpe(["to be or not to be"], 261))
    assert "another tokenizer (mine.json" in fineweb_refuses("out", f"--tokenizer={path}")


@pytest.mark.parametrize("where", [0, 0.5, 1])
@pytest.mark.parametrize("begun", ["--max_shards=3", "--max_shards=0"])
def test_a_file_edited_to_the_same_size_between_two_runs(where, begun, make, fineweb_refuses, corpus):
    """Shards of the old text are not taken for shards of the new one, wherever the edit is: every byte counts."""
    text = corpus.read_bytes()
    make("out", begun)
    place = int(where * (len(text) - 1))
    corpus.write_bytes(text[:place] + b"#" + text[place + 1 :])
    assert "edited since: choose another --out" in fineweb_refuses("out")


def test_a_copy_of_the_corpus_is_the_same_corpus(make, corpus, tmp_path):
    """Names and contents decide, not the folder and not the times."""
    make("out", "--max_shards=3")
    (tmp_path / "copy").mkdir()
    shutil.copyfile(corpus, tmp_path / "copy" / corpus.name)
    os.utime(tmp_path / "copy" / corpus.name, (5, 5))
    assert contents(make("out", f"--files={tmp_path}/copy/*.jsonl")) == contents(make("at once"))


def test_what_an_older_version_has_begun_goes_on(make):
    """Its meta.json has the time of the corpus, which no longer matters."""
    path = make("out", "--max_shards=3") / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modified": 5}))
    assert stream(make("out")) == stream(make("at once"))


def test_a_tokenizer_json_of_ones_own_in_the_directory(fineweb_refuses, tmp_path):
    """It is neither overwritten nor left beside shards that another tokenizer has made."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text("mine")
    line = fineweb_refuses("out", "--tokenizer=bpe:300")
    assert "tokenizer.json is not the tokenizer of these shards: choose another --out" in line
    assert contents(tmp_path / "out") == {"tokenizer.json": b"mine"}


def test_only_what_killed_runs_have_left_is_deleted(make, tmp_path):
    """Not every *.tmp* file: with `--out=.` the corpus may be one."""
    out = tmp_path / "out"
    out.mkdir()
    with subprocess.Popen(["true"]) as dead:
        pass
    mine = ["data.tmp.jsonl", "notes.tmp2024", f"notes.txt{MARK}{dead.pid}", f"meta.json{MARK}{os.getppid()}"]
    left = [f"meta.json{MARK}{dead.pid}", f"edufineweb_train_000001.npy{MARK}{dead.pid}"]
    for name in (*mine, *left):
        (out / name).write_text("{}")
    make("out")
    assert all((out / name).exists() for name in mine) and not any((out / name).exists() for name in left)


# --- one run at a time ------------------------------------------------------------------------------

def test_one_run_in_a_directory(make, fineweb_refuses, tmp_path):
    """A second run with the same --out is refused while the first is at work."""
    with lock_part(str(tmp_path / "out"), 1, 1):
        line = fineweb_refuses("out")
        assert line == f"another run is writing to {tmp_path / 'out'}: wait for it, or choose another --out"
    assert contents(make("out")) == contents(make("alone"))


def test_parts_of_one_corpus_may_be_made_at_the_same_time(make, tmp_path):
    """Each writes files of its own."""
    for i in range(2):
        write_jsonl(tmp_path / "split" / f"{i}.jsonl", some_documents(40, seed=i))
    flags = [f"--files={tmp_path}/split/*.jsonl", "--part=2/2"]
    with lock_part(str(tmp_path / "out"), 1, 2):
        make("out", *flags)
        assert shards(tmp_path / "out")


def test_a_finished_directory_needs_no_lock(make, monkeypatch, capsys):
    """It may lie on a disk that cannot be written to."""
    make("out")

    def cannot(*args):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(fineweb, "lock_part", cannot)
    capsys.readouterr()
    make("out")
    assert capsys.readouterr().out.startswith("everything is there already")


# --- --check ----------------------------------------------------------------------------------------

def check(folder, capsys):
    """-> exit code and output of --check"""
    capsys.readouterr()
    try:
        fineweb.main([f"--check={folder}"])
    except UserError as e:
        return e.exit_code, capsys.readouterr().out
    return 0, capsys.readouterr().out


def change_a_token(path):
    tokens = np.load(path)
    tokens[7] += 1
    np.save(path, tokens)


@pytest.mark.parametrize("damage, said", [
    (lambda path: None, "every shard is as it was made"),
    (lambda path: path.unlink(), "edufineweb_train_000002.npy is missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:-2]), "000002.npy is not a token shard"),
    (lambda path: path.write_bytes(b""), "000002.npy is not a token shard"),
    (lambda path: np.save(path, np.load(path)[:-1]), "holds 2999 tokens of uint16, not 3000 of uint16"),
    (lambda path: np.save(path, np.load(path).astype(np.uint32)), "holds 3000 tokens of uint32"),
    (change_a_token, "000002.npy has changed since it was made"),
    (lambda path: path.rename(path.with_name("edufineweb_train_000099.npy")), "000099.npy is listed in no meta.json"),
], ids=["nothing", "missing", "truncated", "empty", "shorter", "wider", "another token", "renamed"])
def test_check_names_what_is_wrong(damage, said, make, capsys):
    out = make("out")
    damage(out / "edufineweb_train_000002.npy")
    code, output = check(out, capsys)
    assert said in output and code == (0 if "every" in said else 1)


def test_check_sees_an_unfinished_run(make, fineweb_refuses, corpus, tmp_path, capsys):
    with open(corpus, "a") as f:
        f.write("{")
    fineweb_refuses("out", "--strict")
    assert check(tmp_path / "out", capsys) == (1, "part 1 of 1 is not finished: run the command that began it again\n")
