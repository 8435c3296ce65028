"""Facts about programs that are stopped in earnest: signals and SIGKILL, sent to real processes."""
import json
import os
import signal
import subprocess
import sys

import pytest
from small_runs import ROOT, assert_same_bits, contents, plain, read_log, some_documents, stream

from tools import faults

# --- train_gpt2.py --------------------------------------------------------------------------------

@pytest.mark.parametrize("processes, number", [(1, signal.SIGHUP), (2, signal.SIGTERM)])
def test_asked_to_stop_a_run_saves_and_goes_on_later(processes, number, tmp_path):
    """The step is finished and saved; exit code 0; the resumed run ends as one that was never stopped."""
    flags = (f"--data_root={os.path.join(ROOT, 'input.txt')}", "--dtype=float32", "--max_steps=100", "--save_every=0")
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert faults.start(1, str(tmp_path / "whole"), *flags[:-1], "--save_every=100").wait() == 0
    run = faults.start(processes, str(tmp_path / "parts"), *flags[:-1], "--save_every=9999")
    assert faults.wait_for(run, "step     9 | loss:")
    os.kill(run.pid, number)
    out = run.communicate()[0]
    assert f"stopped by {signal.Signals(number).name}: " in out and "saved" in out and 'train_gpt2.py", line' not in out
    assert run.returncode == 0 or processes > 1, out  # (torchrun itself ends with 1 when it was signalled)
    run = faults.start(1, str(tmp_path / "parts"), *flags[:-1], "--save_every=100", "--dropout=0.1")
    out = run.communicate()[0]
    assert run.returncode == 0 and "resuming from" in out
    if processes == 1:  # (two processes draw other random numbers for dropout than one)
        assert_same_bits(tmp_path / "whole" / "model_00100.pt", tmp_path / "parts" / "model_00100.pt")
    assert list(read_log(tmp_path / "parts")["train"]) == list(range(100))


# --- fineweb.py -----------------------------------------------------------------------------------

@pytest.mark.parametrize("workers", [1, 2, 3])
def test_killed_with_sigkill(workers, make, corpus, tmp_path):
    """A real process, really killed, three times after some shards: the fourth run ends with the undisturbed shards."""
    command = [sys.executable, os.path.join(ROOT, "fineweb.py"), f"--files={corpus}", "--shard_size=3000",
               f"--out={tmp_path / 'killed'}", f"--workers={workers}"]
    for i in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
            for _ in range(i + 2):
                assert b"edufineweb_" in process.stdout.readline()
            process.kill()
    assert not (json.loads((tmp_path / "killed" / "meta.json").read_text()))["done"]
    make("killed")
    assert contents(tmp_path / "killed") == contents(make("undisturbed"))


def test_ctrl_c_leaves_no_half_shard(make, corpus, tmp_path):
    """One line, no traceback; what is finished stays, and the same command goes on."""
    command = [sys.executable, os.path.join(ROOT, "fineweb.py"), f"--files={corpus}", "--shard_size=300",
               f"--out={tmp_path / 'out'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count("\n") == 1 and "the same command goes on" in err, err
    assert not list((tmp_path / "out").glob("*.tmp*"))
    assert stream(make("out", "--shard_size=300")) == plain(some_documents())
