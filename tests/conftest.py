"""What the tests share: a small text, and ways to train a small model in this process or under torchrun."""
import os
import subprocess
import sys

import pytest
import torch
from small_runs import ROOT, TINY, read_log, refusal

import train_gpt2



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
def refused(tmp_path, text):
    """refused(*flags) trains the tiny model, which must be refused -> the line that says why."""
    def run(*flags):
        return refusal(train_gpt2.run, [*TINY, f"--data_root={text}", f"--log_dir={tmp_path / 'log'}", *flags])
    return run


@pytest.fixture(autouse=True)
def quiet_threads():
    """Tests of tiny models are faster on one thread, and a process that has more cores gets the same sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
