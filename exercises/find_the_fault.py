"""
Find the fault: somebody has changed one thing in a copy of train_gpt2.py. You see what a user would
see. What was changed?

    python exercises/find_the_fault.py --seed=3                  # trains 300 steps
    python exercises/find_the_fault.py --seed=3 --show=norm      # look closer: the largest norms
    python exercises/find_the_fault.py --seed=3 --show=weights   # the weights at the end
    python exercises/find_the_fault.py --seed=3 --answer=zero_grad    # the list comes with the run
    python exercises/find_the_fault.py --score                   # how am I doing?

Each seed plants one fault, or none. Only the first answer to a seed counts, because it reveals the
fault. The run is the laptop preset, with two micro steps and dropout, so that faults in these show
too. Training takes half a minute on an idle machine. Your train_gpt2.py stays as it is; runs and
score go to log_faults/.
"""
import argparse
import difflib
import json
import os
import random
import statistics
import subprocess
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from faults import FAULTS, plant

from support.console import UserError, print_here, run_program
from support.files import atomic_write, read_json
from support.runlog import read_log

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEPS = 300
FLAGS = (f"--preset=laptop --device=cpu --max_steps={STEPS} --warmup_steps=100 --B=4 --dropout=0.1 --eval_every=100 "
         f"--val_tokens=16384 --save_every={STEPS}").split()
SOUND = os.path.join(ROOT, "exercises", "sound_run.json")  # written by record()
FAR = 3  # OUTSIDE: more standard deviations than this from the mean of five sound seeds


def choose(seed):
    """Seeds 0 to 20 plant every fault once, in random order, and so do the next 21."""
    n = len(FAULTS)
    return random.Random(seed // n).sample(FAULTS, n)[seed % n]


def source():
    with open(os.path.join(ROOT, "train_gpt2.py"), encoding="utf-8") as f:
        return f.read()


def train(fault, folder, *flags):
    """Train a copy of train_gpt2.py with a fault; its log and its output go to folder."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "train_gpt2.py")
    with atomic_write(path, "w", encoding="utf-8") as f:
        f.write(plant(fault, source()))
    command = [sys.executable, path, *FLAGS, *flags, f"--log_dir={os.path.join(folder, 'log')}"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env={
        **os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise UserError(f"the run failed: {done.stderr.strip()[-300:]}")
    with atomic_write(os.path.join(folder, "printed.txt"), "w", encoding="utf-8") as f:
        f.write(done.stdout)


# ----------------------------------------------------------------------------------------------------
# what is measured

def mean_before(values, step):
    """The mean over the 20 steps before this one; for step 0, its own value."""
    return statistics.mean(values[i] for i in range(max(0, step - 20), max(1, step)))


def losses(log):
    """-> {step: {"val", "train", "norm"}} at the steps with a validation"""
    return {str(step): {"val": log["val"][step], "train": mean_before(log["train"], step),
                        "norm": mean_before(log["norm"], step)}
            for step in (0, 100, 200, 300)}


def largest_norms(log):
    """-> list: the largest norm of steps 0 to 4, of steps 5 to 9, ..."""
    return [max(log["norm"][i] for i in range(step, step + 5)) for step in range(0, STEPS, 5)]


def weights(folder):
    """-> {name: [mean, std]} of each parameter at the end, and the norms of the rows of wpe"""
    saved = torch.load(os.path.join(folder, "log", f"model_{STEPS:05d}.pt"), weights_only=True,
                       map_location="cpu")["model"]
    moments = {name: [w.float().mean().item(), w.float().std().item()] for name, w in saved.items()}
    return moments, saved["transformer.wpe.weight"].norm(dim=1).tolist()


def record(folder):
    """Train without a fault, with the game's seed and with seeds 1 to 5, and write sound_run.json."""
    measured = {}
    for seed in (1337, 1, 2, 3, 4, 5):
        run = os.path.join(folder, f"sound_{seed}")
        train(FAULTS[0], run, f"--seed={seed}")
        log, _ = read_log(os.path.join(run, "log"))
        measured[seed] = losses(log)
        if seed == 1337:
            moments, rows = weights(run)
            sound = {"losses": losses(log), "norms": largest_norms(log), "weights": moments, "wpe": rows}
    sound["five_seeds"] = five = {}
    for step, row in measured.pop(1337).items():
        five[step] = {}
        for what in row:
            values = [run[step][what] for run in measured.values()]
            five[step][what] = [statistics.mean(values), statistics.stdev(values)]
    text = json.dumps(json.loads(json.dumps(sound), parse_float=lambda number: round(float(number), 4)))
    with atomic_write(SOUND, "w", encoding="utf-8") as f:
        f.write(text.replace('], "', '],\n"') + "\n")  # one line per parameter


# ----------------------------------------------------------------------------------------------------
# what is shown

def show_run(folder):
    """Print parts of the log, the losses beside the band, and a sample."""
    with open(os.path.join(folder, "printed.txt"), encoding="utf-8") as f:
        lines = f.read().splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    shown = [line for line in steps if int(line.split()[1]) % 20 < 2]
    print_here("\n".join(["every 20th step and the one after it:", *shown]))
    show_band(losses(read_log(os.path.join(folder, "log"))[0]))
    samples = "\n".join(lines).split("sample 0: ")[-1].split("sample 1: ")[0]
    print_here(f"\na sample at the end: {samples.strip()}")


def show_band(measured):
    sound = read_json(SOUND)
    print_here("\n  step        what    here   a sound run, same seed   five sound seeds")
    for step, values in measured.items():
        for what, value in values.items():
            mean, std = sound["five_seeds"][step][what]
            verdict = "OUTSIDE" if abs(value - mean) > FAR * std else "in the band"
            print_here(f"{step:>6} {what:>11} {value:7.3f}   {sound['losses'][step][what]:22.3f}   "
                       f"{mean:.3f} +- {std:.3f}   {verdict}")
    print_here("train and norm: means of the 20 steps before; for step 0, its own values. +- is one standard\n"
               f"deviation; OUTSIDE = more than {FAR} standard deviations from the mean of the five seeds")


def show_norm(folder):
    """Print the largest gradient norm in every five steps, as numbers and as bars."""
    log, _ = read_log(os.path.join(folder, "log"))
    print_here("for every five steps: lr and train loss of the first, and the largest norm (before clipping);\n"
               "in parentheses: a sound run, same seed. Bars end at a norm of 3; > marks a larger norm")
    for i, (norm, sound) in enumerate(zip(largest_norms(log), read_json(SOUND)["norms"], strict=True)):
        step = 5 * i
        bar = "#" * 60 + ">" if norm > 3 else "#" * round(20 * norm)
        print_here(f"{step:3d}-{step + 4:3d}  lr {log['lr'][step]:.2e}  loss {log['train'][step]:.4f}  "
                   f"norm {norm:7.3f} ({sound:.3f}) {bar}")


def show_weights(folder):
    """Print mean and standard deviation of each parameter at the end, and the norms of the rows of wpe."""
    moments, rows = weights(folder)
    sound = read_json(SOUND)
    print_here("in parentheses: a sound run, same seed")
    for name, (mean, std) in moments.items():
        sound_mean, sound_std = sound["weights"][name]
        print_here(f"{name:34} mean {mean:8.4f} ({sound_mean:7.4f})   std {std:.4f} ({sound_std:.4f})")
    print_here("norms of the rows of wpe, here and in the sound run:")
    for first in range(0, len(rows), 16):
        for whose, lengths in (("here", rows), ("sound", sound["wpe"])):
            numbers = " ".join(f"{length:.2f}" for length in lengths[first:first + 16])
            print_here(f"{first:2d} to {first + 15}  {whose:5}  {numbers}")


# ----------------------------------------------------------------------------------------------------
# the answer

def grade(seed, answer, path):
    """Add the answer to the score; print whether it was right, what gave the fault away, and the diff."""
    fault = choose(seed)
    score = read_score(path)
    score.setdefault(str(seed), {"fault": fault.name, "answer": answer})  # the first answer counts
    with atomic_write(path, "w", encoding="utf-8") as f:
        json.dump(score, f, indent=1)
    print_here("yes:" if answer == fault.name else f"no. It was {fault.name}:", fault.what + ".")
    print_here(fault.gives_away)
    lines = source().splitlines(), plant(fault, source()).splitlines()
    for line in list(difflib.unified_diff(*lines, n=1, lineterm=""))[2:]:  # without the two file names
        print_here(f"  {line}")
    print_score(score)


def read_score(path):
    if not os.path.exists(path):
        return {}
    return read_json(path)


def print_score(score):
    right = sum(game["fault"] == game["answer"] for game in score.values())
    print_here(f"score: {right} of {len(score)} (the first answer to each seed counts)")


def main(argv):
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="which game [%(default)s]")
    parser.add_argument("--show", choices=["norm", "weights"], help="look closer at the run")
    parser.add_argument("--answer", choices=names, metavar="NAME",
                        help="name the fault (only the first answer to a seed counts, because it reveals the fault)")
    parser.add_argument("--score", action="store_true", help="print the score")
    parser.add_argument("--folder", default=os.path.join(ROOT, "log_faults"), help="for runs and score [log_faults]")
    parser.add_argument("--record", action="store_true",
                        help="after a change of train_gpt2.py: write sound_run.json again (six runs)")
    args = parser.parse_args(argv)
    if args.record:
        return record(args.folder)
    path, folder = os.path.join(args.folder, "score.json"), os.path.join(args.folder, f"seed_{args.seed}")
    if args.score:
        return print_score(read_score(path))
    if not os.path.exists(os.path.join(folder, "printed.txt")):
        if args.answer or args.show:
            raise UserError(f"there is no run of seed {args.seed} yet: leave --show and --answer out first")
        print_here(f"training {STEPS} steps, half a minute on an idle machine ...")
        train(choose(args.seed), folder)
    if args.answer:
        return grade(args.seed, args.answer, path)
    {None: show_run, "norm": show_norm, "weights": show_weights}[args.show](folder)
    if args.show is None:
        print_here("\nwhat is it?\n" + "\n".join(f"  {fault.name:15} {fault.what}" for fault in FAULTS))
    print_here(f"\nnext: --seed={args.seed} with --show=norm, --show=weights or --answer=NAME")


if __name__ == "__main__":
    run_program(main)
