"""Facts about a large model in one process. (Several share it in system/test_torchrun.py.)"""
from small_runs import assert_same_losses


def test_one_process_with_its_state_on_the_cpu(train):
    """--offload: for one GPU that is too small, weights and moments wait in the CPU's memory."""
    assert_same_losses(train("plain"), train("offloaded", "--shard", "--offload", "--B=2"))
