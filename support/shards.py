"""
A directory of token shards: edufineweb_train_000001.npy and so on, flat arrays of uint16 or uint32
ids, and meta.json beside them, which says what they were made from, with which tokenizer, and how
far they are. Come here when a directory is refused, or when another program is to read it.
"""
import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from support.console import UserError, print0
from support.files import ASSETS, atomic_write, lock_directory, remove_half_written
from support.tokenizer import gpt2_tokenizer, load_tokenizer, tokenize_file

IN_USE = "wait for it, or choose another --out"
COUNTS = ("documents", "tokens", "bytes", "mended", "skipped")


# --- what can be read at all ----------------------------------------------------------------------

@contextlib.contextmanager
def reading(path):
    """
    A file that cannot be read may be as good as ever: its owner is somebody else, the network disk
    is away. So the UserError names the cause, and nobody is told to delete anything.
    """
    try:
        yield
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror or e})", who="node")


def is_regular(path):
    """Is it a file, and no pipe or device? UserError if we are not even told."""
    with reading(path):
        return stat.S_ISREG(os.stat(path).st_mode)


def list_names(root, pattern):
    """
    The names in a directory that a regular expression fits as a whole -> sorted. None of them where
    there is no directory; a UserError where there is one that cannot be read.
    """
    if not os.path.isdir(root):
        return []
    with reading(root):
        return sorted(name for name in os.listdir(root) if re.fullmatch(pattern, name))


# --- one shard ------------------------------------------------------------------------------------

def read_header(path):
    """
    A shard -> its memory map, of which nothing is read yet. Raises ValueError or EOFError where it
    is none, UserError where it cannot be read; a pipe or a device, which would keep us waiting for
    ever, is not even opened.
    """
    if not is_regular(path):
        raise ValueError("no regular file")
    with reading(path):
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
    n_vocab: int | None = None  # size of the vocabulary, if it is known

    def __len__(self):
        return self.size

    def __getitem__(self, part):
        """tokens[start:stop] -> array. Fewer tokens than that, or none, are a UserError."""
        start, stop, _ = part.indices(self.size)
        where = self.offset + start * self.dtype.itemsize
        try:
            tokens = np.fromfile(self.filename, self.dtype, count=stop - start, offset=where)
        except OSError as e:
            raise UserError(f"{self.filename} cannot be read at offset {start} "
                            f"({e.strerror or e})", who="me")
        if len(tokens) < stop - start:
            raise UserError(f"{self.filename} ends at offset {start + len(tokens)}: it had "
                            f"{self.size} "
                            "tokens when this run began. Has it been written anew?", who="me")
        # on a GPU, an id beyond the vocabulary would fail inside a kernel
        if self.n_vocab is not None and len(tokens) > 0 and tokens.max() >= self.n_vocab:
            raise UserError(f"{self.filename} has token {tokens.max()} at offset "
                            f"{start + tokens.argmax()}: there are only {self.n_vocab}; the file "
                            "is damaged, or was made with another tokenizer", who="me")
        return tokens

    def __array__(self, dtype=None, copy=None):
        """np.asarray(tokens): all of them."""
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)


def load_tokens(path):
    """A shard, a flat .npy array of uint16 or uint32 ids -> its tokens, read slice by slice"""
    try:
        tokens = read_header(path)
    except UserError:
        raise
    except Exception as e:  # numpy has many for the many ways in which a file can be damaged
        raise UserError(f"{path} is not a token shard ({str(e)[:99]!r}): delete it, run python "
                        "fineweb.py again", who="node")
    return TokenFile(path, tokens.dtype, len(tokens), tokens.offset)


class Data(NamedTuple):
    """What --data_root holds."""
    tokenizer: object
    train: list  # arrays of token ids, one after the other a stream
    val: list


def load_data(data_root, tokenizer_name, T, start=None):
    """
    A directory of shards, or a text file and the name of its tokenizer -> Data. T: tokens in a row,
    which each split must have; start: the weights to start from (dict), whose tokenizer this must
    be. UserError if it is not.
    """
    if os.path.isfile(data_root):
        data = Data(*tokenize_file(data_root, tokenizer_name))
    else:
        train, val = ([load_tokens(path) for path in list_shards(data_root, split)]
                      for split in ("train", "val"))
        data = Data(load_meta(data_root), train, val)  # the tokenizer that made the shards
        for shard in (*train, *val):
            shard.n_vocab = data.tokenizer.n_vocab
    for split in ("train", "val"):
        tokens = sum(map(len, getattr(data, split)))
        if tokens <= T:
            raise UserError(f"the {split} split of {data_root} has {tokens} tokens: too short for "
                            f"a row of {T}: try a smaller --T, or --preset=laptop")
    if start is not None and start["tokenizer"] != data.tokenizer.spec:
        raise UserError(f"the model's vocabulary is not that of {data_root}: is it the right "
                        "--data_root and --tokenizer?")
    return data


def no_data(root):
    """--data_root is not there -> the UserError that says where it was looked for"""
    at_home = os.path.join(os.path.dirname(ASSETS), root)
    advice = "run python fineweb.py, or give a text with --data_root"
    if os.path.isfile(at_home):  # input.txt, and we were started from another directory
        advice = f"try --data_root={at_home}"
    return UserError(f"no train shards in {root}: there is no {root} in {os.getcwd()}: {advice}",
                     who="node")


def list_shards(root, split):
    """
    The paths of a split's shards in a directory, in the order of the stream: those that meta.json
    speaks of. Where there is none, as in the directories of the original's fineweb.py: all.
    """
    if not os.path.exists(root):
        raise no_data(root)
    # the end of a name decides: my_val_train_000001.npy is to train on
    paths = [os.path.join(root, name) for name in list_names(root, rf".*_{split}_\d+\.npy")]
    metas = [read_meta(path) for path in list_metas(root)]
    if metas:
        known = {shard["name"] for meta in metas for shard in meta["shards"]}
        unknown = [path for path in paths if os.path.basename(path) not in known]
        paths = [path for path in paths if path not in unknown]
        if unknown:
            # another corpus or tokenizer perhaps; or a part whose meta-k-of-n.json was not copied
            print0(f"{len(unknown)} {split} shard(s) in {root} are in no meta.json and not used: "
                   f"{os.path.basename(unknown[0])}{', ...' if len(unknown) > 1 else ''}; if they "
                   "are of another part, bring its meta-k-of-n.json, too")
    if not paths:
        raise UserError(f"no {split} shards in {root}: run python fineweb.py, or try "
                        "--preset=laptop", who="node")
    return paths


def shard_problem(path, tokens, dtype):
    """
    What is wrong with a shard as far as its header tells -> text, or None. UserError where it
    cannot be read.
    """
    if not os.path.lexists(path):
        return f"{path} is missing"
    try:
        shard = read_header(path)
    except (ValueError, EOFError) as e:
        return f"{path} is not a token shard ({e})"
    if shard.shape != (tokens,) or shard.dtype != dtype:
        return (f"{path} holds {shard.dtype} of shape {shard.shape}, not {tokens:,} tokens of "
                f"{dtype}")
    return None


def count(tokens, token):
    """
    How often it stands there. A piece at a time: to compare a whole shard would take 100 MB.
    """
    return sum(int((tokens[i : i + 2**20] == token).sum()) for i in range(0, len(tokens), 2**20))


def file_sha256(path):
    """The sha256 of a file's bytes, in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(2**20):
            found.update(block)
    return found.hexdigest()


def write_shard(path, tokens):
    """
    Write tokens as an .npy file, read it back, and only then give it its name -> its sha256.
    Raises OSError.
    """
    if shutil.disk_usage(os.path.dirname(path)).free < tokens.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with atomic_write(path) as f:
        np.save(f, tokens)
        f.flush()
        with open(f.name, "rb") as again:
            header = again.read(f.tell() - tokens.nbytes)
        expected = hashlib.sha256(header)
        expected.update(tokens)
        found = file_sha256(f.name)
        if found != expected.hexdigest():
            raise OSError(errno.EIO, "it reads back differently")
    return found


def shard_numbers(k, n):
    """The numbers that the shards of part k of n can have -> range. A name has six digits."""
    room = 10**6 // n
    return range((k - 1) * room, k * room)


def shard_name(k, n, i):
    """The name of the i-th shard (from 0) of part k of n: the very first one is validation."""
    numbers = shard_numbers(k, n)
    if i == len(numbers):
        raise UserError(f"part {k} of {n} has room for {i} shards only: make them larger with "
                        "--shard_size")
    split = "val" if numbers[i] == 0 else "train"
    return f"edufineweb_{split}_{numbers[i]:06d}.npy"


# --- meta.json ------------------------------------------------------------------------------------

def meta_name(k, n):
    """The name of the meta.json of part k of n."""
    return "meta.json" if n == 1 else f"meta-{k}-of-{n}.json"


@contextlib.contextmanager
def lock_part(out, k, n):
    """
    Make a directory, and be the only one in it that makes part k of n; other parts may be made at
    the same time.
    """
    try:
        os.makedirs(out, exist_ok=True)
        lock = lock_directory(out, IN_USE, lock_name(k, n))
    except OSError as e:
        raise UserError(f"cannot write to {out} ({e.strerror}): choose another --out")
    try:
        # only now that ours is held: of two who come at the same moment one sees the other
        refuse_other_parts(out, n)
        yield
    finally:
        lock.release()


def lock_name(k, n):
    """The name of the lock of part k of n."""
    return ".lock" if n == 1 else f".lock-{k}-of-{n}"


def refuse_other_parts(out, n):
    """UserError if a run is at work in a directory that cuts the corpus into another number."""
    for path in glob.glob(os.path.join(glob.escape(out), ".lock*")):
        name = os.path.basename(path)
        parts = re.fullmatch(r"\.lock(?:-\d+-of-(\d+))?", name)
        if parts and int(parts[1] or 1) != n:
            lock_directory(out, IN_USE, name).release()


def list_metas(root):
    """The paths of a directory's meta.json files: one, or one for each part."""
    names = list_names(root, r"meta(-\d+-of-\d+)?\.json")  # metadata.json is somebody's own
    return [os.path.join(root, name) for name in names]


def new_meta(settings, k, n, tokenizer, modified=0):
    """
    The meta.json of a part that has no shards yet -> dict. modified: see last_modified. It is no
    setting, since copies of the corpus on other machines may have times of their own.
    """
    spec = tokenizer.spec
    if spec["name"] == "bpe":
        spec = {"name": "bpe"}  # the rest goes into tokenizer.json
    return {"settings": settings, "part": [k, n], "tokenizer": spec, "n_vocab": tokenizer.n_vocab,
            "eot": tokenizer.eot, "dtype": "uint16" if tokenizer.n_vocab <= 2**16 else "uint32",
            "modified": modified, "done": False, **dict.fromkeys(COUNTS, 0),
            "position": {"piece": 0, "row": 0, "tokens": 0}, "shards": []}


def write_meta(out, meta, tokenizer):
    """
    meta.json, by rename. A tokenizer in Hugging Face's format goes into tokenizer.json, as usual,
    before the first shard.
    """
    if tokenizer.spec["name"] == "bpe" and not meta["shards"]:
        write_tokenizer(os.path.join(out, "tokenizer.json"), tokenizer.spec["json"])
    path = os.path.join(out, meta_name(*meta["part"]))
    with atomic_write(path, "w", encoding="utf-8") as f:
        json.dump(meta, f, indent=1)


def write_tokenizer(path, text):
    """
    tokenizer.json, by rename. Another one that is there already stays: it may be somebody's own
    file, or what the shards of another part were made with.
    """
    if not os.path.exists(path):
        with atomic_write(path, "w", encoding="utf-8", newline="") as f:
            f.write(text)
        return
    with open(path, encoding="utf-8", errors="replace", newline="") as f:
        if f.read() != text:
            raise UserError(f"{path} is not the tokenizer of these shards: choose another --out")


def is_number(value, least=0, most=2**62):
    """A plain int, no True and no 1.0, within these limits?"""
    return type(value) is int and least <= value <= most


def is_shard_entry(entry):
    """
    Does it look like what meta.json says of a shard? Its name is a plain name: nobody else chooses
    what we open.
    """
    return (re.fullmatch(r"\w+_(train|val)_\d{6}\.npy", entry["name"]) is not None
            and is_number(entry["tokens"], least=1) and is_number(entry["documents"])
            and type(entry["sha256"]) is str)


def is_meta(meta):
    """The same of a whole meta.json. Raises what a missing or odd entry raises."""
    k, n = meta["part"]
    names = [entry["name"] for entry in meta["shards"]]
    return (type(meta["done"]) is bool and isinstance(meta["settings"], dict)
            and all(is_number(meta[key]) for key in (*COUNTS, "n_vocab", "eot", "max_shards"))
            and meta["dtype"] in ("uint16", "uint32")
            and meta["tokenizer"]["name"] in ("gpt2", "char", "bpe")
            and all(is_shard_entry(entry) for entry in meta["shards"])
            and len(set(names)) == len(names)  # each is trained on once
            and all(is_number(meta["position"][key]) for key in ("piece", "row", "tokens"))
            and is_number(meta.get("modified", 0), most=2**40)
            # (of more parts than names for shards each would have none)
            and is_number(n, least=1, most=10**6) and is_number(k, least=1, most=n))


def read_meta(path):
    """A meta.json -> dict, its types and names checked."""
    meta = None
    try:
        if is_regular(path):
            with reading(path), open(path, encoding="utf-8") as f:
                meta = json.load(f)
        ok = is_meta(meta)
    except (ValueError, KeyError, TypeError, RecursionError):
        ok = False
    if not ok:
        raise UserError(f"{path} is damaged: delete it and its shards, and run python fineweb.py "
                        "again", who="node")
    return meta


def has_all(meta, max_shards):
    """Are there as many shards as --max_shards allows? 0 allows any number."""
    return 0 < max_shards <= len(meta["shards"])


def is_complete(meta, max_shards):
    """Is there nothing left to do?"""
    return meta["done"] or has_all(meta, max_shards)


def summary(meta):
    """What there is now, in a line."""
    line = (f"{meta['documents']:,} documents, {meta['tokens']:,} tokens in "
            f"{len(meta['shards'])} shards")
    known = meta["tokens"] - meta["position"]["tokens"]  # the tokens of the bytes that are counted
    if known:
        line += f", {meta['bytes'] / known:.2f} bytes a token"
    if meta["mended"]:
        line += f"; {meta['mended']:,} documents with U+FFFD for what is no Unicode"
    if meta["skipped"]:
        line += f"; {meta['skipped']:,} rows without a text skipped"
    if not meta["done"]:
        line += "; a larger --max_shards goes on"
    return line


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
                        f"of {meta['n_vocab']}: they do not belong together", who="node")
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


# --- what an earlier run has left -----------------------------------------------------------------

def describe_work(config, files):
    """
    The settings that the bytes of the shards depend on -> dict of texts and numbers. files: paths,
    or None where the corpus is a dataset.
    """
    source, ends = f"{config.dataset} {config.name}", ""
    if files is not None:
        # by names, sizes and ends: to compare every byte would take as long as to make the shards
        names = "".join(f"{os.path.basename(p)} {os.path.getsize(p)}\n" for p in files)
        # (fsencode: a name need not be UTF-8)
        digest = hashlib.sha256(os.fsencode(names)).hexdigest()[:16]
        size = sum(os.path.getsize(path) for path in files)
        source = f"{len(files)} files, {size} bytes, {digest}"
        ends = hash_ends(files)
    tokenizer = config.tokenizer
    if os.path.isfile(tokenizer):
        tokenizer = f"{os.path.basename(tokenizer)} {file_sha256(tokenizer)[:16]}"
    return {"source": source, "ends": ends, "text_key": config.text_key, "tokenizer": tokenizer,
            "shard_size": config.shard_size, "val_tokens": config.val_tokens}


def hash_ends(files):
    """A hash of the first and the last 64 kB of each file: an edit often keeps the size."""
    found = hashlib.sha256()
    for path in files:
        with open(path, "rb") as f:
            found.update(f.read(2**16))
            f.seek(max(0, os.path.getsize(path) - 2**16))
            found.update(f.read(2**16))
    return found.hexdigest()[:16]


def last_modified(files):
    """When the youngest file was modified, in whole seconds; 0 where the corpus is a dataset."""
    return max((int(os.path.getmtime(path)) for path in files or []), default=0)


def other_setting(meta, settings, n):
    """What a meta.json was made with that is not what is asked for now -> text, or None."""
    # what an older version of this program did not note is taken to be the same
    theirs = {**settings, **meta["settings"], "parts": meta["part"][1]}
    for key, value in {**settings, "parts": n}.items():
        if theirs[key] != value and key == "ends":
            return "these files, but they have been edited since"
        if theirs[key] != value:
            return f"another {key} ({theirs.get(key)}, not {value})"
    return None


def find_meta(out, settings, k, n):
    """
    The meta.json that an earlier run of part k of n has left in a directory, its shards checked as
    far as their headers tell -> dict, or None. Shards made with other settings are refused: a
    directory that half belongs to something else would be worse than none.
    """
    metas = [read_meta(path) for path in list_metas(out)]
    if not metas and glob.glob(os.path.join(glob.escape(out), "*_*_*.npy")):
        raise UserError(f"{out} holds shards without a meta.json, which another program has made: "
                        "choose another --out")
    mine = None
    for meta in metas:
        other = other_setting(meta, settings, n)
        if other and meta["shards"]:
            raise UserError(f"{out} was made with {other}: choose another --out")
        if not other and meta["part"] == [k, n]:
            mine = meta
    if mine is None:
        return None
    for shard in mine["shards"]:
        path = os.path.join(out, shard["name"])
        if problem := shard_problem(path, shard["tokens"], mine["dtype"]):
            raise UserError(f"{problem}: delete {out} and start over, or choose another --out")
    return mine


def check_unmodified(out, meta, files):
    """UserError if a run would go on with files that have been modified since it began."""
    now = last_modified(files)
    began = meta.get("modified", now)  # an older version did not note it
    if meta["shards"] and began != now:
        raise UserError(f"the files have been modified since {out} was begun ({time.ctime(now)}, "
                        f"and it was {time.ctime(began)}): choose another --out; or, if every byte "
                        f"is the same, restore the time of the youngest: touch -d @{began} FILE")


def remove_abandoned(out, settings, k, n):
    """
    What runs with other settings have left that ended before meta.json spoke of a shard: they
    failed, were put right, and must not stand in the way. For part k of n, whose lock we hold.
    """
    metas = {path: read_meta(path) for path in list_metas(out)}
    known = {shard["name"] for meta in metas.values() for shard in meta["shards"]}
    for path, meta in metas.items():
        if other_setting(meta, settings, n) is None:
            continue
        if meta["part"] != [k, n]:
            # it is not running, or this line refuses to go on
            lock_directory(out, IN_USE, lock_name(*meta["part"])).release()
        # a shard is there before meta.json speaks of it; the first two come together
        leftovers = {shard_name(*meta["part"], 0), shard_name(*meta["part"], 1)} - known
        tokenizer = str(meta["settings"].get("tokenizer"))
        is_own = tokenizer.startswith("tokenizer.json ") or os.path.isdir(tokenizer)
        if meta["tokenizer"]["name"] == "bpe" and not is_own:
            # that run has written it; or, if "own", it may be the file that --tokenizer named
            leftovers.add("tokenizer.json")
        for name in leftovers:
            if os.path.exists(os.path.join(out, name)):
                os.remove(os.path.join(out, name))
        os.remove(path)  # last: until then the next run knows what to remove


def remove_half_written_shards(out, k, n):
    """Files that a killed run of part k of n has left half written; those of other parts stay."""
    def is_ours(name):
        if shard := re.fullmatch(r"edufineweb_(?:val|train)_(\d{6})\.npy", name):
            return int(shard[1]) in shard_numbers(k, n)
        return name in (meta_name(k, n), "tokenizer.json")
    remove_half_written(out, is_ours)


# --- --check: is every byte what it was? ----------------------------------------------------------

def check_directory(root):
    """Verify every byte of the shards in a directory -> list of what is wrong, one line each"""
    metas = [read_meta(path) for path in list_metas(root)]
    if not metas:
        raise UserError(f"{root} has no meta.json: it is not a directory of shards made by this "
                        "program")
    problems = check_parts(metas)
    meta_tokenizer(root, metas[0])  # or it says what is wrong and ends here
    known = [(meta, shard) for meta in metas for shard in meta["shards"]]
    names = {shard["name"] for _, shard in known}
    for path in sorted(glob.glob(os.path.join(glob.escape(root), "*_*_*.npy"))):
        if os.path.basename(path) not in names:
            problems.append(f"{os.path.basename(path)} is in no meta.json")
    for meta, shard in tqdm(known, desc="checking", unit="shard", disable=None):
        try:
            problem = check_shard(os.path.join(root, shard["name"]), meta, shard)
        except UserError as e:  # one that cannot be read; the others are checked all the same
            problem = str(e)
        if problem:
            problems.append(problem)
    return problems


def check_parts(metas):
    """Are all parts there and finished, and do they belong together? -> list of what is wrong"""
    problems = []
    first, n = metas[0]["part"]
    for meta in metas:
        for key in ("settings", "tokenizer", "n_vocab", "eot", "dtype"):
            if meta[key] != metas[0][key]:
                problems.append(f"meta.json of part {meta['part']} has other settings than that "
                                f"of part {metas[0]['part']}")
                break
    numbers = {meta["part"][0] for meta in metas}
    for k in range(1, n + 1):
        if k not in numbers:
            problems.append(f"part {k} of {n} is missing")
    for meta in metas:
        if not is_complete(meta, meta["max_shards"]):
            problems.append(f"part {meta['part'][0]} of {n} is not finished: the command that "
                            "began it goes on")
    return problems


def check_shard(path, meta, shard):
    """The first thing that is wrong with a shard -> text, or None."""
    problem = shard_problem(path, shard["tokens"], meta["dtype"])
    if problem:
        return problem
    tokens = np.load(path, mmap_mode="r")
    if int(tokens.max()) >= meta["n_vocab"]:
        return (f"{path} has token {tokens.max()} at offset {int(tokens.argmax())}: there are "
                f"only {meta['n_vocab']}")
    documents = count(tokens, meta["eot"])
    if documents != shard["documents"]:
        return f"{path} has {documents} documents, not {shard['documents']}"
    with reading(path):
        sha256 = file_sha256(path)
    if sha256 != shard["sha256"]:
        return f"{path} has changed since it was made: its sha256 is another one"
    return None
