"""
Writing a directory of shards: their names, meta.json, locks, what an earlier run has finished, and
--check. Come here when fineweb.py refuses an --out. shards.py reads such a directory.
"""
import contextlib
import glob
import hashlib
import json
import os
import re

import numpy as np
from tqdm import tqdm

from support.console import UserError
from support.files import atomic_write, lock_directory, remove_half_written
from support.shards import list_metas, meta_tokenizer, read_meta, shard_problem


# --- one shard ------------------------------------------------------------------------------------

def write_shard(path, tokens):
    """Write tokens as an .npy file -> its sha256. Raises OSError."""
    with atomic_write(path) as f:
        np.save(f, tokens)
    return file_sha256(path)


def file_sha256(path):
    """The sha256 of a file's bytes, in hexadecimal"""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def shard_numbers(k, n):
    """The numbers for shards of part k of n -> range. A name has six digits for them."""
    room = 10**6 // n
    return range((k - 1) * room, k * room)


def shard_name(k, n, i):
    """The name of shard i (from 0) of part k of n. The very first shard is for validation."""
    numbers = shard_numbers(k, n)
    if i >= len(numbers):
        raise UserError(f"part {k} of {n} has room for {i} shards only: make them larger with "
                        "--shard_size")
    split = "val" if numbers[i] == 0 else "train"
    return f"edufineweb_{split}_{numbers[i]:06d}.npy"


# --- meta.json ------------------------------------------------------------------------------------

def meta_name(k, n):
    return "meta.json" if n == 1 else f"meta-{k}-of-{n}.json"


def new_meta(settings, k, n, tokenizer):
    """The meta.json of part k of n before its first shard -> dict. settings: see describe_work"""
    spec = tokenizer.spec
    if spec["name"] == "bpe":
        spec = {"name": "bpe"}  # its text goes into tokenizer.json
    return {"settings": settings, "part": [k, n], "tokenizer": spec, "n_vocab": tokenizer.n_vocab,
            "eot": tokenizer.eot, "dtype": "uint16" if tokenizer.n_vocab <= 2**16 else "uint32",
            "done": False, "documents": 0, "tokens": 0, "bytes": 0, "mended": 0, "skipped": 0,
            "position": {"piece": 0, "row": 0, "tokens": 0}, "shards": []}


def write_meta(out, meta, tokenizer):
    """Write meta.json, and before the first shard tokenizer.json, if the tokenizer has one."""
    if tokenizer.spec["name"] == "bpe" and not meta["shards"]:
        path, text = os.path.join(out, "tokenizer.json"), tokenizer.spec["json"].encode()
        if os.path.exists(path) and file_sha256(path) != hashlib.sha256(text).hexdigest():
            raise UserError(f"{path} is not the tokenizer of these shards: choose another --out")
        with atomic_write(path) as f:
            f.write(text)
    with atomic_write(os.path.join(out, meta_name(*meta["part"])), "w", encoding="utf-8") as f:
        json.dump(meta, f, indent=1)


def is_complete(meta, max_shards):
    """Does the directory hold the whole corpus, or as many shards as --max_shards allows?"""
    return meta["done"] or 0 < max_shards <= len(meta["shards"])


def summary(meta):
    """One line about a directory: documents, tokens, shards, what was mended and skipped."""
    line = (f"{meta['documents']:,} documents, {meta['tokens']:,} tokens in "
            f"{len(meta['shards'])} shards")
    # meta["bytes"] ends before the batch that the last shard has cut
    tokens = meta["tokens"] - meta["position"]["tokens"]
    if tokens:
        line += f", {meta['bytes'] / tokens:.2f} bytes a token"
    if meta["mended"]:
        line += f"; {meta['mended']:,} documents had invalid Unicode, now U+FFFD"
    if meta["skipped"]:
        line += f"; {meta['skipped']:,} rows without a text skipped"
    if not meta["done"]:
        line += "; a larger --max_shards adds more"
    return line


# --- what an earlier run has finished -------------------------------------------------------------

@contextlib.contextmanager
def lock_part(out, k, n):
    """
    Make a directory, and be the only process in it that makes part k. Several parts can be made in
    it at the same time.
    """
    try:
        os.makedirs(out, exist_ok=True)
        lock = lock_directory(out, "wait for it, or choose another --out", f".lock-{k}")
    except OSError as e:
        raise UserError(f"cannot write to {out} ({e.strerror}): choose another --out")
    try:
        remove_half_written(out, lambda name: is_written_by(name, k, n))
        yield
    finally:
        lock.release()


def is_written_by(name, k, n):
    """Does part k of n write a file of this name?"""
    if shard := re.fullmatch(r"edufineweb_(?:val|train)_(\d{6})\.npy", name):
        return int(shard[1]) in shard_numbers(k, n)
    return name in (meta_name(k, n), "tokenizer.json")


def describe_work(config, files):
    """
    Everything that determines the bytes of the shards -> dict of str and int. Files (None for a
    dataset) are described by names and contents, not by their times: a copy is as good.
    """
    source, contents = f"{config.dataset} {config.name}", ""
    if files is not None:
        sizes = [os.path.getsize(path) for path in files]
        names = "".join(f"{os.path.basename(path)} {size}\n"
                        for path, size in zip(files, sizes, strict=True))
        digest = hashlib.sha256(os.fsencode(names)).hexdigest()[:16]
        source = f"{len(files)} files, {sum(sizes)} bytes, {digest}"
        contents = hash_contents(files)
    tokenizer = config.tokenizer
    if os.path.isfile(tokenizer):
        tokenizer = f"{os.path.basename(tokenizer)} {file_sha256(tokenizer)[:16]}"
    return {"source": source, "contents": contents, "text_key": config.text_key,
            "tokenizer": tokenizer, "shard_size": config.shard_size,
            "val_tokens": config.val_tokens}


def hash_contents(files):
    """Hash every byte of the files: an edit may keep the size. Tokenizing takes far longer."""
    found = hashlib.sha256()
    for path in tqdm(files, desc="comparing", unit="file", leave=False, disable=None):
        found.update(file_sha256(path).encode())
    return found.hexdigest()[:16]


def different_setting(meta, settings, n):
    """The first setting in which a meta.json differs from this run -> text, or None"""
    theirs = {**meta["settings"], "parts": meta["part"][1]}
    for key, value in {**settings, "parts": n}.items():
        if theirs.get(key, value) != value:
            if key == "contents":
                return "these files, but they have been edited since"
            return f"another {key} ({theirs[key]}, not {value})"
    return None


def find_meta(out, settings, k, n):
    """
    The meta.json of an earlier run of part k of n -> dict, or None. UserError if the directory has
    shards made with other settings, or if shards are missing: a directory with a mixture of shards
    would be worse than none.
    """
    metas = [read_meta(path) for path in list_metas(out)]
    if not metas and glob.glob(os.path.join(glob.escape(out), "*_*_*.npy")):
        raise UserError(f"{out} holds shards of another program, without a meta.json: choose "
                        "another --out")
    mine = None
    for meta in metas:
        difference = different_setting(meta, settings, n)
        if difference and (meta["shards"] or meta["part"] != [k, n]):
            raise UserError(f"{out} was made with {difference}: choose another --out")
        if not difference and meta["part"] == [k, n]:
            mine = meta
    for shard in mine["shards"] if mine else []:
        path = os.path.join(out, shard["name"])
        if problem := shard_problem(path, shard["tokens"], mine["dtype"]):
            raise UserError(f"{problem}: copy it again, or choose another --out")
    return mine


# --- --check --------------------------------------------------------------------------------------

def check_directory(root):
    """Compare every byte of the shards in a directory with meta.json -> list of problems (text)"""
    metas = [read_meta(path) for path in list_metas(root)]
    if not metas:
        raise UserError(f"{root} has no meta.json: fineweb.py has made no shards there")
    problems = check_parts(metas)
    meta_tokenizer(root, metas[0])  # UserError if it cannot be loaded
    listed = [(meta, shard) for meta in metas for shard in meta["shards"]]
    names = {shard["name"] for _, shard in listed}
    for path in sorted(glob.glob(os.path.join(glob.escape(root), "*_*_*.npy"))):
        if os.path.basename(path) not in names:
            problems.append(f"{os.path.basename(path)} is listed in no meta.json")
    for meta, shard in tqdm(listed, desc="checking", unit="shard", disable=None):
        path = os.path.join(root, shard["name"])
        problem = shard_problem(path, shard["tokens"], meta["dtype"])
        if problem is None and file_sha256(path) != shard["sha256"]:
            problem = f"{path} has changed since it was made: its sha256 is different"
        if problem:
            problems.append(problem)
    return problems


def check_parts(metas):
    """Are all parts there and finished, and do they belong together? -> list of problems"""
    problems = []
    first = metas[0]
    n = first["part"][1]
    for meta in metas:
        keys = ("settings", "tokenizer", "n_vocab", "eot", "dtype")
        if meta["part"][1] != n or any(meta[key] != first[key] for key in keys):
            problems.append(f"{meta_name(*meta['part'])} and {meta_name(*first['part'])} have "
                            "different settings")
        if not is_complete(meta, meta["max_shards"]):
            problems.append(f"part {meta['part'][0]} of {n} is not finished: run the "
                            "command that began it again")
    missing = set(range(1, n + 1)) - {meta["part"][0] for meta in metas}
    return problems + [f"part {k} of {n} is missing" for k in sorted(missing)]
