"""
Facts about an Apple GPU, the first thing to run on a Mac: python -m pytest -m mps. What is computed there is what a CPU
computes. The tests run on a CPU as well, where they only show that they run.
"""
import pytest
import torch
from small_runs import random_model

import play
import train_gpt2

MPS = [pytest.mark.mps, pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU")]
DEVICES = ["cpu", pytest.param("mps", marks=MPS)]
# heads of 64 channels, as all of GPT-2's are: PyTorch before 2.12 computed them wrongly there where B > 1
HEADS_OF_64 = train_gpt2.GPTConfig(block_size=64, vocab_size=97, n_layer=2, n_head=2, n_embd=128)


@pytest.fixture
def models():
    """models(device) -> the same weights on the CPU and on a device."""
    return lambda device: (random_model(HEADS_OF_64), random_model(HEADS_OF_64).to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("B, T", [(1, 64), (4, 64), (4, 7), (4, 1)])
@torch.no_grad()
def test_logits_are_those_of_a_cpu(device, B, T, models):
    """Of one row and of several, short and long: each logit to 1e-3, in float32."""
    on_cpu, here = models(device)
    idx = torch.arange(B * T).view(B, T) % 97
    torch.testing.assert_close(here(idx.to(device))[0].cpu(), on_cpu(idx)[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_text_is_that_of_a_cpu(device, models):
    """The likeliest token each time, with a cache: attention of one query, then of the half of a window."""
    on_cpu, here = models(device)
    idx = torch.arange(6).view(2, 3)
    text = play.generate(here, idx.to(device), 80, temperature=0)
    assert text.cpu().equal(play.generate(on_cpu, idx, 80, temperature=0))


@pytest.mark.parametrize("device", DEVICES)
def test_ten_losses_are_those_of_a_cpu(device, train):
    """To 1e-3, with evals in between that release their memory."""
    flags = ("--n_embd=128", "--eval_every=5")
    reference, here = train("cpu", *flags), train("here", f"--device={device}", *flags)
    for step in range(10):
        assert here["train"][step] == pytest.approx(reference["train"][step], abs=1e-3), step
    assert here["val"][10] == pytest.approx(reference["val"][10], abs=1e-3)


def test_what_is_evaluated_leaves_no_memory_behind(train, monkeypatch):
    """A Mac's programs share one memory: it goes back after making the model, three validations and two samples."""
    released = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append("all"))
    train("log", "--max_steps=2", "--eval_every=1")
    assert len(released) == 6
