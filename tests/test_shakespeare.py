"""Facts about support/shakespeare.py: input.txt as items."""
from collections import Counter

import pytest
from small_runs import refusal

from support.shakespeare import PLAYS, demo_entries, read_speeches


def test_nine_plays():
    """Each play has hundreds of speeches, and begins where it begins."""
    speeches = read_speeches()
    counts = Counter(play for play, _ in speeches)
    assert list(counts) == list(PLAYS) and len(speeches) > 6500 and min(counts.values()) > 150
    assert any(play == "Richard III" and "my kingdom for a horse" in speech for play, speech in speeches)
    assert any(play == "Romeo and Juliet" and "wherefore art thou Romeo" in speech for play, speech in speeches)
    assert not any(speech.startswith(("ROMEO:", "First Citizen:")) for _, speech in speeches)


def test_items_of_three_tasks(tmp_path):
    """Speech and play; a speech and the one after it; and the right one of four."""
    assert {entry["label"] for entry in demo_entries("classify")} == set(PLAYS)
    pairs = demo_entries("embed")
    assert pairs[0] == {"query": "Before we proceed any further, hear me speak.", "passage": "Speak, speak."}
    choices = demo_entries("choose")
    assert len(choices) == len(pairs) and all(
        choice["endings"][choice["label"]] == pair["passage"] for choice, pair in zip(choices, pairs, strict=True))
    assert Counter(choice["label"] for choice in choices)[0] == pytest.approx(len(choices) / 4, rel=0.1)


def test_another_text_is_refused(tmp_path):
    """A file without the plays, whose labels would be wrong, or a task without a demo: one line."""
    (tmp_path / "other.txt").write_text("A:\nonce\n\nB:\nupon a time\n")
    assert "it lacks Coriolanus: git checkout input.txt" in refusal(read_speeches, str(tmp_path / "other.txt"))
    assert "no items for entail" in refusal(demo_entries, "entail")
