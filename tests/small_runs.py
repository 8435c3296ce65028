"""
What tests call: models small enough to train in a second, their logs and checkpoints, shards and documents, what is
refused, and files that somebody has damaged.
"""
import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_gpt2
from support import checkpoints
from support.console import UserError
from support.processes import Card
from support.tokenizer import gpt2_tokenizer
from train_gpt2 import GPT, GPTConfig

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ("--tokenizer=char --device=cpu --dtype=float32 --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --T=32 --B=4 "
        "--total_batch_size=256 --max_steps=10 --warmup_steps=2 --max_lr=1e-2 --min_lr=1e-3 --eval_every=0 "
        "--val_tokens=1000 --save_every=0 --no-hellaswag").split()
TINY_CONFIG = GPTConfig(block_size=16, vocab_size=128, n_layer=2, n_head=2, n_embd=32)
# what torch says of a card
H100 = Card("cuda", torch.device("cuda", 0), "NVIDIA H100 80GB HBM3", capability=(9, 0),
            archs=("sm_60", "sm_70", "sm_75", "sm_80", "sm_90", "compute_90"))


def a_process(autocast=None, rank=0, num_processes=1):
    """What an eval asks of a process: one on the CPU."""
    return SimpleNamespace(rank=rank, num_processes=num_processes, device=torch.device("cpu"),
                           autocast=autocast or contextlib.nullcontext())


def refusal(function, *args, exit_code=2):
    """Call a function that must refuse what it is given -> the line that its user would see."""
    with pytest.raises(UserError) as caught:
        function(*args)
    line = str(caught.value)
    assert caught.value.exit_code == exit_code and line and "\n" not in line, caught.value
    return line


class LiveStorages(TorchDispatchMode):
    """Adds up the bytes of all storages that operations have made and that are alive, and keeps the highest sum."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    def gone(self, key):
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, key)
        self.peak = max(self.peak, self.now)
        return result


# --- runs -----------------------------------------------------------------------------------------

# a run that draws random numbers in every step
WITH_DROPOUT = ("--device=cpu --tokenizer=char --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --T=32 --B=2 "
            "--total_batch_size=128 --warmup_steps=2 --max_lr=1e-2 --min_lr=1e-3 --eval_every=50 --val_tokens=500 "
            f"--dropout=0.1 --no-hellaswag --keep_last=2 --data_root={ROOT}/input.txt").split()


def start_run(processes, log_dir, *flags, torchrun=()):
    """Start train_gpt2.py with WITH_DROPOUT and further flags -> subprocess.Popen. torchrun: flags of torchrun"""
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *torchrun]
    command = [*python, os.path.join(ROOT, "train_gpt2.py"), *WITH_DROPOUT, f"--log_dir={log_dir}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(run, text):
    """Read what a run prints up to a line that contains the text -> that line, or None if the run ends before it"""
    return next((line for line in run.stdout if text in line), None)


def finish(run):
    """Wait until a run ends, which must succeed -> what it printed"""
    printed, _ = run.communicate()
    assert run.returncode == 0, printed
    return printed


def read_log(log_dir):
    """log.txt -> {stream: {step: value}}"""
    log = {}
    for line in (log_dir / "log.txt").read_text().splitlines():
        step, stream, value = line.split()
        assert int(step) not in log.setdefault(stream, {}), f"step {step} of {stream} stands twice in the log"
        log[stream][int(step)] = float(value)
    return log


def states(checkpoint):
    """All tensors of a checkpoint, model and optimizer, by name."""
    c = checkpoints.read(str(checkpoint))
    moments = {f"{name}.{k}": v for name, s in c["optimizer"]["state"].items() for k, v in s.items()}
    return {**c["model"], **moments}


def assert_same_bits(a, b):
    """Two checkpoints hold the same weights and moments."""
    a, b = states(a), states(b)
    assert a.keys() == b.keys() and len(a) > 30
    for name in a:
        assert a[name].equal(b[name]), name


def assert_same_losses(a, b, steps=range(10)):
    """Two logs agree to the rounding of sums in another order."""
    for stream, tolerance in (("train", 1e-5), ("norm", 2e-4), ("val", 1.01e-4)):
        shared = a[stream].keys() & b[stream].keys()
        assert shared >= (set(steps) if stream != "val" else set())
        assert all(abs(a[stream][s] - b[stream][s]) <= tolerance for s in shared), stream


# --- models ---------------------------------------------------------------------------------------

def random_model(config=TINY_CONFIG, seed=0):
    """A model whose biases are not zero, as they are at the start, where a wrong one would not show."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def hugging_face_model(folder, **shape):
    """A GPT-2 with random weights, made and saved by transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    with torch.no_grad():
        for p in model.parameters():  # its biases start at zero, where a wrong sign or place would not show
            p.add_(0.02 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model


# --- data -----------------------------------------------------------------------------------------

def write_shards(folder, sizes, vocab=97, dtype=np.uint16, first=0):
    """Shards of the given sizes (the first is validation) that hold 0, 1, 2, ... modulo vocab -> all train tokens."""
    folder.mkdir(exist_ok=True)
    stream = (np.arange(first, first + sum(sizes)) % vocab).astype(dtype)
    for i, part in enumerate(np.split(stream, np.cumsum(sizes)[:-1])):
        np.save(folder / f"edufineweb_{'train' if i else 'val'}_{i:06d}.npy", part)
    return stream[sizes[0]:]


def shards(folder):
    """The paths of a directory's shards in the order of the stream, the validation's first."""
    return sorted(folder.glob("*.npy"), key=lambda path: path.name[-10:])


def stream(folder):
    """The shards of a directory, one after another -> list of ids"""
    return [i for path in shards(folder) for i in np.load(path).tolist()]


def stop_in_step(monkeypatch, step):
    """Training gets a SIGTERM in this step."""
    real = train_gpt2.get_lr

    def signalled(now, config):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(now, config)
    monkeypatch.setattr(train_gpt2, "get_lr", signalled)


def contents(folder):
    """Every file of a directory with its bytes, but for locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".lock")}


def some_documents(n=200, seed=0):
    """n pieces of a play, some of them empty, some long, one with every kind of sign."""
    with open(os.path.join(ROOT, "input.txt"), encoding="utf-8") as f:
        text = f.read(300_000)
    r = random.Random(seed)
    docs = []
    for _ in range(n):
        start, length = r.randrange(len(text)), r.choice((0, 10, 300, 1000, 4000))
        docs.append(text[start : start + length])
    return ["", "null \0 byte, 漢字, 😀, é, \r\n, \x85, \u2028, <|endoftext|>, </s>", *docs]


def write_jsonl(path, docs):
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps({"id": i, "text": doc}) + "\n" for i, doc in enumerate(docs))
    return path


def plain(docs, tokenizer=None):
    """What the shards must hold: <|endoftext|>, a document, <|endoftext|>, ... -> list of ids"""
    t = tokenizer or gpt2_tokenizer()
    return [i for doc in docs for i in (t.eot, *t.encode(doc))]


def items_of(n):
    """n HellaSwag items of all lengths, made of words."""
    generator = torch.Generator().manual_seed(0)
    words = "the of and a to in he was his with that it for on as had be her at not".split()

    def some(most):
        n = int(torch.randint(1, most, (), generator=generator))
        return " ".join(words[int(i)] for i in torch.randint(0, len(words), (n,), generator=generator))
    return [{"ctx": some(60), "endings": [some(25) for _ in range(4)], "label": i % 4} for i in range(n)]


# --- damaged files --------------------------------------------------------------------------------

def mutated(data, changes):
    """Bytes with some of them replaced, and perhaps the end cut off: changes are (place, byte), places from 0 to 1."""
    data = bytearray(data)
    for place, byte in changes:
        if byte == 256:
            data = data[: int(place * len(data))]
        elif data:
            data[int(place * (len(data) - 1))] = byte
    return bytes(data)


# most of the damage near the beginning and the end of the file, where the headers are
places = st.one_of(st.floats(0, 1), st.floats(0, 0.05), st.floats(0.9, 1))
damage = st.lists(st.tuples(places, st.integers(0, 256)), min_size=1, max_size=6)


def fuzz(path, load, right, n):
    """Whatever bytes of a file are changed: exit code 2, or what loads is right."""
    with open(path, "rb") as f:
        good = f.read()

    @given(damage)
    @settings(max_examples=n, deadline=None, database=None)
    def check(changes):
        with open(path, "wb") as f:
            f.write(mutated(good, changes))
        try:
            loaded = load()
        except UserError as e:
            assert e.exit_code == 2
        else:
            assert right(loaded)
    check()
