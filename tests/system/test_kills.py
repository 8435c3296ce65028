"""Facts about programs that are stopped in earnest: signals and SIGKILL, sent to real processes."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from small_runs import (ROOT, WITH_DROPOUT, assert_same_bits, contents, finish, plain, read_log, some_documents,
                        start_run, stream, wait_for)

import train_gpt2
from tools.children import kill_family

# --- train_gpt2.py --------------------------------------------------------------------------------

@pytest.mark.parametrize("processes, number", [
    (1, signal.SIGHUP), pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow)])
def test_asked_to_stop_a_run_saves_and_goes_on_later(processes, number, tmp_path):
    """The step is finished and saved; exit code 0; the resumed run ends as one that was never stopped."""
    flags = ("--dtype=float32", "--max_steps=100")
    train_gpt2.run([*WITH_DROPOUT, f"--log_dir={tmp_path / 'whole'}", *flags, "--save_every=100"])
    run = start_run(processes, tmp_path / "parts", *flags, "--save_every=9999")
    assert wait_for(run, "step     9 | loss:")
    os.kill(run.pid, number)
    out = run.communicate()[0]
    assert f"stopped by {signal.Signals(number).name}: " in out and "saved" in out and 'train_gpt2.py", line' not in out
    assert run.returncode == 0 or processes > 1, out  # (torchrun itself ends with 1 when it was signalled)
    assert "resuming from" in finish(start_run(1, tmp_path / "parts", *flags, "--save_every=100", "--resume=auto"))
    if processes == 1:  # (two processes draw other random numbers for dropout than one)
        assert_same_bits(tmp_path / "whole" / "model_00100.pt", tmp_path / "parts" / "model_00100.pt")
    assert list(read_log(tmp_path / "parts")["train"]) == list(range(100))


def half_written(log_dir):
    """Temporary files: a run is writing them, or was killed before it could rename them."""
    return list(log_dir.glob("*.tmp*"))


def kill(run, log_dir, during_save, rng):
    """
    SIGKILL a run within half a second after its first step, or with during_save while it writes a checkpoint -> was it
    still running?
    """
    assert wait_for(run, "| loss:")
    end = time.monotonic() + rng.uniform(0, 0.5)
    # no sleep: a checkpoint this small is written in a few milliseconds
    while run.poll() is None and not (half_written(log_dir) if during_save else time.monotonic() >= end):
        pass
    was_running = run.poll() is None
    kill_family(run.pid)
    run.wait()
    return was_running


@pytest.mark.parametrize("processes, dtype, kills, steps", [
    (1, "float32", 2, 100), pytest.param(1, "bfloat16", 10, 1500, marks=pytest.mark.slow),
    pytest.param(2, "float32", 10, 1500, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_loses_nothing(processes, dtype, kills, steps, tmp_path):
    """SIGKILL, every second time during a save: in the end the weights, the moments and the log of a run left alone."""
    rng = random.Random(0)
    flags = (f"--dtype={dtype}", f"--max_steps={steps}", "--save_every=5", "--resume=auto")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(start_run(processes, whole, *flags))
    for i in range(kills):
        assert kill(start_run(processes, parts, *flags), parts, i % 2 == 1, rng), f"ended before kill {i}: more steps!"
    finish(start_run(processes, parts, *flags))
    assert not half_written(parts)
    assert_same_bits(whole / f"model_{steps:05d}.pt", parts / f"model_{steps:05d}.pt")
    log, other = read_log(whole), read_log(parts)
    assert len(log.pop("dt")) == len(other.pop("dt")) == steps and log == other


# --- fineweb.py -----------------------------------------------------------------------------------

@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
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
    """One line, no traceback; what is finished stays, and the same command continues."""
    command = [sys.executable, os.path.join(ROOT, "fineweb.py"), f"--files={corpus}", "--shard_size=300",
               f"--out={tmp_path / 'out'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count("\n") == 1 and "run the same command again to continue" in err, err
    assert not list((tmp_path / "out").glob("*.tmp*"))
    assert stream(make("out", "--shard_size=300")) == plain(some_documents())
