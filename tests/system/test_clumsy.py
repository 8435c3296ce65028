"""Facts about what clumsy people do to whole programs: their own files stay as they are, and odd names are found."""
import os
import subprocess
import sys

import pytest
from small_runs import ROOT, TINY, some_documents, write_jsonl


@pytest.fixture
def start(tmp_path):
    """start("fineweb.py", "--flag") runs a program in an empty directory -> what it has printed."""
    def run(program, *flags):
        result = subprocess.run([sys.executable, os.path.join(ROOT, program), *flags], cwd=tmp_path, text=True,
                                capture_output=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr
        return result.stdout
    return run


def test_files_of_mine_in_log_dir_stay(start, text, tmp_path):
    """Whatever their names look like: a run touches only what it has written itself."""
    mine = ("report.tmp1.docx", "model_best.pt", "model_00009_backup.pt")
    (tmp_path / "log").mkdir()
    for name in mine:
        (tmp_path / "log" / name).write_text("mine")
    start("train_gpt2.py", *TINY, f"--data_root={text}", "--max_steps=4", "--save_every=2", "--keep_last=1")
    assert [(tmp_path / "log" / name).read_text() for name in mine] == ["mine"] * 3
    assert (tmp_path / "log" / "model_00004.pt").exists()


def test_a_file_of_mine_beside_shards_stays(start, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", some_documents(20))
    (tmp_path / "notes.tmp2024").write_text("mine")
    start("fineweb.py", "--files=a.jsonl", "--out=.")
    assert (tmp_path / "notes.tmp2024").read_text() == "mine"


def test_a_file_that_is_named_like_a_pattern(start, tmp_path):
    """--files takes patterns, and finds a[1].jsonl all the same."""
    write_jsonl(tmp_path / "a[1].jsonl", some_documents(20))
    assert "next: python train_gpt2.py" in start("fineweb.py", "--files=a[1].jsonl", "--out=shards")
