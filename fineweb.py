"""
From text to tokens.

    tokenizer = gpt2_tokenizer()  # GPT-2's byte-level BPE, 50,257 tokens, from assets/gpt2.tiktoken
    tokenizer.decode(tokenizer.encode("to be")) == "to be"
"""
import base64
import contextlib
import functools
import glob
import json
import os
import re
import sys
import time

import numpy as np
from tqdm import tqdm

ASSETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets")

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


@functools.lru_cache(maxsize=1)
def gpt2_tokenizer():
    """The GPT-2 tokenizer, made once a process: building it from 50,256 ranks takes a moment."""
    return GPT2Tokenizer()


def tokenize_file(path):
    """A text file -> its tokenizer, [train tokens], [validation tokens], the last tenth of it, as uint32 arrays."""
    with open(path, encoding="utf-8", errors="replace") as f:
        text = f.read()
    tokenizer, cut = gpt2_tokenizer(), int(0.9 * len(text))
    return tokenizer, *([np.array(tokenizer.encode(part), dtype=np.uint32)] for part in (text[:cut], text[cut:]))
