"""
Facts about several machines. Two network namespaces with a cable between them stand for two hosts: what is torn here is
torn as in a rack. Needs Linux, ip (iproute2) and the right to make namespaces; run with -m slow.
"""
import os
import signal
import subprocess
import sys
import time

import pytest
from small_runs import ROOT, TINY, read_log, write_shards

pytestmark = pytest.mark.slow


def ip(*args):
    return subprocess.run(["ip", *args], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Two namespaces gptA and gptB, 10.77.0.1 and 10.77.0.2, joined by a pair of virtual network cards."""
    try:
        for name in ("gptA", "gptB"):
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"network namespaces cannot be made here: {e}")
    try:
        ip("link", "add", "vA", "netns", "gptA", "type", "veth", "peer", "name", "vB", "netns", "gptB")
        for i, name in enumerate("AB", 1):
            ip("-n", f"gpt{name}", "addr", "add", f"10.77.0.{i}/24", "dev", f"v{name}")
            for card in (f"v{name}", "lo"):
                ip("-n", f"gpt{name}", "link", "set", card, "up")
        yield
    finally:
        for name in ("gptA", "gptB"):
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)


@pytest.fixture
def start(hosts, tmp_path):
    """start("A", flags for torchrun, flags for the program): each host has shards and a log directory of its own."""
    for name in "AB":
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name / "shards", [500, 30_000])

    def run(name, nodes, conf, *flags):
        number = "AB".index(name) + 1
        command = ["ip", "netns", "exec", f"gpt{name}", sys.executable, "-m", "torch.distributed.run",
                   f"--nnodes={nodes}", "--nproc_per_node=1", "--max-restarts=3", "--rdzv-backend=c10d",
                   "--rdzv-endpoint=10.77.0.1:29500", "--rdzv-id=two", f"--local-addr=10.77.0.{number}",
                   f"--rdzv-conf=is_host={2 - number}{conf}", os.path.join(ROOT, "train_gpt2.py"), *TINY,
                   "--tokenizer=gpt2", "--data_root=shards", "--log_dir=log", "--n_embd=8", *flags]
        with open(tmp_path / f"{name}.out", "w") as out:
            return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, cwd=tmp_path / name, env={
                **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"v{name}"})
    return run


def wait_for_step(tmp_path, step, seconds=90):
    """Until process 0, on either host, has done a step."""
    for _ in range(seconds * 10):
        for name in "AB":
            log = tmp_path / name / "log" / "log.txt"
            if log.exists() and f"\n{step} train " in log.read_text():
                return name
        time.sleep(0.1)
    raise AssertionError("\n".join((tmp_path / f"{name}.out").read_text()[-3000:] for name in "AB"))


def link(state):
    for name in "AB":
        ip("-n", f"gpt{name}", "link", "set", f"v{name}", state)


@pytest.mark.parametrize("flag", ["--shard=no", "--shard=node"])
def test_two_hosts_take_the_steps_of_one(flag, start, tmp_path, train):
    """A process on each host, DDP or shares within each: the losses of one process. Each reads shards of its own."""
    one = train("one", f"--data_root={tmp_path / 'A' / 'shards'}", "--tokenizer=gpt2", "--n_embd=8")
    runs = [start(name, 2, "", flag) for name in "AB"]
    assert [run.wait(180) for run in runs] == [0, 0], (tmp_path / "A.out").read_text()
    two = read_log(tmp_path / wait_for_step(tmp_path, 9) / "log")
    assert all(abs(one["train"][s] - two["train"][s]) <= 1e-5 for s in range(10))


def test_a_host_without_shards_says_so(start, tmp_path):
    """Data lies on each host: the one that has none names the directory, and the other does not wait for ever."""
    for path in (tmp_path / "B" / "shards").iterdir():
        path.unlink()
    runs = [start(name, 2, "", "--dist_timeout_s=20") for name in "AB"]
    assert all(run.wait(120) != 0 for run in runs)
    assert "no train shards in shards: run python fineweb.py" in (tmp_path / "B.out").read_text()


LONG = ("--max_steps=500", "--save_every=50")


@pytest.mark.parametrize("limit, outcome", [(600, "goes on"), (10, "starts again")])
def test_the_cable_is_out_for_20_seconds(limit, outcome, start, tmp_path):
    """
    A step takes 20 seconds more, and nothing else has happened: torchrun as it is survives that. With a time limit
    below the outage both processes give up, and torchrun starts them again from the newest checkpoint; as its agents do
    so at different moments, that can cost several of --max-restarts, or all: let the limit be longer than outages are.
    """
    runs = [start(name, 2, "", *LONG, f"--dist_timeout_s={limit}") for name in "AB"]
    where = wait_for_step(tmp_path, 120)
    link("down")
    time.sleep(20)
    link("up")
    if outcome == "goes on":
        assert [run.wait(200) for run in runs] == [0, 0], (tmp_path / "A.out").read_text()
        assert max(read_log(tmp_path / where / "log")["dt"].values()) > 15_000
    for _ in range(900):
        out = (tmp_path / "A.out").read_text() + (tmp_path / "B.out").read_text()
        if outcome == "goes on" or "resuming from" in out:
            break
        time.sleep(0.1)
    assert ("resuming from" in out) == ("lost another process" in out) == (outcome == "starts again"), out


def test_a_host_dies_for_good(start, tmp_path):
    """No word, no farewell: the other one waits for --dist_timeout_s, and with --nnodes=1:2 goes on alone."""
    runs = {name: start(name, "1:2", "", *LONG, "--dist_timeout_s=10") for name in "AB"}
    wait_for_step(tmp_path, 120)
    link("down")
    for pid in subprocess.run(["ip", "netns", "pids", "gptB"], capture_output=True, text=True).stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    code, out = runs["A"].wait(300), (tmp_path / "A.out").read_text()
    assert code == 0 and "lost another process" in out and "* 1 process(es)" in out, out
    assert "resuming from" in out or not list((tmp_path / "A" / "log").glob("old_*"))
    assert list(read_log(tmp_path / "A" / "log")["train"])[-1] == 499
