"""
Download the items of HellaSwag, and check that they are the published ones: an accuracy over some
of the items cannot be compared. Come here when a download fails or a file is refused.
"""
import hashlib
import json
import os
import urllib.request

from support.console import UserError
from support.files import atomic_write
from support.hub import failures_explained, reach_dataset

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
NUM_ITEMS = 10_042  # of the validation split
DATA_DIR = "hellaswag"


def find_examples(download, data_dir=DATA_DIR):
    """
    The validation items (list of dicts), empty unless all of them are on this machine. download:
    if they are missing, fetch them from the authors' repository, or else from Hugging Face; if both
    fail, print a warning.
    """
    path = os.path.join(data_dir, "hellaswag_val.jsonl")
    hub = os.path.join(data_dir, "hellaswag_val_hub.jsonl")  # made from Hugging Face's copy
    if is_published(path):
        return list(read_examples(path))
    items = list(read_examples(hub)) if os.path.isfile(hub) else []
    if len(items) == NUM_ITEMS:
        return items
    if not download:
        return []
    if os.path.exists(path) or items:
        print(f"{path if os.path.exists(path) else hub} is not the whole published file: it is not "
              "used, the items are downloaded again", flush=True)
    reasons = []
    for source, name in ((download_from_authors, path), (download_from_hub, hub)):
        try:
            data = source()
            os.makedirs(data_dir, exist_ok=True)
            with atomic_write(name) as f:
                f.write(data)
            return list(read_examples(name))
        except Exception as e:  # no network, no space, no such package: each library has its own
            reasons.append(str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}")
    print(f"warning: no HellaSwag in this run: {'; second source: '.join(reasons)}", flush=True)
    return []


def download_examples(data_dir=DATA_DIR):
    """Download the validation items unless they are here; print a warning if that fails."""
    find_examples(download=True, data_dir=data_dir)


def iterate_examples(split="val", data_dir=DATA_DIR):
    """Yield the validation items (dicts); nothing if they have not been downloaded."""
    assert split == "val", "only the validation split has published answers"
    yield from find_examples(download=False, data_dir=data_dir)


def download_from_authors():
    """The published file -> bytes. OSError if it cannot be downloaded or has another checksum."""
    with urllib.request.urlopen(URL, timeout=30) as reply:
        data = reply.read()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise OSError(f"{URL} sent another file ({len(data):,} bytes, sha256 {found[:12]}...)")
    return data


def download_from_hub():
    """Hugging Face's copy, Rowan/hellaswag -> the bytes of a .jsonl file. Raises exceptions."""
    with failures_explained("Rowan/hellaswag", f"copy hellaswag_val.jsonl into {DATA_DIR}/"):
        reach_dataset("Rowan/hellaswag")
        from datasets import load_dataset
        rows = load_dataset("Rowan/hellaswag", split="validation")
    if len(rows) != NUM_ITEMS:
        raise OSError(f"Rowan/hellaswag has {len(rows)} items, not {NUM_ITEMS:,}")
    examples = [{name: row[name] for name in ("ctx", "endings", "label")} for row in rows]
    return "".join(json.dumps(example) + "\n" for example in examples).encode()


def is_published(path):
    """Is this file, byte for byte, the published validation split?"""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest() == SHA256


def is_example(example):
    """
    Is this (parsed JSON) a HellaSwag item: a dict with ctx, four endings and a label? Hugging
    Face's copy has the label as a text.
    """
    if not isinstance(example, dict) or not isinstance(example.get("endings"), list):
        return False
    texts = [example.get("ctx"), *example["endings"]]
    are_texts = all(isinstance(text, str) and text for text in texts)
    is_label = example.get("label") in (0, 1, 2, 3, "0", "1", "2", "3")
    return are_texts and len(texts) == 5 and is_label


def read_examples(path):
    """Yield the items of a .jsonl file. UserError for a line that is neither an item nor blank."""
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                example = json.loads(line.decode("utf-8-sig"))  # without a byte order mark
            except ValueError:
                example = None
            if not is_example(example):
                raise UserError(f"{path}, line {number}: not a HellaSwag item: one is JSON in "
                                "UTF-8, with ctx, four endings and a label from 0 to 3")
            yield {**example, "label": int(example["label"])}
