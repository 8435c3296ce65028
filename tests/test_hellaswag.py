"""Facts about HellaSwag, on items made up here."""
import contextlib
import hashlib
import json
import math

import pytest
import torch

import hellaswag
from fineweb import gpt2_tokenizer
from hellaswag import get_most_likely_row, render_example, score_rows

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


def test_a_model_that_knows_the_answer_scores_one():
    """count_correct counts: a model that expects just the right ending is right every time, and another one never."""
    class Knows(torch.nn.Module):
        config = type("config", (), {"block_size": 1024})

        def __init__(self, row):
            super().__init__()
            self.lm_head, self.row = torch.nn.Linear(1, 1), row

        def forward(self, tokens):
            logits = torch.zeros(*tokens.shape, 50257)
            logits[self.row, :-1].scatter_(1, tokens[self.row, 1:, None], 9.0)
            return logits, None
    assert hellaswag.count_correct(Knows(2), [ITEM] * 3, contextlib.nullcontext()) == 3
    assert hellaswag.count_correct(Knows(1), [ITEM] * 3, contextlib.nullcontext()) == 0


def test_a_file_that_is_not_the_published_one_is_never_used(tmp_path, monkeypatch, capsys):
    """Partial downloads were used silently once: the checksum decides. Without the data training goes on, warned."""
    content = (json.dumps(ITEM) + "\n").encode()
    (tmp_path / "hellaswag_val.jsonl").write_bytes(content)
    with pytest.raises(OSError, match="not the published file"):
        list(hellaswag.iterate_examples("val", str(tmp_path)))
    hellaswag.try_download("val", str(tmp_path))
    assert "warning: no HellaSwag" in capsys.readouterr().err and hellaswag.load_examples("val", str(tmp_path)) == []
    monkeypatch.setitem(hellaswag.SHA256, "val", hashlib.sha256(content).hexdigest())
    assert hellaswag.load_examples("val", str(tmp_path)) == [ITEM]


def test_no_network_is_one_warning(tmp_path, monkeypatch, capsys):
    """What cannot be downloaded is said once, and leaves no partial file."""
    def no_network(*args, **kwargs):
        raise OSError("no route to host")
    monkeypatch.setattr(hellaswag.urllib.request, "urlopen", no_network)
    hellaswag.try_download("val", str(tmp_path))
    assert capsys.readouterr().err == "warning: no HellaSwag in this run (no route to host)\n"
    assert list(tmp_path.iterdir()) == [] == hellaswag.load_examples("val", str(tmp_path))
