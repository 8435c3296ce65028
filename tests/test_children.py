"""Facts about processes that measure, and may die."""
import os
import signal
import subprocess
import sys
import time

import pytest

from tools import children
from tools.children import Child, Died

LINUX = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see who has started whom")


def answer(pipe, deed):
    """What a process of the bench could be: it sends a word, and does the deed when it is asked."""
    pipe.send("ready")
    if deed == "hang":
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        pipe.send(other.pid)
        time.sleep(600)
    question = pipe.recv()
    if deed == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "fail":
        sys.exit(3)
    pipe.send(question.upper())


def test_a_child_answers():
    with Child(answer, "answer") as child:
        assert child.receive(60) == "ready" and child.ask("well?") == "WELL?"


@pytest.mark.parametrize("deed, reason", [("fail", "died with exit code 3"), ("be killed", "died of SIGKILL")])
def test_a_child_that_dies_says_how(deed, reason):
    """What it has sent before stays."""
    with Child(answer, deed) as child:
        assert child.receive() == "ready"
        with pytest.raises(Died, match=reason):
            child.ask("well?")
        with pytest.raises(Died, match=reason):
            child.ask("once more?")


@LINUX
def test_what_hangs_is_cut_off_with_all_that_it_has_started():
    """Even processes in groups of their own, as torchrun's are. Ctrl-C ends a `with` in the same way."""
    with Child(answer, "hang") as child:
        child.receive()
        pid = child.receive()
        assert pid in children.family(os.getpid())
        with pytest.raises(Died, match="took too long"):
            child.receive(0.1)
    assert pid not in children.list_processes() and not child.process.is_alive()
