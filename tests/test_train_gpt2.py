"""
Facts about train_gpt2.py, in the order of its sections: the model and how it writes, the data, many GPUs, the evals,
training. Real runs of a tiny model; tests that start several processes are in system/.
"""
import math
import os
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import (
    H100,
    TINY_CONFIG,
    a_process,
    assert_same_bits,
    hugging_face_model,
    random_model,
    refusal,
    write_shards,
    stop_in_step,
)
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import hellaswag
import train_gpt2
from support import checkpoints, processes, shards
from support.tokenizer import tokenize_file
from train_gpt2 import (
    GPT,
    DataLoaderLite,
    GPTConfig,
    TrainConfig,
    choose_prompt,
    evaluate_val_loss,
    get_lr,
    load_tokens,
    setup_distributed,
)

# ----------------------------------------------------------------------------------------------------
# 1 the model

@pytest.mark.parametrize("shape", [dict(n_layer=2, n_head=2, n_embd=32, vocab_size=97, n_positions=16),
                                   pytest.param(dict(), marks=pytest.mark.slow)],
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


# --- its loss and its optimizer -------------------------------------------------------------------

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


def test_logits_or_the_loss():
    """model(idx) gives the logits; model(idx, targets) their mean cross-entropy, and keeps no logits."""
    model = random_model()
    x, y = torch.randint(128, (2, 4, 16), generator=torch.Generator().manual_seed(1))
    logits, no_loss = model(x)
    no_logits, loss = model(x, y)
    assert logits.shape == (4, 16, 128) and no_loss is None and no_logits is None
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), y.flatten()), rtol=0, atol=1e-6)


# --- looking inside: hidden, with attention of your own -------------------------------------------

def attend_by_hand(layer, q, k, v):
    """Causal attention in four lines: scores, mask, softmax, weighted sum."""
    T = q.size(2)
    scores = q @ k.transpose(2, 3) / math.sqrt(k.size(3))  # (B, nh, T, T)
    scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(dim=3) @ v  # (B, nh, T, hs)


class EmptyCache:
    """An attend that is false in Python, like an empty list. No token sees another one."""

    def __len__(self):
        return 0

    def __call__(self, layer, q, k, v):
        return torch.zeros_like(q)


def test_attention_by_hand_gives_the_same_logits():
    """`attend` replaces the attention of each layer: here by four lines that do what the fast kernel does."""
    model, idx, layers = random_model(), torch.randint(128, (3, 16)), []

    def attend(layer, q, k, v):
        assert q.shape == k.shape == v.shape == (3, 2, 16, 16)
        layers.append(layer)
        return attend_by_hand(layer, q, k, v)
    logits = model.lm_head(model.hidden(idx, attend=attend))
    torch.testing.assert_close(logits, model(idx)[0], atol=1e-5, rtol=1e-5)
    assert layers == [block.attn for block in model.transformer.h]


def test_an_attend_that_is_false_is_used():
    """`attend or ...` would ignore an empty cache: the model asks whether it is None."""
    model, idx = random_model(), torch.randint(128, (2, 16))
    ours, without = model.hidden(idx, attend=EmptyCache()), model.hidden(idx)
    assert not bool(EmptyCache()) and not torch.allclose(ours, without)
    torch.testing.assert_close(model.hidden(idx[:, 5:6], torch.tensor([5]), EmptyCache()), ours[:, 5:6])


def test_positions_of_all_rows_or_of_each():
    """(T,) holds for all rows, (B, T) has a row for each. By default a text begins at position 0."""
    model, idx = random_model(), torch.randint(128, (2, 8))
    plain, later = model.hidden(idx), model.hidden(idx, torch.arange(4, 12))
    assert model.hidden(idx, torch.arange(8)).equal(plain) and not torch.allclose(later, plain)
    both = model.hidden(idx, torch.stack((torch.arange(8), torch.arange(4, 12))))
    torch.testing.assert_close(both, torch.stack((plain[0], later[1])))


# --- writing --------------------------------------------------------------------------------------

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


def test_the_most_likely_token_each_time():
    """top_k=1 leaves no choice: argmax of the last logits, given at most block_size tokens, here 16."""
    model, idx = random_model(), torch.randint(128, (2, 21), generator=torch.Generator().manual_seed(1))
    for T in (1, 15, 16, 21):
        rows = idx[:, :T]
        for _ in range(30):
            rows = torch.cat((rows, model(rows[:, -16:])[0][:, -1:].argmax(dim=-1)), dim=1)
        assert model.generate(idx[:, :T], 30, top_k=1).equal(rows), T


def test_the_shares_of_sampled_tokens(monkeypatch):
    """Probabilities 0.1, 0.4, 0.2, 0.3: what top_k and the temperature leave of them, in 20,000 tokens."""
    model = GPT(GPTConfig(8, 4, 1, 1, 8)).eval()
    p = torch.tensor([0.1, 0.4, 0.2, 0.3])
    monkeypatch.setattr(model, "forward", lambda idx: (p.log().expand(*idx.shape, -1), None))
    for sampling, expected in ((dict(), [0.1, 0.4, 0.2, 0.3]), (dict(top_k=2), [0, 4 / 7, 0, 3 / 7]),
                               (dict(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30])):
        rows = model.generate(torch.zeros(20_000, 1, dtype=torch.long), 1, generator=torch.Generator().manual_seed(0),
                              **sampling)
        shares = rows[:, 1].bincount(minlength=4) / 20_000
        torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32), atol=0.015, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_generation_in_every_dtype(dtype):
    """Weights of any dtype, or autocast: ids stay within the vocabulary."""
    idx = torch.zeros(2, 5, dtype=torch.long)
    rows = random_model().to(dtype).generate(idx, 20, n_vocab=100)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        others = random_model().generate(idx, 20, n_vocab=100)
    assert rows.shape == others.shape == (2, 25) and max(rows.max(), others.max()) < 100


# ----------------------------------------------------------------------------------------------------
# 3 the data: the shards are one stream, which all processes read at one position

def load(folder):
    return [load_tokens(path) for path in sorted(folder.glob("*_train_*.npy"))]


def test_y_is_x_moved_by_one():
    """The target of a token is the token after it; a row's last target is the next row's first token."""
    x, y = DataLoaderLite([np.arange(100)], B=2, T=8).next_batch()
    assert x.dtype == y.dtype == torch.int64
    assert x.tolist() == [list(range(8)), list(range(8, 16))]
    assert y.tolist() == [list(range(1, 9)), list(range(9, 17))]


@pytest.mark.parametrize("B, processes", [(12, 1), (4, 1), (1, 12), (3, 2), (2, 3), (1, 4)])
def test_a_step_is_the_same_tokens_for_every_split_of_the_work(B, processes, tmp_path):
    """Whatever B and the number of processes: step s reads the same tokens in the same order, across shards too."""
    stream = write_shards(tmp_path, [10, 101, 7, 50])
    T, tokens_per_step = 4, 48
    loaders = [DataLoaderLite(load(tmp_path), B, T, rank, processes) for rank in range(processes)]
    for step in range(20):  # 960 tokens: six epochs of 158
        read = [loader.next_batch()[0] for _ in range(tokens_per_step // (B * T * processes)) for loader in loaders]
        expected = np.take(stream, np.arange(step * tokens_per_step, (step + 1) * tokens_per_step), mode="wrap")
        assert torch.cat(read).flatten().tolist() == expected.tolist()


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6), start=st.integers(0, 10**9), n=st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_the_shards_are_one_circular_stream(sizes, start, n):
    """Reading n tokens anywhere is reading the concatenation of all shards, again and again from its beginning."""
    stream = np.random.default_rng(0).integers(0, 1000, sum(sizes))
    loader = DataLoaderLite(np.split(stream, np.cumsum(sizes)[:-1]), B=0, T=0)
    assert loader.read_tokens(start, n).tolist() == stream[np.arange(start, start + n) % len(stream)].tolist()


def test_no_drift_after_two_million_steps(tmp_path):
    """The position is an integer number of tokens, 10**12 of them: nothing is rounded."""
    stream = write_shards(tmp_path, [10, 1000, 999])
    loader = DataLoaderLite(load(tmp_path), B=4, T=8, process_rank=1, num_processes=2)
    loader.position = 2_000_000 * 524_288
    x, _ = loader.next_batch()
    expected = (2_000_000 * 524_288 + 4 * 8 + np.arange(32)) % 1999
    assert x.flatten().tolist() == stream[expected].tolist()
    assert loader.position == 2_000_000 * 524_288 + 64


def test_a_shard_is_read_slice_by_slice(tmp_path):
    """Private memory stays the same however large the shard: only the slice at hand is in it."""
    def private_kb():
        with open("/proc/self/status") as f:
            return next((int(line.split()[1]) for line in f if line.startswith("RssAnon")), 0)

    try:
        private_kb()
    except OSError:
        pytest.skip("needs /proc to see the memory of a process")
    write_shards(tmp_path, [10, 50_000_000])  # 100 MB
    before = private_kb()
    loader = DataLoaderLite(load(tmp_path), B=64, T=1024)
    for _ in range(200):
        loader.next_batch()
    assert private_kb() - before < 20_000


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_shards_of_both_widths(dtype, tmp_path):
    """uint16 for vocabularies up to 65,536, uint32 for larger ones."""
    write_shards(tmp_path, [4, 40], dtype=dtype)
    assert load(tmp_path)[0].dtype == dtype
    assert DataLoaderLite(load(tmp_path), 1, 8).next_batch()[0].tolist() == [list(range(4, 12))]


def test_batches_for_a_gpu_are_pinned(monkeypatch):
    """So that they can be copied while the GPU computes."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t.shape) or t)
    DataLoaderLite([torch.arange(100).numpy()], 2, 8, device_type="cuda").next_batch()
    assert pinned == [(2, 8), (2, 8)]


def test_ids_beyond_the_vocabulary(tmp_path, refused):
    """Checked slice by slice as they are read: on a GPU such an id would be an assertion deep inside a kernel."""
    write_shards(tmp_path / "shards", [500, 600])
    path = tmp_path / "shards" / "edufineweb_train_000001.npy"
    tokens = np.load(path)
    tokens[555] = 50257
    np.save(path, tokens)
    err = refused(f"--data_root={tmp_path / 'shards'}")
    assert "edufineweb_train_000001.npy has token 50257 at offset 555" in err


def test_a_text_too_short_for_one_row(text, refused):
    text.write_text("to be, or not to be")
    assert "has 17 tokens: too short for a row of 32: try a smaller --T" in refused()


# ----------------------------------------------------------------------------------------------------
# 4 many GPUs: the lines that only a GPU runs, run without one. What torch would say of a card is pretended in
# one place, the Card that find_card returns, so that no typing error waits for the rented machine. (What a
# kernel computes is not tested here.)

@pytest.mark.parametrize("capability, dtype", [
    ((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((7, 0), torch.float16),
    ((6, 1), torch.float32)])
def test_dtype_by_compute_capability(capability, dtype, monkeypatch):
    """bfloat16 from the A100 on, float16 on V100 and T4, float32 before, where nothing is compiled either."""
    monkeypatch.setattr(processes, "check_kernels", lambda card: None)
    monkeypatch.setattr(processes, "find_card", lambda *args: replace(H100, capability=capability))
    process = setup_distributed(TrainConfig())
    assert process.dtype == dtype and process.compile == (dtype != torch.float32)
    if dtype != torch.float32:
        assert process.dtype_reason == f"native at compute capability {capability[0]}.{capability[1]}"
    asked = setup_distributed(TrainConfig(dtype="float32", compile=False))
    assert (asked.dtype, asked.dtype_reason, asked.compile) == (torch.float32, "as asked for", False)


def test_processes_with_cards_meet_over_nccl(monkeypatch):
    """And over gloo for what is in the CPU's memory, as with --offload. The first sum is on the card."""
    met, summed = [], []
    monkeypatch.setattr(processes, "find_card", lambda *args: H100)
    monkeypatch.setattr(processes.dist, "init_process_group", lambda backend, **options: met.append(backend))
    monkeypatch.setattr(processes, "meeting_place", lambda limit: {})
    monkeypatch.setattr(processes.torch, "ones", lambda *size, device: summed.append(device) or torch.zeros(1))
    monkeypatch.setattr(processes.dist, "all_reduce", lambda x, op=None: None)
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 0)
    words = dict(RANK="11", LOCAL_RANK="3", WORLD_SIZE="16", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    process = setup_distributed(TrainConfig())
    assert (process.rank, process.num_processes, process.device) == (11, 16, H100.device)
    assert met == ["cpu:gloo,cuda:nccl"] and summed == [H100.device]


def test_a_mac_has_no_torchrun(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    process = setup_distributed(TrainConfig())
    assert process.device == torch.device("mps") and process.dtype == torch.float32
    for name, value in dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="x", MASTER_PORT="1").items():
        monkeypatch.setenv(name, value)
    assert "without torchrun" in refusal(setup_distributed, TrainConfig())


def test_float16_skips_a_step_whose_gradients_overflow(train, tmp_path, monkeypatch):
    """float16 ends at 65,504. With too large a scale the step is left out, the scale halved, the weights unchanged."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, 2.0**60, enabled=enabled))
    train("log", "--dtype=float16", "--max_steps=1", "--save_every=1")
    torch.manual_seed(1337)
    saved = checkpoints.read(str(tmp_path / "log" / "model_00001.pt"))
    fresh = train_gpt2.GPT(train_gpt2.GPTConfig(**saved["config"]))
    assert saved["scaler"]["scale"] == 2.0**59
    assert all(saved["model"][name].equal(w) for name, w in fresh.state_dict().items())


def test_float16_with_a_good_scale_trains(train):
    """The losses follow those of float32 to float16's three digits; the scaler takes its scale out before clipping."""
    half, full = train("half", "--dtype=float16"), train("full")
    assert all(abs(half["train"][s] - full["train"][s]) < 0.05 for s in range(10))
    assert half["norm"][0] == pytest.approx(full["norm"][0], rel=0.02) and half["train"][9] < half["train"][0] - 0.5


def test_the_whole_program_on_a_pretended_gpu(train, monkeypatch, capsys):
    """
    A card with an H100's answers whose tensors live on the CPU, from the choice of the dtype to the last sample: it
    decides like an H100, waits for the device once a step, and shows what share of its peak is used.
    """
    waits = []
    card = replace(H100, device=torch.device("cpu"))
    monkeypatch.setattr(processes, "find_card", lambda *args: card)
    monkeypatch.setattr(processes.Card, "synchronize", lambda self: waits.append(self.name))
    log = train("log", "--dtype=auto", "--eval_every=5", "--save_every=5", "--no-compile")
    assert log["train"][9] < log["train"][0] and waits == [card.name] * 10
    out = capsys.readouterr().out
    assert "cuda, bfloat16 (native at compute capability 9.0)" in out
    assert len(re.findall(r"\| mfu \d+\.\d%", out)) == 10


class Waits(TorchDispatchMode):
    """Notes in `calls` each time that a tensor's value is asked for: on a GPU the program would wait for it."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.calls.append("waits")
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_gpu_once(train, monkeypatch):
    """
    Nothing in THE STEP asks for a number before its end, in any of its micro steps, so the GPU always has work queued.
    The step begins with its seed; after scaler.update() comes `synchronize`, and then the loss and norm are printed.
    """
    calls = []
    manual_seed, update = torch.manual_seed, torch.amp.GradScaler.update
    monkeypatch.setattr(torch, "manual_seed", lambda seed: calls.append("begins") or manual_seed(seed))
    monkeypatch.setattr(torch.amp.GradScaler, "update", lambda scaler: calls.append("ends") or update(scaler))
    with Waits(calls):
        train("log", "--max_steps=3", "--val_tokens=100")
    ends = [i for i, call in enumerate(calls) if call == "ends"]
    assert len(ends) == 3
    for i in ends:
        assert calls[i - 1] == "begins", "a value was asked for in the midst of the step"
        assert calls[i + 1] == "waits", "printing the loss asks for its value: waiting is seen here"


# ----------------------------------------------------------------------------------------------------
# 5 the evals

NOBODY_STOPS = SimpleNamespace(end_if_any_process_stopped=lambda: None)


@pytest.mark.parametrize("processes", [2, 3, 7])
@pytest.mark.parametrize("B", [1, 4, 64])
def test_the_validation_loss_does_not_depend_on_how_it_is_computed(B, processes):
    """
    25 rows, unevenly divided: the parts of all processes add up to what one process finds, one row at a time.
    All make the same number of forwards, because a sharded model computes them together.
    """
    model, loader = random_model(), DataLoaderLite([np.arange(500) * 7 % 128], 1, 16)

    def evaluate(B, rank=0, num_processes=1):
        forwards = []
        hook = model.register_forward_hook(lambda *args: forwards.append(1))
        config = TrainConfig(B=B, T=16, val_tokens=25 * 16 + 5)
        loss = evaluate_val_loss(model, loader, config, a_process(None, rank, num_processes), NOBODY_STOPS)
        hook.remove()
        return loss, len(forwards)
    alone, _ = evaluate(1)
    parts = [evaluate(B, rank, processes) for rank in range(processes)]
    assert sum(loss for loss, _ in parts) == pytest.approx(alone, rel=1e-6)
    assert len({forwards for _, forwards in parts}) == 1


def test_the_validation_loss_is_the_mean_over_its_tokens():
    """Over the first val_tokens tokens, in rows of T; the model is in eval mode, and in training mode afterwards."""
    model, stream = random_model(replace(TINY_CONFIG, dropout=0.5)).train(), torch.arange(200) * 7 % 128
    loader = DataLoaderLite([stream.numpy()], 1, 16)
    loss = evaluate_val_loss(model, loader, TrainConfig(B=4, T=16, val_tokens=80), a_process(), NOBODY_STOPS)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(stream[:80].view(5, 16), stream[1:81].view(5, 16))[1].item()
    assert loss == pytest.approx(expected, rel=1e-6)


def test_a_validation_has_at_most_8192_tokens_at_a_time():
    """Its logits are not compiled and take 10 bytes each: B=64 rows of 1,024 tokens would be 33 GB of them."""
    shapes, real = [], GPT(GPTConfig(2048, 16, 1, 1, 4))
    real.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    loader = DataLoaderLite([np.zeros(40_001, dtype=np.int64)], 1, 1)
    for T, B, rows in ((1024, 64, 8), (1024, 2, 2), (2048, 64, 4), (100, 64, 64)):
        shapes.clear()
        evaluate_val_loss(real, loader, TrainConfig(B=B, T=T, val_tokens=30_000), a_process(), NOBODY_STOPS)
        assert max(shapes) == (rows, T)


# ----------------------------------------------------------------------------------------------------
# 6 training: the schedule, the log, resuming, how a run ends

def test_learning_rate():
    """A step at 1/715 of the maximum, the maximum after 715 steps, halfway down in the middle, a tenth at the end."""
    config = TrainConfig()
    assert get_lr(0, config) == pytest.approx(8.3916e-07, rel=1e-4)
    assert get_lr(714, config) == config.max_lr == get_lr(715, config)
    assert get_lr((715 + 19073) // 2, config) == pytest.approx((6e-4 + 6e-5) / 2)
    assert get_lr(19073, config) == config.min_lr == get_lr(10**6, config)
    assert get_lr(0, TrainConfig(warmup_steps=0, max_lr=3e-4, min_lr=3e-4)) == pytest.approx(3e-4)


def test_the_optimizer_is_the_one_that_was_asked_for(train, tmp_path):
    """Betas and weight decay reach AdamW; norms and biases are not decayed."""
    train("log", "--max_steps=1", "--save_every=1", "--beta1=0.8", "--beta2=0.9", "--weight_decay=0.3")
    groups = checkpoints.read(str(tmp_path / "log" / "model_00001.pt"))["optimizer"]["param_groups"]
    assert [(tuple(g["betas"]), g["weight_decay"]) for g in groups] == [((0.8, 0.9), 0.3), ((0.8, 0.9), 0.0)]


def test_the_log_and_the_console(train, tmp_path, capsys):
    """log.txt has `step stream value` lines, the console has the lecture's line; evals stand before the step."""
    log = train("log", "--max_steps=4", "--eval_every=2")
    steps = list(range(4))
    assert all(list(log[stream]) == steps for stream in ("train", "lr", "norm", "dt")) and list(log["val"]) == [0, 2, 4]
    assert log["train"][3] < log["train"][0]
    line = (r"step     0 \| loss: \d\.\d{6} \| lr \d\.\d{4}e-\d\d \| norm: \d\.\d{4} \| "
            r"dt: [\d.]+ms \| tok/sec: [\d.]+\n")
    out = capsys.readouterr().out
    assert re.search(line, out) and out.index("step     0 | validation") < out.index("step     0 | loss")
    assert re.search(r"step     2 \| validation loss: \d\.\d{4} \(\d\.\d\d bits/byte\) \| \d+\.\d min left", out)
    assert (tmp_path / "log" / "settings.json").exists()


def test_the_clock_covers_the_step_only(train, monkeypatch):
    """An eval that takes a thousand seconds changes no dt. (Looking at this clock takes a millisecond.)"""
    clock = SimpleNamespace(now=0.0)

    def tick(seconds=0.001):
        clock.now += seconds
        return clock.now

    def slow_eval(*args):
        return tick(1000)
    monkeypatch.setattr(train_gpt2, "evaluate_val_loss", slow_eval)
    monkeypatch.setattr(train_gpt2.time, "perf_counter", tick)
    log = train("log", "--max_steps=3", "--eval_every=1")
    assert clock.now > 4000 and all(dt == 1.0 for dt in log["dt"].values())


# --- going on -------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [("--dtype=float32",), ("--dtype=bfloat16",), ("--dtype=float32", "--dropout=0.1"),
                                   ("--dtype=bfloat16", "--dropout=0.1")], ids=" ".join)
def test_resuming_changes_nothing(flags, train, tmp_path):
    """8 steps, then all state from the file, 2 more: bit for bit the 10 steps in one go, and the same log."""
    whole = train("whole", "--save_every=10", *flags)
    train("parts", "--save_every=4", *flags)
    (tmp_path / "parts" / "model_00010.pt").unlink()  # what came after step 8 is lost, but for its lines in the log
    parts = train("parts", "--resume=auto", "--save_every=4", *flags)
    assert_same_bits(tmp_path / "whole" / "model_00010.pt", tmp_path / "parts" / "model_00010.pt")
    del whole["dt"], parts["dt"]
    assert whole == parts


def test_start_from_other_weights(train, tmp_path):
    """--init_from takes a checkpoint's weights and shape, not its step: a new run that begins where the other ended."""
    first = train("first", "--save_every=10", "--eval_every=10")
    second = train("second", f"--init_from={tmp_path / 'first' / 'model_00010.pt'}", "--eval_every=10", "--max_steps=1")
    assert second["val"][0] == first["val"][10] and second["lr"][0] == first["lr"][0]


# --- the end of a run -----------------------------------------------------------------------------

@pytest.fixture
def short_items(monkeypatch):
    """HellaSwag with 20 short items in many batches, for a model of characters -> the flag that measures it."""
    items = [hellaswag.Item([i + 1, i + 2, i + 3], [[4, 5], [6], [7], [8]], i % 4) for i in range(20)]
    monkeypatch.setattr(hellaswag, "prepare", lambda tokenizer: None)
    monkeypatch.setattr(hellaswag, "load_items_in_all_processes", lambda tokenizer: items)
    monkeypatch.setitem(hellaswag.BATCH_TOKENS, "cpu", 8)
    return "--hellaswag"


@pytest.mark.parametrize("module, logged", [(train_gpt2, [0]), (hellaswag, [0, 4])], ids=["validation", "HellaSwag"])
def test_an_eval_does_not_keep_a_stop_waiting(module, logged, short_items, train, monkeypatch, tmp_path, capsys):
    """
    An eval may take half an hour on a laptop. A signal ends it between two batches, the state of that turn is on disk,
    and the resumed run is the one that nobody stopped, bit for bit.
    """
    flags, evals = ("--eval_every=4", "--keep_last=9", short_items), []
    whole = train("whole", "--save_every=4", *flags)
    real = module.progress

    def signalled(*args, **kwargs):
        evals.append(0)
        for batch in real(*args, **kwargs):
            yield batch
            evals[-1] += 1
            if len(evals) == 2 and evals[-1] == 1:  # the eval at step 4, after its first batch
                os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(module, "progress", signalled)
    log = train("log", "--save_every=100", *flags)
    assert evals[0] > 2 and evals[1] == 1
    assert list(log["train"]) == [0, 1, 2, 3] and list(log["val"]) == logged and list(log["hella"]) == [0]
    assert "stopped by SIGTERM: 4 steps are done; continue with --resume=auto" in capsys.readouterr().out
    assert_same_bits(tmp_path / "log" / "model_00004.pt", tmp_path / "whole" / "model_00004.pt")
    monkeypatch.setattr(module, "progress", real)
    log = train("log", "--save_every=4", "--resume=auto", *flags)
    del log["dt"], whole["dt"]
    assert log == whole
    assert_same_bits(tmp_path / "log" / "model_00010.pt", tmp_path / "whole" / "model_00010.pt")


@pytest.mark.parametrize("save_every", [2, 100])
@pytest.mark.parametrize("name", ["evaluate_val_loss", "evaluate_hellaswag", "print_samples"])
def test_an_eval_that_fails_costs_no_step(name, save_every, short_items, train, monkeypatch, tmp_path):
    """Whatever goes wrong in an eval, all updates done so far are on disk, whether a save was due or not."""
    flags = ("--max_steps=4", "--eval_every=2", short_items, "--keep_last=9")
    train("whole", "--save_every=2", *flags)
    real = getattr(train_gpt2, name)

    def fails(*args):
        log = tmp_path / "log" / "log.txt"
        if log.exists() and "\n1 train " in log.read_text():
            raise RuntimeError("a bug in an eval")
        return real(*args)
    monkeypatch.setattr(train_gpt2, name, fails)
    with pytest.raises(RuntimeError, match="a bug in an eval"):
        train("log", f"--save_every={save_every}", *flags)
    saved = checkpoints.read(str(tmp_path / "log" / "model_00002.pt"))
    assert (saved["step"], saved["position"]) == (2, 2 * 256)
    assert_same_bits(tmp_path / "log" / "model_00002.pt", tmp_path / "whole" / "model_00002.pt")


def test_a_stopped_run_says_whether_it_can_continue(train, monkeypatch, capsys):
    """With --save_every=0 there is no checkpoint to continue from: nothing else is promised."""
    stop_in_step(monkeypatch, 1)
    for save_every, said in ((0, "this run has written no checkpoint"), (100, "continue with --resume=auto")):
        train(f"log{save_every}", "--max_steps=3", f"--save_every={save_every}")
        assert f"stopped by SIGTERM: 2 steps are done; {said}" in capsys.readouterr().out


def test_a_clock_that_stands_still(train, monkeypatch, capsys):
    """Where the clock is coarse a small step takes no time at all: its speed is wrong, and the run goes on."""
    monkeypatch.setattr(train_gpt2.time, "perf_counter", lambda: 1.0)
    assert train("log", "--max_steps=2")["dt"] == {0: 0.0, 1: 0.0}


@pytest.mark.parametrize("failing, exit_code", [({2}, 0), ({2, 4}, 1), ({4}, 1)])
def test_the_last_save_decides_the_exit_code(failing, exit_code, train, monkeypatch):
    """Without its last checkpoint a run has not succeeded: exit code 1. An earlier one may be missing."""
    def save(log_dir, keep_last, state, settings, step_seconds):
        return state["step"] not in failing
    monkeypatch.setattr(checkpoints, "save", save)
    if exit_code == 0:
        train("log", "--max_steps=4", "--save_every=2")
    else:
        line = refusal(train, "log", "--max_steps=4", "--save_every=2", exit_code=1)
        assert line == "the last checkpoint or the log could not be written"


def test_ctrl_c_before_the_first_step_is_no_traceback(train, monkeypatch):
    """There is nothing to save yet: the program just ends (see test_console.py for its exit code)."""
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(shards, "load_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("log")


# --- what a user can get wrong: one line, exit code 2, nothing lost -------------------------------

@pytest.mark.parametrize("flags, said", [
    (["--data_root=nowhere"], "no train shards in nowhere: there is no nowhere in "),
    (["--total_batch_size=1000"], "--total_batch_size=1024"),
    (["--B=3"], "--total_batch_size=288"),
    (["--T=64"], "try --T=32"),
    (["--n_embd=33"], "not divisible by n_head 2"),
    (["--such_flag=1"], "unrecognized arguments: --such_flag=1"),
    (["--max_step=3"], "unrecognized arguments: --max_step=3: did you mean --max_steps?"),
    (["--preset=gpt5"], "invalid choice: 'gpt5'"),
    (["--dtype=int8"], "invalid choice: 'int8'"),
    (["--tokenizer=words"], "invalid choice: 'words'"),
    (["--device=abacus"], "--device=abacus is not available here: try --device="),
    (["--device=cuda:x"], "--device=cuda:x is not available here"),
    (["--max_steps=many"], "invalid int value: 'many'"),
    (["--max_steps=-1"], "must be at least 0"),
    (["--B=0"], "--B=0: must be at least 1"),
    (["--max_lr=nan"], "--max_lr=nan"),
    (["--dropout=1.5"], "--dropout=1.5"),
    (["--grad_clip=0"], "--grad_clip=0"),
    (["--max_lr=1e-4"], "min_lr 0.001 is above max_lr 0.0001: try --min_lr=1e-05"),
    (["--resume=gone.pt"], "there is no model gone.pt"),
    (["--init_from=gone.pt"], "there is no model gone.pt"),
    (["--vocab_size=10"], "vocabulary"),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_wrong_flags(flags, said, refused):
    assert said in refused(*flags)


def test_the_largest_seed_trains(train):
    assert train("log", f"--seed={2**33}", "--max_steps=1")["train"][0] > 4


def test_a_warm_up_longer_than_the_run_is_said(train, capsys):
    """The learning rate would never get to where it was asked to go: no error, but worth a line."""
    train("log", "--warmup_steps=100", "--max_steps=3")
    assert "the warm-up takes 100 steps, the run 3" in capsys.readouterr().out
    train("log2", "--warmup_steps=3", "--max_steps=3")
    assert "warm-up" not in capsys.readouterr().out


def test_a_run_says_how_often_it_reads_its_text(train, capsys):
    """Losses of characters and of tokens cannot be compared, and what is read ten times is known by heart."""
    train("log", "--max_steps=141")
    out = capsys.readouterr().out
    assert "18,000 characters to train on: 141 steps are 2.01 epochs; losses are in nats per character" in out
    train("log", "--max_steps=1", "--tokenizer=gpt2", "--n_embd=8")
    assert " tokens to train on: 1 steps are 0.0" in capsys.readouterr().out


def test_samples_begin_with_a_line(text):
    """The validation text may begin inside a word: the prompt is the beginning of its first whole line."""
    val = "ord\n\nSecond line\nThird"
    text.write_text("x" * 9 * len(val) + val)
    tokenizer, _, val = tokenize_file(str(text), "char")
    prompt, _ = choose_prompt(tokenizer, DataLoaderLite(val, 1, 4))
    assert tokenizer.decode(prompt) == "Second l"
    text.write_text("no line ends here " * 10)
    tokenizer, _, val = tokenize_file(str(text), "char")
    assert len(choose_prompt(tokenizer, DataLoaderLite(val, 1, 4))[0]) == 8


