"""Facts about GPT-2, the model."""
import math

import pytest
import torch
from small_runs import TINY_CONFIG, hugging_face_model

from train_gpt2 import GPT, GPTConfig


@pytest.mark.parametrize("shape", [dict(n_layer=2, n_head=2, n_embd=32, vocab_size=97, n_positions=16), dict()],
                         ids=["tiny", "gpt2"])
def test_logits_equal_those_of_hugging_face(shape, tmp_path):
    """The same weights give the same logits as transformers' GPT2LMHeadModel, to 1e-5 of their size."""
    theirs = hugging_face_model(tmp_path, **shape)
    ours = GPT.from_pretrained(str(tmp_path)).eval()
    idx = torch.randint(0, theirs.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = ours(idx)[0], theirs(idx).logits
    torch.testing.assert_close(a, b, atol=1e-5 * b.abs().max().item(), rtol=1e-5)


def test_gpt2_has_124439808_parameters():
    """124M, of which 38.6M are the embedding, which is also the head and counts once."""
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    assert model.transformer.wte.weight.numel() == 50257 * 768


@pytest.mark.parametrize("config", [GPTConfig(), GPTConfig(n_layer=4, n_head=4, n_embd=128), TINY_CONFIG], ids=str)
def test_a_fresh_model_pays_about_ln_vocab_size(config):
    """Before it has learned anything every token is about equally likely: loss = -ln(1 / vocab_size)."""
    torch.manual_seed(1337)
    idx = torch.randint(0, config.vocab_size, (4, 17))
    with torch.no_grad():
        loss = GPT(config)(idx[:, :-1], idx[:, 1:])[1].item()
    assert abs(loss - math.log(config.vocab_size)) < 0.25


def test_the_past_does_not_see_the_future():
    """Changing token 9 changes no logit at positions 0 to 8, and does change those from 9 on."""
    torch.manual_seed(0)
    model, idx = GPT(TINY_CONFIG), torch.randint(0, 128, (1, 16))
    other = idx.clone()
    other[0, 9] = (other[0, 9] + 1) % 128
    with torch.no_grad():
        a, b = model(idx)[0], model(other)[0]
    torch.testing.assert_close(a[:, :9], b[:, :9], rtol=0, atol=0)
    assert (a[:, 9:] != b[:, 9:]).any(dim=-1).all()


def test_embedding_and_head_are_one_tensor():
    """Training one trains the other: also after loading weights."""
    model = GPT(TINY_CONFIG)
    model.load_state_dict(GPT(TINY_CONFIG).state_dict())
    assert model.transformer.wte.weight is model.lm_head.weight


def test_initial_weights():
    """std 0.02; 1 / sqrt(2 n_layer) of that where a layer adds to the residual stream; biases zero, norms one."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=256, vocab_size=512))
    for name, p in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert abs(p.std().item() / (0.02 / math.sqrt(2 * 2)) - 1) < 0.05, name
        elif p.dim() == 2:
            assert abs(p.std().item() / 0.02 - 1) < 0.05, name
        else:
            assert (p == (1.0 if name.endswith("weight") else 0.0)).all(), name


def test_weight_decay_is_for_matrices_only():
    """Two groups: what is multiplied is pulled to zero, biases and norms are not. Every parameter is in one of them."""
    model = GPT(TINY_CONFIG)
    decayed, others = model.configure_optimizers(0.1, 1e-3).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() == 2 for p in decayed["params"]) and all(p.dim() == 1 for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))
    assert decayed["fused"], "the fused AdamW exists on the CPU too"


def test_small_gradients_add_up_to_the_big_one():
    """The gradients of four micro batches, each divided by four, sum to that of the whole batch."""
    torch.manual_seed(0)
    model, idx = GPT(TINY_CONFIG), torch.randint(0, 128, (8, 17))
    x, y = idx[:, :-1], idx[:, 1:]
    model(x, y)[1].backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for i in range(0, 8, 2):
        (model(x[i : i + 2], y[i : i + 2])[1] / 4).backward()
    for p, g in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-6, rtol=1e-4)


def test_an_optimizer_can_overfit_one_batch():
    """The first thing to try with a new model: if it cannot learn 64 tokens by heart, it will learn nothing."""
    torch.manual_seed(0)
    model, idx = GPT(TINY_CONFIG), torch.randint(0, 128, (4, 17))
    optimizer = model.configure_optimizers(0.0, 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(idx[:, :-1], idx[:, 1:])[1]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_samples_have_no_padding_ids_and_can_be_longer_than_the_context():
    """Rows of the embedding beyond the tokenizer's size are never drawn, though a fresh model finds them as likely."""
    torch.manual_seed(0)
    rows = GPT(TINY_CONFIG).eval().generate(torch.zeros(4, 3, dtype=torch.long), 60, n_vocab=20, top_k=200)
    assert rows.shape == (4, 63) and rows.max() < 20


def test_samples_depend_on_their_generator_only():
    """The same seed gives the same text, and the global random state is left alone: looking changes nothing."""
    model, idx = GPT(TINY_CONFIG).eval(), torch.zeros(1, 1, dtype=torch.long)
    before = torch.get_rng_state()
    a, b, c = (model.generate(idx, 20, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert a.equal(b) and not a.equal(c)
    assert torch.get_rng_state().equal(before)


def test_the_loss_in_pieces_is_the_loss_of_all_logits():
    """A step wants no logits, and never has all of them: the loss and its gradients come piece by piece."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=1200, vocab_size=97, n_layer=1, n_head=2, n_embd=8))
    x, y = torch.randint(97, (2, 2, 1200))
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, logits: seen.append(logits.shape[:-1].numel()))
    logits, whole = model(x, y)
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    none, loss = model(x, y, ())
    loss.backward()
    assert none is None and logits.shape == (2, 1200, 97) and seen == [2400, 1024, 1024, 352]
    assert loss.item() == pytest.approx(whole.item(), abs=1e-6)
    assert all(torch.allclose(p.grad, expected[name], atol=1e-7) for name, p in model.named_parameters())
