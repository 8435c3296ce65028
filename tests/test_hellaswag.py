"""Facts about HellaSwag, on items made up here: what the numbers mean; packing changes none; the program."""
import hashlib
import json
import math
import os
import re

import pytest
import torch
from small_runs import ROOT, LiveStorages, a_process, items_of, random_model, refusal

import hellaswag
import train_gpt2
from hellaswag import evaluate, get_most_likely_row, make_batches, render_example, score, score_rows, tokenize_example
from support import hellaswag_file
from support.tokenizer import gpt2_tokenizer
from train_gpt2 import GPT, GPTConfig

ITEM = {"ctx": "A dog runs", "label": 2,
        "endings": ["after the ball.", "up.", "to the old house on the hill.", "away now."]}


def test_an_item_is_four_rows():
    """The context, then an ending with its space; the mask is one on the ending only; zeros fill the right side."""
    _, tokens, mask, label = render_example(ITEM)
    t = gpt2_tokenizer()
    assert label == 2 and tokens.shape == mask.shape == (4, 3 + 8)
    for row, m, ending in zip(tokens, mask, ITEM["endings"], strict=True):
        n = 3 + int(m.sum())
        assert t.decode(row[:n].tolist()) == f"A dog runs {ending}" and not row[n:].any()
        assert m.tolist() == [0] * 3 + [1] * (n - 3) + [0] * (11 - n)


def test_the_score_is_the_loss_of_the_ending_alone():
    """Computed by hand: the mean of -log p over the ending's tokens, each predicted from what stands before it."""
    _, tokens, mask, _ = render_example(ITEM)
    logits = torch.randn(4, tokens.size(1), 50257, generator=torch.Generator().manual_seed(0))
    sums, means = score_rows(tokens, mask, logits)
    logp = logits.log_softmax(-1)
    for row in range(4):
        by_hand = [-logp[row, i - 1, tokens[row, i]].item() for i in range(tokens.size(1)) if mask[row, i]]
        assert math.isclose(sums[row], sum(by_hand), rel_tol=1e-5)
        assert math.isclose(means[row], sum(by_hand) / len(by_hand), rel_tol=1e-5)
    assert get_most_likely_row(tokens, mask, logits) == means.argmin()
    assert get_most_likely_row(tokens, mask, torch.zeros_like(logits)) == 0, "a tie goes to the first"


class Knows(torch.nn.Module):
    """A model that expects just the tokens of one ending."""
    config = type("config", (), {"block_size": 1024})

    def __init__(self, expected):
        super().__init__()
        self.expected = torch.tensor([*expected, *[0] * 20])

    def hidden(self, ids, position_ids, attend):
        next_token = position_ids + 1 - 3  # in the ending: the context has three tokens
        return self.expected[next_token.clamp(min=0)][:, :, None]  # (B, N, 1)

    def lm_head(self, x):
        return torch.zeros(len(x), 50257).scatter(1, x, 99.0)


@pytest.mark.parametrize("row, right", [(2, 3), (1, 0)])
def test_a_model_that_knows_the_answer_scores_one(row, right):
    """A model that expects just the right ending is right every time; one that expects another ending, never."""
    items = [tokenize_example(ITEM)] * 3
    assert evaluate(Knows(items[0].endings[row]), items, a_process()) == (right, right)


def plain(model, examples):
    """One item at a time, all logits, as render_example and score_rows explain -> sums (n, 4), means (n, 4)."""
    scores = []
    with torch.no_grad():
        for example in examples:
            _, tokens, mask, _ = render_example(example)
            scores.append(torch.stack(score_rows(tokens, mask, model(tokens)[0])))
    return torch.stack(scores, dim=1)


def assert_same_predictions(model, examples, batch_tokens):
    """Equal wherever the two best scores differ by more than 1e-4 relative; how many do not is small and counted."""
    items = [tokenize_example(e) for e in examples]
    sums, means, mine = score(model, items, a_process(), batch_tokens)
    assert mine.all()
    for ours, theirs in zip((sums, means), plain(model, examples), strict=True):
        best, second = theirs.sort(dim=1).values[:, :2].T
        near = (second - best) / best <= 1e-4
        assert (ours.argmin(1) == theirs.argmin(1))[~near].all() and near.sum() <= len(items) // 20
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def models():
    """A model with random weights, and the same after some steps on the lines of a play."""
    torch.manual_seed(0)
    fresh, trained = (GPT(GPTConfig(block_size=256, n_layer=2, n_head=2, n_embd=32)) for _ in range(2))
    with open(os.path.join(ROOT, "input.txt"), encoding="utf-8") as f:
        tokens = torch.tensor(gpt2_tokenizer().encode(f.read(50_000)))
    optimizer = trained.configure_optimizers(0.1, 1e-2)
    for i in range(30):
        idx = tokens[i * 256 : (i + 1) * 256 + 1].view(1, -1)
        optimizer.zero_grad()
        trained(idx[:, :-1], idx[:, 1:])[1].backward()
        optimizer.step()
    return {"fresh": fresh.eval(), "trained": trained.eval()}


@pytest.mark.parametrize("which", ["fresh", "trained"])
@pytest.mark.parametrize("batch_tokens", [1, 500, 100_000])
def test_batches_predict_what_one_item_at_a_time_predicts(which, batch_tokens, models):
    """In float32, for any batch size: batching changes the time, not the answers."""
    assert_same_predictions(models[which], items_of(20), batch_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["fresh", "trained"])
def test_the_same_on_300_real_items(which, models):
    path = os.path.join(ROOT, "..", "shared", "data", "hellaswag_val_300.jsonl")
    if not os.path.exists(path):
        pytest.skip("the real items are not here; the test before this one uses made-up ones")
    examples = list(hellaswag.read_examples(path))
    assert len(examples) == 300
    assert_same_predictions(models[which], examples, 4096)


@pytest.mark.parametrize("n", [2, 3, 20])
def test_every_process_counts_its_part(n, models):
    """
    Together they find what one finds alone. All make the same number of forwards, even with more processes than
    batches, because a sharded model computes them together.
    """
    items = [tokenize_example(e) for e in items_of(40)]
    num_batches = len(make_batches(items, 1000, block_size=256))
    assert 3 < num_batches < 20
    parts, forwards = [], []
    for rank in range(n):
        calls = []
        parts.append(evaluate(models["trained"], items, a_process(None, rank, n), lambda calls=calls: calls.append(1),
                              batch_tokens=1000))
        forwards.append(len(calls))
    assert tuple(map(sum, zip(*parts, strict=True))) == evaluate(models["trained"], items, a_process())
    assert set(forwards) == {math.ceil(num_batches / n)}


def test_the_model_is_as_before(models):
    """Evaluated in eval mode, without gradients; left in the mode it was in."""
    model = GPT(GPTConfig(block_size=64, n_layer=1, n_head=1, n_embd=8, dropout=0.5)).train()
    items = [tokenize_example(ITEM)]
    assert evaluate(model, items, a_process()) == evaluate(model, items, a_process()) and model.training
    assert evaluate(model.eval(), items, a_process()) and not model.training


def test_a_row_holds_the_context_once():
    """The example in hellaswag.py: context A B C, endings d e f and g h, and who may attend to whom."""
    A, B, C, d, e, f, g, h = range(8)
    row = hellaswag.pack(0, hellaswag.Item([A, B, C], [[d, e, f], [g, h]], 0), block_size=64)
    assert row.ids == [A, B, C, d, e, g] and row.position_ids == [0, 1, 2, 3, 4, 3]
    assert row.part == [hellaswag.CONTEXT] * 3 + [0, 0, 1]
    assert list(zip((row.ids[i] for i in row.predicted_by), row.targets, strict=True)) == [
        (C, d), (d, e), (e, f), (C, g), (g, h)]
    one_hot = torch.eye(6)[None, None]  # values that name their token
    seen = hellaswag.attend_to_own_text(torch.tensor([row.part]))(None, one_hot * 0, one_hot, one_hot)[0, 0] > 0
    assert [[row.ids[j] for j in range(6) if seen[i, j]] for i in range(6)] == [
        [A], [A, B], [A, B, C], [A, B, C, d], [A, B, C, d, e], [A, B, C, g]]


def test_no_batch_has_more_tokens_than_its_budget():
    """Filling included: memory does not depend on the longest item. Only what is longer alone stands alone."""
    items = [tokenize_example(e) for e in items_of(100)]
    batches = make_batches(items, 300, block_size=64)
    lengths = [[len(row.ids) for row in batch] for batch in batches]
    assert all(len(batch) * batch[0] <= 300 and batch[0] == max(batch) for batch in lengths) and len(lengths) < 70
    assert sorted(row.number for batch in batches for row in batch) == list(range(100))
    assert all(max(row.position_ids) < 64 for batch in batches for row in batch), "no token stands beyond the context"
    assert {len(batch) for batch in make_batches(items, 1, 64)} == {1}


def test_endings_longer_than_the_context(capsys):
    """No run ends over them: their last tokens are scored, and it is said how many items that concerns."""
    model = random_model(GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=1, n_embd=8))
    long = hellaswag.Item([1, 2, 3], [list(range(20)), [5], list(range(8)), list(range(9))], 1)
    sums, means, _ = hellaswag.score(model, [long, long._replace(endings=[[4]] * 4)], a_process(), 512)
    assert sums.isfinite().all() and torch.allclose(sums / torch.tensor([[8, 1, 8, 8], [1, 1, 1, 1]]), means)
    assert "1 of 2 items have endings of more than 8 tokens" in capsys.readouterr().out


def test_the_published_figures_are_compared_with_the_whole_split_only():
    """A part of the items, or a text at hand, is another benchmark, and the report says so."""
    assert "this model is -2.0 standard errors" in hellaswag.report("m", 0.28, 0.2955 - 2 * 0.00455, 10042, True)
    assert "standard errors from" not in hellaswag.report("m", 0.28, 0.29, 10042, False)
    assert "not these" in hellaswag.report("m", 0.28, 0.29, 300, True)


@pytest.mark.parametrize("acc", [0.0, 1.0])
def test_a_model_that_is_always_right_or_wrong_has_no_standard_error(acc):
    """The published figures stand there, without a distance in units of nothing."""
    said = hellaswag.report("m", acc, acc, hellaswag_file.NUM_ITEMS, True)
    assert "+- 0.0000" in said and "published, gpt2: acc" in said and "standard errors from" not in said


def test_as_many_items_of_your_own_are_not_the_published_ones(tmp_path, monkeypatch, trained, capsys):
    """The checksum says which items they are, not their number."""
    monkeypatch.setattr(hellaswag, "NUM_ITEMS", 2)  # of the published split
    content = 2 * (json.dumps(ITEM) + "\n").encode()
    (tmp_path / "mine.jsonl").write_bytes(content)
    for sha, said in ("0", "not these"), (hashlib.sha256(content).hexdigest(), "published, gpt2"):
        monkeypatch.setattr(hellaswag_file, "SHA256", sha)
        hellaswag.run(train_gpt2, [*trained, f"--data={tmp_path / 'mine.jsonl'}"])
        out = capsys.readouterr().out
        assert said in out and ("not these" in out) == (sha == "0")


@pytest.mark.parametrize("flags, said", [
    (["--data=nowhere"], "no such file"), (["--limit=0"], "at least 1"), (["--batch_tokens=0"], "at least 1"),
    (["--model=gone.pt"], "gone.pt"), (["--device=abacus"], "abacus"), (["--wrong"], "--wrong")])
def test_wrong_flags(flags, said, trained):
    assert said in refusal(hellaswag.run, train_gpt2, [*trained, *flags])


def test_the_model_is_read_before_anything_is_downloaded(monkeypatch):
    """A wrong name is one line at once, without a network."""
    monkeypatch.setattr(hellaswag, "download_examples", None)
    assert "there is no model nosuch" in refusal(hellaswag.run, train_gpt2, ["--model=nosuch", "--device=cpu"])


def test_a_model_must_be_named():
    assert refusal(hellaswag.run, train_gpt2, []) == "--model is missing: try --model=gpt2"


def test_the_program_prints_the_shares_of_the_plain_evaluation(trained, tmp_path, capsys):
    """acc, acc_norm and its standard error, for all items of a file or for the first 20."""
    _, _, saved = train_gpt2.load_model(trained[0].removeprefix("--model="))
    model = GPT(GPTConfig(**saved["config"])).eval()
    model.load_state_dict(saved["model"])
    examples = items_of(30)
    labels = torch.tensor([example["label"] for example in examples])
    for n, flags in ((30, []), (20, ["--limit=20", "--batch_tokens=300"])):
        hellaswag.run(train_gpt2, [*trained, *flags])
        said = re.search(r"acc ([\d.]+), acc_norm ([\d.]+) \+- ([\d.]+) \(standard error\), n (\d+)",
                         capsys.readouterr().out)
        right = [losses.argmin(1) == labels[:n] for losses in plain(model, examples[:n])]
        acc, acc_norm = (rows.float().mean().item() for rows in right)
        error = math.sqrt(acc_norm * (1 - acc_norm) / n)
        assert said.groups() == (f"{acc:.4f}", f"{acc_norm:.4f}", f"{error:.4f}", str(n))


def test_only_gpt2s_tokenizer(tmp_path, train, trained, capsys):
    """Losses per token of other tokens are not comparable: refused here, said and left out in training."""
    train("char", "--max_steps=2", "--save_every=2")
    assert "another tokenizer" in refusal(
        hellaswag.run, train_gpt2, [f"--model={tmp_path / 'char' / 'model_00002.pt'}", *trained[1:]])
    assert "hella" not in train("char2", "--max_steps=1", "--hellaswag")
    assert "no HellaSwag" in capsys.readouterr().out


# --- memory ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("ctx, device, dtype", [
    (200, "cuda", torch.float32), pytest.param(600, "cuda", torch.bfloat16, marks=pytest.mark.slow),
    pytest.param(1000, "cuda", torch.float32, marks=pytest.mark.slow), (600, "cpu", torch.float32)])
def test_the_eval_never_holds_more_than_a_gigabyte(ctx, device, dtype):
    """
    2,000 items of the longest length, GPT-2's width and vocabulary, one block: less than 1 GB above the weights. (All
    logits of a batch of 65,536 tokens at once, as it was, are 19 GB. Four endings of 1,023 tokens each would take 1.1.)
    """
    model = GPT(GPTConfig(n_layer=1)).eval()
    items = [hellaswag.Item([7] * ctx, [[8] * (1024 - ctx)] * 4, 0)] * 2000
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)
    batch_tokens = hellaswag.BATCH_TOKENS[device]
    batches = len(hellaswag.make_batches(items, batch_tokens, 1024))
    with LiveStorages() as live:
        process = a_process(autocast, num_processes=batches)  # the first of so many: it does the first batch
        sums, _, mine = hellaswag.score(model, items, process, batch_tokens)
    assert mine[0] and sums[mine].isfinite().all() and 0.05e9 < live.peak < 1e9, live.peak
