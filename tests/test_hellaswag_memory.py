"""HellaSwag's memory: what a batch needs does not depend on the items."""
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hellaswag
from train_gpt2 import GPT, GPTConfig


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


@pytest.mark.parametrize("ctx, on_cuda, dtype", [
    (200, True, torch.float32), (600, True, torch.bfloat16), (1000, True, torch.float32), (600, False, torch.float32)])
def test_the_eval_never_holds_more_than_a_gigabyte(ctx, on_cuda, dtype):
    """
    2,000 items of the longest length, GPT-2's width and vocabulary, one block: less than 1 GB above the weights. (All
    logits of a batch of 65,536 tokens at once, as it was, are 19 GB. Four endings of 1,023 tokens each would take 1.1.)
    """
    model = GPT(GPTConfig(n_layer=1)).eval()
    items = [([7] * ctx, [[8] * (1024 - ctx)] * 4, 0)] * 2000
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)
    batches = len(hellaswag.make_batches(items, hellaswag.BATCH_TOKENS[on_cuda], 1024))
    with LiveStorages() as live:
        sums, _ = hellaswag.score(model, items, autocast, hellaswag.BATCH_TOKENS[on_cuda], 0, batches)
    assert not sums[0].isnan().any() and 0.05e9 < live.peak < 1e9, live.peak
