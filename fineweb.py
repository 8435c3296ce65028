"""
Turn documents into shards of tokens for train_gpt2.py.

    python fineweb.py                                     # FineWeb-Edu: 100 shards, 20 GB
    python fineweb.py --max_shards=3                      # a sample; a larger number adds more
    HF_ENDPOINT=https://hf-mirror.com python fineweb.py   # if huggingface.co cannot be reached
    python fineweb.py --files='data/*.jsonl' --out=shards # your own .txt, .jsonl(.gz), .parquet
    python fineweb.py --files=book.txt --tokenizer=bpe:8000 --out=shards
    python fineweb.py --name=sample-350BT --part=3/8      # the third of eight machines
    python fineweb.py --check=shards                      # verify the checksums of all shards

Every document starts with <|endoftext|>. A shard is a flat .npy array of token ids, uint16 or, for
vocabularies over 65,536 tokens, uint32. Shard 0 is for validation. meta.json, in the same
directory, records the corpus, the tokenizer and the progress.

If the program is stopped or killed, the same command continues after the last finished shard. The
shards are byte for byte the same as without an interruption.

Contents, in the order of processing
    1 settings      ShardConfig
    2 rows          list_files, load_hub, read_rows, read_batches
    3 tokens        row_text, parse_batch, encode_batch; in_order runs them in threads
    4 shards        ShardWriter
    5 the program   make_shards, report, main
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
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from support.console import UserError, one_line, print_beside_bar, print_here, run_program
from support.hub import explain_status, failures_explained, prepare, reach_dataset
from support.settings import check_least, check_most, parse, refuse_unused
from support.shard_directory import (check_directory, describe_work, find_meta, is_complete,
                                     lock_part, new_meta, shard_name, summary, write_meta,
                                     write_shard)
from support.shards import SUFFIXES, meta_tokenizer, text_pattern
from support.tokenizer import make_tokenizer, read_text

# --------------------------------------------------------------------------------------------------
# 1 settings

BATCH_BYTES = 256_000  # text that a thread tokenizes at a time
AHEAD_BYTES = 32_000_000  # text read ahead of the shards: a second or two of work for two cores
# advice if the hub cannot be reached
BY_HAND = ("copy its .parquet files into a folder data, then --files='data/*.parquet' (text of "
           "your own: --files='data/*.jsonl')")


@dataclass(frozen=True)
class ShardConfig:
    # the corpus: a dataset, or files
    dataset: str = "HuggingFaceFW/fineweb-edu"  # a dataset on the Hugging Face hub, or a directory
    name: str = "sample-10BT"  # subset of the dataset: sample-350BT, CC-MAIN-2024-10 (a crawl), ...
    stream: bool = True  # read the dataset as it arrives; --no-stream: download it first, 50 GB
    files: str = ""  # your files instead, 'data/*.jsonl': .txt, .jsonl, .jsonl.gz, .parquet
    text_key: str = "text"  # the field or column that holds the text
    strict: bool = False  # stop at a malformed row instead of skipping and counting it
    # the shards
    tokenizer: str = "gpt2"  # gpt2, char, bpe:8000, a tokenizer.json, or a name on the hub
    out: str = "edu_fineweb10B"  # the directory for the shards and meta.json
    shard_size: int = 100_000_000  # tokens per shard: 200 MB
    max_shards: int = 0  # stop after this many; 0: the whole corpus
    val_tokens: int = 0  # in shard 0, if the corpus fills less than two shards; 0: a tenth of it
    # the work
    part: str = "1/1"  # k/n: make only the k-th of n parts, such as one per machine
    workers: int = 0  # threads that tokenize; 0: one per core
    check: str = ""  # only compare the shards in this directory with their checksums


def read_part(config):
    """--part=k/n -> k, n"""
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", config.part)
    k, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= k <= n:
        raise UserError(f"--part={config.part}: the third of eight is --part=3/8")
    return k, n


def check_config(config, k):
    """UserError for values that cannot work."""
    check_least(config, 1, "shard_size")
    check_least(config, 0, "max_shards", "val_tokens", "workers")
    check_most(config, 2**32, "shard_size")
    check_most(config, 1024, "workers")
    if config.max_shards == 1 and k == 1:
        raise UserError("--max_shards=1: the first shard is for validation, none would be left to "
                        "train on: try --max_shards=2")


def check_unused(typed, config):
    """UserError for a typed flag that would have no effect beside another one."""
    if config.check:
        refuse_unused(typed, *(name for name in typed if name != "check"), where="with --check")
    if config.files:
        refuse_unused(typed, "dataset", "name", "stream", where="with --files")
    if config.files.lower().endswith(".txt"):
        refuse_unused(typed, "text_key", "strict", where=f"with --files={config.files}")


# --------------------------------------------------------------------------------------------------
# 2 rows: a corpus is a list of pieces (files, or ranges of a dataset), and a piece has many rows.
# With --part=k/n this program reads only some of the pieces

@dataclass
class Batch:
    """Consecutive rows of one piece. Threads work on one batch at a time."""
    name: str  # of the piece: the path of a file, or "piece 3 of the dataset"
    piece: int  # index of the piece, among the pieces that this program reads
    row: int  # index of the first row in the piece
    rows: list  # texts (str or bytes); for a .jsonl file, its lines (bytes)
    size: int  # size of all rows in bytes, roughly
    progress: float  # share of the pieces read after this batch, 0 to 1


def list_files(pattern):
    """--files, a path or a glob pattern -> sorted paths"""
    if os.path.isdir(pattern):
        # a pattern for the text files in the directory, quoted for the shell
        files = text_pattern(pattern) or shlex.quote(os.path.join(pattern, "*.txt"))
        raise UserError(f"{pattern} is a directory: python fineweb.py --files={files}")
    found = [pattern]  # a file name such as a[1].jsonl is a pattern too
    if not os.path.exists(pattern):
        found = glob.glob(pattern, recursive=True)
    paths = sorted(path for path in found if os.path.isfile(path))
    if not paths:
        raise UserError(f"--files={pattern}: there is no such file")
    for path in paths:
        if not path.lower().endswith(SUFFIXES):
            raise UserError(f"--files={pattern}: {path} is none of {', '.join(SUFFIXES)}")
    return paths


def load_hub(config):
    """The dataset -> list of pieces: its files if it is streamed, else ranges of rows"""
    prepare()
    from datasets import load_dataset
    name = config.name or None
    is_remote = not os.path.exists(config.dataset)
    with failures_explained(f"{config.dataset} {config.name}".strip(), BY_HAND):
        if config.stream and is_remote:
            reach_dataset(config.dataset, name)
        try:
            data = load_dataset(config.dataset, name=name, split="train", streaming=config.stream)
        except Exception:  # many kinds: no network, no such dataset, no space
            if is_remote:  # --no-stream: only now, since a cached dataset needs no network
                reach_dataset(config.dataset, name)
            raise
    # datasets calls a piece a shard: a file if streamed, a range of rows if downloaded
    n = data.num_shards if config.stream else min(1000, max(1, len(data)))
    return [data.shard(num_shards=n, index=i, contiguous=True) for i in range(n)]


def from_library(rows):
    """
    Yield the items of a library's iterator. Libraries raise many kinds of exceptions when a file is
    damaged or a connection breaks. Each becomes an OSError here, which read_batches catches.
    """
    rows = iter(rows)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as e:  # whatever the library raises
            raise OSError(explain_status(e) or one_line(e)) from e
        yield row


def text_rows(path, one_text):
    """
    A .txt file -> list of rows. The whole file is one document, so one row. If the file is the
    whole corpus (one_text), there are two rows: its last tenth, which becomes shard 0, and the
    rest. train_gpt2.py splits a text in the same way, so a run on the text and a run on its shards
    can be compared.
    """
    text = read_text(path)
    if not one_text:
        return [text]
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # as train_gpt2.py does
    cut = int(0.9 * len(text))
    return [text[cut:], text[:cut]]


def read_rows(piece, start, text_key, one_text):
    """
    Yield (progress, row) for each row of a piece from index `start` on. progress: share of
    the piece read so far, 0 to 1; row: see Batch.rows; one_text: see text_rows
    """
    if not isinstance(piece, str):
        for row in from_library(piece.skip(start)):
            yield 0.0, row.get(text_key)  # a streamed dataset does not know its number of rows
    elif piece.lower().endswith(".parquet"):
        yield from read_parquet(piece, start, text_key)
    elif piece.lower().endswith(".txt"):
        for row in text_rows(piece, one_text)[start:]:
            yield 1.0, row
    else:
        size = os.path.getsize(piece)
        with open(piece, "rb") as f:
            lines = gzip.open(f) if piece.lower().endswith(".gz") else f
            for line in from_library(itertools.islice(lines, start, None)):
                yield f.tell() / size, line  # f, not lines: the position in the compressed file


def read_parquet(path, start, text_key):
    """read_rows for a .parquet file"""
    import pyarrow as pa
    import pyarrow.parquet as pq
    try:
        f = pq.ParquetFile(path, pre_buffer=False)  # True would load whole row groups
    except pa.ArrowException as e:
        raise OSError(one_line(e)) from e
    with f:
        columns = f.schema_arrow.names
        if text_key not in columns:
            raise UserError(f"{path} has no column {text_key!r}: with --text_key choose one of "
                            f"{', '.join(columns)}")
        row = 0
        for table in from_library(f.iter_batches(1000, columns=[text_key])):
            column = table.column(0)
            # as bytes, since row_text repairs bad UTF-8. A column of numbers or lists stays as it
            # is, and row_text will reject its rows
            with contextlib.suppress(pa.ArrowNotImplementedError):
                column = column.cast(pa.large_binary())
            for text in column.to_pylist():
                if row >= start:
                    yield row / f.metadata.num_rows, text
                row += 1


def read_batches(pieces, first_piece, first_row, text_key, one_text):
    """
    Yield batches of about BATCH_BYTES, beginning at row `first_row` of piece `first_piece`. A batch
    ends where its piece ends. one_text: see text_rows. UserError if a piece cannot be read to its
    end.
    """
    row = first_row  # index of the first row of the batch
    for i in range(first_piece, len(pieces)):
        name = pieces[i] if isinstance(pieces[i], str) else f"piece {i} of the dataset"
        rows, size = [], 0
        try:
            for progress, text in read_rows(pieces[i], row, text_key, one_text):
                rows.append(text)
                # a row that is not a text will be rejected; it counts as 100 bytes
                size += len(text) if isinstance(text, (str, bytes)) else 100
                if size >= BATCH_BYTES:
                    yield Batch(name, i, row, rows, size, (i + progress) / len(pieces))
                    row += len(rows)
                    rows, size = [], 0
        except OSError as e:
            advice = "finished shards stay; run the same command again to continue"
            if isinstance(pieces[i], str):  # a file: the same command would stop there again
                advice = "if it is damaged, get it again"
            raise UserError(f"cannot read {name} after row {row + len(rows)} ({e}): {advice}")
        if rows:
            yield Batch(name, i, row, rows, size, (i + 1) / len(pieces))
        row = 0


# --------------------------------------------------------------------------------------------------
# 3 tokens: a row -> its text -> its tokens

# lone surrogates: JSON can spell them, but they are not characters, and UTF-8 cannot encode them
SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


@dataclass
class Documents:
    """The texts of a batch."""
    texts: list
    size: int  # in bytes of UTF-8
    mended: int  # number of texts with invalid Unicode, now replaced by U+FFFD
    skipped: list  # one message for each row without a text: where it is, what is wrong


def row_text(row, is_json, text_key):
    """
    A row -> its text, and whether it had invalid Unicode (now replaced by U+FFFD). The text is None
    if the row is a blank line of a .jsonl file. ValueError if the row has no text.
    """
    text, mended = row, False
    if isinstance(row, bytes):
        text = row.decode(errors="replace")  # bad UTF-8 becomes U+FFFD
        mended = text.encode() != row
    if is_json:
        line = text.removeprefix("\ufeff").strip()  # a byte order mark, as Windows writes
        if not line:
            return None, False
        text = json_text(line, text_key)
    if not isinstance(text, str):
        raise ValueError(f"no text under {text_key!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.translate(SURROGATES), True
    return text, mended


def json_text(line, text_key):
    """A line of a .jsonl file -> the value under text_key, or None. ValueError for bad JSON"""
    if line.startswith("["):
        raise ValueError("a JSON array, but each line must be an object")
    values = json.loads(line, strict=False)  # allows control characters inside strings
    return values.get(text_key) if isinstance(values, dict) else None


def parse_batch(batch, text_key):
    """Batch -> Documents"""
    documents = Documents(texts=[], size=0, mended=0, skipped=[])
    is_json = batch.name.lower().endswith((".jsonl", ".jsonl.gz"))
    for number, row in enumerate(batch.rows, batch.row + 1):
        try:
            text, mended = row_text(row, is_json, text_key)
        except (ValueError, RecursionError) as e:  # RecursionError: 100,000 brackets
            documents.skipped.append(f"{batch.name}, line {number}: {e}")
            continue
        if text is not None:
            documents.texts.append(text)
            documents.size += len(text.encode())
            documents.mended += mended
    return documents


def encode_batch(batch, tokenizer, dtype, text_key):
    """Batch -> batch, documents, tokens: <|endoftext|>, a document, <|endoftext|>, ..."""
    documents = parse_batch(batch, text_key)
    encoded = tokenizer.encode_batch(documents.texts)
    tokens = np.empty(sum(1 + len(ids) for ids in encoded), dtype=dtype)
    end = 0
    for ids in encoded:
        tokens[end] = tokenizer.eot
        tokens[end + 1 : end + 1 + len(ids)] = ids
        end += 1 + len(ids)
    # the result may wait in in_order's queue: free the texts, which are no longer needed
    batch.rows, documents.texts = [], []
    return batch, documents, tokens


def in_order(function, batches, workers):
    """
    map(function, batches) in threads, with results in the order of the batches. Threads are enough:
    the tokenizers are written in Rust and release Python's lock while they work.
    """
    pool = ThreadPoolExecutor(workers)
    waiting = deque()  # (size of the batch, its future result)
    try:
        for batch in batches:
            waiting.append((batch.size, pool.submit(function, batch)))
            # The queue keeps the threads busy while a shard is written. It holds AHEAD_BYTES, or
            # one batch per thread if that is more
            while sum(size for size, _ in waiting) > AHEAD_BYTES and len(waiting) > workers:
                _, future = waiting.popleft()
                yield future.result()
        while waiting:
            _, future = waiting.popleft()
            yield future.result()
    finally:
        # after Ctrl-C, or if the caller has enough shards: drop the queue
        pool.shutdown(wait=False, cancel_futures=True)


# --------------------------------------------------------------------------------------------------
# 4 shards

class ShardWriter:
    """
    Takes the tokens of the corpus batch by batch, in order, and cuts them into shards.

    Tokens collect in a buffer. A full buffer is written as a shard, then meta.json records the
    position in the corpus: a piece, a row, and how many tokens from that row on are in shards. A
    later run starts reading at that row and skips that many tokens.

    meta is the contents of meta.json: part [k, n], shards, position, done, and counts (documents,
    tokens, bytes, mended, skipped); support/shard_directory.py creates it.
    """

    def __init__(self, config, meta, tokenizer, one_text):
        self.config = config
        self.meta = meta
        self.tokenizer = tokenizer
        self.one_text = one_text  # see text_rows
        self.to_skip = meta["position"]["tokens"]
        # Shard 0 is for validation. It is smaller, a tenth of the tokens, if the corpus fills less
        # than two shards. To find that out, the buffer first collects two shards.
        self.needs_validation = meta["part"][0] == 1 and not meta["shards"]
        shards = 2 if self.needs_validation else 1
        self.buffer = np.empty(shards * config.shard_size, meta["dtype"])
        self.filled = 0
        self.bar = tqdm(desc=config.out, initial=meta["tokens"], unit="tok", unit_scale=True,
                        disable=None)  # None: no bar if stderr is a file or a pipe

    def has_enough(self):
        """Is the corpus finished, or are there as many shards as --max_shards allows?"""
        return is_complete(self.meta, self.config.max_shards)

    def add(self, batch, documents, tokens):
        """Put the tokens of a batch into the buffer, and write it whenever it is full."""
        if self.filled == 0 and not self.meta["shards"]:
            # The first batch was read without an error. Write meta.json now: it has to be there if
            # this run is killed after its first shard
            self.save_meta(0, 0, 0)
        used = min(self.to_skip, len(tokens))  # tokens[:used] are in shards or in the buffer
        self.to_skip -= used
        while used < len(tokens) and not self.has_enough():
            chunk = tokens[used : used + len(self.buffer) - self.filled]
            self.buffer[self.filled : self.filled + len(chunk)] = chunk
            self.filled += len(chunk)
            used += len(chunk)
            self.show_progress(len(chunk), batch.progress)
            if self.filled == len(self.buffer):
                self.save_buffer()
                self.save_meta(batch.piece, batch.row, used)
        # Counted after save_meta, and not if this run ends here: the run that continues reads this
        # batch again, and counts it then
        if not self.has_enough():
            self.meta["bytes"] += documents.size
            self.meta["mended"] += documents.mended
            self.meta["skipped"] += len(documents.skipped)

    def finish(self, num_pieces):
        """At the end of the corpus: write what is left in the buffer as the last shard."""
        if self.meta["bytes"] == 0:
            raise UserError("the corpus has no text")
        if self.filled > 0:
            self.save_buffer()
        self.meta["done"] = True
        self.save_meta(num_pieces, 0, 0)

    def save_buffer(self):
        """Write the buffer as a shard; the first time as validation and train shards."""
        tokens = self.buffer[: self.filled]
        shard_size = self.config.shard_size
        if self.needs_validation:
            val_tokens = self.count_val_tokens(len(tokens))
            self.save_shard(tokens[:val_tokens])
            tokens = tokens[val_tokens:]
            self.needs_validation = False
        for start in range(0, len(tokens), shard_size):
            self.save_shard(tokens[start : start + shard_size])
        self.buffer = self.buffer[:shard_size]  # from now on one shard at a time
        self.filled = 0

    def count_val_tokens(self, n):
        """How many of the first n tokens (two full shards or a smaller corpus) are validation"""
        shard_size, val_tokens = self.config.shard_size, self.config.val_tokens
        if self.one_text and val_tokens == 0:  # the first document is the text's last tenth
            documents = np.flatnonzero(self.buffer[:n] == self.meta["eot"])
            val_tokens = int(documents[1]) if len(documents) > 1 else n
            if val_tokens > shard_size:
                raise UserError(f"--shard_size={shard_size} is less than the validation tenth of "
                                f"this text: try --shard_size={10 * val_tokens}")
        elif n == 2 * shard_size:
            return shard_size
        if val_tokens == 0:
            val_tokens = max(1, n // 10)
        val_tokens = min(val_tokens, shard_size)
        if val_tokens >= n:
            raise UserError(f"the corpus has only {n} tokens, and {val_tokens} are for validation: "
                            "none are left to train on")
        return val_tokens

    def save_shard(self, tokens):
        """Write the next shard, and add it to self.meta."""
        meta = self.meta
        finished = len(meta["shards"])
        name = shard_name(*meta["part"], finished)
        path = os.path.join(self.config.out, name)
        try:
            sha256 = write_shard(path, tokens)
        except OSError as e:
            raise UserError(f"cannot write {path}, {tokens.nbytes / 1e6:,.1f} MB "
                            f"({e.strerror or e}): {finished} finished shards stay; make room and "
                            "run the same command again")
        documents = int(np.count_nonzero(tokens == meta["eot"]))
        meta["shards"].append({"name": name, "tokens": len(tokens), "sha256": sha256,
                               "documents": documents})
        meta["tokens"] += len(tokens)
        meta["documents"] += documents
        print_beside_bar(f"{path}: {len(tokens):,} tokens, {documents:,} documents begin in it")

    def save_meta(self, piece, row, num_tokens):
        """Write meta.json. It lists a shard only after the shard is on the disk."""
        self.meta["position"] = {"piece": piece, "row": row, "tokens": num_tokens}
        write_meta(self.config.out, self.meta, self.tokenizer)

    def show_progress(self, num_tokens, progress):
        """Advance the bar. progress: share of the corpus read so far, 0 to 1"""
        self.bar.update(num_tokens)
        if progress > 0:  # this share gave bar.n tokens: estimate the total
            self.bar.total = self.bar.n / progress
            if self.config.max_shards > 0:
                limit = self.config.max_shards * self.config.shard_size
                self.bar.total = min(self.bar.total, limit)


# --------------------------------------------------------------------------------------------------
# 5 the program

def choose_tokenizer(config, pieces, one_text):
    """
    --tokenizer -> tokenizer. char and bpe:N are made from the whole corpus, not from one part, so
    that all machines get the same tokenizer.
    """
    if config.tokenizer == "char" or config.tokenizer.startswith("bpe:"):
        print_here(f"first, the tokenizer {config.tokenizer} is made from the corpus")
    batches = read_batches(pieces, 0, 0, config.text_key, one_text)
    # lazy: only char and bpe:N read the corpus, a ready-made tokenizer such as gpt2 does not
    texts = (text for batch in batches for text in parse_batch(batch, config.text_key).texts)
    return make_tokenizer(config.tokenizer, texts)


def check_space(config, meta, files):
    """
    UserError if the disk has no room for the missing shards. The number of tokens is a low
    estimate, from the sizes of the files or the name of the dataset.
    """
    tokens = 0  # unknown: then there is nothing to check
    if files is not None:
        # English has 4 to 5 bytes a token; 6 keeps the estimate low
        tokens = sum(map(os.path.getsize, files)) / 6
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
    """Make the missing shards, and print a summary."""
    k, n = read_part(config)
    check_config(config, k)
    files = list_files(config.files) if config.files else None
    settings = describe_work(config, files)
    # of an earlier run of this part, or None; UserError if that run had other settings
    meta = find_meta(config.out, settings, k, n)
    if meta and is_complete(meta, config.max_shards):
        report(config, meta, "everything is there already: ")
        return
    with lock_part(config.out, k, n):
        meta = find_meta(config.out, settings, k, n)  # again: now no other run can change it
        one_text = files is not None and len(files) == 1 and files[0].lower().endswith(".txt")
        pieces = load_hub(config) if files is None else files
        if len(pieces) < n:
            raise UserError(f"--part={config.part}: the corpus has {len(pieces)} files, and a part "
                            f"needs at least one: try --part=1/{len(pieces)}")
        if meta:
            tokenizer = meta_tokenizer(config.out, meta)
        else:
            tokenizer = choose_tokenizer(config, pieces, one_text)
            meta = new_meta(settings, k, n, tokenizer)
        meta["max_shards"] = config.max_shards  # --check asks whether this part is complete
        check_space(config, meta, files)
        mine = pieces[len(pieces) * (k - 1) // n : len(pieces) * k // n]
        fill_shards(config, ShardWriter(config, meta, tokenizer, one_text), mine)
    report(config, meta, "")


def fill_shards(config, writer, pieces):
    """Read, tokenize and write the pieces of this part, from where the last run stopped."""
    meta = writer.meta
    start = meta["position"]
    batches = read_batches(pieces, start["piece"], start["row"], config.text_key, writer.one_text)
    encode = functools.partial(encode_batch, tokenizer=writer.tokenizer, dtype=meta["dtype"],
                               text_key=config.text_key)
    with writer.bar:
        for batch, documents, tokens in in_order(encode, batches, config.workers or os.cpu_count()):
            # no text in this batch or before it: probably a wrong --text_key
            no_text_yet = len(tokens) == 0 and meta["bytes"] == 0
            report_skipped(documents.skipped, config.strict, no_text_yet)
            writer.add(batch, documents, tokens)
            if writer.has_enough():
                return
        writer.finish(len(pieces))


def report_skipped(skipped, strict, no_text_yet):
    """Print the rows that were skipped. With --strict, or if no row had a text: UserError"""
    if skipped and strict:
        raise UserError(f"{skipped[0]}: repair it, or leave out --strict to skip it")
    if skipped and no_text_yet:
        raise UserError(f"{skipped[0]}, as in every row so far: is --text_key right?")
    for line in skipped:
        print_beside_bar(f"skipped: {line}", sys.stderr)


def report(config, meta, prefix):
    """Print what is there now, and the next command."""
    print_here(prefix + summary(meta))
    n = meta["part"][1]
    if n > 1:
        print_here(f"next, when all {n} parts are in one directory: python fineweb.py "
                   f"--check={shlex.quote(config.out)}")
        return
    command = "python train_gpt2.py"
    is_small = meta["tokens"] < 50e6
    # train_gpt2.py itself reads ShardConfig.out, and with --preset=laptop input.txt
    if is_small or config.out != ShardConfig.out:
        command += f" --data_root={shlex.quote(config.out)}"
    if is_small:
        command += " --preset=laptop"
    print_here(f"next: {command}")


def main(argv):
    typed = parse(argv, __doc__, ShardConfig, may_be_empty=("name",))  # some datasets have no name
    config = ShardConfig(**typed)
    check_unused(typed, config)
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
        raise UserError(f"stopped: finished shards are in {config.out}, run the same command "
                        "again to continue", exit_code=130) from None
    except OSError as e:  # for example a full disk while meta.json is written
        raise UserError(f"{one_line(e)}: finished shards stay; run the same command again to "
                        "continue")


if __name__ == "__main__":
    run_program(main)
