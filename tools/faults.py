"""
Kills training runs at random moments and shows that nothing is lost: a run that was killed again
and again ends with the same weights, optimizer state and log as an undisturbed run, bit for bit.

    python tools/faults.py                    # 50 kills of each of four runs: half an hour
    python tools/faults.py --kills=5 --processes=2 --dtype=bfloat16

Every second kill waits until a checkpoint is being written. SIGKILL cannot be caught, so only what
is on the disk at that moment survives.

Contents
    1 a run             start, wait_for, finish
    2 killing it        kill_at_random, kill_again_and_again
    3 is it the same?   final_state, torture
    4 the command line  main
"""
import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tools import ROOT
from tools.children import kill_family

FLAGS = ("--device=cpu --tokenizer=char --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 "
         "--T=32 --B=2 --total_batch_size=128 --warmup_steps=2 --max_lr=1e-2 --min_lr=1e-3 "
         "--eval_every=50 --val_tokens=500 --dropout=0.1 --no-hellaswag --keep_last=2 "
         "--resume=auto").split()

# -------------------------------------------------------------------------------------------------
# 1 a run

def start(processes, log_dir, *flags):
    """
    Start train_gpt2.py with FLAGS and further flags -> subprocess.Popen. A process group of its own
    lets us kill all its processes together.
    """
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone",
                   f"--nproc_per_node={processes}"]
    program = os.path.join(ROOT, "train_gpt2.py")
    command = [*python, program, *FLAGS, f"--log_dir={log_dir}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, cwd=log_dir, start_new_session=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(run, text):
    """Read what a run prints up to a line that contains the text -> that line, or None"""
    for line in run.stdout:
        if text in line:
            return line
    return None


def finish(run):
    """Wait until a run ends. AssertionError with its output unless the exit code is 0."""
    printed, _ = run.communicate()
    assert run.returncode == 0, printed


# -------------------------------------------------------------------------------------------------
# 2 killing it

def half_written(log_dir):
    """Temporary files: a run is writing them, or was killed before it could rename them."""
    return [name for name in os.listdir(log_dir) if ".tmp" in name]


def kill_at_random(run, log_dir, during_save, rng):
    """
    SIGKILL a run within half a second after its first step, or with during_save while it writes a
    checkpoint -> True, or False if the run ended before that
    """
    if wait_for(run, "| loss:") is None:
        return False
    end = time.time() + rng.uniform(0, 0.5)
    # no sleep: a checkpoint this small is written in a few milliseconds
    while run.poll() is None:
        is_time = half_written(log_dir) if during_save else time.time() >= end
        if is_time:
            break
    if run.poll() is not None:
        return False
    kill_family(run)
    return True


def kill_again_and_again(kills, processes, log_dir, flags, rng):
    """
    Start a run and kill it, `kills` times or until it ends by itself -> number of kills, and how
    many of them came during a write. AssertionError if the run fails.
    """
    done = 0
    inside = 0  # kills during a write
    while done < kills:
        run = start(processes, log_dir, *flags)
        during_save = done % 2 == 1
        if not kill_at_random(run, log_dir, during_save, rng):
            finish(run)
            break
        done += 1
        if half_written(log_dir):
            inside += 1
    return done, inside


# -------------------------------------------------------------------------------------------------
# 3 is it the same?

def final_state(log_dir, steps):
    """The last checkpoint's tensors by name (dict), and the log's lines except for times."""
    path = os.path.join(log_dir, f"model_{steps:05d}.pt")
    checkpoint = torch.load(path, weights_only=True)
    tensors = dict(checkpoint["model"])
    for name, moments in checkpoint["optimizer"]["state"].items():
        for key, moment in moments.items():
            tensors[f"{name}.{key}"] = moment
    with open(os.path.join(log_dir, "log.txt")) as f:
        lines = [line for line in f if line.split()[1] != "dt"]  # step stream value
    return tensors, lines


def torture(folder, kills, steps, processes, dtype, seed=0):
    """
    Compare an undisturbed run with one that is killed `kills` times -> number of kills, and how
    many of them came during a write. AssertionError if the two runs differ.
    """
    rng = random.Random(seed)
    flags = (f"--data_root={os.path.join(ROOT, 'input.txt')}", f"--dtype={dtype}",
             f"--max_steps={steps}", "--save_every=5")
    whole = os.path.join(folder, "whole")
    parts = os.path.join(folder, "parts")
    os.makedirs(whole)
    os.makedirs(parts)

    finish(start(processes, whole, *flags))
    done, inside = kill_again_and_again(kills, processes, parts, flags, rng)
    finish(start(processes, parts, *flags))
    assert not half_written(parts), half_written(parts)

    tensors, log = final_state(whole, steps)
    other_tensors, other_log = final_state(parts, steps)
    assert len(log) >= 3 * steps, "the log lacks lines"
    assert log == other_log, "the logs differ"
    assert tensors.keys() == other_tensors.keys(), "the checkpoints hold other names"
    for name, tensor in tensors.items():
        assert tensor.equal(other_tensors[name]), f"{name} differs"
    return done, inside


# -------------------------------------------------------------------------------------------------
# 4 the command line

def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3000,
                        help="enough that all kills come before the end [%(default)s]")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for processes in args.processes:
        for dtype in args.dtype:
            folder = tempfile.mkdtemp()  # it stays, to look at, if an assertion fails
            t0 = time.time()
            done, inside = torture(folder, args.kills, args.steps, processes, dtype, args.seed)
            print(f"{processes} process(es), {dtype}: {done} kills, {inside} of them during a "
                  f"write: the same bits ({time.time() - t0:.0f}s)", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
