"""
What is normal for the laptop preset: ten seeds on input.txt -> assets/laptop_curve.json, which the
validation line is compared with. A quarter of an hour on two cores; again after each change of the
preset.

    python tools/laptop_curve.py
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from support.arithmetic import SHAPE
from support.console import UserError, run_program
from support.files import atomic_write
from support.health import RECIPE
from support.runlog import read_log
from train_gpt2 import PRESETS, GPTConfig, TrainConfig

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PRESET = "--preset=laptop"


def val_losses(seed):
    """A run of the preset with this seed, on one thread -> {step: validation loss}"""
    with tempfile.TemporaryDirectory() as log_dir:
        command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), PRESET, "--device=cpu",
                   f"--seed={seed}", "--save_every=0", f"--log_dir={log_dir}"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        log, _ = read_log(log_dir)
    return log["val"]


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="1 to this number [%(default)s]")
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
    names = [name for name in (*SHAPE, "dropout") if name != "vocab_size"]  # chosen by the text
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
