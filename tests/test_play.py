"""Facts about using a model: how it writes."""
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train_gpt2 import GPT, GPTConfig

TINY = GPTConfig(block_size=16, vocab_size=128, n_layer=2, n_head=2, n_embd=32)


def random_model(config=TINY, seed=0):
    """A model whose biases are not zero, as they are at the start, where a wrong one would not show."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


# --- writing: the cache, the window, the choice of a token ---------------------------------------------

@given(st.lists(st.integers(1, 5), min_size=1, max_size=16))
@settings(max_examples=30, deadline=None)
def test_a_cache_changes_no_logits(cuts):
    """Fed to the model in pieces of any length, a text gets the logits it gets at once: the past never changes."""
    model, idx = random_model(), torch.randint(0, 128, (3, 16), generator=torch.Generator().manual_seed(1))
    cache, pieces = SimpleNamespace(n=0, size=16, kv={}), []
    with torch.no_grad():
        for n in cuts:
            if cache.n < 16:
                pieces.append(model(idx[:, cache.n : cache.n + n], cache=cache)[0])
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(idx[:, : cache.n])[0], atol=1e-5, rtol=1e-5)


def test_when_the_window_is_full_its_older_half_is_forgotten():
    """16 positions: token 17 is made from the newest 8, and so on. A prompt may be longer than the window."""
    model, idx = random_model(), torch.randint(0, 128, (2, 21), generator=torch.Generator().manual_seed(1))
    for T in (1, 15, 16, 21):
        rows = start = idx[:, :T]
        window, seen = min(T, 16), []
        with torch.no_grad():
            for _ in range(40):
                seen.append(window)
                rows = torch.cat((rows, model(rows[:, -window:])[0][:, -1:].argmax(dim=-1)), dim=1)
                window = 8 if window == 16 else window + 1
        assert model.generate(start, 40, temperature=0).equal(rows), (T, seen)


def test_a_window_of_one_token():
    assert GPT(GPTConfig(1, 128, 1, 1, 8)).generate(torch.zeros(2, 3, dtype=torch.long), 9).shape == (2, 12)


@pytest.mark.parametrize("sampling", [dict(temperature=0), dict(temperature=1e-30), dict(top_k=1), dict(top_p=1e-6)],
                         ids=str)
def test_ways_to_say_the_likeliest(sampling):
    model, idx = random_model(), torch.zeros(4, 1, dtype=torch.long)
    rows = model.generate(idx, 10, **sampling)
    assert rows.equal(model.generate(idx, 10, temperature=0, generator=torch.Generator().manual_seed(5)))


def test_the_shares_of_sampled_tokens(monkeypatch):
    """Probabilities 0.1, 0.4, 0.2, 0.3: what top_k, top_p and the temperature leave of them, in 20,000 tokens."""
    model = GPT(GPTConfig(8, 4, 1, 1, 8)).eval()
    p = torch.tensor([0.1, 0.4, 0.2, 0.3])
    monkeypatch.setattr(model, "forward", lambda idx, wanted, cache: (p.log().expand(len(wanted), -1), None))
    for sampling, expected in ((dict(), [0.1, 0.4, 0.2, 0.3]), (dict(top_k=2), [0, 4 / 7, 0, 3 / 7]),
                               (dict(top_p=0.65), [0, 4 / 7, 0, 3 / 7]), (dict(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
                               (dict(top_k=3, top_p=0.75), [0, 4 / 7, 0, 3 / 7]),  # of the three, two make up 7 / 9
                               (dict(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30])):
        new = next(model.stream(torch.zeros(20_000, 1, dtype=torch.long), generator=torch.Generator().manual_seed(0),
                                **sampling))
        shares = new.flatten().bincount(minlength=4) / 20_000
        torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32), atol=0.015, rtol=0)


def test_after_the_end_of_a_text_comes_nothing_else():
    """Up to its first <|endoftext|> a row is the same with and without eot; afterwards it is filled up with it."""
    model, idx = random_model(), torch.arange(20).view(20, 1)
    free, ended = (model.generate(idx, 30, n_vocab=20, eot=eot, generator=torch.Generator().manual_seed(0))
                   for eot in (None, 7))
    assert free.shape == ended.shape == (20, 31)
    for a, b in zip(free[:, 1:].tolist(), ended[:, 1:].tolist(), strict=True):
        end = a.index(7) if 7 in a else 30
        assert a[:end] == b[:end] and set(b[end:]) <= {7}
    assert (model.generate(idx * 0 + 7, 30, n_vocab=20, eot=7)[:, 1] != 7).any(), "one in the prompt ends nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_generation_in_every_dtype(dtype):
    """Weights of any dtype, or autocast: the cache takes the dtype of the keys, ids stay within the vocabulary."""
    idx = torch.zeros(2, 5, dtype=torch.long)
    rows = random_model().to(dtype).generate(idx, 20, n_vocab=100)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        others, cache = random_model().generate(idx, 20, n_vocab=100), SimpleNamespace(n=0, size=16, kv={})
        random_model()(idx, cache=cache)
    assert rows.shape == others.shape == (2, 25) and max(rows.max(), others.max()) < 100
    assert {kv.dtype for kv in cache.kv.values()} == {dtype}


def test_stream_leaves_training_as_it_was():
    """Writing needs no gradients, and turns them on again: also when somebody stops in the middle."""
    stream = random_model().stream(torch.zeros(1, 1, dtype=torch.long))
    assert not next(stream).requires_grad and torch.is_grad_enabled() and len(list(islice(stream, 3))) == 3
