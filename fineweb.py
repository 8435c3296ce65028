"""
From text to tokens: the tokenizers, and how a file is written so that no crash can leave half of it.

    tokenizer = make_tokenizer("gpt2")        # GPT-2's byte-level BPE, 50,257 tokens, from assets/gpt2.tiktoken
    tokenizer = make_tokenizer("char", text)  # every character of the text is a token
    tokenizer.decode(tokenizer.encode("to be")) == "to be"

A tokenizer here is an object with encode(text) -> list of ids, decode(ids) -> text, n_vocab (the highest id + 1),
eot (the id of <|endoftext|>) and spec (a dict of plain strings from which load_tokenizer makes it again: that is
what a checkpoint keeps).
"""
import argparse
import base64
import contextlib
import errno
import functools
import glob
import inspect
import json
import math
import os
import re
import signal
import sys
import time
import zipfile
from dataclasses import asdict, fields

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

ASSETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets")


# ----------------------------------------------------------------------------------------------------
# errors, files, flags and settings, waiting

def fail(message, by="RANK"):
    """
    End the program over something its user can put right: one line on stderr, exit code 2, no traceback. Under torchrun
    the process speaks whose `by` is 0: RANK, one for all; LOCAL_RANK, one on each machine; "", everyone for itself.
    """
    if os.environ.get(by, "0") == "0":
        print(f"error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(10)  # were we to leave first, torchrun would stop the others before the one can speak
    raise SystemExit(2)


@contextlib.contextmanager
def atomic_write(path, mode="wb", **kwargs):
    """
    open(path, mode) for writing, but path changes only when everything is written: the bytes go to a temporary name,
    are flushed to the disk, and are renamed, which is one step for the file system. A crash leaves the old file.
    """
    temporary = f"{path}.tmp{os.getpid()}"
    try:
        with open(temporary, mode, **kwargs) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # without it the rename can reach the disk before the data does
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def parse_flags(argv, doc, presets, *configs):
    """
    A flag for each field of some dataclasses, whose trailing comments become the help, and --preset for a named set of
    values -> an object of each class, and the dict of what was typed. A wrong flag: one line and exit code 2.
    """
    parser = argparse.ArgumentParser(
        usage="python %(prog)s [--flag=value ...]", description=doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    parser.error = lambda message: fail(f"{message} (--help lists the flags)")
    choices = {"preset": presets, "tokenizer": ("gpt2", "char"), "dtype": ("auto", "bfloat16", "float16", "float32"),
               "shard": ("no", "all", "node")}
    for cls in configs:
        reasons = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(cls), re.MULTILINE))  # name: comment
        for f in fields(cls):
            help = f"{reasons[f.name]} [{f.default}]".replace("%", "%%")
            kind = (dict(action=argparse.BooleanOptionalAction) if f.type in (bool, bool | None) else
                    dict(type=f.type, choices=choices.get(f.name), metavar=f.type.__name__.upper()))
            if f.name == "shard":
                kind |= dict(nargs="?", const="all")  # --shard alone
            parser.add_argument(f"--{f.name}", help=help, **kind)
    typed = vars(parser.parse_args(argv))
    values = {**presets[typed.get("preset", "gpt2")], **typed}
    return *(cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values}) for cls in configs), typed


SHAPE = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")  # what the weights of a checkpoint fix


def merge_settings(start, gpt_config, config, typed, presets):
    """
    Give both dataclasses the values that the dict `start`, a checkpoint, was made with, but for the flags that were
    typed: they win, and a line says what they change; the shape cannot be changed -> typed, and with it the
    values of a preset that was typed and is another than the checkpoint's.
    """
    saved = start.get("train_config", {})
    if "preset" in saved and typed.get("preset", saved["preset"]) != saved["preset"]:
        typed = {**presets[typed["preset"]], **typed}
    for c, values in ((gpt_config, start["config"]), (config, saved)):
        for name, new in asdict(c).items():
            old = values.get(name, new)
            if name not in typed and name != "resume":
                setattr(c, name, old)
            elif new != old and name in SHAPE:
                fail(f"the weights to start from are of another model: {name} is {old}, not {new}")
            elif new != old and name != "resume" and os.environ.get("RANK", "0") == "0":
                print(f"changed since the checkpoint: {name} {old} -> {new}", flush=True)
    return typed


def check_settings(gpt_config, config=None):
    """One line and exit code 2 for values that cannot work, whether they were typed or stood in a checkpoint."""
    for f, value in [(f, getattr(c, f.name)) for c in (gpt_config, config) if c for f in fields(c)]:
        name = f.name
        if not isinstance(value, (int, float) if f.type is float else f.type):
            fail(f"--{name}={str(value)[:50]}: must be of type {getattr(f.type, '__name__', f.type)}")
        least = 0 if name in ("max_steps", "warmup_steps", "eval_every", "save_every", "seed") else 1
        if f.type is int and not least <= value < 2**48:
            fail(f"--{name}={value}: must be at least {least}, and a number one can count to")
        most = 1 if name in ("dropout", "beta1", "beta2") else math.inf
        if f.type is float and not 0 <= value < most or name == "grad_clip" and value == 0:
            fail(f"--{name}={value}: out of range (not negative, below {most}; grad_clip above 0)")
    if gpt_config.n_embd % gpt_config.n_head:
        fail(f"n_embd {gpt_config.n_embd} is not divisible by n_head {gpt_config.n_head}: the heads share the channels")
    if config and config.shard == "no" and config.offload:
        fail("--offload moves the shares that --shard makes: give --shard too")
    if config and config.shard != "no" and config.compile:
        fail("--compile and --shard do not go together here: leave one of them out")
    if config and config.min_lr > config.max_lr:
        fail(f"min_lr {config.min_lr} is above max_lr {config.max_lr}: try --min_lr={config.max_lr / 10:g}")
    if config and config.T > gpt_config.block_size:
        fail(f"T {config.T} is longer than block_size {gpt_config.block_size}: try --T={gpt_config.block_size}")


def choose_batch(config, typed, num_processes):
    """The largest B, up to the preset's, for which a whole number of micro steps makes a batch -> B, micro steps"""
    row = config.T * num_processes  # tokens a step at B = 1
    for B in [config.B] if "B" in typed else range(config.B, 0, -1):
        if config.total_batch_size % (B * row) == 0:
            return B, config.total_batch_size // (B * row)
    unit = config.B * row if "B" in typed else row
    fail(f"total_batch_size {config.total_batch_size} is not a multiple of B * T * processes = {unit}: "
         f"try --total_batch_size={unit * max(1, round(config.total_batch_size / unit))}")


def progress(batches, what, flags, before_each=lambda: None):
    """
    Yield from the list `batches` under a progress bar of the first process. If the first batch shows that all will take
    over a minute, a line says how long, and which flags shorten it. before_each: called before each batch, may raise.
    """
    t0 = time.time()
    first_process = os.environ.get("RANK", "0") == "0"
    # disable=None: no bar where the output is a file or a pipe
    for i, batch in enumerate(tqdm(batches, desc=what, leave=False, disable=None if first_process else True)):
        before_each()
        yield batch
        left = (time.time() - t0) * (len(batches) - 1)
        if i == 0 and left > 60 and first_process:
            print(f"{what} takes about {left / 60:.0f} minutes here: {flags} would shorten it", flush=True)


# ----------------------------------------------------------------------------------------------------
# a run: its log, its checkpoints, what can happen to it

def open_log(log_dir, settings, resumed_step):
    """
    Prepare log_dir -> write_log(step, stream=value, ...), which appends a line `step stream value` for each stream. A
    resumed run drops the lines from resumed_step on, which it will write again; a new one (resumed_step None) moves the
    files of another run aside. A directory that another process is writing to is refused. log_dir None: nothing is.
    """
    if log_dir is None:
        return lambda step, **streams: None
    path, pending = os.path.join(log_dir, "log.txt"), []
    lock = FileLock(os.path.join(log_dir, ".lock"))  # the operating system lets go of it when the process ends
    try:
        os.makedirs(log_dir, exist_ok=True)
        lock.acquire(timeout=0)
        for half in glob.glob(os.path.join(glob.escape(log_dir), "*.tmp[0-9]*")):
            os.remove(half)  # a killed process could not
        old = [p for p in glob.glob(os.path.join(glob.escape(log_dir), "*")) if os.path.isfile(p)]
        if resumed_step is None and old:
            aside = os.path.join(log_dir, f"old_{time.time_ns() // 1000}")
            os.mkdir(aside)
            for p in old:
                os.replace(p, os.path.join(aside, os.path.basename(p)))
            print(f"{log_dir} held another run: its files are in {aside} now")
        elif os.path.exists(path):
            with open(path, encoding="utf-8", errors="surrogateescape") as f:
                # a line without a step is somebody's note: it stays; half a line of ours, at the end, goes
                lines = [line for line in f if not (m := re.match(r"\d+(?=\s|$)", line))
                         or int(m[0]) < resumed_step and line.endswith("\n")]
            if lines and not lines[-1].endswith("\n"):
                lines.append("\n")
            with atomic_write(path, "w", encoding="utf-8", errors="surrogateescape") as f:
                f.writelines(lines)
        with atomic_write(os.path.join(log_dir, "settings.json"), "w", encoding="utf-8") as f:
            json.dump(settings, f, indent=2)
    except Timeout:
        fail(f"another run is writing to {log_dir}: choose another place with --log_dir", by="")
    except OSError as e:
        fail(f"cannot write to {log_dir} ({e.strerror}): choose another place with --log_dir", by="")
    return functools.partial(write_log, path, lock, pending)


def write_log(path, lock, pending, step, **streams):
    """Append the lines of a step. What a full disk refuses waits in the list `pending`, and training goes on."""
    pending += [f"{step} {stream} {value}\n" for stream, value in streams.items()]
    try:
        with open(path, "ab", buffering=0) as f:
            end, data = f.tell(), "".join(pending).encode()
            if f.write(data) < len(data):
                f.truncate(end)  # no half lines
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        pending.clear()
    except OSError as e:
        print(f"warning: {path} cannot be written ({e.strerror}): {len(pending)} lines wait", flush=True)


def list_checkpoints(log_dir):
    """The paths of the checkpoints in a log directory, the oldest first."""
    return sorted(glob.glob(os.path.join(glob.escape(log_dir), "model_*.pt")), key=lambda path: (len(path), path))


def find_checkpoint(config, load_checkpoint):
    """
    The checkpoint that --resume asks for, as load_checkpoint(path) gives it, or None. `auto` is the newest good one in
    log_dir, and a new run where there is none yet; where all are damaged it ends the program, so that you decide.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        config.resume = "auto"  # torchrun has started us again after a crash
    paths = list_checkpoints(config.log_dir)[::-1] if config.resume == "auto" else [p for p in [config.resume] if p]
    for path in paths:
        try:
            checkpoint = load_checkpoint(path)
        except SystemExit:
            if path == paths[-1]:
                raise
            continue  # damaged, which it has said: the one before will do
        counts = [checkpoint.get(key) for key in ("step", "position")]
        if "optimizer" not in checkpoint or not all(type(n) is int and 0 <= n < 2**62 for n in counts):
            fail(f"{path} has no optimizer, step and position: start from its weights with --init_from={path}")
        if os.environ.get("RANK", "0") == "0":
            print(f"resuming from {path}: {counts[0]} steps are done", flush=True)
        return checkpoint


def check_zip(path):
    """Raise ValueError or OSError unless path is a zip file, as torch.save writes it, whose checksums are right."""
    if not os.path.isfile(path):  # a pipe would keep us waiting for ever
        raise ValueError("there is no such file")
    with zipfile.ZipFile(path) as z:
        # a compressed record can be a few bytes that unpack to any size; torch.save compresses nothing
        if any(record.compress_type or record.file_size > record.compress_size for record in z.infolist()):
            raise ValueError("it has compressed records")
        if damaged := z.testzip():
            raise ValueError(f"{damaged} is damaged")


def check_weights(config, state):
    """Raise ValueError unless the dict `state` has as many numbers as a GPT of this config: it may want terabytes."""
    import torch
    check_settings(config)
    for name, w in state.items():
        if type(w) is not torch.Tensor or w.layout != torch.strided or w.device.type != "cpu" or not w.is_contiguous():
            raise ValueError(f"{name} is no plain tensor")
    C = config.n_embd  # a layer: 3 C^2 weights for q, k, v, 1 for c_proj, 8 in the MLP; 13 C biases and norms
    need = C * (config.vocab_size + config.block_size + 2 + config.n_layer * (12 * C + 13))
    if sum(w.numel() for w in state.values()) < need:
        raise ValueError(f"its config is that of a model of {need} parameters, its weights are fewer")


def write_checkpoint(path, state, keep_last, t0, dt):
    """
    torch.save, and delete all but the keep_last newest checkpoints beside it -> success. A full disk is reported and
    costs no more than this checkpoint. t0: when saving began, dt: seconds of a step, for the line that is printed.
    """
    import torch
    try:
        with atomic_write(path) as f:  # tensor by tensor: no second copy of all
            torch.save(state, f)
        for old in list_checkpoints(os.path.dirname(path))[:-keep_last]:
            os.remove(old)
    except (OSError, RuntimeError) as e:  # torch turns some of the one into the other
        print(f"warning: {path} could not be saved ({' '.join(str(e).split())[:100]}): training goes on", flush=True)
        return False
    took = time.time() - t0
    print(f"saved {path} in {took:.1f}s (with a step, what a stop on SIGTERM takes: {took + dt:.1f}s)", flush=True)
    return True


def restore(checkpoint, raw_model, optimizer, scaler, loader):
    """Give everything but the weights its state back -> the number of steps done, the last validation loss"""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
    try:
        set_optimizer_state_dict(raw_model, optimizer, checkpoint["optimizer"],
                                 options=StateDictOptions(full_state_dict=True))
        if checkpoint["scaler"]:  # empty, if the run had no float16 so far
            scaler.load_state_dict(checkpoint["scaler"])
    except Exception as e:  # whatever may be wrong in a file that somebody has made by hand
        fail(f"the optimizer's state does not fit: {type(e).__name__}: {' '.join(str(e).split())[:150]}")
    loader.position = checkpoint["position"]
    return checkpoint["step"], checkpoint["val_loss"]


def explain(e, config):
    """End the program with a line over a RuntimeError that is no fault of it; return over any other."""
    from torch.distributed import DistError
    if "out of memory" in str(e) or "can't allocate memory" in str(e):  # the GPU's words, and the CPU's
        # nothing is tried for you, who may not be looking
        fail(f"out of memory with --B={config.B}: try --B={max(1, config.B // 2)}", by="")
    if isinstance(e, DistError) or "gloo" in str(e):
        print(f"lost another process: {str(e)[:200]}", file=sys.stderr, flush=True)
        raise SystemExit(1)


def fail_not_finite(step, loss, norm, shard, offset, config):
    """End a run whose loss or gradient is nan or infinite: it would never recover."""
    fail(f"step {step}: loss {loss}, gradient norm {norm}, in the {config.total_batch_size} tokens from {shard} offset "
         f"{offset} on. Last good checkpoint: {(list_checkpoints(config.log_dir) or ['none'])[-1]}. Try --resume=auto "
         "with a smaller --max_lr")


def watch_norm(step, norm, recent):
    """Report a gradient far longer than the last hundred, the list `recent` -> the last hundred, this one too"""
    if len(recent) == 100 and norm > 4 * max(recent) and os.environ.get("RANK", "0") == "0":
        print(f"warning: step {step}: norm {norm:.2f}, {min(recent):.2f} to {max(recent):.2f} before", flush=True)
    return [*recent, norm][-100:]


def catch_signals(catch=True):
    """
    From now on SIGINT (Ctrl-C) and SIGTERM (a machine that is taken away) are noted in the list that comes back; a
    second one ends the process at once. catch=False: as before.
    """
    noted = []

    def note(number, frame):
        # torchrun hands a Ctrl-C, which we have had from the terminal already, on to us: within a second it is the same
        if not noted or "RANK" in os.environ and time.time() - noted[0][1] < 1:
            noted.append((signal.Signals(number).name, time.time()))
        else:
            os._exit(128 + number)
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, note if catch else before)
    return noted


def check_kernels(arch_list, major, minor):
    """End the program unless this PyTorch was built for a GPU of compute capability major.minor."""
    # code for sm_xy runs on x.y and later of the same x; compute_xy, which is PTX, on all later ones
    archs = re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(arch_list))
    if not any((kind == "compute" or int(x) == major) and (int(x), int(y)) <= (major, minor) for kind, x, y in archs):
        fail(f"this PyTorch has no code for compute capability {major}.{minor}: install its build for CUDA 12.6")


# ----------------------------------------------------------------------------------------------------
# tokenizers

class GPT2Tokenizer:
    """GPT-2's byte-level BPE (Radford et al. 2019, section 2.2) by tiktoken, from the ranks in assets/: no download."""
    # how text is cut before BPE: contractions, then letters, digits and other signs, each with one space before it
    PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

    def __init__(self):
        import tiktoken
        with open(os.path.join(ASSETS, "gpt2.tiktoken"), "rb") as f:
            ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in f)}
        self.eot = len(ranks)  # 50256, the one token that no text can contain
        self.n_vocab = self.eot + 1
        self.spec = {"name": "gpt2"}
        self.bpe = tiktoken.Encoding("gpt2", pat_str=self.PATTERN, mergeable_ranks=ranks,
                                     special_tokens={"<|endoftext|>": self.eot})

    def encode(self, text):
        return self.bpe.encode_ordinary(text)  # ordinary: "<|endoftext|>" in a text is 13 characters, not the token

    def decode(self, ids):
        return self.bpe.decode(list(ids), errors="replace")


class CharTokenizer:
    """A token per character: id 0 is <|endoftext|>, then the characters in sorted order. Small enough for a laptop."""

    def __init__(self, chars):
        self.chars = ["<|endoftext|>", *chars]
        self.ids = {c: i for i, c in enumerate(self.chars) if i > 0}
        self.eot, self.n_vocab = 0, len(self.chars)
        self.spec = {"name": "char", "chars": "".join(chars)}

    def encode(self, text):
        try:
            return [self.ids[c] for c in text]
        except KeyError as e:
            fail(f"this character tokenizer has no {e}: it knows the {len(self.ids)} characters it was made from")

    def decode(self, ids):
        return "".join(self.chars[i] for i in ids)


@functools.lru_cache(maxsize=1)
def gpt2_tokenizer():
    """The GPT-2 tokenizer, made once a process: building it from 50,256 ranks takes a moment."""
    return GPT2Tokenizer()


def make_tokenizer(name, text=""):
    """The tokenizer called `name` ("gpt2", "char") for a corpus."""
    return CharTokenizer(sorted(set(text))) if name == "char" else gpt2_tokenizer()


def load_tokenizer(spec):
    """The inverse of tokenizer.spec."""
    return CharTokenizer(spec["chars"]) if spec["name"] == "char" else gpt2_tokenizer()


def tokenize_file(path, tokenizer_name):
    """A text file -> its tokenizer, [train tokens], [validation tokens], the last tenth of it, as uint32 arrays."""
    with open(path, encoding="utf-8", errors="replace") as f:
        text = f.read()
    tokenizer, cut = make_tokenizer(tokenizer_name, text), int(0.9 * len(text))
    return tokenizer, *([np.array(tokenizer.encode(part), dtype=np.uint32)] for part in (text[:cut], text[cut:]))


if __name__ == "__main__":
    fail("making shards is not written yet: those of the original build-nanogpt's fineweb.py work as they are")
