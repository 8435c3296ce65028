"""The chapters of the history can be listed and measured again; exercises stay out of the way until they are called."""
import os
import shutil
import subprocess
import sys

import pytest
from small_runs import ROOT

CHAPTERS = os.path.join(ROOT, "tools", "chapters.py")


def chapters(*args, script=CHAPTERS):
    return subprocess.run([sys.executable, script, *args], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def history():
    """What `python tools/chapters.py` lists. A source archive or a shallow clone has no history to list."""
    result = chapters()
    if "git clone" in result.stderr:
        pytest.skip("the chapters are commits, and this copy of the repository has no history")
    return result.stdout.splitlines()


def test_the_history_begins_with_thirty_chapters(history):
    assert len(history) == 30
    assert "The nn.Module" in history[0] and "Everything a user can get wrong" in history[-1]


def test_a_chapter_is_run_as_it_was(history):
    """Chapter 1 has a head that is not tied yet: 163M parameters. The files of today are not what runs."""
    result = chapters("1")
    assert result.returncode == 0 and "chapter  1 | 163,037,184 parameters" in result.stdout


def test_a_chapter_that_does_not_exist(history):
    result = chapters("31")
    assert result.returncode == 2 and result.stderr.startswith("error: chapters are 1 to 30")
    assert result.stderr.count("\n") == 1 and result.stdout == ""


def test_without_a_history_there_is_one_line(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copytree(os.path.join(ROOT, "support"), tmp_path / "support")
    result = chapters(script=shutil.copy(CHAPTERS, tmp_path / "tools"))
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "git clone" in result.stderr


def test_the_default_test_command_does_not_meet_the_exercises():
    """They fail until somebody does them: `python -m pytest` must neither run nor import them. Named, they run."""
    def collected(*args):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    for everything in (collected(), collected(".")):
        assert "test_chapters.py::" in everything and "\nexercises/" not in everything
    assert "test_exercises.py::test_rope" in collected("exercises", "-k", "rope")
