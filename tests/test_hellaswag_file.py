"""Facts about obtaining HellaSwag's items: all of them, as published, or none."""
import gzip
import hashlib
import io
import json
import sys

import pytest
from small_runs import refusal

from support import hellaswag_file
from support.hellaswag_file import find_examples, read_examples

ITEM = {"ctx": "A dog runs", "label": 2,
        "endings": ["after the ball.", "up.", "to the old house on the hill.", "away now."]}
LINE = (json.dumps(ITEM) + "\n").encode()


@pytest.fixture
def published(monkeypatch):
    """published(data) makes these bytes the published file."""
    return lambda data: monkeypatch.setattr(hellaswag_file, "SHA256", hashlib.sha256(data).hexdigest())


@pytest.fixture
def internet(monkeypatch):
    """internet(data) is what the authors' address sends from now on, and nothing at all before."""
    reply = {}

    def urlopen(url, timeout=30):
        if not reply:
            raise OSError("no route to host")
        return io.BytesIO(reply["data"])
    monkeypatch.setattr(hellaswag_file.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(hellaswag_file, "reach_dataset", urlopen)
    return lambda data: reply.update(data=data)


def test_a_file_that_is_not_the_published_one_is_never_used(tmp_path, published):
    """A partial download is not used silently: the checksum decides."""
    (tmp_path / "hellaswag_val.jsonl").write_bytes(LINE)
    assert find_examples(download=False, data_dir=str(tmp_path)) == []
    published(LINE)
    assert find_examples(download=False, data_dir=str(tmp_path)) == [ITEM]


def test_a_download_is_kept(tmp_path, published, internet):
    """In a directory that is made for it; the next run downloads nothing."""
    published(LINE)
    internet(LINE)
    assert find_examples(download=True, data_dir=str(tmp_path / "new")) == [ITEM]
    internet(b"another file")
    assert find_examples(download=True, data_dir=str(tmp_path / "new")) == [ITEM]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["hellaswag_val.jsonl"]


@pytest.mark.parametrize("sent", [LINE[:-9], b"<html>Sign in to this network</html>"], ids=["a part", "a web page"])
def test_a_download_is_checked_before_it_is_kept(sent, tmp_path, published, internet, monkeypatch, capsys):
    """The published file, byte for byte, or nothing is left, and one line says what was sent."""
    monkeypatch.setitem(sys.modules, "datasets", None)  # no second source
    published(LINE)
    internet(sent)
    assert find_examples(download=True, data_dir=str(tmp_path / "new")) == []
    assert f"sent another file ({len(sent)} bytes, sha256 " in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.jsonl"))


def test_no_network_is_one_warning(tmp_path, internet, capsys):
    """A run goes on without HellaSwag, and says why; no half a file is left."""
    assert find_examples(download=True, data_dir=str(tmp_path)) == []
    assert capsys.readouterr().out == (
        "warning: no HellaSwag in this run: OSError: no route to host; second source: cannot load Rowan/hellaswag: "
        "OSError: no route to host: try again, or copy hellaswag_val.jsonl into hellaswag/\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [10042, 10041])
def test_the_second_source(n, tmp_path, internet, monkeypatch, capsys):
    """Hugging Face's copy has the labels as texts; the items are the same. With one item less it is not used."""
    datasets = pytest.importorskip("datasets")
    internet(b"not the published file")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: [{**ITEM, "label": "2"}] * n)
    expected = [ITEM] * n if n == 10042 else []
    assert find_examples(download=True, data_dir=str(tmp_path)) == expected
    assert ("Rowan/hellaswag has 10041 items, not 10,042" in capsys.readouterr().out) == (n == 10041)
    assert find_examples(download=False, data_dir=str(tmp_path)) == expected


@pytest.mark.parametrize("name", ["hellaswag_val.jsonl", "hellaswag_val_hub.jsonl"])
def test_a_part_of_the_items_is_never_used(name, tmp_path, internet, capsys):
    """Two items that somebody has left there: the accuracy on them would be another figure."""
    (tmp_path / name).write_bytes(2 * LINE)
    assert find_examples(download=False, data_dir=str(tmp_path)) == []
    assert find_examples(download=True, data_dir=str(tmp_path)) == []
    out = capsys.readouterr().out
    assert f"{name} is not the whole published file" in out and "no HellaSwag in this run" in out


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"ctx": "a"}', *(json.dumps({**ITEM, **wrong}) for wrong in (
    {"label": 4}, {"endings": ["a", "b"]}, {"endings": ["a", "b", "", "d"]}, {"endings": "abcd"}, {"ctx": 3},
    {"ctx": ""}))])
def test_a_malformed_line_is_named(line, tmp_path):
    (tmp_path / "items.jsonl").write_text(json.dumps(ITEM) + "\n" + line + "\n")
    assert "items.jsonl, line 2: not a HellaSwag item" in refusal(list, read_examples(tmp_path / "items.jsonl"))


def test_a_label_may_be_a_text(tmp_path):
    """Hugging Face's copy has "2" for 2. Its test split has no answers, only empty labels: it is refused."""
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({**ITEM, "label": "2"}) + "\n")
    assert list(read_examples(path)) == [ITEM]
    path.write_text(json.dumps({**ITEM, "label": ""}) + "\n")
    assert "not a HellaSwag item" in refusal(list, read_examples(path))


def test_blank_lines_and_a_mark_at_the_beginning(tmp_path):
    """Editors add both."""
    (tmp_path / "items.jsonl").write_bytes(b"\xef\xbb\xbf" + 2 * (json.dumps(ITEM) + "\r\n\n").encode())
    assert list(read_examples(tmp_path / "items.jsonl")) == [ITEM, ITEM]


@pytest.mark.parametrize("data", ['{"ctx": "café"}'.encode("latin-1"), gzip.compress(b"{}"),
                                  '{"ctx": "a"}'.encode("utf-16")], ids=["Latin-1", "gzip", "UTF-16"])
def test_a_file_of_something_else(data, tmp_path):
    (tmp_path / "items.jsonl").write_bytes(data)
    line = refusal(list, read_examples(str(tmp_path / "items.jsonl")))
    assert "line 1: not a HellaSwag item: one is JSON in UTF-8" in line
