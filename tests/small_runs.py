"""What tests call: the flags of a model small enough to train in a second, its log, shards, and what is refused."""
import os

import numpy as np
import pytest

from support.console import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ("--tokenizer=char --device=cpu --dtype=float32 --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --T=32 --B=4 "
        "--total_batch_size=256 --max_steps=10 --warmup_steps=2 --max_lr=1e-2 --min_lr=1e-3 --eval_every=0 "
        "--val_tokens=1000 --save_every=0 --no-hellaswag").split()


def refusal(function, *args, exit_code=2):
    """Call a function that must refuse what it is given -> the line that its user would see."""
    with pytest.raises(UserError) as caught:
        function(*args)
    line = str(caught.value)
    assert caught.value.exit_code == exit_code and line and "\n" not in line, caught.value
    return line


def read_log(log_dir):
    """log.txt -> {stream: {step: value}}"""
    log = {}
    for line in (log_dir / "log.txt").read_text().splitlines():
        step, stream, value = line.split()
        assert int(step) not in log.setdefault(stream, {}), f"step {step} of {stream} stands twice in the log"
        log[stream][int(step)] = float(value)
    return log


def write_shards(folder, sizes, vocab=97, dtype=np.uint16, first=0):
    """Shards of the given sizes (the first is validation) that hold 0, 1, 2, ... modulo vocab -> all train tokens."""
    folder.mkdir(exist_ok=True)
    stream = (np.arange(first, first + sum(sizes)) % vocab).astype(dtype)
    for i, part in enumerate(np.split(stream, np.cumsum(sizes)[:-1])):
        np.save(folder / f"edufineweb_{'train' if i else 'val'}_{i:06d}.npy", part)
    return stream[sizes[0]:]
