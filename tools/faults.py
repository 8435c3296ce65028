"""
Kills training runs at random moments and shows that nothing is lost: the run that was killed again and again ends with
the weights, the optimizer's state and the log of a run that nobody touched, bit for bit.

    python tools/faults.py                                       # 50 kills for each of four kinds of run: half an hour
    python tools/faults.py --kills=5 --processes=2 --dtype=bfloat16

Every second kill waits for a checkpoint that is being written. SIGKILL cannot be caught: what is on the disk at that
moment is all that is left.
"""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FLAGS = ("--device=cpu --tokenizer=char --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --T=32 --B=2 "
         "--total_batch_size=128 --warmup_steps=2 --max_lr=1e-2 --min_lr=1e-3 --eval_every=50 --val_tokens=500 "
         "--dropout=0.1 --no-hellaswag --keep_last=2 --resume=auto").split()


def start(processes, log_dir, *flags):
    """A run in a process group of its own, so that all its processes can be killed at one instant."""
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*python, os.path.join(ROOT, "train_gpt2.py"), *FLAGS, f"--log_dir={log_dir}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=log_dir,
                            start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(run, text):
    """Read what a run prints until a line holds the text -> that line, or None if it ends without it."""
    return next((line for line in run.stdout if text in line), None)


def half_written(log_dir):
    return [name for name in os.listdir(log_dir) if ".tmp" in name]


def kill_at_random(run, log_dir, during_save, rng):
    """SIGKILL the run up to half a second after its first step, or when it next writes a checkpoint."""
    if wait_for(run, "| loss:") is None:
        return False
    end = time.time() + rng.uniform(0, 0.5)
    while run.poll() is None and (not half_written(log_dir) if during_save else time.time() < end):
        pass  # no sleep: a checkpoint this small is written in a few milliseconds
    if run.poll() is not None:
        return False
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return True


def final_state(log_dir, steps):
    """The tensors of the last checkpoint by name, and the log without its times."""
    c = torch.load(os.path.join(log_dir, f"model_{steps:05d}.pt"), weights_only=True)
    moments = {f"{name}.{k}": v for name, s in c["optimizer"]["state"].items() for k, v in s.items()}
    with open(os.path.join(log_dir, "log.txt")) as f:
        return {**c["model"], **moments}, [line for line in f if line.split()[1] != "dt"]


def torture(folder, kills, steps, processes, dtype, seed=0):
    """An undisturbed run and one that is killed `kills` times -> kills, those inside a write. Or an AssertionError."""
    rng = random.Random(seed)
    flags = (f"--data_root={os.path.join(ROOT, 'input.txt')}", f"--dtype={dtype}", f"--max_steps={steps}",
             "--save_every=5")
    whole, parts = (os.path.join(folder, name) for name in ("whole", "parts"))
    for log_dir in (whole, parts):
        os.makedirs(log_dir)
    undisturbed = start(processes, whole, *flags)
    out = undisturbed.communicate()[0]
    assert undisturbed.returncode == 0, out
    done = inside = 0
    while done < kills:
        run = start(processes, parts, *flags)
        if not kill_at_random(run, parts, done % 2 == 1, rng):
            out = run.communicate()[0]
            assert run.returncode == 0, out
            break
        done += 1
        inside += bool(half_written(parts))
    run = start(processes, parts, *flags)
    out = run.communicate()[0]
    assert run.returncode == 0 and not half_written(parts), out
    (tensors, log), (tensors2, log2) = final_state(whole, steps), final_state(parts, steps)
    assert log == log2 and len(log) >= 3 * steps, "the logs differ"
    assert tensors.keys() == tensors2.keys() and all(tensors[name].equal(tensors2[name]) for name in tensors)
    return done, inside


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3000, help="long enough to be killed so often before it ends")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for processes in args.processes:
        for dtype in args.dtype:
            folder, t0 = tempfile.mkdtemp(), time.time()
            done, inside = torture(folder, args.kills, args.steps, processes, dtype, args.seed)
            print(f"{processes} process(es), {dtype}: {done} kills, {inside} of them inside a write: the same bits "
                  f"({time.time() - t0:.0f}s)", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
