"""Facts about a large model in one process or two. (Whole runs that share it are in system/test_torchrun.py.)"""
import os
import subprocess
import sys

from small_runs import ROOT, assert_same_losses


def test_one_process_with_its_state_on_the_cpu(train):
    """--offload: for one GPU that is too small, weights and moments wait in the CPU's memory."""
    assert_same_losses(train("plain"), train("offloaded", "--shard", "--offload", "--B=2"))


SCRIPT = """
import torch
import torch.distributed as dist
from small_runs import random_model
from support.sharding import shard_model

dist.init_process_group("gloo")
model = random_model()
idx = torch.randint(128, (2, 16), generator=torch.Generator().manual_seed(dist.get_rank()))
with torch.no_grad():
    expected = model(idx)[0]
    shard_model(model, "all", False, "cpu")
    assert model.lm_head.weight.to_local().size(0) == 64, "half of the 128 rows"
    for _ in range(2):
        torch.testing.assert_close(model.lm_head(model.hidden(idx)), expected)
        torch.testing.assert_close(model(idx)[0], expected)
dist.destroy_process_group()
"""


def test_hidden_and_the_head_under_shard(tmp_path):
    """
    Two processes hold half of each weight. `hidden` gathers them as forward does, and the root's stay whole until the
    next call: so lm_head may follow, as in HellaSwag, and gives the logits of the unsharded model.
    """
    (tmp_path / "two.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    path = os.pathsep.join((ROOT, os.path.join(ROOT, "tests")))
    result = subprocess.run([*torchrun, str(tmp_path / "two.py")], capture_output=True, text=True, timeout=120,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path})
    assert result.returncode == 0, result.stderr
