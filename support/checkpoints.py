"""
Checkpoints: find, verify, restore, rotate. Come here when a checkpoint is refused, or when another
one was taken than you expect. What must be in one is said in train_gpt2.py, where it is written.
"""
import hashlib
import math
import os
import re
import time
from dataclasses import asdict
from types import SimpleNamespace

import torch

from support import identity
from support.arithmetic import SHAPE, count_parameters
from support.console import UserError, is_first_process, one_line, print0
from support.files import atomic_write, check_zip
from support.tokenizer import saved_spec


# integers would load without a word, rounded or scaled by whoever made them
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_checkpoint(name):
    """Is it a name of ours? model_best.pt and model_00003_backup.pt are somebody else's."""
    number = name.removeprefix("model_").removesuffix(".pt")
    if not (number.isascii() and number.isdecimal()) or int(number) == 0:
        return False
    return name == f"model_{int(number):05d}.pt"  # model_000003.pt is not ours either


def checkpoint_step(name):
    """model_00005.pt -> 5"""
    return int(name.removeprefix("model_").removesuffix(".pt"))


def list_all(log_dir):
    """The paths of our checkpoints in a log directory, the oldest first."""
    if not os.path.isdir(log_dir):
        return []
    names = [name for name in os.listdir(log_dir) if is_checkpoint(name)]
    names.sort(key=checkpoint_step)
    return [os.path.join(log_dir, name) for name in names]


def find(resume, log_dir, init_from=""):
    """
    The checkpoint that --resume asks for, as read() gives it, or None. `auto` is the newest good
    one in log_dir, and None where there is none yet; where none is good there is an error, so that
    you decide.
    """
    if identity.is_restart(log_dir) and list_all(log_dir):
        resume = "auto"  # torchrun has started us again after a crash
    if not resume:
        return None
    paths, run = [resume], ""
    if resume == "auto":
        paths, run = list_all(log_dir)[::-1], identity.read(log_dir)[0]
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


def read_state(path, run):
    """read(), or a UserError unless a run can go on from it. run: its number, "" for any."""
    checkpoint = read(path)
    counts = [checkpoint["step"], checkpoint["position"]]
    whole = all(type(n) is int and 0 <= n < 2**62 for n in counts)
    if "optimizer" not in checkpoint or not whole:
        raise UserError(f"{path} has no optimizer, step and position: start from its weights with "
                        f"--init_from={path}")
    if run and checkpoint.get("run", run) != run:
        raise UserError(f"{path} is of another run than the settings.json beside it: go on with it "
                        f"by --resume={path}")
    return checkpoint


def read(path):
    """
    A checkpoint of ours or of the original build-nanogpt -> dict, its config a plain dict. Whatever
    is not in it has a default: GPT-2's tokenizer, step 0, position 0. Anything else than a
    checkpoint: one line.
    """
    broken = f"{path} is not a usable checkpoint: "
    if not os.path.exists(path):
        raise UserError(f"there is no model {path}: give a checkpoint such as log/model_19073.pt, "
                        "a directory, or gpt2 ... gpt2-xl")
    try:
        check_zip(path)  # torch.load itself would take a flipped bit for a weight
        # weights_only: data, never the code that a pickle can carry. The original saved its config
        # as an object of its class __main__.GPTConfig: this one name is let through, and becomes an
        # object that only holds its values
        with torch.serialization.safe_globals([(SimpleNamespace, "__main__.GPTConfig")]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:  # torch's and zipfile's: no file, truncated, other code inside
        raise UserError(f"{broken}{one_line(e)}")
    if not isinstance(checkpoint, dict):
        raise UserError(f"{broken}it holds no dict")
    defaults = {"tokenizer": {"name": "gpt2"}, "step": 0, "position": 0, "scaler": {},
                "train_config": {}}
    checkpoint = {**defaults, **checkpoint, "path": path}
    if isinstance(checkpoint.get("config"), SimpleNamespace):
        checkpoint["config"] = dict(vars(checkpoint["config"]))
    for key in ("config", "model", "train_config", "tokenizer", "scaler"):
        if not isinstance(checkpoint.get(key), dict):
            raise UserError(f"{broken}its {key} is not a dict")
    if not isinstance(checkpoint["tokenizer"].get("name"), str):
        raise UserError(f"{broken}its tokenizer has no name")
    # code that saved a compiled or wrapped module left these prefixes in front of the names
    checkpoint["model"] = {re.sub(r"^((module|_orig_mod)\.)+", "", str(name)): w
                           for name, w in checkpoint["model"].items()}
    check_model(checkpoint["config"], checkpoint["model"], path)
    checkpoint["config"] = {"dropout": 0.0, **checkpoint["config"]}
    return checkpoint


def load_model(name, from_pretrained):
    """
    A checkpoint, the directory of a run (then its newest one), a Hugging Face directory or gpt2 ...
    gpt2-xl -> dict of model (weights), config, tokenizer (its spec), path; from a checkpoint also
    step, position, optimizer, ... from_pretrained: reads what is not a checkpoint -> GPT
    """
    of_run = list_all(name)
    if of_run:
        return read(of_run[-1])
    if not os.path.isdir(name) and not re.fullmatch("gpt2(-medium|-large|-xl)?", name):
        return read(name)
    model = from_pretrained(name)
    return {"model": model.state_dict(), "config": asdict(model.config),
            "tokenizer": saved_spec(name), "path": name}


def check_model(config, weights, source):
    """
    UserError if a config (dict) is not that of a GPT, if the weights are none, or if a GPT of this
    config would be far larger than they are: nobody else chooses how much memory we take.
    """
    broken = f"{source} is not a usable model: "
    for name in SHAPE:
        if type(config.get(name)) is not int or not 1 <= config[name] < 2**48:
            raise UserError(f"{broken}its {name} is {str(config.get(name))[:50]!r}")
    if unknown := config.keys() - {*SHAPE, "dropout"}:
        raise UserError(f"{broken}its config has "
                        f"{', '.join(map(str, sorted(unknown, key=str)))[:99]}")
    dropout = config.get("dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise UserError(f"{broken}its dropout is {str(dropout)[:50]!r}")
    if config["n_embd"] % config["n_head"] != 0:
        raise UserError(f"{broken}its n_embd {config['n_embd']} is not divisible by its n_head "
                        f"{config['n_head']}")
    for name, w in weights.items():
        if not isinstance(name, str):
            raise UserError(f"{broken}a weight is called {str(name)[:50]}, which is no name")
        plain = type(w) is torch.Tensor and w.layout == torch.strided and w.device.type == "cpu"
        if not plain or not w.is_contiguous():
            raise UserError(f"{broken}{name} is no plain tensor")
        # (older files carry their causal masks along, which nobody loads)
        if w.dtype not in WEIGHT_TYPES and not name.endswith((".attn.bias", ".attn.masked_bias")):
            raise UserError(f"{broken}{name} is {str(w.dtype)[6:]}: weights are numbers of 16, 32 "
                            "or 64 bits with a fraction; a quantized model must be converted back")
        if not torch.isfinite(w).all():
            raise UserError(f"{broken}{name} has numbers that are nan or infinite")
    need = count_parameters(SimpleNamespace(**config))
    # what is missing in a small one, load_weights names
    if need > 2 * sum(w.numel() for w in weights.values()) + 10**7:
        raise UserError(f"{broken}its config asks for {need} parameters, and they are not there")


def identify_stream(loader, n=None):
    """
    What tells a loader's stream of tokens from another: how many there are, and a hash of them; of
    more than 16M tokens, a hash of 64 pieces in even distances. It does not depend on how the
    stream is cut into shards. n: of the first n tokens only.
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
    UserError if a run would go on with other data than those it began with. stream: the loader's.
    """
    path, old = checkpoint["path"], checkpoint.get("stream")
    if old == stream:
        return
    if not isinstance(old, dict) or type(old.get("tokens")) is not int:
        print0(f"{path} does not say which data it was made on: going on with {data_root}")
        return
    grown = checkpoint["position"] <= old["tokens"] < stream["tokens"]
    if grown and identify_stream(loader, old["tokens"]) == old:
        print0(f"{data_root} has grown from {old['tokens']:,} to {stream['tokens']:,} tokens: "
               "going on")
        return
    what = f"{stream['tokens']:,} tokens, and it had {old['tokens']:,}"
    if old["tokens"] == stream["tokens"]:
        what = f"{stream['tokens']:,} tokens as before, but they are others"
    raise UserError(f"the data have changed since {path} was saved: {data_root} has {what}. Bring "
                    "them "
                    f"back, or start another run from its weights: --init_from={path} "
                    "--log_dir=log2")


def load_weights(model, weights, source):
    """Copy a state dict into model; one line if its names or shapes are not the model's."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError) as e:
        raise UserError(f"the weights in {source} do not fit the model: "
                        f"{' '.join(str(e).split())[:300]}")


def check_steps(checkpoint, max_steps):
    """UserError if a run is to end before the step at which its checkpoint was written."""
    path, step = checkpoint["path"], checkpoint["step"]
    if step > max_steps:
        raise UserError(f"{path} has done {step} steps, and --max_steps={max_steps}: give a larger "
                        f"one; to evaluate its weights alone: --init_from={path} --max_steps=0")


def check_moments(raw_model, state, broken):
    """
    UserError, which begins with `broken`, unless AdamW's state (dict) has two moments of each
    parameter's shape, the second of which, a mean of squares, is nowhere negative.
    """
    for name, p in raw_model.named_parameters():
        if not p.requires_grad:
            continue  # frozen: it has none
        moments = state["state"][name]
        for key in ("exp_avg", "exp_avg_sq"):
            moment = moments.get(key) if isinstance(moments, dict) else None
            if not isinstance(moment, torch.Tensor) or moment.shape != p.shape:
                raise UserError(f"{broken}{key} of {name} is no tensor of shape {tuple(p.shape)}")
            least = -math.inf if key == "exp_avg" else 0
            if not (torch.isfinite(moment).all() and (moment >= least).all()):
                raise UserError(f"{broken}{key} of {name} has numbers that cannot be")
    groups = state.get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise UserError(f"{broken}its param_groups are not a list of dicts")


def restore(checkpoint, raw_model, optimizer, scaler):
    """Give the optimizer and the scaler the state that they had when the checkpoint was written."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
    broken = f"the optimizer's state in {checkpoint['path']} does not fit: "
    state = checkpoint["optimizer"]
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        raise UserError(f"{broken}it is not a dict")
    parameters = {name for name, p in raw_model.named_parameters() if p.requires_grad}
    if missing := parameters - state["state"].keys():
        raise UserError(f"{broken}{len(missing)} parameters have no moments")
    settings = [{key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups]
    check_moments(raw_model, state, broken)
    try:
        set_optimizer_state_dict(raw_model, optimizer, state,
                                 options=StateDictOptions(full_state_dict=True))
        if checkpoint["scaler"]:  # empty, if the run had no float16 so far
            scaler.load_state_dict(checkpoint["scaler"])
    except Exception as e:  # torch's, of many kinds, for a file that somebody has made by hand
        raise UserError(f"{broken}{one_line(e)}")
    # the moments come from the file; weight decay and betas are this run's, and flags can have
    # changed them
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)


def is_sharded(model):
    return hasattr(model, "unshard")  # a method that fully_shard adds


def save(log_dir, keep_last, state, settings, step_seconds):
    """
    Write model_{step}.pt: state (model, optimizer, step, ...) and settings; then delete all but the
    keep_last newest checkpoints. Every process calls this, the first one writes. step_seconds: how
    long a step takes -> False if it could not be written
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    t0 = time.time()
    path = os.path.join(log_dir, f"model_{state['step']:05d}.pt")
    # sharded weights are gathered one by one, by all processes, into the first process's CPU
    # memory; unsharded ones are not copied
    sharded = is_sharded(state["model"])
    options = StateDictOptions(full_state_dict=sharded, cpu_offload=sharded)
    model, optimizer = get_state_dict(state["model"], state["optimizer"], options=options)
    if not is_first_process():
        return True
    try:
        os.makedirs(log_dir, exist_ok=True)  # or has somebody deleted the log?
        with atomic_write(path) as f:  # tensor by tensor: no second copy of all
            torch.save({**settings, **state, "model": model, "optimizer": optimizer}, f)
        remove_old(path, keep_last)
    except (OSError, RuntimeError) as e:  # torch.save makes a RuntimeError of some OSErrors
        print0(f"warning: {path} could not be saved ({one_line(e)})")
        return False
    took = time.time() - t0
    print0(f"saved {path} in {took:.1f}s (a stop on SIGTERM takes a step and a save: "
           f"{took + step_seconds:.1f}s)")
    return True


def remove_old(saved, keep_last):
    """
    Delete the older checkpoints beside the one that was just saved (path), but for the newest:
    keep_last stay. One of a later step, which somebody has put there, neither counts nor goes.
    """
    step = checkpoint_step(os.path.basename(saved))
    paths = [path for path in list_all(os.path.dirname(saved))
             if checkpoint_step(os.path.basename(path)) <= step]
    for path in paths[:-keep_last]:
        try:
            os.remove(path)
        except OSError as e:
            print0(f"warning: {path} could not be deleted ({e.strerror})")
