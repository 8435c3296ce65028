"""Facts about docs/concepts.md: its numbers are computed, by code that agrees with PyTorch and with play.py."""
import json
import os
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from pages import CHINESE, ENGLISH, resolve
from small_runs import ROOT
from torch.nn import functional as F
from torch.optim.adamw import adamw

import play
from support import tokenizer
from tools import concepts

PAGE = ENGLISH["docs/concepts.md"]


@pytest.fixture(scope="module")
def outputs():
    return concepts.outputs()


def test_the_pages_and_pictures_are_what_is_computed_today(outputs):
    """Every number of an example, in both languages. If not: python tools/concepts.py"""
    assert len(outputs) == 2 + len(concepts.PICTURES)
    for path, contents in outputs.items():
        with open(path, encoding="utf-8") as f:
            assert f.read() == contents, path


def test_no_example_is_left_out():
    for page in (PAGE, CHINESE["docs/zh/concepts.md"]):
        assert [mark[2] for mark in concepts.EXAMPLE.finditer(page)] == [*concepts.EXAMPLES]
        assert {name for name in concepts.PICTURES if f"concepts/{name}.svg" in page} == {*concepts.PICTURES}


def test_a_sentence_quotes_its_own_section():
    """A number with a decimal point needs an example that computes it, in the same section."""
    page = "## a\nIt is 1.5.\n<!-- example: x -->\n```text\n1.5\n```\n<!-- end -->\n## b\nIt is {}.\n"
    assert concepts.stray_numbers(page.format("two")) == []
    assert concepts.stray_numbers(page.format("1.5")) == ["1.5"]


def test_fill_replaces_a_wrong_number():
    assert concepts.fill(PAGE.replace("36.881", "36.882")) == PAGE


def test_the_notes_name_code_that_exists():
    """Each section but the last says where in the code it belongs."""
    sections = PAGE.split("\n## ")[1:-1]
    notes = [re.search(r"\n\nnotes: (.*)\n", section)[1] for section in sections]
    for note in notes:
        for names, link in re.findall(r"([^\]]*?) in \[[^]]*\]\(([^)]*)\)", note):
            with open(os.path.join(ROOT, resolve(link, "docs/concepts.md")[0]), encoding="utf-8") as f:
                code = f.read()
            for name in re.findall(r"`([^`]+)`", names):
                assert all(re.search(rf"\b(def|class) {part}\b", code) for part in name.split(".")), name


@pytest.mark.parametrize("name", concepts.PICTURES)
def test_a_picture_is_small_and_well_formed(name, outputs):
    [svg] = [svg for path, svg in outputs.items() if path.endswith(f"{name}.svg")]
    assert len(svg) < 60_000 and ElementTree.fromstring(svg).get("width") == "850"


def test_the_merges_are_those_of_the_library():
    spec = json.loads(tokenizer.train_bpe(["low lower lowest"], 257 + 2))
    pairs = ["".join(pair) for pair, _, _ in concepts.MERGES[:2]]
    assert ["".join(pair) for pair in spec["model"]["merges"]] == pairs
    assert concepts.encode("low") == ["low"]


def test_attention_is_pytorchs():
    theirs = F.scaled_dot_product_attention(*(m[None] for m in (concepts.Q, concepts.K, concepts.V)), is_causal=True)
    assert torch.allclose(concepts.attend(concepts.Q, concepts.K) @ concepts.V, theirs[0])


def test_flash_attention_is_exact():
    """Two blocks with a correction give the softmax of the whole row."""
    *_, in_blocks, at_once = (line.split("y = ")[1] for line in concepts.flash() if "y = " in line)
    assert in_blocks == at_once


def test_adamw_is_pytorchs():
    """Its functional form, since a first torch.optim.AdamW takes seconds: it imports torch.compile."""
    w, m, v, step = (torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.0, 0.0, 0.0))
    gradients = [4.0, 2.0, 3.0, -1.0]
    for g, ours in zip(gradients, concepts.adam(gradients), strict=True):
        adamw([w], [torch.tensor(g, dtype=torch.float64)], [m], [v], [], [step], amsgrad=False, maximize=False,
              lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
        assert (w.item(), m.item(), v.item()) == pytest.approx(ours[:3], rel=1e-9)


@pytest.mark.parametrize("name", concepts.SAMPLERS)
def test_play_draws_with_these_probabilities(name):
    settings = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, **concepts.SAMPLERS[name]}
    rows = concepts.NEXT_LOGITS.expand(20_000, -1)
    drawn = play.sample_token(rows, generator=torch.Generator().manual_seed(1), **settings)
    shares = torch.bincount(drawn.flatten(), minlength=5) / 20_000
    expected = concepts.next_probs(**concepts.SAMPLERS[name])
    assert torch.allclose(shares, expected, rtol=0, atol=0.015)
    assert (shares[expected == 0] == 0).all()
