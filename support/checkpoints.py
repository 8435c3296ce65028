"""
Checkpoints: find, read, restore, save and rotate them. Come here when a checkpoint is refused, or
when a run resumed from another one than you expected. What a checkpoint contains is visible in
train_gpt2.py, where run.turn is called.
"""
import contextlib
import glob
import hashlib
import os
import re
import time
import zipfile
from types import SimpleNamespace

import torch

from support.arithmetic import SHAPE
from support.console import UserError, is_first_process, one_line, print0
from support.files import atomic_write
from support.runlog import checkpoint_step, is_checkpoint, is_restart, list_all, read_identity


# integers would load without an error, as weights that were rounded or scaled
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find(resume, log_dir, init_from=""):
    """
    The checkpoint to resume from, as read() returns it, or None. resume: a path, or `auto` for the
    newest good checkpoint in log_dir (None if there are no checkpoints; if all of them are damaged,
    a UserError, because only the user can decide to start over).
    """
    if is_restart(log_dir) and list_all(log_dir):
        resume = "auto"  # torchrun restarted the processes after a crash
    if not resume:
        return None
    paths, run = [resume], ""
    if resume == "auto":
        paths, run = list_all(log_dir)[::-1], read_identity(log_dir)[0]
        if not paths:
            print0(f"no checkpoint in {log_dir}: starting a new run with the flags you gave"
                   f"{beside(log_dir)}")
    for path in paths:
        try:
            checkpoint = read_state(path, run)
        except UserError as e:
            if path == paths[-1]:
                raise
            print0(f"warning: {e}; trying the one before")
            continue
        print0(f"resuming from {path}: {checkpoint['step']} steps are done")
        if init_from:
            print0(f"--init_from={init_from} was for the beginning of the run")
        return checkpoint
    return None


def beside(log_dir):
    """A hint at a directory beside log_dir that has a checkpoint -> text, "" if there is none"""
    pattern = os.path.join(glob.escape(os.path.dirname(os.path.normpath(log_dir))), "*", "*.pt")
    for path in sorted(glob.glob(pattern), key=os.path.getmtime, reverse=True):
        with contextlib.suppress(UserError):  # a damaged one is no hint
            if is_checkpoint(os.path.basename(path)) and not is_tuned(path):
                return f"; to continue {path}: --log_dir={os.path.dirname(path)}"
    return ""


def newest(run_directory):
    """The path of the newest checkpoint in the directory of a run. UserError if it has none."""
    if paths := list_all(run_directory):
        return paths[-1]
    raise UserError(f"there is no checkpoint in {run_directory}: give the directory of a run, or a "
                    "checkpoint such as log/model_19073.pt")


def read_state(path, run):
    """
    read(path), or a UserError if no run can resume from it. run: the number of the run that it must
    belong to, "" for any.
    """
    checkpoint = read(path)
    if "optimizer" not in checkpoint:
        raise UserError(f"{path} has no optimizer state: start from its weights with "
                        f"--init_from={path}")
    if run and checkpoint.get("run", run) != run:
        raise UserError(f"{path} is of another run than the settings.json beside it: move it into "
                        f"a directory of its own, then --resume=DIR/{os.path.basename(path)}")
    return checkpoint


def read(path):
    """
    A checkpoint of ours, of build-nanogpt or of nanoGPT -> dict; its config is a plain dict.
    Missing entries get defaults: GPT-2's tokenizer, step 0, position 0. UserError for a file that
    is not a checkpoint, is damaged, or contains code.
    """
    checkpoint = unpickle(path)
    try:
        with zipfile.ZipFile(path) as z:
            damaged = z.testzip()  # torch.load checks no checksum and would load a flipped bit
    except Exception as e:  # a damaged file makes zipfile raise many kinds
        damaged = one_line(e)
    if damaged:
        raise UserError(f"{path} is not a usable checkpoint: {damaged} is damaged")
    if "model_args" in checkpoint:
        checkpoint = from_nanogpt(checkpoint, path)
    if not checkpoint.keys() >= {"model", "config"}:
        raise UserError(f"{path} is not a usable checkpoint: it has no model and config")
    defaults = {"tokenizer": {"name": "gpt2"}, "step": 0, "position": 0, "scaler": {},
                "train_config": {}}
    checkpoint = {**defaults, **checkpoint, "path": path}
    if isinstance(checkpoint["config"], SimpleNamespace):
        checkpoint["config"] = vars(checkpoint["config"])
    checkpoint["config"] = {"dropout": 0.0, **checkpoint["config"]}
    # DDP and torch.compile add prefixes to the names; older programs saved the causal masks, too
    checkpoint["model"] = {name.replace("module.", "").replace("_orig_mod.", ""): w
                           for name, w in checkpoint["model"].items()
                           if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    check_weights(checkpoint["model"], path)
    return checkpoint


def unpickle(path):
    """A file that torch.save wrote (dict) -> that dict; its tensors stay on the disk until used."""
    if not os.path.exists(path):
        raise UserError(f"there is no model {path}: give a checkpoint such as log/model_19073.pt, "
                        "a directory, or gpt2 ... gpt2-xl")
    try:
        zipfile.ZipFile(path).close()
    except Exception:  # as above: zipfile raises many kinds
        raise UserError(f"{path} is not a usable checkpoint: torch.save writes zip files, and this "
                        "is none, or a part of one")
    try:
        # weights_only: only data, never the code that a pickle can contain. The original saved its
        # config as an object of the class __main__.GPTConfig; this one name is allowed, and stands
        # for a class that only holds values.
        with torch.serialization.safe_globals([(SimpleNamespace, "__main__.GPTConfig")]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:  # torch's and zipfile's: no zip file, truncated, code inside
        raise UserError(f"{path} is not a usable checkpoint: {one_line(e)}")
    return checkpoint if isinstance(checkpoint, dict) else {}


def from_nanogpt(checkpoint, path):
    """
    A checkpoint of nanoGPT (dict) -> one of ours: its model_args are our config. A model without
    biases gets biases of zero, which is the same model. (Its GELU is exact, ours the approximation
    of GPT-2: logits differ in the third digit.)
    """
    args = checkpoint["model_args"]
    if missing := [name for name in SHAPE if name not in args]:
        raise UserError(f"{path} looks like a checkpoint of nanoGPT, but its model_args have no "
                        f"{', '.join(missing)}")
    if args["vocab_size"] not in (50257, 50304):
        raise UserError(f"{path} is nanoGPT's, with a vocabulary of {args['vocab_size']}, which is "
                        "in its meta.pkl. A pickle can run any code, so it is not opened: train "
                        "on the text itself, with --data_root=TEXT --tokenizer=char")
    weights = dict(checkpoint["model"])
    with_bias = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "ln_1.weight", "ln_2.weight",
                 "ln_f.weight")
    for name, w in checkpoint["model"].items():
        if name.endswith(with_bias):
            weights.setdefault(name.removesuffix("weight") + "bias", torch.zeros(w.size(0)))
    config = {name: args[name] for name in SHAPE}
    return {"model": weights, "config": config, "step": checkpoint.get("iter_num", 0)}


def check_weights(weights, path):
    """UserError for weights (dict of tensors) that would load and give wrong numbers."""
    for name, w in weights.items():
        if w.dtype not in WEIGHT_TYPES:
            raise UserError(f"{path} is not a usable model: {name} is {str(w.dtype)[6:]}: convert "
                            "a quantized model back to floating point")
        if not torch.isfinite(w).all():
            raise UserError(f"{path} is not a usable model: {name} has numbers that are nan or "
                            "infinite")


def find_file(name):
    """
    What stands for a model on a command line -> the path of a checkpoint; None for a Hugging Face
    directory and for gpt2 ... gpt2-xl. Of a run's directory it is the newest checkpoint.
    """
    of_run = list_all(name)
    if of_run:
        return of_run[-1]
    is_theirs = os.path.isdir(name) or re.fullmatch("gpt2(-medium|-large|-xl)?", name)
    return None if is_theirs else name


def is_tuned(name):
    """Is this the name of a model that finetune.py has tuned for a task?"""
    path = find_file(name)
    return path is not None and "task" in unpickle(path)


# --- resume: the same data, the same moments ------------------------------------------------------

def identify_stream(loader, n=None):
    """
    What identifies a loader's stream of tokens: their number, and a hash of them (of 64 evenly
    spaced pieces if there are more than 16M tokens). It does not depend on how the stream is cut
    into shards. n: use only the first n tokens.
    """
    n = loader.num_tokens if n is None else n
    if n <= 2**24:
        pieces = [(start, min(2**20, n - start)) for start in range(0, n, 2**20)]
    else:
        pieces = [(i * (n - 1024) // 63, 1024) for i in range(64)]
    found = hashlib.sha256()
    for start, size in pieces:
        try:
            tokens = loader.read_tokens(start, size)
        except UserError as e:  # every process reads these tokens: one line is enough
            raise UserError(str(e), who="node")
        found.update(tokens.numpy().astype("<u4"))
    return {"tokens": n, "sha256": found.hexdigest()}


def check_stream(checkpoint, loader, stream, data_root):
    """
    UserError if a run would resume with other data than it started with. stream: what
    identify_stream says about the loader. Shards may have been added, but a text may not have
    grown: what was its last tenth, for validation, would be trained on.
    """
    path, old = checkpoint["path"], checkpoint.get("stream")
    if old == stream:
        return
    if old is None:
        print0(f"{path} does not say which data it was made on: going on with {data_root}")
        return
    grown = checkpoint["position"] <= old["tokens"] < stream["tokens"]
    if grown and os.path.isdir(data_root) and identify_stream(loader, old["tokens"]) == old:
        print0(f"{data_root} has grown from {old['tokens']:,} to {stream['tokens']:,} tokens: "
               "going on")
        return
    what = f"{stream['tokens']:,} tokens, and it had {old['tokens']:,}"
    if old["tokens"] == stream["tokens"]:
        what = f"{stream['tokens']:,} tokens as before, but they are others"
    raise UserError(f"the data have changed since {path} was saved: {data_root} has {what}. Bring "
                    f"them back, or start another run from its weights: --init_from={path} "
                    "--log_dir=log2")


def check_steps(checkpoint, max_steps):
    """UserError if a run would end before the step at which its checkpoint was saved."""
    path, step = checkpoint["path"], checkpoint["step"]
    if step > max_steps:
        raise UserError(f"{path} has done {step} steps, and --max_steps={max_steps}: give a larger "
                        f"one; to evaluate its weights alone: --init_from={path} --max_steps=0")


def restore(checkpoint, raw_model, optimizer, scaler):
    """Give the optimizer and the scaler the state that they had when the checkpoint was saved."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
    state = checkpoint["optimizer"]
    parameters = {name for name, p in raw_model.named_parameters() if p.requires_grad}
    if missing := parameters - state["state"].keys():  # they would silently start from zero
        raise UserError(f"the optimizer's state in {checkpoint['path']} does not fit: "
                        f"{len(missing)} parameters have no moments")
    settings = [{key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups]
    set_optimizer_state_dict(raw_model, optimizer, state,
                             options=StateDictOptions(full_state_dict=True))
    if checkpoint["scaler"]:  # empty unless the run used float16
        scaler.load_state_dict(checkpoint["scaler"])
    # the moments come from the file, weight decay and betas from this run's settings: a flag may
    # have changed them
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)


# --- saving ---------------------------------------------------------------------------------------

def is_sharded(model):
    """Is the model wrapped in FSDP2? fully_shard adds the method unshard."""
    return hasattr(model, "unshard")


def save(log_dir, keep_last, state, settings, step_seconds):
    """
    Write model_{step}.pt, which contains state (model, optimizer, step, ...) and settings, then
    delete all but the keep_last newest checkpoints. Every process calls this; the first one writes.
    step_seconds: the duration of a step -> False if the checkpoint could not be written
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    t0 = time.time()
    path = os.path.join(log_dir, f"model_{state['step']:05d}.pt")
    # Sharded weights are gathered one by one, by all processes, into the first process's CPU
    # memory. Unsharded weights are not copied.
    sharded = is_sharded(state["model"])
    options = StateDictOptions(full_state_dict=sharded, cpu_offload=sharded)
    model, optimizer = get_state_dict(state["model"], state["optimizer"], options=options)
    if not is_first_process():
        return True
    try:
        os.makedirs(log_dir, exist_ok=True)
        with atomic_write(path) as f:  # tensor by tensor: no second copy of all weights in memory
            torch.save({**settings, **state, "model": model, "optimizer": optimizer}, f)
        remove_old(path, keep_last)
    except (OSError, RuntimeError) as e:  # torch.save turns some OSErrors into RuntimeErrors
        print0(f"warning: {path} could not be saved ({one_line(e)})")
        return False
    took = time.time() - t0
    print0(f"saved {path} in {took:.1f}s (a stop on SIGTERM takes a step and a save: "
           f"{took + step_seconds:.1f}s)")
    return True


def remove_old(saved, keep_last):
    """
    Delete the older checkpoints beside the one just saved (path): the keep_last newest stay.
    Checkpoints of later steps, which a person has put there, are neither counted nor deleted.
    """
    step = checkpoint_step(os.path.basename(saved))
    paths = [path for path in list_all(os.path.dirname(saved))
             if checkpoint_step(os.path.basename(path)) <= step]
    for path in paths[:-keep_last]:
        try:
            os.remove(path)
        except OSError as e:
            print0(f"warning: {path} could not be deleted ({e.strerror})")
