"""
Reading shards of tokens. A directory of shards holds edufineweb_train_000001.npy and so on, which
are flat arrays of token ids (uint16 or uint32), and meta.json, which records their tokenizer, sizes
and checksums. Come here when train_gpt2.py refuses a --data_root, or to read shards in a program of
your own. shard_directory.py writes them.
"""
import json
import os
import re
import shlex
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from support.console import UserError, print0
from support.files import ASSETS
from support.tokenizer import count_bytes, gpt2_tokenizer, load_tokenizer, tokenize_file

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")  # of the files that fineweb.py reads
META_KEYS = {"settings", "part", "tokenizer", "n_vocab", "eot", "dtype", "done", "max_shards",
             "documents", "tokens", "bytes", "mended", "skipped", "position", "shards"}


# --- one shard ------------------------------------------------------------------------------------

def open_shard(path):
    """
    A shard -> a memory map of its tokens; only the header has been read. ValueError, with a line
    that names the file, if it cannot be read or is not a shard.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as e:  # the file may be fine: its permissions are wrong, a network disk is away
        raise ValueError(f"{path} cannot be read ({e.strerror or e})")
    except Exception as e:  # numpy raises many kinds, depending on what is damaged
        raise ValueError(f"{path} is not a token shard ({str(e)[:99]!r})")
    if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32) or tokens.size == 0:
        raise ValueError(f"{path} is not a token shard: it holds {tokens.dtype} of shape "
                         f"{tokens.shape}, not a row of uint16 or uint32")
    return tokens


@dataclass
class TokenFile:
    """
    The tokens of a shard. They stay on the disk; tokens[start:stop] reads a slice. (A memory map
    would be shorter. But if its file is cut off while we train, or a network disk loses it, the
    next access is a bus error, which kills the process without a message.)
    """
    filename: str
    dtype: np.dtype
    size: int  # in tokens
    offset: int  # size of the header before them, in bytes
    n_vocab: int | None = None  # size of the vocabulary, if known

    def __len__(self):
        return self.size

    def __getitem__(self, part):
        """tokens[start:stop] -> array. UserError if the file is shorter or has unknown ids."""
        start, stop, _ = part.indices(self.size)
        where = self.offset + start * self.dtype.itemsize
        try:
            tokens = np.fromfile(self.filename, self.dtype, count=stop - start, offset=where)
        except OSError as e:
            raise UserError(f"{self.filename} cannot be read at offset {start} "
                            f"({e.strerror or e}): bring it back", who="me")
        if len(tokens) < stop - start:
            raise UserError(f"{self.filename} ends at offset {start + len(tokens)}: it had "
                            f"{self.size} tokens when this run began: bring it back",
                            who="me")
        # on a GPU, an id beyond the vocabulary would fail inside a kernel
        if self.n_vocab is not None and len(tokens) > 0 and tokens.max() >= self.n_vocab:
            raise UserError(f"{self.filename} has token {tokens.max()} at offset "
                            f"{start + tokens.argmax()}: there are only {self.n_vocab}; the file "
                            "is damaged, or was made with another tokenizer", who="me")
        return tokens


def load_tokens(path):
    """The path of a shard -> TokenFile"""
    try:
        tokens = open_shard(path)
    except ValueError as e:
        raise UserError(f"{e}: copy it again, or make the shards again with python fineweb.py",
                        who="node")
    return TokenFile(path, tokens.dtype, len(tokens), tokens.offset)


# --- --data_root ----------------------------------------------------------------------------------

class Data(NamedTuple):
    """What a --data_root holds."""
    tokenizer: object
    train: list  # arrays of token ids; one after the other they are the stream
    val: list

    def val_bytes_per_token(self, n):
        """How many bytes of text the first n targets of the validation stand for, on average"""
        parts, missing = [], n + 1  # tokens 0 to n
        for shard in self.val:
            parts.append(np.asarray(shard[:missing]))
            missing -= len(parts[-1])
        tokens = np.concatenate(parts)
        if tokens[0] != self.tokenizer.eot:  # that one has no bytes; another one is no target
            tokens = tokens[1:]
        return count_bytes(self.tokenizer, tokens) / n


def load_data(data_root, tokenizer_name, T, start=None):
    """
    A directory of shards, or a text file and the name of its tokenizer -> Data. A directory's own
    tokenizer wins. Each split must be longer than a row, which has T tokens. start: the checkpoint
    that the run starts from (dict); its tokenizer must fit. UserError otherwise.
    """
    if data_root.lower().endswith(SUFFIXES[1:]) and os.path.isfile(data_root):
        raise UserError(f"{data_root} holds documents, not one text: python fineweb.py "
                        f"--files={shlex.quote(data_root)} --out=shards makes shards of them, "
                        "then --data_root=shards", who="node")
    if os.path.isfile(data_root):
        data = Data(*tokenize_file(data_root, tokenizer_name))
        if start is not None and start["tokenizer"]["name"] in ("bpe", tokenizer_name):
            data = in_tokens_of(load_tokenizer(start["tokenizer"]), data)
    else:
        tokenizer = shards_tokenizer(data_root)  # this also names a shard that is missing
        train, val = ([load_tokens(path) for path in list_shards(data_root, split)]
                      for split in ("train", "val"))
        data = Data(tokenizer, train, val)
        for shard in (*train, *val):
            shard.n_vocab = data.tokenizer.n_vocab
        name = data.tokenizer.spec["name"]
        if name != tokenizer_name:
            print0(f"the tokenizer is {name}, the one that {data_root} was made with")
    for split in ("train", "val"):
        tokens = sum(map(len, getattr(data, split)))
        if tokens <= T:
            raise UserError(f"the {split} split of {data_root} has {tokens} tokens: too short for "
                            f"a row of {T}: try a smaller --T, or --preset=laptop")
    if start is not None and start["tokenizer"] != data.tokenizer.spec:
        raise UserError(f"the model's vocabulary is not that of {data_root}: is it the right "
                        "--data_root and --tokenizer?")
    return data


def in_tokens_of(tokenizer, data):
    """
    The Data of a text -> the same text in the tokens of a model that goes on with it. A tokenizer
    of characters knows those of the text it was made from, and this one may lack some of them.
    """
    if tokenizer.spec == data.tokenizer.spec:
        return data
    train, val = ([np.array(tokenizer.encode(data.tokenizer.decode(ids.tolist())), np.uint32)]
                  for [ids] in (data.train, data.val))
    return Data(tokenizer, train, val)


def list_shards(root, split):
    """
    The paths of the shards of a split, in the order of the stream: those listed in meta.json. The
    original's fineweb.py wrote no meta.json; then all shards count.
    """
    if not os.path.exists(root):
        raise UserError(f"no train shards in {root}: there is no {root} in {os.getcwd()}: "
                        + advice_without_data(root), who="node")
    # the end of a name decides: my_val_train_000001.npy is for training
    names = [name for name in sorted(os.listdir(root))
             if re.fullmatch(rf".*_{split}_\d+\.npy", name)]
    if metas := [read_meta(path) for path in list_metas(root)]:
        known = {shard["name"] for meta in metas for shard in meta["shards"]}
        unknown = [name for name in names if name not in known]
        names = [name for name in names if name in known]
        if unknown:
            print0(f"{len(unknown)} {split} shard(s) in {root} are listed in no meta.json and not "
                   f"used: {unknown[0]}{', ...' if len(unknown) > 1 else ''}; if another machine "
                   "made them, copy its meta-k-of-n.json, too")
    if not names:
        raise UserError(f"no {split} shards in {root}: {advice_without_data(root)}", who="node")
    return [os.path.join(root, name) for name in names]


def advice_without_data(root):
    """What to type if there are no shards in --data_root."""
    at_home = os.path.join(os.path.dirname(ASSETS), root)
    if not os.path.exists(root) and os.path.isfile(at_home):  # input.txt, from another directory
        return f"try --data_root={at_home}"
    if os.path.isdir(root) and (pattern := text_pattern(root)):
        return f"python fineweb.py --files={pattern} --out=shards makes some of its files"
    return "run python fineweb.py, give a text with --data_root, or try --preset=laptop"


def text_pattern(folder):
    """A folder with files that fineweb.py reads -> a pattern for its --files, or None"""
    for name in sorted(os.listdir(folder)):
        for suffix in SUFFIXES:
            if name.lower().endswith(suffix):
                return shlex.quote(os.path.join(folder, "*" + name[-len(suffix):]))
    return None


# --- meta.json ------------------------------------------------------------------------------------

def list_metas(root):
    """The paths of the meta.json files in a directory: one, or one for each --part."""
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    return [os.path.join(root, name) for name in names
            if re.fullmatch(r"meta(-\d+-of-\d+)?\.json", name)]


def read_meta(path):
    """
    A meta.json -> dict; see shard_directory.new_meta. It may come from somebody else: a shard must
    have a plain name, so that it cannot be a file outside the directory.
    """
    try:
        with open(path, encoding="utf-8") as f:
            meta = json.load(f)
        is_whole = META_KEYS <= meta.keys() and meta["tokenizer"]["name"] in ("gpt2", "char", "bpe")
        is_safe = all(re.fullmatch(r"\w+_(train|val)_\d{6}\.npy", shard["name"])
                      and shard["tokens"] > 0 for shard in meta["shards"])
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror or e})", who="node")
    except (ValueError, LookupError, TypeError, AttributeError):  # not JSON, or not ours
        is_whole = is_safe = False
    if not (is_whole and is_safe):
        raise UserError(f"{path} is not a whole meta.json of fineweb.py: copy it again, or choose "
                        "another directory", who="node")
    return meta


def meta_tokenizer(root, meta):
    """The tokenizer that a meta.json in the directory `root` names."""
    spec = dict(meta["tokenizer"])
    try:
        if spec["name"] == "bpe":
            with open(os.path.join(root, "tokenizer.json"), encoding="utf-8", newline="") as f:
                spec["json"] = f.read()
        tokenizer = load_tokenizer(spec)
    except (OSError, ValueError, KeyError) as e:  # KeyError: a char tokenizer without characters
        raise UserError(f"the tokenizer of {root} cannot be read ({e}): copy the directory again",
                        who="node")
    if (tokenizer.n_vocab, tokenizer.eot) != (meta["n_vocab"], meta["eot"]):
        raise UserError(f"{root}: the tokenizer has {tokenizer.n_vocab} tokens, meta.json names "
                        f"{meta['n_vocab']}: one of them is from another directory", who="node")
    return tokenizer


def shard_problem(path, tokens, dtype):
    """What is wrong with the header or the size of a shard -> text, or None"""
    if not os.path.exists(path):
        return f"{path} is missing"
    try:
        shard = open_shard(path)
    except ValueError as e:
        return str(e)
    if (len(shard), str(shard.dtype)) != (tokens, dtype):
        return f"{path} holds {len(shard)} tokens of {shard.dtype}, not {tokens} of {dtype}"
    return None


def shards_tokenizer(root):
    """
    The tokenizer that the shards in a directory were made with; GPT-2's if there is no meta.json.
    All shards that meta.json lists must be there, in the right size. (--check reads every byte.)
    """
    paths = list_metas(root)
    metas = [read_meta(path) for path in paths]
    for meta, path in zip(metas, paths, strict=True):
        if meta["tokenizer"] != metas[0]["tokenizer"] or meta["n_vocab"] != metas[0]["n_vocab"]:
            raise UserError(f"{path} and {paths[0]} have different tokenizers: they do not belong "
                            "in one directory", who="node")
        for shard in meta["shards"]:
            path = os.path.join(root, shard["name"])
            if problem := shard_problem(path, shard["tokens"], meta["dtype"]):
                raise UserError(f"{problem}: python fineweb.py --check={shlex.quote(root)} lists "
                                "all that is wrong", who="node")
    return meta_tokenizer(root, metas[0]) if metas else gpt2_tokenizer()
