"""
HellaSwag (Zellers et al. 2019, arXiv:1905.07830): four ways to go on, three of them written by a
machine to look right to machines. A person picks the right one 96 times in 100; chance is 25.

    python hellaswag.py --model=gpt2                # OpenAI's GPT-2, or gpt2-medium, ... gpt2-xl
    python hellaswag.py --model=log/model_19073.pt  # a checkpoint, or a Hugging Face directory
    torchrun --standalone --nproc_per_node=8 hellaswag.py --model=gpt2-xl

An item looks like this (one JSON object a line, 10,042 of them in the validation split):

    {"ctx": "A man is sitting on a roof. he", "label": 3,
     "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.",
                 "is holding a rubik's cube.", "starts pulling up roofing on a roof."], ...}

A model as small as GPT-2 124M cannot answer a multiple-choice question: it does not know what A, B,
C, D are for. So we ask it for what it can do, completing text: how likely is each ending as the
continuation of the context? The ending with the lowest loss is the answer. acc takes the sum of the
losses of an ending's tokens; acc_norm takes their mean, which does not favour short endings, and is
what the plots show.

Contents
    1 the data         prepare_for and load_examples, which train_gpt2.py calls; iterate_examples
    2 item by item     render_example, get_most_likely_row: what the numbers mean, to be read
    3 many at a time   pack, make_batches, score, evaluate: the same numbers, faster
The command line is play.py's.
"""
import contextlib
import hashlib
import json
import math
import os
import sys
import urllib.request
from typing import NamedTuple

import torch
from torch.nn import functional as F

from support.attention import attention_for_any_shape
from support.console import UserError, is_first_on_node, print0, progress, run_program
from support.files import atomic_write, parse_json
from support.tokenizer import check_start, gpt2_tokenizer

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_{split}.jsonl"
SHA256 = {"val": "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"}
NUM_ITEMS = 10_042  # of the validation split: the accuracy on a part of them is another figure
DATA_DIR = "hellaswag"
# acc, acc_norm of OpenAI's models on all 10,042 items, scored as here; play.py prints them
PUBLISHED = {"gpt2": (0.2859, 0.2955), "gpt2-xl": (0.3842, 0.4893)}

# --------------------------------------------------------------------------------------------------
# 1 the data


def download(split, data_dir=DATA_DIR):
    """
    The path of hellaswag_{split}.jsonl, fetched first if it is not there. Raises OSError if it is
    not available, or if the file, found or fetched, is not the published one: a part of it would
    be another benchmark.
    """
    path = os.path.join(data_dir, f"hellaswag_{split}.jsonl")
    if os.path.lexists(path) and not os.path.isfile(path):  # a pipe would keep us waiting for ever
        raise OSError(f"{path} is not a file: move it away")
    if not os.path.isfile(path):
        with urllib.request.urlopen(URL.format(split=split), timeout=30) as reply:
            data = reply.read()
            expected = int(reply.headers.get("Content-Length", len(data)))
            if reply.status != 200 or len(data) != expected:
                raise OSError(f"{reply.url} sent {len(data)} bytes with status {reply.status}")
        check(data, split, reply.url)
        os.makedirs(data_dir, exist_ok=True)
        with atomic_write(path) as f:
            f.write(data)
    with open(path, "rb") as f:
        check(f.read(), split, path)
    return path


def check(data, split, name):
    """Raise OSError unless these bytes are the published file of the split."""
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256.get(split, found):  # a split whose checksum we do not know is taken as it is
        raise OSError(f"{name} is not the published file (sha256 {found[:12]}...): delete it")


def is_published(path):
    """Is it, byte for byte, the published validation split? Raises OSError if it cannot be read."""
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest() == SHA256["val"]


def iterate_examples(split="val", data_dir=DATA_DIR):
    """Yield the items of a split, dicts with ctx, endings and label. Raises OSError (download)."""
    yield from read_examples(download(split, data_dir))


def is_example(example):
    """
    Is it a HellaSwag item? KeyError or TypeError if an entry is missing or of an odd type,
    ValueError if a text has half of a surrogate pair, which JSON can spell and no tokenizer knows.
    """
    texts = [example["ctx"], *example["endings"]]
    right_types = isinstance(example["endings"], list) and all(isinstance(t, str) for t in texts)
    if right_types:
        "".join(texts).encode()
    return right_types and len(texts) == 5 and "" not in texts and example["label"] in range(4)


def read_examples(path):
    """Yield the items of a .jsonl file. Any other line is a UserError."""
    with open(path, "rb") as f:
        check_start(f.peek(1000)[:1000], path)  # a .gz or UTF-16 is named
        for number, line in enumerate(f, 1):
            try:
                example = parse_json(line.decode())
                ok = is_example(example)
            except (ValueError, TypeError, KeyError):
                ok = False
            if not ok:
                raise UserError(f"{path}, line {number}: not a HellaSwag item: one is JSON in "
                                "UTF-8, with ctx, four endings and a label from 0 to 3")
            yield example


def load_examples(data_dir=DATA_DIR):
    """
    The validation items as a list, empty if this machine has not all of them. (prepare downloads
    them.)
    """
    path = os.path.join(data_dir, "hellaswag_val.jsonl")
    hub = os.path.join(data_dir, "hellaswag_val_hub.jsonl")  # written by download_from_hub
    with contextlib.suppress(OSError):  # a damaged file is as good as none; prepare says so
        if os.path.isfile(path):
            return list(iterate_examples("val", data_dir))
    items = list(read_examples(hub)) if os.path.isfile(hub) else []
    return items if len(items) == NUM_ITEMS else []


def prepare(data_dir=DATA_DIR):
    """
    Make sure that load_examples finds the validation items: from their authors' repository, or else
    from Hugging Face. For one process of each machine, before it meets the others. If both fail, a
    warning: training goes on without HellaSwag.
    """
    if load_examples(data_dir):
        return
    hub = os.path.join(data_dir, "hellaswag_val_hub.jsonl")
    if os.path.exists(hub):
        print(f"{hub} has not all {NUM_ITEMS:,} items: it is not used, they are downloaded again",
              flush=True)
    try:
        download("val", data_dir)
    except OSError as first:
        try:
            download_from_hub(data_dir)
        except Exception as second:  # no network, no such package: each has its own
            print(f"warning: no HellaSwag in this run: {first}; second source: "
                  f"{type(second).__name__}", flush=True)


def prepare_for(tokenizer):
    """Call prepare in one process of each machine -> False if the tokenizer is not GPT-2's"""
    if tokenizer.spec["name"] != "gpt2":
        print0("no HellaSwag: its items are tokenized with GPT-2's tokenizer")
        return False
    if is_first_on_node():
        prepare()
    return True


def download_from_hub(data_dir=DATA_DIR):
    """Hugging Face's copy, Rowan/hellaswag -> hellaswag_val_hub.jsonl. Or an exception."""
    # ask first whether it can be reached: the library would try six times, for half a minute
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    page = f"{hub}/datasets/Rowan/hellaswag/resolve/main/README.md"
    urllib.request.urlopen(page, timeout=30).close()
    from datasets import load_dataset
    rows = load_dataset("Rowan/hellaswag", split="validation")
    if len(rows) != NUM_ITEMS:
        raise OSError(f"Rowan/hellaswag has {len(rows)} items, not {NUM_ITEMS:,}")
    os.makedirs(data_dir, exist_ok=True)
    path = os.path.join(data_dir, "hellaswag_val_hub.jsonl")
    with atomic_write(path, "w", encoding="utf-8") as f:
        for row in rows:
            example = {"ctx": row["ctx"], "endings": row["endings"], "label": int(row["label"])}
            f.write(json.dumps(example) + "\n")


# --------------------------------------------------------------------------------------------------
# 2 item by item: what the numbers mean


class Item(NamedTuple):
    """An item in tokens."""
    context: list  # ids
    endings: list  # four lists of ids
    label: int  # the right ending, 0 to 3


def tokenize_example(example):
    """A line of the file -> Item"""
    encode = gpt2_tokenizer().encode
    # the space goes with the ending: in GPT-2's vocabulary a word's token begins with it, " he"
    endings = [encode(" " + ending) for ending in example["endings"]]
    return Item(encode(example["ctx"]), endings, example["label"])


def render_example(example):
    """
    An item as the four rows that a model is shown. -> data (dict, for the curious), tokens (4, N)
    int64, mask (4, N) int64, 1 where a token belongs to an ending, label (int).
    """
    item = tokenize_example(example)
    start = len(item.context)
    N = start + max(len(ending) for ending in item.endings)
    tokens = torch.zeros((4, N), dtype=torch.long)
    mask = torch.zeros((4, N), dtype=torch.long)
    for i, ending in enumerate(item.endings):
        # a shorter row is padded on the right. This is exact: attention is causal, so no scored
        # token sees the padding
        end = start + len(ending)
        tokens[i, :end] = torch.tensor(item.context + ending)
        mask[i, start:end] = 1
    data = {"label": item.label, "ctx_tokens": item.context, "ending_tokens": item.endings}
    return data, tokens, mask, item.label


def score_rows(tokens, mask, logits):
    """(4, N), (4, N), (4, N, V) -> the sum of each ending's losses (4,), and their mean (4,)"""
    # position i predicts token i + 1: drop the last prediction and the first token
    predictions = logits[:, :-1].flatten(0, 1).float()
    losses = F.cross_entropy(predictions, tokens[:, 1:].flatten(), reduction="none")
    losses = losses.view(tokens.size(0), -1) * mask[:, 1:]  # (4, N-1), zero outside the ending
    sums = losses.sum(dim=1)
    return sums, sums / mask[:, 1:].sum(dim=1)


def get_most_likely_row(tokens, mask, logits):
    """The ending with the lowest mean loss, the model's answer by acc_norm -> 0 to 3"""
    _, means = score_rows(tokens, mask, logits)
    return means.argmin().item()


# --------------------------------------------------------------------------------------------------
# 3 many at a time: the same numbers, faster
#
# The four endings share their context, so an item becomes one row: the context once, then the
# endings side by side. Four plain rows have 2.3 times as many tokens. With the context A B C and
# two endings, d e f and g h:
#
#     ids             A B C  d e  g        the last token of an ending predicts nothing: left out
#     position_ids    0 1 2  3 4  3        where a token stands in its text
#     part            0 0 0  1 1  2        0: the context; 1 and 2: the endings
#     predicts            d  e f  h        C predicts g, too
#
#     A may look at   A                    a token looks at the context and at its own ending, up
#     B               A B                  to itself
#     C               A B C
#     d               A B C  d
#     e               A B C  d e
#     g               A B C       g

# Tokens in a batch. On CUDA enough to fill a card; on a CPU what its caches hold: 6.1 items/s with
# 512, 5.0 with 4096 (124M, 2 cores)
BATCH_TOKENS = {"cuda": 16384, "cpu": 512, "mps": 512}
# Logits are by far the largest tensor: for this many positions they take 0.8 GB in float32
BATCH_POSITIONS = 4096


class Row(NamedTuple):
    """An item as a row. The first three lists have an entry for each token of the row."""
    number: int  # of the item
    ids: list
    position_ids: list
    part: list
    # and these for each predicted token
    before: list  # the index of the token that predicts it
    targets: list  # its id
    ending: list  # the ending that it belongs to, 0 to 3


def pack(number, item, block_size):
    """Item -> Row"""
    # a text that is longer than the context window loses its beginning. + 1: an ending's last token
    # is not shown. At least one token stays, which cut_endings leaves room for: it predicts the
    # first ones of the endings
    room = block_size + 1 - max(map(len, item.endings))
    context = item.context[-room:]
    C = len(context)
    row = Row(number, ids=list(context), position_ids=list(range(C)), part=[0] * C,
              before=[], targets=[], ending=[])
    for e, ending in enumerate(item.endings):
        start = len(row.ids)
        shown = len(ending) - 1
        row.before.extend([C - 1, *range(start, start + shown)])  # the context predicts the first
        row.targets.extend(ending)
        row.ending.extend([e] * len(ending))
        row.ids.extend(ending[:-1])
        row.position_ids.extend(range(C, C + shown))
        row.part.extend([e + 1] * shown)
    return row


def cut_endings(items, block_size):
    """
    Of an ending that alone is longer than the context window, which no item of the validation split
    has at GPT-2's 1024, the last block_size tokens are scored. -> Items
    """
    too_long = 0
    fitting = []
    for item in items:
        too_long += max(map(len, item.endings)) > block_size
        endings = [ending[-block_size:] for ending in item.endings]
        fitting.append(item._replace(endings=endings))
    if too_long:
        print0(f"HellaSwag: {too_long} of {len(items)} items have endings of more than "
               f"{block_size} tokens, the model's context: of these only the last ones count")
    return fitting


def make_batches(items, batch_tokens, block_size):
    """
    Rows of about the same length together, so that there is little padding. A batch has at most
    batch_tokens tokens, padding included, and BATCH_POSITIONS predicted ones, so that memory is
    bounded whatever the items; a larger item is a batch of its own. -> lists of Row
    """
    rows = [pack(number, item, block_size) for number, item in enumerate(items)]
    rows.sort(key=row_length, reverse=True)  # the longest first: if memory runs out, then at once
    batches = []
    positions = 0
    for row in rows:
        positions += len(row.targets)
        is_full = True
        if batches:
            # if this row joined: all are padded to the first, which is the longest
            tokens = (len(batches[-1]) + 1) * row_length(batches[-1][0])
            is_full = tokens > batch_tokens or positions > BATCH_POSITIONS
        if is_full:
            batches.append([])
            positions = len(row.targets)
        batches[-1].append(row)
    return batches


def row_length(row):
    return len(row.ids)


def pad(lists, padding, device):
    """Lists of ids, the first one the longest -> (number of lists, its length)"""
    N = len(lists[0])
    # on the right, which is exact: attention is causal, so no scored token sees what stands there
    return torch.tensor([ids + [padding] * (N - len(ids)) for ids in lists], device=device)


def batch_losses(model, batch, device):
    """The loss of each predicted token of a batch, row after row -> (n,), on the CPU, in float64"""
    ids = pad([row.ids for row in batch], 0, device)  # (B, N)
    position_ids = pad([row.position_ids for row in batch], 0, device)
    part = pad([row.part for row in batch], -1, device)
    B, N = ids.size()
    # (B, N, N): the token of the second dimension looks at that of the third
    in_context = part[:, None, :] == 0
    in_own_ending = part[:, None, :] == part[:, :, None]
    past = torch.ones(N, N, dtype=torch.bool, device=device).tril()
    attention_mask = ((in_context | in_own_ending) & past)[:, None]  # (B, 1, N, N)
    positions = [i * N + t for i, row in enumerate(batch) for t in row.before]
    positions = torch.tensor(positions, device=device)  # (n,), among all B*N
    targets = torch.tensor([t for row in batch for t in row.targets], device=device)
    # no other logits are ever made
    with attention_for_any_shape():
        logits, _ = model(ids, positions=positions, position_ids=position_ids,
                          attention_mask=attention_mask)  # (n, V)
    losses = []
    # .float() and cross_entropy each make a float32 copy, so a few rows at a time
    for some_logits, some_targets in zip(logits.split(256), targets.split(256), strict=True):
        losses.append(F.cross_entropy(some_logits.float(), some_targets, reduction="none"))
    return torch.cat(losses).cpu().double()


@torch.no_grad()
def score(model, items, process, batch_tokens):
    """
    What every ending costs. model: a GPT as it is, neither compiled nor wrapped, for it sees many
    shapes. process: its rank, num_processes, device, autocast and stop_requested()
    -> sums (n, 4) and means (n, 4) of the losses, on the CPU, in float64, nan for the items that
    other processes do; or None, if one was asked to stop
    """
    items = cut_endings(items, model.config.block_size)
    batches = make_batches(items, batch_tokens, model.config.block_size)
    my_batches = batches[process.rank :: process.num_processes]
    # the same number of batches in each process, since a sharded model computes with the others: a
    # process that is one short does the first batch, too, and throws the result away
    most = math.ceil(len(batches) / process.num_processes)
    spare = batches[:1] if len(my_batches) < most else []
    sums = torch.zeros(len(items), 4, dtype=torch.float64)
    mine = torch.zeros(len(items), dtype=torch.bool)
    advice = "--no-hellaswag or a larger --eval_every"
    with process.autocast:  # around all batches: the weights are cast once
        for batch in progress(my_batches + spare, "HellaSwag", advice):
            if process.stop_requested():
                return None
            losses = batch_losses(model, batch, process.device)
            if batch in spare:
                continue
            numbers = torch.tensor([row.number for row in batch for _ in row.targets])
            endings = torch.tensor([e for row in batch for e in row.ending])
            sums.index_put_((numbers, endings), losses, accumulate=True)
            mine[numbers] = True
    sums[~mine] = torch.nan
    counts = torch.tensor([[len(ending) for ending in item.endings] for item in items])
    return sums, sums / counts


def evaluate(model, items, process, batch_tokens=None):
    """
    How many of this process's items the model gets right, by the sum of the losses (acc) and by
    their mean (acc_norm) -> two ints, to be added up over all processes; None if asked to stop
    """
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS[process.device.type]
    was_training = model.training
    model.eval()
    scores = score(model, items, process, batch_tokens)
    model.train(was_training)
    if scores is None:
        return None
    labels = torch.tensor([item.label for item in items])
    right = []
    for losses in scores:  # the sums, then the means
        measured = ~losses.isnan().any(dim=1)
        right.append(int(((losses.argmin(dim=1) == labels) & measured).sum()))
    return tuple(right)


if __name__ == "__main__":
    import play  # the command line; here only, since it imports this file
    run_program(play.main, ["hellaswag", *sys.argv[1:]])
