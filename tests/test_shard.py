"""Facts about large models: shares of the weights in each process, and the same steps, files and evals as without."""
import json
import os
import re
import subprocess
import sys

import pytest
from small_runs import ROOT, TINY, assert_same_losses, read_log


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


def test_dropout_is_that_of_ddp(torchrun, tmp_path):
    """A process draws the same random numbers, whether it has a copy of the weights or a share."""
    for name, flag in (("ddp", "--shard=no"), ("shares", "--shard=node")):
        assert (result := torchrun(2, name, "--dropout=0.2", flag)).returncode == 0, result.stderr
    assert_same_losses(read_log(tmp_path / "ddp"), read_log(tmp_path / "shares"))


def test_one_process_with_its_state_on_the_cpu(train):
    """--offload: for one GPU that is too small, weights and moments wait in the CPU's memory."""
    assert_same_losses(train("plain"), train("offloaded", "--shard", "--offload", "--B=2"))


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
    flags = ("--tokenizer=gpt2", "--n_embd=16", "--block_size=512", "--max_steps=2", "--eval_every=1", "--hellaswag",
             f"--val_tokens={7 * 32}", "--dist_timeout_s=30")
    logs = []
    for name, flag in (("ddp", "--shard=no"), ("shares", "--shard")):
        assert (result := torchrun(2, name, *flags, flag)).returncode == 0, result.stderr
        logs.append(read_log(tmp_path / name))
    assert logs[0]["hella"] == logs[1]["hella"] and len(logs[0]["hella"]) == 3
    assert_same_losses(*logs, steps=range(2))


@pytest.mark.slow
def test_shares_within_machines_copies_between(train, tmp_path, text):
    """--shard=node on two machines of two processes, which meet at a port: a mesh of 2 copies by 2 shares."""
    one = train("one", "--B=1", "--total_batch_size=256")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2",
                "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:29518", "--rdzv-id=mesh", "--local-addr=127.0.0.1"]
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
from support.console import run_program
def spy(path, keep_last, dt, raw_model, optimizer, real=train_gpt2.save_checkpoint, **state):
    local = lambda t: getattr(t, "to_local", lambda: t)()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [t for p in parameters for t in (p, p.grad, *optimizer.state[p].values())]
    size = sum(local(t).nbytes for t in tensors)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before, done = peak(), real(path, keep_last, dt, raw_model, optimizer, **state)
    sys.stdout.write(f"state {{size}} peak {{before}} saving {{peak()}} rank {{os.environ['RANK']}}\\n")
    return done
train_gpt2.save_checkpoint = spy
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


def test_half_of_everything(tmp_path, text):
    """16 bytes a parameter (weight, gradient, two moments) with copies; half of it with shares in two processes."""
    shape = ("--n_embd=128", "--n_layer=4", "--save_every=1")
    copies, shares = state_bytes(tmp_path, text, *shape), state_bytes(tmp_path, text, *shape, "--shard")
    assert len(copies) == len(shares) == 2
    assert all(0.49 < share[0] / copy[0] <= 0.55 for share, copy in zip(shares, copies, strict=True))
