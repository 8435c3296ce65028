"""Facts about the kernels of attention: shapes that come once do without cuDNN, training may have it."""
import pytest
import torch
from small_runs import a_process
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled
from torch.nn import functional as F

import hellaswag
import play
from train_gpt2 import GPT, GPTConfig


@pytest.fixture
def with_cudnn(monkeypatch):
    """For each call of attention: may it use cuDNN's kernels, and the flash kernels?"""
    allowed = []
    attention = F.scaled_dot_product_attention

    def noted(*args, **kwargs):
        allowed.append((cudnn_sdp_enabled(), flash_sdp_enabled()))
        return attention(*args, **kwargs)
    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return allowed


def test_evals_and_samples_do_without_cudnns_plans(with_cudnn):
    """A new shape in each of HellaSwag's batches, and with each sampled token: none may wait for a plan."""
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=1, n_head=1, n_embd=8))
    item = hellaswag.Item([7, 8], [[9, 10]] * 4, 0)
    hellaswag.evaluate(model, [item], a_process(), batch_tokens=64)
    play.generate(model, torch.zeros(1, 2, dtype=torch.long), 3)
    assert with_cudnn == [(False, True)] * 4


def test_training_may_use_cudnn(with_cudnn):
    """Between two sampled tokens, too: play.stream restores what was allowed before it yields."""
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=1, n_head=1, n_embd=8))
    x = torch.zeros(1, 2, dtype=torch.long)
    tokens = play.stream(model, x)
    next(tokens)
    model(x, x)
    assert with_cudnn == [(False, True), (True, True)]
