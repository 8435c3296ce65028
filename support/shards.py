"""
A directory of token shards: edufineweb_train_000001.npy and so on, flat arrays of uint16 or uint32
ids, and meta.json beside them, which says what they were made from, with which tokenizer, and how
far they are. Come here when a directory is refused, or when another program is to read it.
"""
import glob
import json
import os
import re
from dataclasses import dataclass

import numpy as np

from support.console import UserError
from support.files import atomic_write
from support.tokenizer import gpt2_tokenizer, load_tokenizer

COUNTS = ("documents", "tokens", "bytes", "mended", "skipped")


def read_header(path):
    """
    A shard -> its memory map, of which nothing is read yet. Raises ValueError, OSError or EOFError
    where it is none; a pipe or a device, which would keep us waiting for ever, is not even opened.
    """
    if not os.path.isfile(path):
        raise ValueError("no regular file")
    tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32) or tokens.size == 0:
        raise ValueError(f"it holds {tokens.dtype} of shape {tokens.shape}, not a row of uint16 "
                         "or uint32")
    return tokens


@dataclass
class TokenFile:
    """
    The tokens of a shard, which stay on the disk: a slice is read when it is asked for. (A memory
    map would be shorter, but where its file is cut off while we train, or a network disk has lost
    it, touching it is a bus error, which kills the process without a word.)
    """
    filename: str
    dtype: np.dtype
    size: int  # tokens
    offset: int  # bytes of the header before them

    def __len__(self):
        return self.size

    def __getitem__(self, part):
        """tokens[start:stop] -> array. Fewer tokens than that, or none, are a UserError."""
        start, stop, _ = part.indices(self.size)
        where = self.offset + start * self.dtype.itemsize
        try:
            tokens = np.fromfile(self.filename, self.dtype, count=stop - start, offset=where)
        except OSError as e:
            raise UserError(f"{self.filename} cannot be read at offset {start} ({e.strerror or e})", who="me")
        if len(tokens) < stop - start:
            raise UserError(f"{self.filename} ends at offset {start + len(tokens)}: it had {self.size} "
                            "tokens when this run began. Has it been written anew?", who="me")
        return tokens

    def __array__(self, dtype=None, copy=None):
        """np.asarray(tokens): all of them."""
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)


def open_shard(path):
    """A shard -> its tokens, of which none is read yet. Or one line, if it is no shard."""
    try:
        tokens = read_header(path)
    except Exception as e:  # numpy has many for the many ways in which a file can be damaged
        raise UserError(f"{path} is not a token shard ({str(e)[:99]!r}): delete it, run python "
                        "fineweb.py again", who="node")
    return TokenFile(path, tokens.dtype, len(tokens), tokens.offset)


def list_shards(root, split):
    """The paths of a split's shards in a directory, in the order of the stream."""
    paths = sorted(glob.glob(os.path.join(glob.escape(root), f"*_{split}_*.npy")))
    if not paths:
        raise UserError(f"no {split} shards in {root}: run python fineweb.py, or try "
                        "--preset=laptop", who="node")
    return paths


def shard_problem(path, tokens, dtype):
    """What is wrong with a shard as far as its header tells -> text, or None."""
    if not os.path.isfile(path):
        return f"{path} is missing"
    try:
        shard = read_header(path)
    except (OSError, ValueError, EOFError) as e:
        return f"{path} is not a token shard ({e})"
    if shard.shape != (tokens,) or shard.dtype != dtype:
        return (f"{path} holds {shard.dtype} of shape {shard.shape}, not {tokens:,} tokens of "
                f"{dtype}")


def count(tokens, token):
    """
    How often it stands there. A piece at a time: the comparison of a whole shard would take 100 MB.
    """
    return sum(int((tokens[i : i + 2**20] == token).sum()) for i in range(0, len(tokens), 2**20))


# --- meta.json ------------------------------------------------------------------------------------

def meta_name(k, n):
    """The name of the meta.json of part k of n."""
    return "meta.json" if n == 1 else f"meta-{k}-of-{n}.json"


def list_metas(root):
    """The paths of a directory's meta.json files: one, or one for each part."""
    return sorted(glob.glob(os.path.join(glob.escape(root), "meta*.json")))


def write_meta(out, meta, tokenizer):
    """
    meta.json, by rename. A tokenizer in Hugging Face's format goes into tokenizer.json, as usual.
    """
    k, n = meta["part"]
    path = os.path.join(out, "tokenizer.json")
    if tokenizer.spec["name"] == "bpe" and not os.path.exists(path):
        with atomic_write(path, "w", encoding="utf-8", newline="") as f:
            f.write(tokenizer.spec["json"])
    with atomic_write(os.path.join(out, meta_name(k, n)), "w", encoding="utf-8") as f:
        json.dump(meta, f, indent=1)


def is_shard_entry(entry):
    """
    Does it look like what meta.json says of a shard? Its name is a plain name: nobody else chooses
    what we open.
    """
    return (re.fullmatch(r"\w+_(train|val)_\d{6}\.npy", entry["name"]) is not None
            and type(entry["tokens"]) is int and type(entry["documents"]) is int
            and type(entry["sha256"]) is str)


def is_meta(meta):
    """The same of a whole meta.json. Raises what a missing or odd entry raises."""
    k, n = meta["part"]
    return (type(meta["done"]) is bool and isinstance(meta["settings"], dict)
            and all(type(meta[key]) is int for key in (*COUNTS, "n_vocab", "eot", "max_shards"))
            and meta["dtype"] in ("uint16", "uint32")
            and meta["tokenizer"]["name"] in ("gpt2", "char", "bpe")
            and all(is_shard_entry(entry) for entry in meta["shards"])
            and all(type(meta["position"][key]) is int for key in ("piece", "row", "tokens"))
            and 1 <= int(k) <= int(n))


def read_meta(path):
    """A meta.json -> dict, its types and names checked."""
    meta = None
    try:
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as f:
                meta = json.load(f)
        ok = is_meta(meta)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ok = False
    if not ok:
        raise UserError(f"{path} is damaged: delete it and its shards, and run python fineweb.py "
                        "again", who="node")
    return meta


def meta_tokenizer(out, meta):
    """The tokenizer that meta.json names."""
    spec = dict(meta["tokenizer"])
    if spec["name"] == "bpe":
        try:
            with open(os.path.join(out, "tokenizer.json"), encoding="utf-8", newline="") as f:
                spec["json"] = f.read()
        except (OSError, ValueError) as e:
            raise UserError(f"{out}/tokenizer.json, which meta.json speaks of, cannot be read "
                            f"({e})", who="node")
    if spec["name"] == "char" and type(spec.get("chars")) is not str:
        raise UserError(f"{out}/meta.json names a char tokenizer without characters", who="node")
    tokenizer = load_tokenizer(spec)
    if (tokenizer.n_vocab, tokenizer.eot) != (meta["n_vocab"], meta["eot"]):
        raise UserError(f"{out}: the tokenizer has {tokenizer.n_vocab} tokens, meta.json speaks "
                        f"of {meta['n_vocab']}: "
                        "they do not belong together", who="node")
    return tokenizer


def load_meta(root):
    """
    The tokenizer of a directory of shards: GPT-2's where there is no meta.json, as in those of the
    original's fineweb.py. Shards that meta.json speaks of must be there, in the size that it says;
    their bytes are for --check.
    """
    paths = list_metas(root)
    metas = [read_meta(path) for path in paths]
    for meta, path in zip(metas, paths, strict=True):
        if meta["tokenizer"] != metas[0]["tokenizer"] or meta["n_vocab"] != metas[0]["n_vocab"]:
            raise UserError(f"{path} and {paths[0]} have different tokenizers: they do not belong "
                            "together", who="node")
        for shard in meta["shards"]:
            shard_path = os.path.join(root, shard["name"])
            if problem := shard_problem(shard_path, shard["tokens"], meta["dtype"]):
                raise UserError(f"{problem}: python fineweb.py --check={root} says what else is "
                                "wrong", who="node")
    return meta_tokenizer(root, metas[0]) if metas else gpt2_tokenizer()
