"""What the tests share: a small text, a small model's flags, and ways to train it in this process or under torchrun."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import train_gpt2

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ("--tokenizer=char --device=cpu --dtype=float32 --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --T=32 --B=4 "
        "--total_batch_size=256 --max_steps=10 --warmup_steps=2 --max_lr=1e-2 --min_lr=1e-3 --eval_every=0 "
        "--val_tokens=1000 --save_every=0 --no-hellaswag").split()


@pytest.fixture
def text(tmp_path):
    """A text file of 20,000 characters."""
    path = tmp_path / "text.txt"
    with open(os.path.join(ROOT, "input.txt"), encoding="utf-8") as f:
        path.write_text(f.read(20_000), encoding="utf-8")
    return path


@pytest.fixture
def train(tmp_path, text):
    """train("name", "--max_steps=3") trains the tiny model in this process and returns its log, see read_log."""
    def run(name, *flags):
        train_gpt2.run([*TINY, f"--data_root={text}", f"--log_dir={tmp_path / name}", *flags])
        return read_log(tmp_path / name)
    return run


@pytest.fixture
def torchrun(tmp_path, text):
    """The same with several processes: torchrun(2, "name", ...) -> the finished process, with its output."""
    def run(processes, name, *flags):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*torchrun, os.path.join(ROOT, "train_gpt2.py"), *TINY, f"--data_root={text}",
                   f"--log_dir={tmp_path / name}", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    return run


@pytest.fixture
def refused(tmp_path, text, capsys):
    """refused(*flags) runs the program, which must end with exit code 2 and one line on stderr -> that line."""
    def run(*flags):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            train_gpt2.run([*TINY, f"--data_root={text}", f"--log_dir={tmp_path / 'log'}", *flags])
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        return err
    return run


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


@pytest.fixture(autouse=True)
def quiet_threads():
    """Tests of tiny models are faster on one thread, and a process that has more cores gets the same sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
