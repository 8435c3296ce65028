"""Facts about the table of docs/finetuning.md: what it is made of, and that nothing is measured twice."""
import json
import os

import pytest
import torch
from small_runs import ROOT

from support.tokenizer import make_tokenizer
from tools import finetune_table
from train_gpt2 import GPT, GPTConfig


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A tiny model of characters, and the files of two tasks -> the words of the command"""
    items = [{"text": f"it is {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(20)]
    pairs = [{"query": f"title {i}", "passage": f"{'title' if i % 2 else 'number'} {i} is here"} for i in range(20)]
    docs = [{"text": f"{pairs[0]['passage']} and\nmore"}]
    for name, lines in (("sst2_val", items), ("wiki_pairs", pairs), ("wiki_docs", docs)):
        finetune_table.write_lines(str(tmp_path / f"{name}.jsonl"), lines)
    shape = dict(block_size=32, vocab_size=128, n_layer=1, n_head=2, n_embd=16)
    tokenizer = make_tokenizer("char", [json.dumps(items + pairs)])
    torch.save({"model": GPT(GPTConfig(**shape)).state_dict(), "config": shape, "tokenizer": tokenizer.spec},
               tmp_path / "model.pt")
    monkeypatch.setattr(finetune_table, "SEEDS", (1, 2))
    return ["run", str(tmp_path / "model.pt"), str(tmp_path), str(tmp_path / "results.jsonl")]


def test_a_result_is_measured_once(workplace, tmp_path, capsys, monkeypatch):
    """Started again, it does nothing; the table has the means, and what needs no model."""
    monkeypatch.setattr(finetune_table, "RUNS", {"classify": ("sst2_val.jsonl", 2, ["--device=cpu"]),
                                                 "embed": ("wiki_pairs.jsonl", 1, ["--device=cpu", "--epochs=1"])})
    finetune_table.main(workplace)
    assert "1 of 20 pairs are left out" in capsys.readouterr().out
    results = finetune_table.read_lines(tmp_path / "results.jsonl")
    assert len(results) == 2 * (2 * 2 + 2)
    assert all("majority" in r for r in results if r["task"] == "classify")
    assert {r["pairs without title"] for r in results if r["task"] == "embed"} < {0, 1, 2, 3}
    finetune_table.main(workplace)
    assert finetune_table.read_lines(tmp_path / "results.jsonl") == results
    capsys.readouterr()
    finetune_table.main(["table", str(tmp_path / "results.jsonl")])
    out = capsys.readouterr().out
    assert "| classify, SST-2: accuracy | pretrained | " in out and "| 2 | 4 |" in out and "| BM25 | " in out


def test_folds_are_one_measurement():
    """The spread is that of the seeds: what differs between folds is how hard their items are."""
    results = [{"task": "classify", "start": "random", "seed": s, "fold": f, "accuracy": 0.5 + 0.1 * f + 0.01 * s}
               for s in (1, 2) for f in (0, 1)]
    lines = finetune_table.rows(results, "accuracy", "classify", "x")
    assert lines == ["| x | random | 0.565 (0.560 to 0.570) | 2 | 4 |"]


def test_the_table_in_docs_is_that_of_the_results():
    """Nothing in it is typed by hand."""
    with open(os.path.join(ROOT, "docs", "finetuning.md"), encoding="utf-8") as f:
        page = f.read()
    results = finetune_table.read_lines(os.path.join(ROOT, "assets", "finetuning.jsonl"))
    assert finetune_table.table(results) in page
