"""
Facts about clumsy hands at fineweb.py, and at a text file to train on: one line says what to do,
and nothing is lost.
"""
import json
import os
import subprocess
import sys

import pytest
from small_runs import ROOT

import fineweb


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
    monkeypatch.setattr(fineweb, "lock_directory", cannot)
    capsys.readouterr()
    make("out")
    assert capsys.readouterr().out.startswith("everything is there already")
