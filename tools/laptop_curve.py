"""
What is normal for the laptop preset? Ten seeds on input.txt -> assets/laptop_curve.json, with which
a run compares its validation loss. A quarter of an hour on two cores; run it again after each
change of the preset.

    python tools/laptop_curve.py
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from support.arithmetic import SHAPE
from support.console import UserError, run_program
from support.files import atomic_write
from support.health import RECIPE
from tools import ROOT
from tools.measure import train
from train_gpt2 import PRESETS, GPTConfig, TrainConfig


def val_losses(seed):
    """A run of the preset with this seed, on one thread -> {step: validation loss}"""
    with tempfile.TemporaryDirectory() as log_dir:
        log = train(log_dir, "--preset=laptop", "--device=cpu", f"--seed={seed}",
                    OMP_NUM_THREADS="1")
    return log["val"]


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="seeds 1 to ... [%(default)s]")
    parser.add_argument("--at_once", type=int, default=2, help="runs at a time [%(default)s]")
    parser.add_argument("--out", default=os.path.join(ROOT, "assets", "laptop_curve.json"))
    args = parser.parse_args(argv)
    if args.seeds < 2:
        raise UserError(f"--seeds={args.seeds} has no spread: try --seeds=2 or more")
    if args.at_once < 1:
        raise UserError(f"--at_once={args.at_once} would start no run: try --at_once=1")
    with ThreadPoolExecutor(args.at_once) as pool:
        runs = list(pool.map(val_losses, range(1, args.seeds + 1)))
    curve = {}
    for step in runs[0]:
        losses = [run[step] for run in runs]
        curve[step] = (round(statistics.mean(losses), 4), round(statistics.stdev(losses), 4))
    values = {**asdict(GPTConfig()), **asdict(TrainConfig()), **PRESETS["laptop"]}
    names = [name for name in (*SHAPE, "dropout") if name != "vocab_size"]  # the text decides
    settings = {name: values[name] for name in (*names, *RECIPE, "tokenizer", "val_tokens")}
    result = {"what": f"validation loss of {args.seeds} seeds: mean and standard deviation",
              "settings": settings, "bytes": os.path.getsize(os.path.join(ROOT, "input.txt")),
              "val": curve}
    with atomic_write(args.out, "w") as f:
        json.dump(result, f, indent=1)
    for step, (mean, spread) in curve.items():
        print(f"step {step:5d} | {mean:.4f} +- {spread:.4f}")


if __name__ == "__main__":
    run_program(main)
