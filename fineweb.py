"""
From any corpus to token shards for train_gpt2.py.

    python fineweb.py                                     # FineWeb-Edu: 100 shards, 20 GB
    python fineweb.py --max_shards=3                      # a taste; a larger number later goes on
    HF_ENDPOINT=https://hf-mirror.com python fineweb.py   # where huggingface.co cannot be reached
    python fineweb.py --files='data/*.jsonl' --out=shards # your own .txt, .jsonl(.gz), .parquet
    python fineweb.py --files=book.txt --tokenizer=bpe:8000 --out=shards
    python fineweb.py --name=sample-350BT --part=3/8      # the third of eight machines
    python fineweb.py --check=shards                      # is every byte what it was?

Every document starts with <|endoftext|>. Shards are flat .npy arrays of uint16 (uint32 for
vocabularies over 65,536); shard 0 is validation, the last one holds what remains. meta.json beside
them says what they were made from, with which tokenizer, and how far the work has come.

Killed at any moment, the same command goes on after the last finished shard, and the shards are
byte for byte those of an undisturbed run.

Contents, in the order in which a document passes through
    1 the settings    ShardConfig
    2 rows            list_files, load_hub: where the text is; read_rows, read_batches
    3 tokens          row_text, encode_batch; in_order: many at a time, and still in order
    4 shards          ShardWriter: when a shard is full, it is written, and then meta.json
    5 the program     make_shards: what is there, what is missing; report, main
"""
import contextlib
import functools
import glob
import gzip
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import urllib.error
import urllib.request
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from support.console import UserError, one_line, print_beside_bar, print_here, run_program
from support.settings import check_least, check_most, parse
from support.shards import (check_directory, check_unmodified, count, describe_work, find_meta,
                            has_all, is_complete, last_modified, lock_part, meta_tokenizer,
                            new_meta, remove_abandoned, remove_half_written_shards, shard_name,
                            summary, write_meta, write_shard)
from support.tokenizer import make_tokenizer, read_text


# --------------------------------------------------------------------------------------------------
# 1 the settings

# what a thread gets at a time: enough that handing it over costs nothing, and soon done
BATCH_BYTES = 256_000
# so much may wait for its turn: a second or two of work for two cores
AHEAD_BYTES = 32_000_000
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class ShardConfig:
    # the corpus: a dataset, or files
    dataset: str = "HuggingFaceFW/fineweb-edu"  # on the Hugging Face hub, or a directory
    name: str = "sample-10BT"  # a part of it: sample-350BT, CC-MAIN-2024-10 (a crawl), ...
    stream: bool = True  # read it as it arrives; --no-stream: download it first, 50 GB
    files: str = ""  # local files instead, 'data/*.jsonl': .txt, .jsonl, .jsonl.gz, .parquet
    text_key: str = "text"  # where a row keeps its text
    strict: bool = False  # end at a malformed row, which is otherwise skipped and counted
    # the shards
    tokenizer: str = "gpt2"  # gpt2, char, bpe:8000, a tokenizer.json, or a name on the hub
    out: str = "edu_fineweb10B"  # the directory for the shards and meta.json
    shard_size: int = 100_000_000  # tokens in a shard: 200 MB
    max_shards: int = 0  # stop after this many; 0: the whole corpus
    val_tokens: int = 0  # validation tokens if the corpus is under two shards; 0: a tenth
    # the work
    part: str = "1/1"  # k/n: make the k-th of n parts, each perhaps on a machine of its own
    workers: int = 0  # threads that tokenize; 0: one for each core
    check: str = ""  # make nothing, verify every byte of the shards in this directory


def check_config(config):
    """UserError for values that cannot work -> k, n of --part=k/n"""
    check_least(config, 1, "shard_size")
    check_least(config, 0, "max_shards", "val_tokens", "workers")
    check_most(config, 2**32, "shard_size")
    check_most(config, 1024, "workers")
    part = re.fullmatch(r"(\d{1,5})/(\d{1,5})", config.part)
    k, n = (int(part[1]), int(part[2])) if part else (0, 0)
    if not 1 <= k <= n:
        raise UserError(f"--part={config.part}: the third of eight is --part=3/8")
    if config.max_shards == 1 and k == 1:
        raise UserError("--max_shards=1: the first shard is validation, there would be none to "
                        "train on: try --max_shards=2")
    return k, n


# --------------------------------------------------------------------------------------------------
# 2 rows: a corpus is a list of pieces (files, or pieces of a dataset), a piece a series of rows

@dataclass
class Batch:
    """Some rows of a piece, and what becomes of them: what a thread works on at a time."""
    piece: int     # the number of the piece
    row: int       # the number of the first row
    name: str      # the path of the file, or "piece 3 of the dataset"
    share: float   # of the corpus that is read up to the end of this batch
    rows: list     # texts (str or bytes), or lines of .jsonl (bytes)
    size: int      # of these, in bytes
    texts: list = field(default_factory=list)
    text_size: int = 0  # of these in UTF-8, in bytes
    mended: int = 0     # how many had invalid Unicode, now U+FFFD
    skipped: list = field(default_factory=list)  # a line for each row without a text: where, why
    tokens: np.ndarray | None = None  # <|endoftext|>, a document, <|endoftext|>, a document, ...


def list_files(pattern):
    """The regular files that a glob pattern means -> sorted paths"""
    pattern = os.path.expanduser(pattern)
    found = [pattern]  # a file that is there is meant as it is called, a[1].jsonl, say
    if not os.path.exists(pattern):
        found = glob.glob(pattern, recursive=True)
    paths = sorted(path for path in found if os.path.isfile(path))
    if not paths:
        raise UserError(f"--files={pattern}: there is no such file")
    for path in paths:
        if not path.endswith(SUFFIXES):
            raise UserError(f"--files={pattern}: {path} is none of {', '.join(SUFFIXES)}")
    return paths


def load_hub(config):
    """The dataset as a list of pieces: its files where it is streamed, else ranges of rows."""
    from datasets import load_dataset
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        if config.stream and not os.path.exists(config.dataset):
            # without a network the library would try six times, for half a minute
            with contextlib.suppress(urllib.error.HTTPError):  # it answers: that will do
                urllib.request.urlopen(hub, timeout=30).close()
        name = config.name if config.name else None
        data = load_dataset(config.dataset, name=name, split="train", streaming=config.stream)
    except Exception as e:  # no network, no such dataset, no space: each has its own exception
        raise UserError(f"cannot load {config.dataset} {config.name} from {hub} ({one_line(e)}): "
                        "set HF_ENDPOINT to a mirror, or take text of your own with "
                        "--files='data/*.jsonl'")
    n = data.num_shards if config.stream else min(1000, max(1, len(data)))
    return [data.shard(num_shards=n, index=i, contiguous=True) for i in range(n)]


def from_library(rows):
    """
    Yield what a library's iterator yields. Each library has exceptions of its own for what is
    damaged, gone, or not answered: they become OSError. Our own code is not in here.
    """
    rows = iter(rows)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except ModuleNotFoundError:  # a package is missing: run_program names it
            raise
        except Exception as e:  # the library's
            raise OSError(one_line(e)) from e
        yield row


def read_rows(piece, start, text_key):
    """
    Yield the rows of a piece from row `start` on, each with the share of the piece read so far:
    (share, text), str or bytes; for .jsonl (share, line), bytes.
    """
    if not isinstance(piece, str):
        for row in from_library(piece.skip(start)):
            yield 0.0, row.get(text_key)  # a dataset does not tell how many there are
    elif piece.endswith(".parquet"):
        yield from read_parquet(piece, start, text_key)
    elif piece.endswith(".txt"):
        if start == 0:  # there is one row only
            yield 1.0, read_text(piece)
    else:
        size = os.path.getsize(piece)
        with open(piece, "rb") as f:
            lines = gzip.open(f) if piece.endswith(".gz") else f
            for line in from_library(itertools.islice(lines, start, None)):
                yield f.tell() / size, line


def read_parquet(path, start, text_key):
    """The same of a .parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    # pre_buffer would hold a whole row group in memory
    try:
        f = pq.ParquetFile(path, pre_buffer=False)
    except (OSError, pa.ArrowException) as e:
        raise OSError(one_line(e)) from e
    with f:
        columns = f.schema_arrow.names
        if text_key not in columns:
            raise UserError(f"{path} has no column {text_key!r}: with --text_key choose one of "
                            f"{', '.join(columns)}")
        groups = list(range(f.num_row_groups))
        row = 0
        while groups and row + f.metadata.row_group(groups[0]).num_rows <= start:
            row += f.metadata.row_group(groups.pop(0)).num_rows  # skipped unread
        for table in from_library(f.iter_batches(1000, row_groups=groups, columns=[text_key])):
            # as bytes: what is not UTF-8 is mended where all texts are, in row_text
            for text in table.column(0).cast(pa.large_binary()).to_pylist():
                if row >= start:
                    yield row / f.metadata.num_rows, text
                row += 1


def read_batches(pieces, first, start, text_key):
    """
    Yield the rows from row `start` of the piece `first` on, in batches of about BATCH_BYTES that
    end where a piece ends. A piece that breaks off, like a truncated .gz, ends the program.
    """
    for i in range(first, len(pieces)):
        name = pieces[i] if isinstance(pieces[i], str) else f"piece {i} of the dataset"
        rows, size = [], 0
        try:
            for share, row in read_rows(pieces[i], start, text_key):
                rows.append(row)
                if isinstance(row, (str, bytes)):  # a dataset may hold anything under text_key
                    size += len(row)
                if size >= BATCH_BYTES:
                    yield Batch(i, start, name, (i + share) / len(pieces), rows, size)
                    start += len(rows)
                    rows, size = [], 0
        except OSError as e:  # damaged, gone, the network
            advice = "finished shards stay; the same command goes on after them"
            if isinstance(pieces[i], str):  # damage does not go away by itself
                advice = "if it is damaged, get it again"
            raise UserError(f"cannot read {name} after row {start + len(rows)} ({e}): {advice}")
        if rows:
            yield Batch(i, start, name, (i + 1) / len(pieces), rows, size)
        start = 0


# --------------------------------------------------------------------------------------------------
# 3 tokens: a row -> its text -> its tokens

# halves of surrogate pairs, which JSON can spell and UTF-8 cannot: no characters at all
SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def row_text(row, is_json, text_key):
    """
    A row -> its text, how many bytes that is in UTF-8, and whether anything in it was no Unicode
    and is U+FFFD now. Raises ValueError where there is no text.
    """
    mended = False
    if isinstance(row, bytes):
        try:
            row = row.decode()
        except UnicodeDecodeError:
            row = row.decode(errors="replace")
            mended = True
    if is_json:
        if row.lstrip("\ufeff \t").startswith("["):
            raise ValueError("a JSON array, where each line must be an object of its own")
        try:
            # not strict: control characters may stand there bare
            row = json.loads(row.removeprefix("\ufeff"), strict=False)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        row = row.get(text_key) if isinstance(row, dict) else None
    if not isinstance(row, str):
        raise ValueError(f"no text under {text_key!r}")
    try:
        size = len(row.encode())
    except UnicodeEncodeError:
        row = row.translate(SURROGATES)
        size = len(row.encode())
        mended = True
    return row, size, mended


def parse_batch(batch, text_key):
    """The rows of a Batch -> its texts."""
    is_json = batch.name.endswith((".jsonl", ".jsonl.gz"))
    for number, row in enumerate(batch.rows, batch.row + 1):
        if is_json and not row.strip():
            continue  # an empty line, as at the end of many files
        try:
            text, size, mended = row_text(row, is_json, text_key)
        except ValueError as e:
            batch.skipped.append(f"{batch.name}, line {number}: {e}")
            continue
        batch.texts.append(text)
        batch.text_size += size
        batch.mended += mended
    batch.rows = []  # batches wait in memory for their turn: what is no longer needed is dropped
    return batch


def encode_batch(batch, tokenizer, dtype, text_key):
    """The rows of a Batch -> its tokens: each document after an <|endoftext|>."""
    parse_batch(batch, text_key)
    encoded = tokenizer.encode_batch(batch.texts)
    batch.texts = []
    batch.tokens = np.empty(sum(1 + len(ids) for ids in encoded), dtype=dtype)
    end = 0
    for ids in encoded:
        batch.tokens[end] = tokenizer.eot
        batch.tokens[end + 1 : end + 1 + len(ids)] = ids
        end += 1 + len(ids)
    return batch


def in_order(function, batches, workers):
    """
    Like map(function, batches), by threads, and only a bit ahead. Threads are enough: the
    tokenizers are written in Rust and let go of Python's lock while they work. So nothing is
    copied, and it is the same on every system.
    """
    pool = ThreadPoolExecutor(workers)
    waiting = deque()
    ahead = 0  # bytes of the batches in waiting
    try:
        for batch in batches:
            waiting.append((batch.size, pool.submit(function, batch)))
            ahead += batch.size
            # enough for the threads to go on with while a shard is hashed and flushed to the disk
            while ahead > AHEAD_BYTES and len(waiting) > workers:
                size, future = waiting.popleft()
                ahead -= size
                yield future.result()
        while waiting:
            _, future = waiting.popleft()
            yield future.result()
    finally:
        # after Ctrl-C nobody waits for what is queued
        pool.shutdown(wait=False, cancel_futures=True)


# --------------------------------------------------------------------------------------------------
# 4 shards

class ShardWriter:
    """
    Takes the tokens of a corpus in order, batch by batch, and cuts them into shards.

    Tokens come together in a buffer. When it is full it becomes a shard, and meta.json says how
    far we are: its "position" is a piece, a row in it, and how many tokens from that row on are in
    shards. Whatever stops a run, the next one reads from that row on and skips that many tokens.
    """

    def __init__(self, config, meta, tokenizer):
        self.config = config
        self.meta = meta
        self.tokenizer = tokenizer
        self.to_skip = meta["position"]["tokens"]
        # shard 0 is validation. If the corpus ends before shard 1 is full, only a tenth of it is:
        # so the buffer waits for both, and they are written together
        self.needs_validation = meta["part"][0] == 1 and not meta["shards"]
        shards = 2 if self.needs_validation else 1
        try:
            self.buffer = np.empty(shards * config.shard_size, meta["dtype"])
        except MemoryError as e:
            raise UserError(f"--shard_size={config.shard_size} is too large for the memory here "
                            f"({e}): try --shard_size={ShardConfig.shard_size}")
        self.filled = 0
        # no bar (None) where the output is a file or a pipe
        self.bar = tqdm(desc=config.out, initial=meta["tokens"], unit="tok", unit_scale=True,
                        disable=None)

    def is_finished(self):
        return has_all(self.meta, self.config.max_shards)

    def add(self, batch):
        """The tokens of the next Batch -> the buffer, and a full buffer -> a shard."""
        done = min(self.to_skip, len(batch.tokens))
        self.to_skip -= done
        while done < len(batch.tokens) and not self.is_finished():
            free = len(self.buffer) - self.filled
            part = batch.tokens[done : done + free]
            self.buffer[self.filled : self.filled + len(part)] = part
            self.filled += len(part)
            done += len(part)
            self.show_progress(len(part), batch.share)
            if self.filled == len(self.buffer):
                self.save_buffer()
                self.save_meta(batch.piece, batch.row, done)
        # after the last shard the next run reads this batch again, and counts it then
        if not self.is_finished():
            self.meta["bytes"] += batch.text_size
            self.meta["mended"] += batch.mended
            self.meta["skipped"] += len(batch.skipped)

    def finish(self, pieces):
        """The corpus, which has that many pieces, has ended: what remains is the last shard."""
        if self.filled > 0 or not self.meta["shards"]:  # save_buffer refuses an empty corpus
            self.save_buffer()
        self.meta["done"] = True
        self.save_meta(pieces, 0, 0)

    def save_buffer(self):
        """What is in the buffer -> a shard; the first time two, validation and train."""
        tokens = self.buffer[: self.filled]
        shard_size = self.config.shard_size
        if self.needs_validation:
            val_tokens = self.count_val_tokens(len(tokens))
            self.save_shard(tokens[:val_tokens])
            tokens = tokens[val_tokens:]
            self.needs_validation = False
        for start in range(0, len(tokens), shard_size):
            self.save_shard(tokens[start : start + shard_size])
        self.buffer = self.buffer[:shard_size]
        self.filled = 0

    def count_val_tokens(self, n):
        """How many of n tokens are validation? n: two full shards, or a smaller corpus."""
        shard_size, val_tokens = self.config.shard_size, self.config.val_tokens
        if n == 2 * shard_size:
            return shard_size
        if val_tokens == 0:
            val_tokens = max(1, n // 10)
        val_tokens = min(val_tokens, shard_size)
        if val_tokens >= n:
            raise UserError(f"a corpus of {n} tokens has none left to train on, with {val_tokens} "
                            "for validation")
        return val_tokens

    def save_shard(self, tokens):
        """Write the next shard, and note it in self.meta."""
        meta = self.meta
        finished = len(meta["shards"])
        name = shard_name(*meta["part"], finished)
        path = os.path.join(self.config.out, name)
        try:
            sha256 = write_shard(path, tokens)
        except OSError as e:
            raise UserError(f"cannot write {path}, {tokens.nbytes / 1e6:,.1f} MB ({e.strerror}): "
                            f"{finished} finished shards stay; make room and run the same command "
                            "again")
        documents = count(tokens, meta["eot"])
        meta["shards"].append({"name": name, "tokens": len(tokens), "sha256": sha256,
                               "documents": documents})
        meta["tokens"] += len(tokens)
        meta["documents"] += documents
        print_beside_bar(f"{path}: {len(tokens):,} tokens, {documents:,} documents begin in it")

    def save_meta(self, piece, row, tokens):
        """Write meta.json, which speaks of a shard only after it is on the disk."""
        self.meta["position"] = {"piece": piece, "row": row, "tokens": tokens}
        write_meta(self.config.out, self.meta, self.tokenizer)

    def show_progress(self, tokens, share):
        """More tokens, and the share of the corpus that is read -> the progress bar."""
        self.bar.update(tokens)
        if share > 0:
            self.bar.total = self.bar.n / share
            if self.config.max_shards > 0:
                limit = self.config.max_shards * self.config.shard_size
                self.bar.total = min(self.bar.total, limit)


# --------------------------------------------------------------------------------------------------
# 5 the program

def choose_tokenizer(config, pieces):
    """
    char and bpe:N come from the whole corpus, not from one part: so machines that know nothing of
    each other make the same one.
    """
    if config.tokenizer == "char" or config.tokenizer.startswith("bpe:"):
        print_here(f"first, the tokenizer {config.tokenizer} is made from the corpus")
    batches = read_batches(pieces, 0, 0, config.text_key)
    # a generator: nothing is read unless the tokenizer asks for it
    texts = (text for batch in batches for text in parse_batch(batch, config.text_key).texts)
    return make_tokenizer(config.tokenizer, texts)


def check_space(config, meta, files):
    """
    UserError if the disk has no room for what is missing. Its tokens are estimated, rather too low
    than too high, from the sizes of the files or the name of the dataset.
    """
    tokens = 0
    if files is not None:
        bytes_a_token = 3 if config.tokenizer == "char" else 6
        for path in files:
            unpacked = 2 if path.endswith((".gz", ".parquet")) else 1  # times its size
            tokens += unpacked * os.path.getsize(path) / bytes_a_token
    elif billions := re.search(r"(\d+)BT", config.name):
        tokens = int(billions[1]) * 1e9
    tokens /= meta["part"][1]
    if config.max_shards > 0:
        tokens = min(tokens, config.max_shards * config.shard_size)
    need = np.dtype(meta["dtype"]).itemsize * (tokens - meta["tokens"])
    free = shutil.disk_usage(config.out).free
    if need > free:
        raise UserError(f"the shards will take about {need / 1e6:,.1f} MB, {config.out} has "
                        f"{free / 1e6:,.1f} MB free: choose another --out, or fewer shards with "
                        "--max_shards")


def make_shards(config):
    """Make the shards that are missing, or say that none are."""
    k, n = check_config(config)
    config = replace(config, workers=config.workers or os.cpu_count())
    files = list_files(config.files) if config.files else None
    settings = describe_work(config, files)
    meta = find_meta(config.out, settings, k, n)
    if meta and is_complete(meta, config.max_shards):
        report(config, meta, "everything is there already: ")
        return
    with lock_part(config.out, k, n):
        make_missing_shards(config, files, settings, k, n)


def make_missing_shards(config, files, settings, k, n):
    """The same when something is missing, and nobody else writes to the directory."""
    # once more: another run may have ended since we looked
    meta = find_meta(config.out, settings, k, n)
    remove_abandoned(config.out, settings, k, n)  # what a run without a single shard has left
    remove_half_written_shards(config.out, k, n)
    pieces = load_hub(config) if files is None else files
    if len(pieces) < n:
        raise UserError(f"--part={config.part}: parts are whole input files, of which there are "
                        f"{len(pieces)}: try --part=1/{len(pieces)}")
    if meta:
        check_unmodified(config.out, meta, files)
        tokenizer = meta_tokenizer(config.out, meta)
    else:
        tokenizer = choose_tokenizer(config, pieces)
        meta = new_meta(settings, k, n, tokenizer, last_modified(files))
    meta["max_shards"] = config.max_shards
    check_space(config, meta, files)
    writer = ShardWriter(config, meta, tokenizer)
    write_meta(config.out, meta, tokenizer)
    mine = pieces[len(pieces) * (k - 1) // n : len(pieces) * k // n]
    fill_shards(config, writer, mine)
    report(config, meta, "")


def fill_shards(config, writer, pieces):
    """All sections at work: the pieces of this part, from where the last run stopped -> shards"""
    meta = writer.meta
    start = meta["position"]
    batches = read_batches(pieces, start["piece"], start["row"], config.text_key)
    encode = functools.partial(encode_batch, tokenizer=writer.tokenizer, dtype=meta["dtype"],
                               text_key=config.text_key)
    with writer.bar:
        for batch in in_order(encode, batches, config.workers):
            nothing_yet = len(batch.tokens) == 0 and meta["bytes"] == 0
            report_skipped(batch.skipped, config.strict, nothing_yet)
            writer.add(batch)
            check_length(config, meta["bytes"], meta["tokens"] + writer.filled)
            if writer.is_finished():
                return
        writer.finish(len(pieces))


def check_length(config, size, tokens):
    """
    UserError if a token stands for a hundred bytes of the corpus. English has about four a token;
    with a hundred, whole documents have become tokens, and there is nothing to learn in between.
    """
    if size > 1000 and size > 100 * tokens:
        raise UserError(f"--tokenizer={config.tokenizer} makes {tokens:,} tokens of {size:,} "
                        "bytes, whole documents in one token: choose a smaller bpe:N, char, or "
                        "gpt2")


def report_skipped(skipped, strict, nothing_yet):
    """
    Name the rows without a text. With --strict the first one ends the run, and so it does where no
    row has had a text so far.
    """
    if skipped and strict:
        raise UserError(f"{skipped[0]}: repair it, or leave out --strict to skip it")
    if skipped and nothing_yet:
        raise UserError(f"{skipped[0]}, as in every row so far: is --text_key right?")
    for line in skipped:
        print_beside_bar(f"skipped: {line}", sys.stderr)


def report(config, meta, what):
    """What there is now, and what to type next."""
    print_here(what + summary(meta))
    n = meta["part"][1]
    if n > 1:
        print_here(f"next, when all {n} parts are in one directory: python fineweb.py "
                   f"--check={shlex.quote(config.out)}")
        return
    command = "python train_gpt2.py"
    is_small = meta["tokens"] < 50e6
    if is_small or config.out != ShardConfig.out:  # the preset would take input.txt
        command += f" --data_root={shlex.quote(config.out)}"
    if is_small:
        command += " --preset=laptop"
    print_here(f"next: {command}")


def main(argv):
    # --name= is a dataset without parts
    config = ShardConfig(**parse(argv, __doc__, ShardConfig, may_be_empty=("name",)))
    if config.check:
        problems = check_directory(config.check)
        if problems:
            print("\n".join(problems))
            raise UserError(f"{len(problems)} problem(s) in {config.check}", exit_code=1)
        print(f"{config.check}: every shard is as it was made")
        return
    try:
        make_shards(config)
    except KeyboardInterrupt:
        raise UserError(f"stopped: finished shards are in {config.out}, the same command goes on "
                        "after them", exit_code=130) from None
    except OSError as e:  # of a disk that fills up between two shards, say
        raise UserError(f"{one_line(e)}: finished shards stay; the same command goes on")


if __name__ == "__main__":
    run_program(main)
