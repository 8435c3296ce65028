"""
Is my run normal? Its validation loss is compared with reference runs, and a loss that is nan ends
the run. Come here when a run prints OUTSIDE the band, or has ended because of a nan.
"""
import csv
import json
import math
import os
from dataclasses import asdict

from support import checkpoints
from support.console import UserError, print0
from support.files import asset
from support.runlog import checkpoint_step
from support.shards import read_meta

SAMPLE_10BT = "HuggingFaceFW/fineweb-edu sample-10BT"


def read_reference():
    """
    Two public full runs of the original recipe, a and b -> {column: list of float}, with the
    columns step, val_a, hella_a, train_a, val_b, ...
    """
    with open(asset("reference_curve.csv"), encoding="utf-8") as f:
        rows = list(csv.DictReader(line for line in f if not line.startswith("#")))
    return {column: [float(row[column]) for row in rows] for column in rows[0]}


def data_source(data_root):
    """The dataset from which the shards in data_root were made -> text, "" if unknown"""
    path = os.path.join(data_root, "meta.json")
    if os.path.exists(path):
        return read_meta(path)["settings"].get("source", "")
    # the original's fineweb.py left no meta.json
    name = os.path.basename(os.path.normpath(data_root))
    return SAMPLE_10BT if name == "edu_fineweb10B" else ""


RECIPE = ("total_batch_size", "T", "max_steps", "max_lr", "min_lr", "warmup_steps", "weight_decay",
          "beta1", "beta2", "grad_clip", "init_from")


def public_runs(step, gpt_config, config):
    """
    What the public runs say about this step of a run -> expected validation loss, half the width
    of the band around it, name of the reference; None unless the run has the original recipe, on
    the original data
    """
    original = type(config)()  # the defaults are the original recipe
    if gpt_config != type(gpt_config)():
        return None
    # finetune.py's settings lack some of these fields: None is not 0
    if any(getattr(config, name, None) != getattr(original, name, 0) for name in RECIPE):
        return None
    columns = read_reference()
    if step not in columns["step"] or data_source(config.data_root) != SAMPLE_10BT:
        return None
    i = columns["step"].index(step)
    expected = (columns["val_a"][i] + columns["val_b"][i]) / 2
    band = 0.05 if step < 1000 else 0.03 if step < 3000 else 0.02
    return expected, band, "reference"


def laptop_runs(step, gpt_config, config):
    """
    The three values for the laptop preset on input.txt: the mean of ten seeds, three times their
    standard deviation, and the name; None for other runs. assets/laptop_curve.json, written by
    tools/laptop_curve.py, has the curve and the settings that a run must share.
    """
    with open(asset("laptop_curve.json"), encoding="utf-8") as f:
        curve = json.load(f)
    settings = {**asdict(gpt_config), **asdict(config)}
    if any(settings.get(name) != value for name, value in curve["settings"].items()):
        return None
    same_text = (os.path.isfile(config.data_root)
                 and os.path.getsize(config.data_root) == curve["bytes"])
    if not same_text or str(step) not in curve["val"]:
        return None
    mean, spread = curve["val"][str(step)]
    return mean, round(max(3 * spread, 0.01), 4), "ten seeds"


def compare_to_reference(step, val_loss, gpt_config, config):
    """Is val_loss near the reference at this step? -> text, "" if there is no reference"""
    try:
        known = public_runs(step, gpt_config, config) or laptop_runs(step, gpt_config, config)
    except (OSError, ValueError, UserError):  # a missing or damaged reference must not end a run
        known = None
    if known is None:
        return ""
    expected, band, name = known
    inside = "in the band" if abs(val_loss - expected) <= band else "OUTSIDE the band"
    return f" | {name} {expected:.4f} +- {band}: {inside}"


def check_numbers(step, loss, norm, recent, scaler, loader, config):
    """
    End a run whose loss or gradient is nan or infinite, because it would never recover. Warn if the
    gradient norm is far above the last hundred norms, which are kept in `recent` (list).
    """
    # with a scaler (float16), an infinite norm is normal: it skips the step and lowers its scale
    if not math.isfinite(loss if scaler.is_enabled() else loss + norm):
        place = ""
        if loader is not None:
            shard, offset = loader.locate(loader.position - config.total_batch_size)
            place = (f", in the {config.total_batch_size} tokens from "
                     f"{getattr(shard, 'filename', config.data_root)} offset {offset} on")
        # the weights of this step gave the nan: a checkpoint of them would give it again
        earlier = [path for path in checkpoints.list_all(config.log_dir)
                   if checkpoint_step(os.path.basename(path)) < step]
        start = f"--resume={earlier[-1]}" if earlier else "a new run"
        raise UserError(f"step {step}: loss {loss}, gradient norm {norm}{place}: try {start} with "
                        "a smaller --max_lr")
    if len(recent) == 100 and norm > 4 * max(recent):
        print0(f"warning: step {step}: norm {norm:.2f}, {min(recent):.2f} to {max(recent):.2f} "
               "before")
    recent[:] = [*recent, norm][-100:]
