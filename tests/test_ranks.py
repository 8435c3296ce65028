"""Facts about how processes find each other: what torchrun must say, and how long one waits for the others."""
import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest
from small_runs import ROOT, TINY, refusal

from support.processes import TORCHRUN, read_ranks

WHOLE = dict(RANK="1", LOCAL_RANK="0", WORLD_SIZE="4", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")


@pytest.fixture
def torchruns_words(monkeypatch):
    """torchruns_words(RANK="0", ...) sets these variables of torchrun's, and no others."""
    def say(**words):
        for name in TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in words.items():
            monkeypatch.setenv(name, value)
    return say


def test_what_torchrun_says(torchruns_words):
    """Nothing: one process. Everything: rank, rank on this machine, how many."""
    torchruns_words()
    assert read_ranks() == (0, 0, 1)
    torchruns_words(**WHOLE)
    assert read_ranks() == (1, 0, 4)


@pytest.mark.parametrize("missing", TORCHRUN)
def test_half_of_what_torchrun_says_is_refused(missing, torchruns_words):
    """WORLD_SIZE=2 without RANK would train on half of each batch, and report half the loss."""
    torchruns_words(**{name: value for name, value in WHOLE.items() if name != missing})
    line = refusal(read_ranks)
    assert f"{missing} are not: start with torchrun" in line


@pytest.mark.parametrize("words", [dict(RANK="x"), dict(RANK=""), dict(RANK="-1"), dict(RANK="4"), dict(WORLD_SIZE="²"),
                                   dict(LOCAL_RANK="2"), dict(WORLD_SIZE="0", RANK="0")], ids=str)
def test_ranks_that_are_none(words, torchruns_words):
    torchruns_words(**{**WHOLE, **words})
    assert "start with torchrun" in refusal(read_ranks)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def without_a_partner(tmp_path, port, *flags):
    """Process 0 of 2, of which the other never comes."""
    words = {**WHOLE, "RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), *TINY, f"--data_root={ROOT}/input.txt",
               f"--log_dir={tmp_path / 'log'}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **words})


def test_a_partner_that_never_comes_is_waited_for_no_longer_than_the_limit(tmp_path):
    """--dist_timeout_s holds for the first meeting, too."""
    run = without_a_partner(tmp_path, free_port(), "--dist_timeout_s=4")
    _, err = run.communicate(timeout=60)  # without the limit it would wait for ten minutes
    assert run.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("the processes of this run did not meet within --dist_timeout_s=4"), err


def test_ctrl_c_while_waiting_for_a_partner(tmp_path):
    """PyTorch waits in C++, where no signal is heard: the program ends all the same, at the first Ctrl-C."""
    port = free_port()
    run = without_a_partner(tmp_path, port, "--dist_timeout_s=600")
    while run.poll() is None:  # until it listens for the other one
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err, err
