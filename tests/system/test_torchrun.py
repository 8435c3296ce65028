"""
Facts about several processes, started by torchrun: they take the steps of one, fail together, start again together, and
may share the state of a large model.
"""
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from small_runs import (ROOT, TINY, assert_same_bits, assert_same_losses, finish, read_log, start_run, wait_for,
                        write_shards)

import hellaswag
import train_gpt2
from support import checkpoints

# --- several processes are one run ----------------------------------------------------------------

def test_two_processes_take_exactly_the_steps_of_one(train, torchrun, tmp_path):
    """
    Losses and validation losses agree to 1e-5 over ten steps, with two micro steps in each process. (Set the sync flag
    after the forward instead of before it, and this fails: the gradients of all but the first micro step are lost.)
    """
    one = train("one", "--eval_every=5", "--B=4")
    result = torchrun(2, "two", "--eval_every=5", "--B=2", "--total_batch_size=256")
    assert result.returncode == 0, result.stderr
    two = read_log(tmp_path / "two")
    for stream, tolerance in (("train", 1e-5), ("norm", 2e-4), ("val", 1.01e-4)):
        assert one[stream].keys() == two[stream].keys()
        for step in one[stream]:
            assert abs(one[stream][step] - two[stream][step]) <= tolerance, (stream, step)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(train, torchrun, tmp_path):
    """Saved by one process, resumed by two: the same data in the same order, the same losses to 1e-5."""
    whole = train("log", "--save_every=5", "--keep_last=5")
    (tmp_path / "log" / "model_00010.pt").unlink()
    result = torchrun(2, "log", "--resume=auto", "--save_every=5")
    assert result.returncode == 0, result.stderr
    resumed = read_log(tmp_path / "log")
    assert all(abs(whole["train"][s] - resumed["train"][s]) <= 1e-5 for s in range(10))
    assert checkpoints.read(str(tmp_path / "log" / "model_00010.pt"))["position"] == 10 * 256


@pytest.mark.slow
def test_two_processes_resume_exactly_with_dropout(torchrun, tmp_path):
    """Each rank's random numbers depend on seed, step and rank only: no generator's state has to be saved."""
    flags = ("--dropout=0.2", "--save_every=5", "--keep_last=5")
    assert torchrun(2, "whole", *flags).returncode == 0
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model_00005.pt").write_bytes((tmp_path / "whole" / "model_00005.pt").read_bytes())
    assert torchrun(2, "parts", *flags, "--resume=auto").returncode == 0
    assert_same_bits(tmp_path / "whole" / "model_00010.pt", tmp_path / "parts" / "model_00010.pt")


@pytest.mark.slow
def test_two_machines_are_one_run(tmp_path, text, train):
    """Two torchruns that meet at a port, as on two machines: the losses of one process."""
    one = train("one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
                "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=two",
                "--local-addr=127.0.0.1"]
    runs = [subprocess.Popen([*torchrun, os.path.join(ROOT, "train_gpt2.py"), *TINY, f"--data_root={text}",
                              f"--log_dir={tmp_path / 'two'}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]
    out = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], out
    two = read_log(tmp_path / "two")
    assert all(abs(one["train"][s] - two["train"][s]) <= 1e-5 for s in range(10))


def test_two_processes_measure_hellaswag_together(trained, tmp_path, capsys):
    """One line with acc, acc_norm, its standard error and n, the same for two processes; --limit takes the first."""
    capsys.readouterr()
    hellaswag.run(train_gpt2, [*trained, "--batch_tokens=300"])
    line = capsys.readouterr().out.splitlines()[0]
    assert re.search(r"model_00002.pt: acc 0.\d{4}, acc_norm 0.\d{4} \+- 0.\d{4} \(standard error\), n 30$", line)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               os.path.join(ROOT, "hellaswag.py"), *trained]
    two = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert two.returncode == 0 and line in two.stdout, two.stderr
    hellaswag.run(train_gpt2, [*trained, "--limit=7"])
    assert "n 7\n" in capsys.readouterr().out


# --- errors ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, said", [
    (["--data_root=nowhere"], "no train shards in nowhere"),
    pytest.param(["--B=3"], "--total_batch_size=192", marks=pytest.mark.slow),
    pytest.param(["--resume=gone.pt"], "there is no model gone.pt", marks=pytest.mark.slow),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_an_error_that_all_processes_share_is_said_once(flags, said, torchrun):
    """Two processes, one line, no traceback of ours, no hang."""
    result = torchrun(2, "log", *flags)
    assert result.returncode != 0 and result.stderr.count("error: ") == 1 and said in result.stderr
    assert "train_gpt2.py\", line" not in result.stderr


def test_an_error_of_one_process_ends_all(tmp_path, torchrun):
    """The second process alone meets a bad token: it names the place, and the first, which waits for it, is stopped."""
    write_shards(tmp_path / "shards", [500, 2**24 + 1])  # in so many, not every token is read before the first step
    path = tmp_path / "shards" / "edufineweb_train_000001.npy"
    tokens = np.load(path)
    tokens[1480] = 60000  # in step 5: 1,280 to 1,407 are for the first process, 1,408 to 1,535 for the second
    np.save(path, tokens)
    result = torchrun(2, "log", f"--data_root={tmp_path / 'shards'}")
    assert result.returncode != 0 and result.stderr.count("error: ") == 1
    assert "has token 60000 at offset 1480" in result.stderr and "line" not in result.stderr.split("error: ")[0]


@pytest.mark.slow
def test_two_processes_end_together_when_a_loss_is_not_finite(torchrun):
    result = torchrun(2, "log", "--max_lr=1e30", "--min_lr=1e30", "--max_steps=30")
    assert result.returncode != 0 and result.stderr.count("error: step ") == 1, result.stderr
    assert 'train_gpt2.py", line' not in result.stderr


# --- a process that is lost -----------------------------------------------------------------------

def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(child) for child in f.read().split()]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc to find the processes of torchrun")
def test_torchrun_restarts_a_run_that_has_lost_a_process(tmp_path):
    """One of two processes is killed: torchrun starts both again, from the newest checkpoint, and nothing shows."""
    flags = ["--dtype=float32", "--max_steps=60", "--save_every=20"]
    finish(start_run(2, tmp_path / "whole", *flags))
    run = start_run(2, tmp_path / "parts", *flags, torchrun=["--max-restarts=3"])
    assert wait_for(run, "step    30 | loss:")
    os.kill(children(run.pid)[1], signal.SIGKILL)
    out = run.communicate(timeout=120)[0]
    assert run.returncode == 0 and "resuming from" in out, out
    assert_same_bits(tmp_path / "whole" / "model_00060.pt", tmp_path / "parts" / "model_00060.pt")
    assert read_log(tmp_path / "whole")["train"] == read_log(tmp_path / "parts")["train"]


def test_processes_that_would_go_on_from_different_steps(train, tmp_path, text):
    """Two machines, each with a log_dir of its own: one finds a checkpoint, the other none. They would drift apart."""
    train("a", "--max_steps=2", "--save_every=2")
    port, runs = free_port(), []
    for rank, name in enumerate("ab"):
        variables = dict(RANK=rank, LOCAL_RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        runs.append(subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "train_gpt2.py"), *TINY, f"--data_root={text}", "--resume=auto",
             f"--log_dir={tmp_path / name}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in variables.items()}}))
    for rank, run in enumerate(runs):
        out = run.communicate(timeout=60)[0]
        assert run.returncode == 2 and f"process {rank} would continue from step {2 - 2 * rank}" in out, out


@pytest.mark.slow
def test_a_silent_process_is_waited_for_no_longer_than_the_time_limit(torchrun, monkeypatch, tmp_path):
    """A process that hangs does not keep the others for ever: --dist_timeout_s, then one line and the end of all."""
    code = (f"import os, sys, time; sys.path.insert(0, {ROOT!r}); import train_gpt2 as t; real = t.get_lr\n"
            "t.get_lr = lambda step, config: time.sleep(60 * (step == 3 and os.environ['RANK'] == '1')) or "
            "real(step, config)\nt.run(sys.argv[1:])")
    (tmp_path / "hang.py").write_text(code)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run([*torchrun, str(tmp_path / "hang.py"), *TINY, f"--data_root={ROOT}/input.txt",
                             f"--log_dir={tmp_path / 'log'}", "--dist_timeout_s=5"], capture_output=True, text=True,
                            timeout=100)
    assert result.returncode != 0 and "lost another process" in result.stderr, result.stderr
    assert "step     2 | loss" in result.stdout and "step     3 | loss" not in result.stdout


# --- --shard: each process has a share of the weights ---------------------------------------------

@pytest.mark.slow
def test_shares_take_the_steps_of_one_process(train, torchrun, tmp_path, text):
    """
    Two processes with half of the weights each, and activations computed twice: the losses and norms of one process
    with everything, over micro steps, clipping and the tied head. Their checkpoints are the same files: one process
    goes on from the two's, and the two from the one's.
    """
    flags = ("--B=2", "--save_every=5", "--keep_last=5", "--eval_every=5")
    shard = ("--shard", "--activation_checkpointing")
    whole = train("one", *flags)
    assert (result := torchrun(2, "two", *flags, *shard)).returncode == 0, result.stderr
    assert_same_losses(whole, read_log(tmp_path / "two"))
    for name in ("one", "two"):
        (tmp_path / name / "model_00010.pt").unlink()
    assert_same_losses(whole, train("two", "--resume=auto", "--shard=no"))
    assert (result := torchrun(2, "one", "--resume=auto", *shard)).returncode == 0, result.stderr
    assert "resuming from" in result.stdout
    assert_same_losses(whole, read_log(tmp_path / "one"))


@pytest.mark.slow
def test_dropout_is_that_of_ddp(torchrun, tmp_path):
    """A process draws the same random numbers, whether it has a copy of the weights or a share."""
    for name, flag in (("ddp", "--shard=no"), ("shares", "--shard=node")):
        assert (result := torchrun(2, name, "--dropout=0.2", flag)).returncode == 0, result.stderr
    assert_same_losses(read_log(tmp_path / "ddp"), read_log(tmp_path / "shares"))


@pytest.mark.slow
def test_evals_with_uneven_shares_end(torchrun, tmp_path):
    """
    Three HellaSwag items and an odd number of validation rows for two processes. Each forward gathers weights from
    both, so each makes as many forwards as the other, if need be of a batch that does not count.
    """
    (tmp_path / "hellaswag").mkdir()
    item = {"ctx": "The cat", "endings": ["sat down on it.", "sat.", "ran away from all that.", "is"], "label": 1}
    items = [{**item, "ctx": "the cat and " * (100 + n)} for n in range(3)]  # a batch each
    with open(tmp_path / "hellaswag" / "hellaswag_val_hub.jsonl", "w") as f:
        f.writelines(json.dumps(item) + "\n" for item in items)
    program = tmp_path / "three_items.py"  # the program, in a world where HellaSwag has three items
    program.write_text(f"import sys; sys.path.insert(0, {ROOT!r}); from support import hellaswag_file\n"
                       "hellaswag_file.NUM_ITEMS = 3\n"
                       "import train_gpt2; train_gpt2.run_program(train_gpt2.run)\n")
    flags = ("--tokenizer=gpt2", "--n_embd=16", "--block_size=512", "--max_steps=2", "--eval_every=1", "--hellaswag",
             f"--val_tokens={7 * 32}", "--dist_timeout_s=30")
    logs = []
    for name, flag in (("ddp", "--shard=no"), ("shares", "--shard")):
        assert (result := torchrun(2, name, *flags, flag, program=program)).returncode == 0, result.stderr
        logs.append(read_log(tmp_path / name))
    assert logs[0]["hella"] == logs[1]["hella"] and len(logs[0]["hella"]) == 3
    assert_same_losses(*logs, steps=range(2))


@pytest.mark.slow
def test_shares_within_machines_copies_between(train, tmp_path, text):
    """--shard=node on two machines of two processes, which meet at a port: a mesh of 2 copies by 2 shares."""
    one = train("one", "--B=1", "--total_batch_size=256")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2",
                "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=mesh",
                "--local-addr=127.0.0.1"]
    runs = [subprocess.Popen([*torchrun, os.path.join(ROOT, "train_gpt2.py"), *TINY, f"--data_root={text}", "--B=1",
                              "--shard=node", f"--log_dir={tmp_path / 'four'}"], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            for _ in range(2)]
    out = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], out
    assert_same_losses(one, read_log(tmp_path / "four"))


SPY = """
import os, resource, sys
sys.path.insert(0, {root!r})
import train_gpt2
from support import checkpoints
from support.console import run_program
def spy(log_dir, keep_last, state, settings, step_seconds, real=checkpoints.save):
    local = lambda t: getattr(t, "to_local", lambda: t)()
    optimizer = state["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [t for p in parameters for t in (p, p.grad, *optimizer.state[p].values())]
    size = sum(local(t).nbytes for t in tensors)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before, done = peak(), real(log_dir, keep_last, state, settings, step_seconds)
    sys.stdout.write(f"state {{size}} peak {{before}} saving {{peak()}} rank {{os.environ['RANK']}}\\n")
    return done
checkpoints.save = spy
run_program(train_gpt2.run)
"""


def state_bytes(tmp_path, text, *flags):
    """Bytes of weights, gradients and moments in each of two processes, peak memory before and after saving."""
    (tmp_path / "spy.py").write_text(SPY.format(root=ROOT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(tmp_path / "spy.py"), *TINY, f"--data_root={text}", f"--log_dir={tmp_path / 'log'}",
               "--save_every=1", "--max_steps=1", *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    return [[int(n) for n in m] for m in re.findall(r"state (\d+) peak (\d+) saving (\d+)", result.stdout)]


@pytest.mark.slow
def test_half_of_everything(tmp_path, text):
    """16 bytes a parameter (weight, gradient, two moments) with copies; half of it with shares in two processes."""
    shape = ("--n_embd=128", "--n_layer=4", "--save_every=1")
    copies, shares = state_bytes(tmp_path, text, *shape), state_bytes(tmp_path, text, *shape, "--shard")
    assert len(copies) == len(shares) == 2
    assert all(0.49 < share[0] / copy[0] <= 0.55 for share, copy in zip(shares, copies, strict=True))


# --- the first meeting ----------------------------------------------------------------------------

WHOLE = dict(RANK="1", LOCAL_RANK="0", WORLD_SIZE="4", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def without_a_partner(tmp_path, port, *flags):
    """Process 0 of 2, of which the other never comes."""
    words = {**WHOLE, "RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), *TINY, f"--data_root={ROOT}/input.txt",
               f"--log_dir={tmp_path / 'log'}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **words})


def test_a_partner_that_never_comes_is_waited_for_no_longer_than_the_limit(tmp_path):
    """--dist_timeout_s holds for the first meeting, too."""
    run = without_a_partner(tmp_path, free_port(), "--dist_timeout_s=4")
    _, err = run.communicate(timeout=60)  # without the limit it would wait for ten minutes
    assert run.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("the processes of this run did not meet within --dist_timeout_s=4"), err


def test_ctrl_c_while_waiting_for_a_partner(tmp_path):
    """PyTorch waits in C++, where no signal is heard: the program ends all the same, at the first Ctrl-C."""
    port = free_port()
    run = without_a_partner(tmp_path, port, "--dist_timeout_s=600")
    while run.poll() is None:  # until it listens for the other one
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err, err
