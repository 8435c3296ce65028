"""Facts about support/tasks.py: a file of items is read whole, or the line and what is missing in it are named."""
import json
from types import SimpleNamespace

import pytest
from small_runs import refusal

from finetune import TASKS, Embed
from support import tasks
from support.metrics import majority_baseline
from support.tasks import find_labels, load_items, split_items


def write(path, *entries):
    """A file with a line for each entry: a dict, or bytes as they are."""
    lines = [entry if isinstance(entry, bytes) else json.dumps(entry).encode() for entry in entries]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


def read_items(path, task="classify"):
    return tasks.read_training_items(path, TASKS[task])


@pytest.mark.parametrize("task, entry, texts, answer", [
    ("classify", {"text": "a", "label": 1.0}, ["a"], 1),
    ("classify", {"text": "a", "label": "good"}, ["a"], "good"),
    ("entail", {"premise": "a", "hypothesis": "b", "label": 0}, ["a", "b"], 0),
    ("compare", {"a": "a", "b": "b", "score": 4}, ["a", "b"], 4.0),
    ("choose", {"ctx": "a", "endings": ["b", "c", "d"], "label": 2}, ["a", "b", "c", "d"], 2),
    ("choose", {"ctx": "a", "endings": ["b", "c", "d"], "label": "2"}, ["a", "b", "c", "d"], 2),
    ("classify", {"text": "a", "label": "2"}, ["a"], "2"),
    ("embed", {"query": "a", "passage": "b", "url": "kept"}, ["a", "b"], None),
])
def test_an_item_of_each_task(task, entry, texts, answer, tmp_path):
    """The texts in the order in which they are read; what else the entry says is kept; an empty line is none."""
    item = read_items(write(tmp_path / "a.jsonl", b"", entry), task)[0]
    assert (item.line, item.entry, item.texts, item.answer) == (2, entry, texts, answer)
    if task != "embed":
        entry = {name: value for name, value in entry.items() if name not in ("label", "score")}
        items, _ = tasks.read_items(write(tmp_path / "b.jsonl", entry), TASKS[task], with_answers=False)
        assert items[0].texts == texts
        assert "line 1: " in refusal(read_items, write(tmp_path / "b.jsonl", entry), task)


@pytest.mark.parametrize("task, entry, said", [
    ("classify", b"{", "not JSON"), ("classify", b"[1]", "not a JSON object"), ("classify", b"\xff", "not JSON"),
    ("classify", {"label": 1}, '"text" is missing'), ("classify", {"text": 5, "label": 1}, '"text" is not a text'),
    ("classify", {"text": " \n", "label": 1}, '"text" is empty'), ("classify", {"text": "a"}, '"label" is missing'),
    ("classify", {"text": "a", "label": None}, '"label" is neither'),
    ("classify", {"text": "a", "label": True}, '"label" is neither'),
    ("entail", {"premise": "a", "label": 1}, '"hypothesis" is missing'),
    ("compare", {"a": "a", "b": "b", "score": "high"}, '"score" is not a number'),
    ("compare", b'{"a": "a", "b": "b", "score": 1' + b"0" * 400 + b"}", '"score" is not a number'),
    ("compare", {"a": "a", "b": "b", "score": 1e300}, "a very large one"),
    ("classify", b'{"text": "\\ud800", "label": 1}', "half a character"),
    ("compare", b'{"a": "a", "b": "b", "score": NaN}', '"score" is not a number'),
    ("choose", {"ctx": "a", "endings": "bc", "label": 0}, "not a list of two texts"),
    ("choose", {"ctx": "a", "endings": ["b"], "label": 0}, "not a list of two texts"),
    ("choose", {"ctx": "a", "endings": ["b", ""], "label": 0}, '"endings" is empty'),
    ("choose", {"ctx": "a", "endings": ["b", "c"], "label": 2}, "there are 2 endings"),
    ("embed", {"query": "a"}, '"passage" is missing'),
], ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_line_is_named(task, entry, said, tmp_path):
    """The file, the number of the line, what is wrong, and which entries the task has."""
    good = {"text": "a", "premise": "a", "hypothesis": "b", "a": "a", "b": "b", "ctx": "a", "endings": ["b", "c"],
            "query": "a", "passage": "b", "label": 1}
    line = refusal(read_items, write(tmp_path / "a.jsonl", good, entry, good), task)
    assert "a.jsonl, line 2: " in line and said in line and f"The entries of {task}" in line


def test_wrong_files(tmp_path):
    """No file, an empty one, and one with labels in some lines and scores in others."""
    assert "there is no file" in refusal(read_items, str(tmp_path / "gone"), "classify")
    assert "has no items" in refusal(read_items, write(tmp_path / "a.jsonl"), "classify")
    mixed = [{"a": "a", "b": "b", "label": 1}, {"a": "a", "b": "b", "score": 1}]
    assert "line 2: " in refusal(read_items, write(tmp_path / "b.jsonl", *mixed), "compare")
    items, problems = tasks.read_items(write(tmp_path / "b.jsonl", *mixed), TASKS["compare"])
    assert len(items) == len(problems) == 1, "a line with a problem is not among the items"
    mixed = [{"text": "a"}, {"query": "a", "passage": "b"}]
    assert "line 2: " in tasks.read_items(write(tmp_path / "c.jsonl", *mixed), Embed, with_answers=False)[1][0]


def test_a_tenth_is_kept(tmp_path):
    """The same tenth in each run; nothing stands in both parts, nothing is lost."""
    items = read_items(write(tmp_path / "a.jsonl", *[{"text": f"{i}", "label": i % 2} for i in range(50)]), "classify")
    train, val = split_items(items)
    assert (len(train), len(val)) == (45, 5) and split_items(items) == (train, val)
    assert sorted(item.line for item in train + val) == list(range(1, 51))
    assert "1 item(s) are too few" in refusal(split_items, items[:1])


def test_a_rare_label_is_learned_from(tmp_path):
    """It occurs once, and would be in the tenth: then nobody could learn it."""
    labels = [str(i) if i < 5 else "often" for i in range(50)]
    items = read_items(write(tmp_path / "a.jsonl", *[{"text": "a", "label": label} for label in labels]), "classify")
    train, val = split_items(items)
    assert {item.answer for item in train} == set(labels) and {item.answer for item in val} == {"often"}
    assert len(val) < 5 and len(train) + len(val) == 50  # one was among the five


def test_a_search_is_measured_on_some(tmp_path, capsys):
    """Each query meets each passage: with 100,000 pairs that would be 10**10 products."""
    pairs = [{"query": str(i), "passage": str(-i)} for i in range(2005)]
    path = write(tmp_path / "a.jsonl", *pairs)
    _, val, _ = load_items(Embed, SimpleNamespace(demo=False, train=path, val=path, batch=32, epochs=1))
    out = capsys.readouterr().out
    assert len(val) == 2000 and "of 2005 pairs the first 2000" in out
    assert "2000 of 2000 items to measure on are also learned from" in out


def test_labels(tmp_path):
    """Numbers, then texts; one label alone, or one that only val has, is refused."""
    def items(*labels):
        return read_items(write(tmp_path / "a.jsonl", *[{"text": "a", "label": label} for label in labels]), "classify")
    assert find_labels(items("b", 10, 2, "a"), items(2), "t", "v") == [2, 10, "a", "b"]
    assert "v, line 2: label 3 does not occur" in refusal(find_labels, items(1, 2), items(1, 3), "t", "v")
    assert "have the label 1" in refusal(find_labels, items(1, 1), items(1), "t", "v")
    for a, b in ((1, "1"), ("good", "good "), ("very good", "very\u00a0 good"), ("cafe\u0301", "caf\u00e9")):
        said = f"t has the labels {a!r} and {b!r}, which differ only in spaces, in Unicode form, or as a number"
        assert said in refusal(find_labels, items(b, a, "bad"), items("bad"), "t", "v")
    assert majority_baseline([1, 1, 2], [1, 2, 2, 2], [1, 2]) == (
        "baseline: always 1 is right for 25.0% of val; f1 is for the label 2")


def test_a_search_without_a_wrong_answer_is_no_test(tmp_path):
    """One pair, or one passage for all queries: whatever the vectors, the right passage would come first."""
    def pairs(name, *texts):
        return write(tmp_path / name, *[{"query": q, "passage": p} for q, p in texts])
    good = pairs("good.jsonl", ("a", "b"), ("c", "d"))
    for bad in (pairs("1.jsonl", ("e", "f")), pairs("2.jsonl", ("e", "g"), ("f", "g")),
                pairs("3.jsonl", ("e", "f"), ("e", "g"))):
        for train, val, what in ((good, bad, "to measure on"), (bad, good, "to learn from")):
            config = SimpleNamespace(demo=False, train=train, val=val, batch=1, epochs=1)
            line = refusal(load_items, Embed, config)
            assert f"{bad}: the " in line and f"pair(s) {what} have the same query or the same passage" in line
