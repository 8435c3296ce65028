"""
From any corpus to token shards for train_gpt2.py.

    python fineweb.py                                       # FineWeb-Edu sample-10BT as 100 shards, 20 GB
    python fineweb.py --max_shards=3                        # 200M tokens to train on; a larger number later goes on
    HF_ENDPOINT=https://hf-mirror.com python fineweb.py     # where huggingface.co cannot be reached
    python fineweb.py --files='data/*.jsonl' --out=shards   # .txt, .jsonl, .jsonl.gz or .parquet files of your own
    python fineweb.py --files=book.txt --tokenizer=bpe:8000 --out=shards
    python fineweb.py --name=sample-350BT --part=3/8        # the third of eight machines
    python fineweb.py --check=shards                        # is every byte what it was?

Killed at any moment, the same command goes on after the last finished shard, and the shards are byte for byte those of
an undisturbed run.

Every document starts with <|endoftext|>. Shards are flat .npy arrays of uint16 (uint32 for vocabularies over 65,536);
shard 0 is validation, the last one holds what remains. meta.json beside them says what they were made from, with which
tokenizer, and how far they are.

Contents
    1 documents                files and datasets -> rows -> tokens, by threads, in order
    2 shards                   how they are filled and written
    3 the program              make_shards, check, main
"""
import contextlib
import functools
import glob
import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from support.console import UserError, run_program
from support.files import atomic_write
from support.settings import check_limits, knob, parse_flags
from support.tokenizer import make_tokenizer
from support.shards import COUNTS, count, meta_name, meta_tokenizer, read_meta, shard_problem, write_meta

# ----------------------------------------------------------------------------------------------------


# ----------------------------------------------------------------------------------------------------
# 1 documents: from files and datasets to rows, from rows to tokens

BATCH_BYTES = 256_000  # a worker's portion: large enough that handing it over costs nothing, small enough to wait for
AHEAD_BYTES = 32_000_000  # and so much may wait its turn: a second or two of work for two cores
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass
class ShardConfig:
    dataset: str = knob("HuggingFaceFW/fineweb-edu", "on the Hugging Face hub, or a directory")
    name: str = knob("sample-10BT", "a part of it: sample-100BT, sample-350BT, or a crawl such as "
                                    "CC-MAIN-2024-10")
    stream: bool = knob(True, "read it as it arrives; --no-stream downloads all of it first (50 GB "
                              "of cache)")
    files: str = knob("", "local files instead: 'data/*.jsonl'; .txt (a document each), "
                          ".jsonl(.gz), .parquet")
    text_key: str = knob("text", "where a row keeps its text")
    tokenizer: str = knob("gpt2", "gpt2, char, bpe:8000 (learned from the corpus), a "
                                  "tokenizer.json, a hub name")
    out: str = knob("edu_fineweb10B", "the directory for the shards and meta.json")
    shard_size: int = knob(100_000_000, "tokens in a shard: 200 MB", least=1)
    max_shards: int = knob(0, "stop after so many; 0: the whole corpus")
    val_tokens: int = knob(0, "of a corpus under two shards, so many tokens are validation; 0: a "
                              "tenth")
    part: str = knob("1/1", "k/n: make the k-th of n parts, each perhaps on a machine of its own")
    workers: int = knob(0, "threads that tokenize; 0: one for each core")
    strict: bool = knob(False, "end at a malformed row, which otherwise is named, skipped and "
                               "counted")
    check: str = knob("", "make nothing, verify every byte of the shards in this directory")


def list_files(pattern):
    """The regular files that a glob pattern means, sorted -> list of paths"""
    paths = sorted(filter(os.path.isfile, glob.glob(os.path.expanduser(pattern), recursive=True)))
    if not paths:
        raise UserError(f"--files={pattern}: there is no such file")
    if wrong := [path for path in paths if not path.endswith(SUFFIXES)]:
        raise UserError(f"--files={pattern}: {wrong[0]} is none of {', '.join(SUFFIXES)}")
    return paths


def load_hub(config):
    """The dataset on the hub as a list of pieces, in order: its files when streaming, else ranges of rows."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        if config.stream and not os.path.exists(config.dataset):
            with contextlib.suppress(urllib.error.HTTPError):  # it answers, that will do
                urllib.request.urlopen(hub, timeout=30).close()  # the library would try six times, for half a minute
        from datasets import load_dataset
        data = load_dataset(config.dataset, name=config.name or None, split="train", streaming=config.stream)
    except Exception as e:  # no network, no such dataset, no space: its libraries have many ways to say it
        raise UserError(f"cannot load {config.dataset} {config.name} from {hub} ({' '.join(str(e).split())[:150]}): "
                        f"set "
                        "HF_ENDPOINT to a mirror, or take text of your own with --files='data/*.jsonl'")
    n = data.num_shards if config.stream else min(1000, max(1, len(data)))
    return [data.shard(num_shards=n, index=i, contiguous=True) for i in range(n)]


def piece_name(pieces, i):
    return pieces[i] if isinstance(pieces[i], str) else f"piece {i} of the dataset"


def read_rows(piece, start, text_key):
    """Yield (share of the piece that is read, row) from row `start` on: a text (str or bytes); of .jsonl a line."""
    if not isinstance(piece, str):  # of a dataset
        for row in piece.skip(start):
            yield 0.0, row.get(text_key)
    elif piece.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
        with pq.ParquetFile(piece, pre_buffer=False) as f:  # pre_buffer would hold a whole row group in memory
            n, groups = f.metadata.num_rows, list(range(f.num_row_groups))
            done = 0
            while groups and done + f.metadata.row_group(groups[0]).num_rows <= start:
                done += f.metadata.row_group(groups.pop(0)).num_rows  # skipped unread
            for batch in f.iter_batches(1000, row_groups=groups, columns=[text_key]):
                column = batch.column(0).cast(pa.large_binary())  # bytes: what is not UTF-8 is dealt with in as_text
                for row in column.slice(max(0, start - done)).to_pylist():
                    yield max(start, done) / n, row
                done += len(column)
    elif piece.endswith(".txt"):
        with open(piece, "rb") as f:
            yield from [(1.0, f.read())][start:]
    else:
        with open(piece, "rb") as raw, gzip.open(raw) if piece.endswith(".gz") else raw as f:
            for line in itertools.islice(f, start, None):
                yield raw.tell() / os.path.getsize(piece), line


def read_batches(pieces, first, start, text_key):
    """
    Yield (number of the piece, of the first row in it, rows, share of all that is read, bytes), about BATCH_BYTES each,
    from row `start` of the piece `first` on. What can be read no further, a truncated .gz, say, ends the program.
    """
    for i in range(first, len(pieces)):
        rows, size = [], 0
        try:
            for share, row in read_rows(pieces[i], start, text_key):
                rows.append(row)
                size += len(row) if isinstance(row, (str, bytes)) else 0
                if size >= BATCH_BYTES:
                    yield i, start, rows, (i + share) / len(pieces), size
                    start, rows, size = start + len(rows), [], 0
        except Exception as e:  # damaged, gone, the network: each library has an exception of its own
            raise UserError(f"cannot read {piece_name(pieces, i)} after row {start + len(rows)} ({type(e).__name__}: "
                            f"{' '.join(str(e).split())[:150]}): finished shards stay; the same command goes on after "
                            f"them")
        if rows:
            yield i, start, rows, (i + 1) / len(pieces), size
        start = 0


def as_text(row, is_json, text_key):
    """A row -> its text, its UTF-8 bytes, was anything replaced by U+FFFD? Raises ValueError where there is no text."""
    broken = False
    if isinstance(row, bytes):
        try:
            row = row.decode()
        except UnicodeDecodeError:
            row, broken = row.decode(errors="replace"), True
    if is_json:
        try:
            row = json.loads(row.removeprefix("\ufeff"), strict=False)  # not strict: control characters may be bare
        except RecursionError:
            raise ValueError("nested too deeply") from None
        row = row.get(text_key) if isinstance(row, dict) else None
    if not isinstance(row, str):
        raise ValueError(f"no text under {text_key!r}")
    try:
        return row, len(row.encode()), broken
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell: no character at all
        row = re.sub("[\ud800-\udfff]", "\ufffd", row)
        return row, len(row.encode()), True


def parse_rows(batch, pieces, text_key):
    """A batch of read_batches -> its texts, their size in bytes, how many had to be mended, what was skipped and why"""
    i, start, rows, *_ = batch
    is_json = isinstance(pieces[i], str) and pieces[i].endswith((".jsonl", ".jsonl.gz"))
    texts, size, mended, skipped = [], 0, 0, []
    for number, row in enumerate(rows, start + 1):
        if is_json and not row.strip():
            continue  # an empty line, as at the end of many files
        try:
            text, n, broken = as_text(row, is_json, text_key)
        except ValueError as e:
            skipped.append(f"{piece_name(pieces, i)}, line {number}: {e}")
            continue
        texts.append(text)
        size, mended = size + n, mended + broken
    return texts, size, mended, skipped


def encode_rows(batch, tokenizer, dtype, pieces, text_key):
    """The same with one array of tokens instead of the texts: each document after an <|endoftext|>"""
    texts, *counts = parse_rows(batch, pieces, text_key)
    encoded = tokenizer.encode_batch(texts)
    tokens, end = np.empty(sum(map(len, encoded)) + len(encoded), dtype=dtype), 0
    for ids in encoded:
        tokens[end] = tokenizer.eot
        tokens[end + 1 : end + 1 + len(ids)] = ids
        end += 1 + len(ids)
    return tokens, *counts


def in_order(function, batches, workers):
    """
    Like map(function, batches), by threads, and only a bit ahead. Threads are enough: the tokenizers are written in
    Rust and let go of Python's lock while they work. So nothing is copied, and it is the same on every system.
    """
    pool, waiting, ahead = ThreadPoolExecutor(workers), deque(), 0
    try:
        for batch in itertools.chain(batches, [None]):  # None: no more to come
            if batch:
                ahead += batch[-1]
                waiting.append((batch, pool.submit(function, batch)))
            # enough for the workers to go on with while a shard is hashed and flushed to the disk
            while waiting and (not batch or ahead > AHEAD_BYTES and len(waiting) > workers):
                first, future = waiting.popleft()
                ahead -= first[-1]
                yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for what is queued


# ----------------------------------------------------------------------------------------------------
# 2 shards

def save_shard(out, meta, tokens):
    """Write the next shard, read it back, and only then give it its name. Adds to meta["shards"]."""
    k, n = meta["part"]
    index = (k - 1) * (10**6 // n) + len(meta["shards"])
    if len(meta["shards"]) >= 10**6 // n:
        raise UserError(f"part {k} of {n} has room for {10**6 // n} shards only: make them larger with --shard_size")
    path = os.path.join(out, f"edufineweb_{'train' if index else 'val'}_{index:06d}.npy")
    try:
        if shutil.disk_usage(out).free < tokens.nbytes:
            raise OSError(28, "No space left on device")
        with atomic_write(path) as f:
            np.save(f, tokens)
            f.flush()
            with open(f.name, "rb") as again:
                header = again.read(f.tell() - tokens.nbytes)
                expected, found = hashlib.sha256(header), hashlib.sha256(header)
                expected.update(tokens)
                while block := again.read(2**20):
                    found.update(block)
            if found.digest() != expected.digest():
                raise OSError(5, "it reads back differently")
    except OSError as e:
        raise UserError(f"cannot write {path}, {tokens.nbytes / 1e6:,.1f} MB ({e.strerror}): {len(meta['shards'])} "
                        f"finished "
                        "shards stay; make room and run the same command again")
    meta["shards"].append({"name": os.path.basename(path), "tokens": len(tokens), "sha256": found.hexdigest(),
                           "documents": count(tokens, meta["eot"])})
    meta["tokens"] += len(tokens)
    meta["documents"] += meta["shards"][-1]["documents"]
    tqdm.write(f"{path}: {len(tokens):,} tokens, {meta['shards'][-1]['documents']:,} documents begin in it")


def save_shards(config, meta, tokens):
    """Write what has come together as shards. The first two at once: only then do we know how much is validation."""
    S, cut = config.shard_size, 0
    if not meta["shards"] and meta["part"][0] == 1:
        cut = S if len(tokens) == 2 * S else min(config.val_tokens or len(tokens) // 10 or 1, S)
        if not cut < len(tokens):
            raise UserError(f"a corpus of {len(tokens)} tokens has none left to train on, with {cut} for validation")
        save_shard(config.out, meta, tokens[:cut])
    for start in range(cut, len(tokens), S):
        save_shard(config.out, meta, tokens[start : start + S])


def fill_shards(config, meta, tokenizer, pieces):
    """
    Tokenize the pieces from meta["position"] on, write a shard whenever one is full, and then meta.json. The position:
    a piece, a row in it, and how many tokens from that row on are in shards. Whatever stops us, we start there again.
    """
    S, limit, start = config.shard_size, config.max_shards or 10**6, meta["position"]
    buffer, filled = np.empty(S if meta["shards"] or meta["part"][0] > 1 else 2 * S, meta["dtype"]), 0
    encode = functools.partial(encode_rows, tokenizer=tokenizer, dtype=meta["dtype"], pieces=pieces,
                               text_key=config.text_key)
    batches = read_batches(pieces, start["piece"], start["row"], config.text_key)
    old = start["tokens"]  # these are in shards already
    bar = tqdm(desc=config.out, initial=meta["tokens"], unit="tok", unit_scale=True, disable=None)
    for (piece, row, _, share, _), (tokens, size, mended, skipped) in in_order(encode, batches, config.workers):
        report_skipped(skipped, config, nothing_yet=not len(tokens) and not meta["bytes"])
        done, old = min(old, len(tokens)), max(0, old - len(tokens))
        while done < len(tokens) and len(meta["shards"]) < limit:
            part = tokens[done : done + len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            done, filled = done + len(part), filled + len(part)
            bar.update(len(part))
            bar.total = min(bar.n / share, limit * S) if share else None
            if filled == len(buffer):
                save_shards(config, meta, buffer)
                meta["position"] = {"piece": piece, "row": row, "tokens": done}
                write_meta(config.out, meta, tokenizer)
                buffer, filled = buffer[:S], 0
        if len(meta["shards"]) >= limit:
            break  # the counts below are of the batches before the position
        for key, n in (("bytes", size), ("mended", mended), ("skipped", len(skipped))):
            meta[key] += n
    else:
        if filled or not meta["shards"]:
            save_shards(config, meta, buffer[:filled])
        meta |= {"position": {"piece": len(pieces), "row": 0, "tokens": 0}, "done": True}
        write_meta(config.out, meta, tokenizer)
    bar.close()


def report_skipped(skipped, config, nothing_yet):
    """Name the rows without a text; fatal with --strict, and where not one row so far has had any."""
    if skipped and (config.strict or nothing_yet):
        raise UserError(f"{skipped[0]}" + (": repair it, or without --strict it is skipped" if config.strict else
                                           ", as in every row so far: is --text_key right?"))
    for line in skipped:
        tqdm.write(f"skipped: {line}", file=sys.stderr)


# ----------------------------------------------------------------------------------------------------
# 3 the program: what is asked for, what is there already

def check_config(config):
    """One line and exit code 2 for values that cannot work. -> k, n of --part=k/n"""
    check_limits(config)
    m = re.fullmatch(r"(\d{1,5})/(\d{1,5})", config.part)
    if not m or not 1 <= int(m[1]) <= int(m[2]):
        raise UserError(f"--part={config.part}: the third of eight is --part=3/8")
    if config.max_shards == 1 and int(m[1]) == 1:
        raise UserError("--max_shards=1: the first shard is validation, there would be none to train on: try "
                        "--max_shards=2")
    return int(m[1]), int(m[2])


def describe(config, files):
    """The settings that the bytes of the shards depend on -> dict of texts and numbers"""
    source = f"{config.dataset} {config.name}"
    if files is not None:  # by names and sizes: to compare every byte would take as long as to make the shards
        names = hashlib.sha256("".join(f"{os.path.basename(p)} {os.path.getsize(p)}\n" for p in files).encode())
        source = f"{len(files)} files, {sum(map(os.path.getsize, files))} bytes, {names.hexdigest()[:16]}"
    tokenizer = config.tokenizer
    if os.path.isfile(tokenizer):
        with open(tokenizer, "rb") as f:
            tokenizer = f"{os.path.basename(tokenizer)} {hashlib.sha256(f.read()).hexdigest()[:16]}"
    return {"source": source, "text_key": config.text_key, "tokenizer": tokenizer, "shard_size": config.shard_size,
            "val_tokens": config.val_tokens}


def find_work(config, settings, k, n):
    """The meta.json that an earlier run of this part has left -> dict, or None. Other settings are refused."""
    mine, out = None, glob.escape(config.out)
    paths = glob.glob(os.path.join(out, "meta*.json"))
    if not paths and glob.glob(os.path.join(out, "*_*_*.npy")):
        raise UserError(f"{config.out} holds shards without a meta.json, which another program has made: choose "
                        f"another --out")
    for path in paths:
        meta = read_meta(path)
        theirs = {**meta["settings"], "parts": meta["part"][1]}
        for key, value in {**settings, "parts": n}.items():
            if theirs.get(key) != value:
                raise UserError(f"{config.out} was made with another {key} ({theirs.get(key)}, not {value}): choose "
                                f"another --out")
        if meta["part"] == [k, n]:
            mine = meta
    for shard in mine["shards"] if mine else []:
        if problem := shard_problem(os.path.join(config.out, shard["name"]), shard["tokens"], mine["dtype"]):
            raise UserError(f"{problem}: delete {config.out} and start over, or choose another --out")
    for path in glob.glob(os.path.join(out, "*.tmp*")):  # what a killed run has left half written
        m = re.search(r"_(\d{6})\.npy\.tmp", path)  # but nothing of another part, which may be running
        if int(m[1]) // (10**6 // n) == k - 1 if m else f"{meta_name(k, n)}.tmp" in path or n == 1:
            os.remove(path)
    return mine


def estimate_tokens(config, files, n):
    """About how many tokens a part will have, rather too few, or 0 if nothing is known: is there space for them?"""
    tokens = int(m[1]) * 1e9 if (m := re.search(r"(\d+)BT", config.name)) else 0
    if files is not None:
        size = sum(os.path.getsize(p) * (2 if p.endswith((".gz", ".parquet")) else 1) for p in files)
        tokens = size / (3 if config.tokenizer == "char" else 6)
    return min(tokens / n, (config.max_shards or 10**6) * config.shard_size)


def begin(config, settings, k, n, pieces):
    """
    The tokenizer, and the meta.json of a part that has no shards yet. char and bpe:N come from the whole corpus, not
    from this part: so machines that know nothing of each other make the same one.
    """
    if config.tokenizer == "char" or config.tokenizer.startswith("bpe:"):
        print(f"first, the tokenizer {config.tokenizer} is made from the corpus", flush=True)
    batches = read_batches(pieces, 0, 0, config.text_key)
    texts = itertools.chain.from_iterable(parse_rows(b, pieces, config.text_key)[0] for b in batches)
    tokenizer = make_tokenizer(config.tokenizer, texts)
    spec = {"name": "bpe"} if tokenizer.spec["name"] == "bpe" else tokenizer.spec
    return tokenizer, {"settings": settings, "part": [k, n], "tokenizer": spec, "n_vocab": tokenizer.n_vocab,
                       "eot": tokenizer.eot, "dtype": "uint16" if tokenizer.n_vocab <= 2**16 else "uint32",
                       "done": False, **dict.fromkeys(COUNTS, 0),
                       "position": {"piece": 0, "row": 0, "tokens": 0}, "shards": []}


def make_shards(config):
    """All that a command line asks for: what is missing of the shards, or the line that all is there."""
    k, n = check_config(config)
    config.workers = config.workers or os.cpu_count()
    files = list_files(config.files) if config.files else None
    settings = describe(config, files)
    meta = find_work(config, settings, k, n)
    if meta and (meta["done"] or 0 < config.max_shards <= len(meta["shards"])):
        return report(config, meta, "everything is there already: ")
    pieces = files or load_hub(config)
    if len(pieces) < n:
        raise UserError(f"--part={config.part}: parts are whole input files, of which there are {len(pieces)}: try "
                        f"--part=1/{len(pieces)}")
    tokenizer, meta = (meta_tokenizer(config.out, meta), meta) if meta else begin(config, settings, k, n, pieces)
    meta["max_shards"] = config.max_shards
    try:
        os.makedirs(config.out, exist_ok=True)
        need = np.dtype(meta["dtype"]).itemsize * (estimate_tokens(config, files, n) - meta["tokens"])
        free = shutil.disk_usage(config.out).free
        if need > free:
            raise UserError(f"the shards will take about {need / 1e6:,.1f} MB, {config.out} has {free / 1e6:,.1f} MB "
                            f"free: choose "
                            "another --out, or fewer shards with --max_shards")
        write_meta(config.out, meta, tokenizer)
    except OSError as e:
        raise UserError(f"cannot write to {config.out} ({e.strerror}): choose another --out")
    fill_shards(config, meta, tokenizer, pieces[len(pieces) * (k - 1) // n : len(pieces) * k // n])
    report(config, meta, "")


def report(config, meta, what):
    """What there is now, and what to type next."""
    known = meta["tokens"] - meta["position"]["tokens"]  # the tokens of the bytes that are counted
    print(f"{what}{meta['documents']:,} documents, {meta['tokens']:,} tokens in {len(meta['shards'])} shards"
          + (f", {meta['bytes'] / known:.2f} bytes a token" if known else "")
          + (f"; {meta['mended']:,} documents with U+FFFD for what is no Unicode" if meta["mended"] else "")
          + (f"; {meta['skipped']:,} rows without a text skipped" if meta["skipped"] else "")
          + ("" if meta["done"] else "; a larger --max_shards goes on"))
    root = "" if config.out == ShardConfig.out else f" --data_root={config.out}"
    if meta["part"][1] > 1:
        print(f"next, when all {meta['part'][1]} parts are in one directory: python fineweb.py --check={config.out}")
    else:
        print(f"next: python train_gpt2.py{root}{' --preset=laptop' if meta['tokens'] < 50e6 else ''}")


def check_directory(root):
    """Verify every byte of the shards in a directory -> list of what is wrong, one line each"""
    metas = [read_meta(path) for path in sorted(glob.glob(os.path.join(glob.escape(root), "meta*.json")))]
    if not metas:
        raise UserError(f"{root} has no meta.json: it is not a directory of shards made by this program")
    problems = [f"meta.json of part {m['part']} has other settings than that of part {metas[0]['part']}" for m in metas
                if any(m[key] != metas[0][key] for key in ("settings", "tokenizer", "n_vocab", "eot", "dtype"))]
    parts, n = [meta["part"][0] for meta in metas], metas[0]["part"][1]
    problems += [f"part {k} of {n} is missing" for k in range(1, n + 1) if k not in parts]
    problems += [f"part {meta['part'][0]} of {n} is not finished: the command that began it goes on" for meta in metas
                 if not meta["done"] and not 0 < meta["max_shards"] <= len(meta["shards"])]
    meta_tokenizer(root, metas[0])  # or it says what is wrong and ends here
    known = [(meta, shard) for meta in metas for shard in meta["shards"]]
    here = {os.path.basename(p) for p in glob.glob(os.path.join(glob.escape(root), "*_*_*.npy"))}
    problems += [f"{name} is in no meta.json" for name in sorted(here - {shard["name"] for _, shard in known})]
    for meta, shard in tqdm(known, desc="checking", unit="shard", disable=None):
        problems += filter(None, [check_shard(os.path.join(root, shard["name"]), meta, shard)])
    return problems


def check_shard(path, meta, shard):
    """The first thing that is wrong with a shard -> text, or None"""
    if problem := shard_problem(path, shard["tokens"], meta["dtype"]):
        return problem
    found, tokens = hashlib.sha256(), np.load(path, mmap_mode="r")
    if int(tokens.max()) >= meta["n_vocab"]:
        return f"{path} has token {tokens.max()} at offset {int(tokens.argmax())}: there are only {meta['n_vocab']}"
    if (documents := count(tokens, meta["eot"])) != shard["documents"]:
        return f"{path} has {documents} documents, not {shard['documents']}"
    with open(path, "rb") as f:
        while block := f.read(2**20):
            found.update(block)
    if found.hexdigest() != shard["sha256"]:
        return f"{path} has changed since it was made: its sha256 is another one"


def main(argv):
    config, _ = parse_flags(argv, __doc__, {}, ShardConfig)
    if config.check:
        problems = check_directory(config.check)
        print("\n".join(problems) or f"{config.check}: every shard is as it was made")
        if problems:
            raise UserError(f"{len(problems)} problem(s) in {config.check}", exit_code=1)
        return
    try:
        make_shards(config)
    except KeyboardInterrupt:
        raise UserError(f"stopped: finished shards are in {config.out}, the same command goes on after them",
                        exit_code=130) from None
    except OSError as e:  # of a disk that fills up between two shards, say
        raise UserError(f"{e.filename or config.out}: {e.strerror or e}: finished shards stay; the same command goes "
                        f"on")


if __name__ == "__main__":
    run_program(main)
