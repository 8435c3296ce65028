"""
Is my run normal? Its validation loss beside that of reference runs, and checks for nan. Come here
when a run prints OUTSIDE the band, or ended because a loss was nan.
"""
import csv
import json
import math
import os
from dataclasses import asdict

from support import checkpoints
from support.console import UserError, print0
from support.files import asset
from support.shards import read_meta

SAMPLE_10BT = "HuggingFaceFW/fineweb-edu sample-10BT"


def read_reference():
    """
    Two public full runs of the original recipe, a and b -> dict of lists of float: "step",
    "val_a", "hella_a", "train_a", "val_b", ...
    """
    with open(asset("reference_curve.csv"), encoding="utf-8") as f:
        rows = list(csv.DictReader(line for line in f if not line.startswith("#")))
    return {column: [float(row[column]) for row in rows] for column in rows[0]}


def data_source(data_root):
    """The dataset that the shards in a directory were made from -> text, "" if unknown"""
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
    For a run with the original recipe on FineWeb-Edu: the expected validation loss, the width of
    the band around it, and the name of the reference. None for any other run.
    """
    lecture = type(config)()  # the defaults are the lecture's
    if gpt_config != type(gpt_config)():
        return None
    if any(getattr(config, name, None) != getattr(lecture, name, 0) for name in RECIPE):
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
    The same three values for the laptop preset on input.txt: the mean of ten seeds, and three times
    their standard deviation. tools/laptop_curve.py writes assets/laptop_curve.json, which also
    lists the settings that a run must have.
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
    """The reference loss at this step, and whether val_loss is near it -> text, "" if unknown"""
    try:
        known = public_runs(step, gpt_config, config) or laptop_runs(step, gpt_config, config)
    except (OSError, ValueError, UserError):  # files are missing or damaged: the run goes on
        known = None
    if known is None:
        return ""
    expected, band, name = known
    inside = "in the band" if abs(val_loss - expected) <= band else "OUTSIDE the band"
    return f" | {name} {expected:.4f} +- {band}: {inside}"


def check_numbers(step, loss, norm, recent, scaler, loader, config):
    """
    End a run whose loss or gradient is nan or infinite: it would never recover. Print a warning
    when the gradient norm is far above the last hundred norms, which are kept in `recent` (list).
    """
    # An infinite norm is normal in float16: the scaler skips the step and lowers its scale.
    if not math.isfinite(loss if scaler.is_enabled() else loss + norm):
        place = ""
        if loader is not None:
            shard, offset = loader.locate(loader.position - config.total_batch_size)
            place = (f", in the {config.total_batch_size} tokens from "
                     f"{getattr(shard, 'filename', config.data_root)} offset {offset} on")
        last = (checkpoints.list_all(config.log_dir) or ["none"])[-1]
        raise UserError(f"step {step}: loss {loss}, gradient norm {norm}{place}. Last good "
                        f"checkpoint: {last}. Try --resume=auto with a smaller --max_lr")
    if len(recent) == 100 and norm > 4 * max(recent):
        print0(f"warning: step {step}: norm {norm:.2f}, {min(recent):.2f} to {max(recent):.2f} "
               "before")
    recent[:] = [*recent, norm][-100:]
