"""
What the tests share: a small text and a small corpus, ways to train a small model in this process or under torchrun,
its checkpoint, and ways to ask for what must be refused.
"""
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from small_runs import ROOT, TINY, items_of, read_log, refusal, some_documents, write_jsonl

import fineweb
import play
import train_gpt2


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """
    With pytest-xdist, `python -m pytest` runs the whole suite on all cores, up to eight. Everything else runs in this
    process: some of the tests, which start sooner here; -s and --trace, which need it; and the suite on a machine with
    a card, because some tests measure the card's memory.
    """
    option = config.option
    is_part = option.file_or_dir or option.keyword or option.markexpr != "not slow"
    in_this_process = is_part or option.capture == "no" or option.trace or torch.cuda.is_available()
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if config.pluginmanager.hasplugin("xdist") and option.numprocesses is None and not (in_this_process or is_worker):
        option.numprocesses, option.maxprocesses, option.dist = "auto", 8, "worksteal"
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers inherit it: each has one core


def pytest_configure():
    """`nohup python -m pytest &` ignores these two, and so would every program that a test starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
    def run(processes, name, *flags, program="train_gpt2.py"):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*torchrun, os.path.join(ROOT, program), *TINY, f"--data_root={text}",
                   f"--log_dir={tmp_path / name}", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    return run


@pytest.fixture
def checkpoint(tmp_path, train):
    """The path of a model of characters after two steps."""
    train("log", "--max_steps=2", "--save_every=2")
    return str(tmp_path / "log" / "model_00002.pt")


@pytest.fixture
def trained(tmp_path, train):
    """A checkpoint of a tiny model with GPT-2's tokenizer, and a file with 30 items -> the flags that name them."""
    train("log", "--tokenizer=gpt2", "--max_steps=2", "--save_every=2", "--block_size=128")
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(e) + "\n" for e in items_of(30)))
    return [f"--model={tmp_path / 'log' / 'model_00002.pt'}", f"--data={tmp_path / 'items.jsonl'}", "--device=cpu",
            "--dtype=float32"]


@pytest.fixture
def refused(tmp_path, text):
    """refused(*flags) trains the tiny model, which must be refused -> the line that says why."""
    def run(*flags):
        return refusal(train_gpt2.run, [*TINY, f"--data_root={text}", f"--log_dir={tmp_path / 'log'}", *flags])
    return run


@pytest.fixture
def play_refuses():
    """play_refuses("sample", ...) runs play.py, which must refuse it -> the line that says why."""
    return lambda *argv: refusal(play.main, [str(a) for a in argv])


@pytest.fixture
def corpus(tmp_path):
    """The path of a .jsonl file with some documents."""
    return write_jsonl(tmp_path / "corpus" / "a.jsonl", some_documents())


@pytest.fixture
def make(tmp_path, corpus, monkeypatch):
    """make("name", "--workers=1") makes shards of 3,000 tokens from the corpus -> their directory."""
    monkeypatch.setattr(fineweb, "BATCH_BYTES", 5000)  # a small corpus in many batches
    monkeypatch.setattr(fineweb, "AHEAD_BYTES", 30_000)

    def run(name, *flags):
        files = [] if any(flag.startswith("--dataset") for flag in flags) else [f"--files={corpus}"]
        fineweb.main([*files, "--shard_size=3000", f"--out={tmp_path / name}", *flags])
        return tmp_path / name
    return run


@pytest.fixture(autouse=True)
def quiet_threads():
    """Tests of tiny models are faster on one thread, and a process that has more cores gets the same sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
