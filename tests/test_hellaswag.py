"""Facts about HellaSwag, on items made up here."""
import gzip
import hashlib
import io
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from small_runs import ROOT, LiveStorages, a_process, items_of, random_model, refusal

import hellaswag
import play
from hellaswag import evaluate, get_most_likely_row, make_batches, render_example, score, score_rows, tokenize_example
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
        self.lm_head, self.expected = torch.nn.Linear(1, 1), expected

    def forward(self, ids, positions, position_ids, attention_mask):
        # how many tokens of the ending are known (the context has three)
        step = position_ids.flatten()[positions] + 1 - 3
        expected = torch.tensor([*self.expected, *[0] * 20])[step]
        return torch.zeros(len(positions), 50257).scatter(1, expected[:, None], 99.0), None


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
    for ours, theirs in zip(score(model, items, a_process(), batch_tokens), plain(model, examples),
                            strict=True):
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
    assert_same_predictions(models[which], items_of(40), batch_tokens)


@pytest.mark.parametrize("which", ["fresh", "trained"])
def test_the_same_on_300_real_items(which, models):
    path = os.path.join(ROOT, "..", "shared", "data", "hellaswag_val_300.jsonl")
    if not os.path.exists(path):
        pytest.skip("the real items are not here; the test before this one uses made-up ones")
    examples = list(hellaswag.read_examples(path))
    assert len(examples) == 300
    assert_same_predictions(models[which], examples, 4096)


def test_every_process_counts_its_part(models):
    """Two or three processes with every second or third item find together what one finds alone."""
    items = [tokenize_example(e) for e in items_of(40)]
    whole = evaluate(models["trained"], items, a_process())
    for n in (2, 3):
        parts = [evaluate(models["trained"], items[rank::n], a_process()) for rank in range(n)]
        assert tuple(map(sum, zip(*parts, strict=True))) == whole


def test_no_batch_has_more_tokens_than_its_budget():
    """Filling included: memory does not depend on the longest item. Only what is longer alone stands alone."""
    items = [tokenize_example(e) for e in items_of(100)]
    batches = make_batches(items, 300, block_size=64)
    lengths = [[len(row.ids) for row in batch] for batch in batches]
    assert all(len(batch) * batch[0] <= 300 and batch[0] == max(batch) for batch in lengths) and len(lengths) < 70
    assert sorted(row.number for batch in batches for row in batch) == list(range(100))
    assert all(max(row.position_ids) < 64 for batch in batches for row in batch), "no token stands beyond the context"
    assert {len(batch) for batch in make_batches(items, 1, 64)} == {1}


def test_a_file_that_is_not_the_published_one_is_never_used(tmp_path, monkeypatch):
    """Partial downloads were used silently once: the checksum decides."""
    content = (json.dumps(ITEM) + "\n").encode()
    (tmp_path / "hellaswag_val.jsonl").write_bytes(content)
    with pytest.raises(OSError, match="not the published file"):
        list(hellaswag.iterate_examples("val", str(tmp_path)))
    assert hellaswag.load_examples(str(tmp_path)) == []
    monkeypatch.setitem(hellaswag.SHA256, "val", hashlib.sha256(content).hexdigest())
    assert hellaswag.load_examples(str(tmp_path)) == [ITEM]


@pytest.mark.parametrize("status, cut, sha, kept", [
    (200, 0, True, True), (200, 9, True, False), (206, 0, True, False), (200, 0, False, False)],
    ids=["whole", "shorter than announced", "a partial answer", "another content"])
def test_a_download_is_checked_before_it_is_kept(status, cut, sha, kept, tmp_path, monkeypatch):
    """Status, length and checksum; then renamed into place, or nothing is left."""
    content = (json.dumps(ITEM) + "\n").encode()
    monkeypatch.setitem(hellaswag.SHA256, "val", hashlib.sha256(content if sha else b"").hexdigest())
    reply = io.BytesIO(content[: len(content) - cut])
    reply.status, reply.url, reply.headers = status, "http://source", {"Content-Length": len(content)}
    monkeypatch.setattr(hellaswag.urllib.request, "urlopen", lambda *args, **kwargs: reply)
    if kept:
        assert hellaswag.download("val", str(tmp_path)) == str(tmp_path / "hellaswag_val.jsonl")
    else:
        with pytest.raises(OSError):
            hellaswag.download("val", str(tmp_path))
    assert len(list(tmp_path.iterdir())) == kept


def test_no_network_is_one_warning(tmp_path, monkeypatch, capsys):
    """What neither source gives is said once, and leaves no partial file."""
    def no_network(*args, **kwargs):
        raise OSError("no route to host")
    monkeypatch.setattr(hellaswag.urllib.request, "urlopen", no_network)
    hellaswag.prepare(str(tmp_path))
    out = capsys.readouterr().out
    assert out == "warning: no HellaSwag in this run: no route to host; second source: OSError\n"
    assert list(tmp_path.iterdir()) == [] == hellaswag.load_examples(str(tmp_path))


@pytest.mark.parametrize("n", [10042, 10041])
def test_the_second_source(n, tmp_path, monkeypatch, capsys):
    """Hugging Face's copy has the labels as texts; the items are the same. One item less, and it is not used."""
    datasets = pytest.importorskip("datasets")

    def reachable(url, timeout):
        if "Rowan" not in url:
            raise OSError("the first source is gone")
        return io.BytesIO()
    monkeypatch.setattr(hellaswag.urllib.request, "urlopen", reachable)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: [{**ITEM, "label": "2"}] * n)
    hellaswag.prepare(str(tmp_path))
    assert hellaswag.load_examples(str(tmp_path)) == ([ITEM] * n if n == 10042 else [])
    assert ("warning" in capsys.readouterr().out) == (n != 10042)


def test_a_part_of_the_items_is_never_used(tmp_path, monkeypatch, capsys):
    """Two items, left by somebody in place of the second source's copy: their accuracy would be another figure."""
    def no_network(*args, **kwargs):
        raise OSError("no route to host")
    monkeypatch.setattr(hellaswag.urllib.request, "urlopen", no_network)
    (tmp_path / "hellaswag_val_hub.jsonl").write_text(2 * (json.dumps(ITEM) + "\n"))
    assert hellaswag.load_examples(str(tmp_path)) == []
    hellaswag.prepare(str(tmp_path))
    out = capsys.readouterr().out
    assert "has not all 10,042 items: it is not used" in out and "no HellaSwag in this run" in out


def test_endings_longer_than_the_context(capsys):
    """No run ends over them: their last tokens are scored, and it is said how many items that concerns."""
    model = random_model(GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=1, n_embd=8))
    long = hellaswag.Item([1, 2, 3], [list(range(20)), [5], list(range(8)), list(range(9))], 1)
    sums, means = hellaswag.score(model, [long, long._replace(endings=[[4]] * 4)], a_process(), 512)
    assert sums.isfinite().all() and torch.allclose(sums / torch.tensor([[8, 1, 8, 8], [1, 1, 1, 1]]), means)
    assert "1 of 2 items have endings of more than 8 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"ctx": "a"}', *(json.dumps({**ITEM, **wrong}) for wrong in (
    {"label": 4}, {"endings": ["a", "b"]}, {"endings": ["a", "b", "", "d"]}, {"ctx": 3}, {"ctx": ""},
    {"ctx": "\ud800 a"}, {"endings": ["a", "b", "\udc00", "d"]}))])
def test_a_malformed_line_is_named(line, tmp_path):
    (tmp_path / "items.jsonl").write_text(json.dumps(ITEM) + "\n" + line + "\n")
    assert "items.jsonl, line 2" in refusal(list, hellaswag.read_examples(tmp_path / "items.jsonl"))


def test_the_published_figures_are_compared_with_the_whole_split_only():
    """A part of the items, or a text at hand, is another benchmark, and the report says so."""
    assert "this model is -2.0 standard errors" in play.report("m", 0.28, 0.2955 - 2 * 0.00455, 10042, True)
    assert "standard errors from" not in play.report("m", 0.28, 0.29, 10042, False)
    assert "not these" in play.report("m", 0.28, 0.29, 300, True)


@pytest.mark.parametrize("acc", [0.0, 1.0])
def test_a_model_that_is_always_right_or_wrong_has_no_standard_error(acc):
    """The published figures stand there, without a distance in units of nothing."""
    said = play.report("m", acc, acc, hellaswag.NUM_ITEMS, True)
    assert "+- 0.0000" in said and "published, gpt2: acc" in said and "standard errors from" not in said


def test_as_many_items_of_your_own_are_not_the_published_ones(tmp_path, monkeypatch, trained, capsys):
    """The checksum says which items they are, not their number."""
    monkeypatch.setattr(hellaswag, "NUM_ITEMS", 2)
    content = 2 * (json.dumps(ITEM) + "\n").encode()
    (tmp_path / "mine.jsonl").write_bytes(content)
    for sha, said in ("0", "not these"), (hashlib.sha256(content).hexdigest(), "published, gpt2"):
        monkeypatch.setitem(hellaswag.SHA256, "val", sha)
        play.main(["hellaswag", *trained, f"--data={tmp_path / 'mine.jsonl'}"])
        out = capsys.readouterr().out
        assert said in out and ("not these" in out) == (sha == "0")


@pytest.mark.parametrize("name", ["hellaswag_val.jsonl", "hellaswag_val_hub.jsonl"])
def test_a_pipe_in_place_of_the_items(name, tmp_path, monkeypatch, capsys):
    """Nobody writes to it: we do not wait, and it stays where it is."""
    def no_network(*args, **kwargs):
        raise OSError("no route to host")
    monkeypatch.setattr(hellaswag.urllib.request, "urlopen", no_network)
    os.mkfifo(tmp_path / name)
    code = f"import hellaswag; print(hellaswag.load_examples({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n"
    hellaswag.prepare(str(tmp_path))
    assert "no HellaSwag in this run" in capsys.readouterr().out and (tmp_path / name).is_fifo()


@pytest.mark.parametrize("flags, said", [
    (["--data=nowhere"], "no such file"), (["--limit=0"], "at least 1"), (["--batch_tokens=0"], "at least 1"),
    (["--model=gone.pt"], "gone.pt"), (["--device=abacus"], "abacus"), (["--wrong"], "--wrong")])
def test_wrong_flags(flags, said, trained):
    assert said in refusal(play.main, ["hellaswag", *trained, *flags])


def test_only_gpt2s_tokenizer(tmp_path, train, trained, capsys):
    """Losses per token of other tokens are not comparable: refused here, said and left out in training."""
    train("char", "--max_steps=2", "--save_every=2")
    assert "another tokenizer" in refusal(
        play.main, ["hellaswag", f"--model={tmp_path / 'char' / 'model_00002.pt'}", *trained[1:]])
    assert "hella" not in train("char2", "--max_steps=1", "--hellaswag")
    assert "no HellaSwag" in capsys.readouterr().out


# --- memory ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("ctx, device, dtype", [
    (200, "cuda", torch.float32), (600, "cuda", torch.bfloat16), (1000, "cuda", torch.float32),
    (600, "cpu", torch.float32)])
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
        sums, _ = hellaswag.score(model, items, process, batch_tokens)
    assert not sums[0].isnan().any() and 0.05e9 < live.peak < 1e9, live.peak


@pytest.mark.parametrize("data, said", [
    ('{"ctx": "café"}'.encode("latin-1"), "line 1: not a HellaSwag item: one is JSON in UTF-8"),
    (gzip.compress(b"{}"), "seems to be a gzip file: gunzip it first"),
    ('{"ctx": "a"}'.encode("utf-16"), "is in UTF-16"),
    (b"[" * 100_000, "line 1: not a HellaSwag item"),
    (b'{"ctx": "a", "label": 0, "endings": "abcd"}', "line 1: not a HellaSwag item"),
    (b'{"ctx": "a", "label": 0, "endings": {"a": "1", "b": "2", "c": "3", "d": "4"}}', "line 1: not a HellaSwag item"),
], ids=["Latin-1", "gzip", "UTF-16", "deep", "a string", "a dict"])
def test_a_file_of_something_else(data, said, tmp_path):
    (tmp_path / "items.jsonl").write_bytes(data)
    assert said in refusal(list, hellaswag.read_examples(str(tmp_path / "items.jsonl")))
