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
from support.files import atomic_write
from support.health import RECIPE
from tools import ROOT
from tools.measure import train
from train_gpt2 import PRESETS, GPTConfig, TrainConfig

SEEDS = range(1, 11)
OUT = os.path.join(ROOT, "assets", "laptop_curve.json")


def val_losses(seed):
    """A run of the preset with this seed, on one thread -> {step: validation loss}"""
    with tempfile.TemporaryDirectory() as log_dir:
        log = train(log_dir, "--preset=laptop", "--device=cpu", f"--seed={seed}",
                    OMP_NUM_THREADS="1")
    return log["val"]


def main(argv):
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(val_losses, SEEDS))
    curve = {}
    for step in runs[0]:
        losses = [run[step] for run in runs]
        curve[step] = (round(statistics.mean(losses), 4), round(statistics.stdev(losses), 4))
    values = {**asdict(GPTConfig()), **asdict(TrainConfig()), **PRESETS["laptop"]}
    names = [name for name in (*SHAPE, "dropout") if name != "vocab_size"]  # the text decides
    settings = {name: values[name] for name in (*names, *RECIPE, "tokenizer", "val_tokens")}
    result = {"what": f"validation loss of {len(SEEDS)} seeds: mean and standard deviation",
              "settings": settings, "bytes": os.path.getsize(os.path.join(ROOT, "input.txt")),
              "val": curve}
    with atomic_write(OUT, "w") as f:
        json.dump(result, f, indent=1)
    for step, (mean, spread) in curve.items():
        print(f"step {step:5d} | {mean:.4f} +- {spread:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
