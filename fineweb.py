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
import functools
import glob
import inspect
import json
import os
import re
import sys
import time
from dataclasses import asdict, fields

import numpy as np
from tqdm import tqdm

ASSETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets")


# ----------------------------------------------------------------------------------------------------
# errors, files, flags, waiting

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


def open_log(log_dir, settings, resumed_step):
    """
    Prepare log_dir -> the path of log.txt. A resumed run drops the lines from resumed_step on, which it will write
    again; a new one (resumed_step None) moves the files of another run aside.
    """
    path = os.path.join(log_dir, "log.txt")
    try:
        os.makedirs(log_dir, exist_ok=True)
        old = [p for p in glob.glob(os.path.join(glob.escape(log_dir), "*")) if os.path.isfile(p)]
        if resumed_step is None and old:
            aside = os.path.join(log_dir, f"old_{time.time_ns() // 1000}")
            os.mkdir(aside)
            for p in old:
                os.replace(p, os.path.join(aside, os.path.basename(p)))
            print(f"{log_dir} held another run: its files are in {aside} now")
        elif os.path.exists(path):
            with open(path, encoding="utf-8") as f:  # a line without a step is somebody's note: it stays
                lines = [line for line in f if not (m := re.match(r"\d+ ", line)) or int(m[0]) < resumed_step]
            with atomic_write(path, "w", encoding="utf-8") as f:
                f.writelines(lines)
        with atomic_write(os.path.join(log_dir, "settings.json"), "w", encoding="utf-8") as f:
            json.dump(settings, f, indent=2)
    except OSError as e:
        fail(f"cannot write to {log_dir} ({e.strerror}): choose another place with --log_dir", by="")
    return path


def write_log(path, step, **streams):
    """Append a line `step stream value` for each stream. The values are texts. path None: write nothing."""
    if path:
        with open(path, "a", encoding="utf-8") as f:
            f.writelines(f"{step} {stream} {value}\n" for stream, value in streams.items())


def parse_flags(argv, doc, presets, *configs):
    """
    A flag for each field of some dataclasses, whose trailing comments become the help, and --preset for a named set of
    values -> an object of each class, and the dict of what was typed. A wrong flag: one line and exit code 2.
    """
    parser = argparse.ArgumentParser(
        usage="python %(prog)s [--flag=value ...]", description=doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    parser.error = lambda message: fail(f"{message} (--help lists the flags)")
    choices = {"preset": presets, "tokenizer": ("gpt2", "char"), "dtype": ("auto", "bfloat16", "float16", "float32")}
    for cls in configs:
        reasons = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(cls), re.MULTILINE))  # name: comment
        for f in fields(cls):
            help = f"{reasons[f.name]} [{f.default}]".replace("%", "%%")
            kind = (dict(action=argparse.BooleanOptionalAction) if f.type in (bool, bool | None) else
                    dict(type=f.type, choices=choices.get(f.name), metavar=f.type.__name__.upper()))
            parser.add_argument(f"--{f.name}", help=help, **kind)
    typed = vars(parser.parse_args(argv))
    values = {**presets[typed.get("preset", "gpt2")], **typed}
    return *(cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values}) for cls in configs), typed


def merge_settings(config, saved, typed, fixed=()):
    """
    Give the dataclass config the values of the dict saved, but for the flags that were typed. A field in `fixed` that
    was typed with another value ends the program; for the others a line says what has changed.
    """
    for name, new in asdict(config).items():
        old = saved.get(name, new)
        if name not in typed and name != "resume":
            setattr(config, name, old)
        elif new != old and name in fixed:
            fail(f"the weights to start from are of another model: {name} is {old}, not {new}")
        elif new != old and name != "resume" and os.environ.get("RANK", "0") == "0":
            print(f"changed since the checkpoint: {name} {old} -> {new}", flush=True)


def progress(batches, what, flags):
    """
    Yield from the list `batches` under a progress bar of the first process. If the first batch shows that all will take
    over a minute, a line says how long, and which flags shorten it.
    """
    t0 = time.time()
    first_process = os.environ.get("RANK", "0") == "0"
    # disable=None: no bar where the output is a file or a pipe
    for i, batch in enumerate(tqdm(batches, desc=what, leave=False, disable=None if first_process else True)):
        yield batch
        left = (time.time() - t0) * (len(batches) - 1)
        if i == 0 and left > 60 and first_process:
            print(f"{what} takes about {left / 60:.0f} minutes here: {flags} would shorten it", flush=True)


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
