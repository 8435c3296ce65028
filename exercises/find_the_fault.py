"""
Find the fault: somebody has changed one thing in a copy of train_gpt2.py. You see what a user would
see, and say what it is.

    python exercises/find_the_fault.py --seed=3                  # trains 300 steps, half a minute
    python exercises/find_the_fault.py --seed=3 --show=norm      # look closer: every step's norm
    python exercises/find_the_fault.py --seed=3 --show=weights   # the weights at the end
    python exercises/find_the_fault.py --seed=3 --answer=zero_grad    # the list comes with the run
    python exercises/find_the_fault.py --score                   # how am I doing?

Each seed plants one fault, or none. Your train_gpt2.py stays as it is. Runs and score are in
log_faults/. The laptop preset, with two micro steps and dropout, so that faults in either show.
"""
import argparse
import json
import os
import random
import subprocess
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from faults import FAULTS, plant

from support.console import UserError, run_program
from support.files import atomic_write
from support.runlog import read_log

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEPS = 300
FLAGS = (f"--preset=laptop --device=cpu --max_steps={STEPS} --warmup_steps=100 --B=4 --dropout=0.1 --eval_every=100 "
         f"--val_tokens=16384 --save_every={STEPS}").split()
# sound runs: validation loss, and the means of train loss and norm over the 20 steps before. The one with the game's
# seed, 1337; mean and standard deviation of five other seeds (1 to 5)
SOUND = {
    100: {"val": (2.742, 2.777, 0.024), "train": (2.628, 2.626, 0.003), "norm": (1.050, 1.068, 0.033)},
    200: {"val": (2.679, 2.672, 0.014), "train": (2.442, 2.451, 0.004), "norm": (0.780, 0.776, 0.021)},
    300: {"val": (2.627, 2.629, 0.010), "train": (2.470, 2.467, 0.004), "norm": (0.703, 0.699, 0.014)},
}


def choose(seed):
    """Seeds 0 to 20 meet every fault once, and so do the next 21."""
    n = len(FAULTS)
    return random.Random(seed // n).sample(FAULTS, n)[seed % n]


def train(fault, folder):
    """Train a copy of train_gpt2.py with a fault -> what it printed"""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(ROOT, "train_gpt2.py"), encoding="utf-8") as f:
        text = plant(fault, f.read())
    path = os.path.join(folder, "train_gpt2.py")
    with atomic_write(path, "w", encoding="utf-8") as f:
        f.write(text)
    command = [sys.executable, path, *FLAGS, f"--log_dir={os.path.join(folder, 'log')}"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env={
        **os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise UserError(f"the run failed: {done.stderr.strip()[-300:]}")
    with atomic_write(os.path.join(folder, "printed.txt"), "w", encoding="utf-8") as f:
        f.write(done.stdout)


def means(log, stream, step):
    """The mean of the 20 steps before this one."""
    values = [log[stream][i] for i in range(step - 20, step)]
    return sum(values) / len(values)


def measure(log):
    """A run's log -> {step: {"val", "train", "norm"}} at steps 100, 200 and 300"""
    return {step: {"val": log["val"][step], "train": means(log, "train", step), "norm": means(log, "norm", step)}
            for step in (100, 200, 300)}


# ----------------------------------------------------------------------------------------------------
# what is shown

def show_run(folder):
    """The log, the losses beside the band, the samples."""
    with open(os.path.join(folder, "printed.txt"), encoding="utf-8") as f:
        lines = f.read().splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    shown = [line for line in steps if int(line.split()[1]) % 20 < 2]
    print("\n".join(["every 20th step and the one after it:", *shown]))
    show_band(measure(read_log(os.path.join(folder, "log"))[0]))
    samples = "\n".join(lines).split("sample 0: ")[-1].split("sample 1: ")[0]
    print(f"\na sample at the end: {samples.strip()}")


def show_band(measured):
    print("\n  step        what   here   a sound run, same seed   five seeds")
    for step, values in measured.items():
        for what, value in values.items():
            same_seed, mean, spread = SOUND[step][what]
            verdict = "in the band" if abs(value - mean) <= 3 * spread else "OUTSIDE"
            print(f"{step:6d} {what:>11} {value:6.3f}   {same_seed:22.3f}   {mean:.3f} +- {spread:.3f}   {verdict}")


def show_norm(folder):
    """The norm of the gradient in each step, as numbers and as bars."""
    log, _ = read_log(os.path.join(folder, "log"))
    for step in range(0, STEPS, 5):
        norm = log["norm"][step]
        print(f"{step:4d} lr {log['lr'][step]:.2e} loss {log['train'][step]:.4f} norm {norm:8.3f} "
              f"{'#' * min(60, round(20 * norm))}")


def show_weights(folder):
    """Mean and standard deviation of each parameter at the end, and the rows of wpe."""
    saved = torch.load(os.path.join(folder, "log", f"model_{STEPS:05d}.pt"), weights_only=True, map_location="cpu")
    for name, w in saved["model"].items():
        print(f"{name:36} {str(tuple(w.shape)):12} mean {w.float().mean():8.4f}   std {w.float().std():.4f}")
    rows = saved["model"]["transformer.wpe.weight"].norm(dim=1)
    print(f"lengths of wpe's rows: {' '.join(f'{length:.2f}' for length in rows.tolist())}")


# ----------------------------------------------------------------------------------------------------
# the answer

def grade(seed, answer, path):
    """Print whether it was this fault, and what gave it away; add it to the score."""
    fault = choose(seed)
    if answer == fault.name:
        print(f"yes: {fault.what}.")
    else:
        print(f"no. It was {fault.name}: {fault.what}.")
    print(fault.gives_away)
    for old, new in zip(fault.replacements[::2], fault.replacements[1::2], strict=True):
        print("".join(f"  - {line}\n" for line in old.strip("\n").split("\n"))
              + "".join(f"  + {line}\n" for line in new.strip("\n").split("\n")), end="")
    score = read_score(path)
    score.setdefault(str(seed), {"fault": fault.name, "answer": answer})  # the first answer counts
    with atomic_write(path, "w", encoding="utf-8") as f:
        json.dump(score, f, indent=1)
    print_score(score)


def read_score(path):
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def print_score(score):
    right = sum(game["fault"] == game["answer"] for game in score.values())
    print(f"score: {right} of {len(score)} (the first answer to each seed counts)")


def main(argv):
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="which game [%(default)s]")
    parser.add_argument("--show", choices=["norm", "weights"], help="look closer at the run")
    parser.add_argument("--answer", choices=names, metavar="NAME", help="what it is")
    parser.add_argument("--score", action="store_true", help="print the score")
    parser.add_argument("--folder", default=os.path.join(ROOT, "log_faults"), help="for runs and score [log_faults]")
    args = parser.parse_args(argv)
    path, folder = os.path.join(args.folder, "score.json"), os.path.join(args.folder, f"seed_{args.seed}")
    if args.score:
        return print_score(read_score(path))
    if not os.path.exists(os.path.join(folder, "printed.txt")):
        if args.answer or args.show:
            raise UserError(f"there is no run of seed {args.seed} yet: leave --show and --answer out first")
        print(f"training {STEPS} steps, half a minute ...", flush=True)
        train(choose(args.seed), folder)
    if args.answer:
        return grade(args.seed, args.answer, path)
    {None: show_run, "norm": show_norm, "weights": show_weights}[args.show](folder)
    if args.show is None:
        print("\nwhat is it?\n" + "\n".join(f"  {fault.name:15} {fault.what}" for fault in FAULTS))
    print(f"\nnext: --seed={args.seed} with --show=norm, --show=weights or --answer=NAME")


if __name__ == "__main__":
    run_program(main)
