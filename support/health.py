"""
Is my run normal? The curves of two public runs, numbers that are none, how long it will take. Come
here when a run says OUTSIDE the band, or ended over a loss of nan.
"""
import csv
import math
import os

from support import checkpoints
from support.console import UserError, print0
from support.shards import read_meta
from support.tokenizer import ASSETS

SAMPLE_10BT = "HuggingFaceFW/fineweb-edu sample-10BT"


def read_reference():
    """
    Two public full runs of the original recipe, a and b -> {"step", "val_a", "hella_a", "train_a",
    ...: lists}
    """
    with open(os.path.join(ASSETS, "reference_curve.csv"), encoding="utf-8") as f:
        rows = list(csv.DictReader(line for line in f if not line.startswith("#")))
    return {column: [float(row[column]) for row in rows] for column in rows[0]}


def data_source(data_root):
    """What the shards in a directory were made from -> text, "" if nothing says it"""
    path = os.path.join(data_root, "meta.json")
    if os.path.exists(path):
        return read_meta(path)["settings"].get("source", "")
    # the original's fineweb.py left no meta.json
    name = os.path.basename(os.path.normpath(data_root))
    return SAMPLE_10BT if name == "edu_fineweb10B" else ""


def compare_to_reference(step, val_loss, gpt_config, config):
    """
    What the public runs of the original recipe had at this step, and whether we are near -> text;
    "" where this is another recipe, or other data than FineWeb-Edu sample-10BT.
    """
    recipe = ("total_batch_size", "T", "max_steps", "max_lr", "min_lr", "warmup_steps",
              "weight_decay", "beta1", "beta2", "grad_clip", "init_from")
    lecture = type(config)()  # the defaults are the lecture's
    if gpt_config != type(gpt_config)():
        return ""
    if any(getattr(config, name) != getattr(lecture, name) for name in recipe):
        return ""
    columns = read_reference()
    if step not in columns["step"] or data_source(config.data_root) != SAMPLE_10BT:
        return ""
    i = columns["step"].index(step)
    expected = (columns["val_a"][i] + columns["val_b"][i]) / 2
    band = 0.05 if step < 1000 else 0.03 if step < 3000 else 0.02
    inside = "in the band" if abs(val_loss - expected) <= band else "OUTSIDE the band"
    return f" | reference {expected:.4f} +- {band}: {inside}"


def check_numbers(step, loss, norm, recent, scaler, loader, config):
    """
    End a run whose loss or gradient is nan or infinite: it would never recover. Report a gradient
    far longer than the last hundred, which the list `recent` holds.
    """
    # where gradients overflow float16 the scaler skips the step and takes a smaller scale: that is
    # no fault
    if not math.isfinite(loss if scaler.is_enabled() else loss + norm):
        shard, offset = loader.locate(loader.position - config.total_batch_size)
        last = (checkpoints.list_all(config.log_dir) or ["none"])[-1]
        raise UserError(f"step {step}: loss {loss}, gradient norm {norm}, in the "
                        f"{config.total_batch_size} tokens from "
                        f"{getattr(shard, 'filename', config.data_root)} offset {offset} on. Last "
                        "good checkpoint: "
                        f"{last}. Try --resume=auto with a smaller --max_lr")
    if len(recent) == 100 and norm > 4 * max(recent):
        print0(f"warning: step {step}: norm {norm:.2f}, {min(recent):.2f} to {max(recent):.2f} "
               "before")
    recent[:] = [*recent, norm][-100:]
