"""
HellaSwag (Zellers et al. 2019, arXiv:1905.07830): four ways to go on, three of them written by a machine to look right
to machines. A person picks the right one 96 times in 100; chance is 25.

    python hellaswag.py --model=gpt2                      # OpenAI's GPT-2, or gpt2-medium, gpt2-large, gpt2-xl
    python hellaswag.py --model=log/model_19073.pt        # a checkpoint, or a directory with a GPT-2 of Hugging Face's
    torchrun --standalone --nproc_per_node=8 hellaswag.py --model=gpt2-xl

An item looks like this (one JSON object a line, 10,042 of them in the validation split):

    {"ctx": "A man is sitting on a roof. he", "label": 3, "endings": ["is using wrap to wrap a pair of skis.",
     "is ripping level tiles off.", "is holding a rubik's cube.", "starts pulling up roofing on a roof."], ...}

A model as small as GPT-2 124M cannot answer a multiple-choice question: it does not know what A, B, C, D are for. So it
is asked what it can do, completing text: for each ending, how likely is it as the continuation of the context? The
ending with the lowest loss is the answer. acc takes the sum of the losses of an ending's tokens, acc_norm their mean,
which does not favour short endings; acc_norm is what the plots show.
"""
import contextlib
import hashlib
import json
import os
import sys
import urllib.request

import torch
from torch.nn import functional as F

from support.console import UserError, is_first_on_node, print0, progress, run_program
from support.files import atomic_write
from support.tokenizer import gpt2_tokenizer

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_{split}.jsonl"
SHA256 = {"val": "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"}
DATA_DIR = "hellaswag"
# tokens in a batch: on CUDA (True) enough to fill it; on a CPU what its caches hold: 6.1 items/s with
# 512, 5.0 with 4096 (124M, 2 cores)
BATCH_TOKENS = {True: 16384, False: 512}
# logits are by far the largest tensor: of so many positions they take 0.8 GB in float32, on any card
BATCH_POSITIONS = 4096

# acc, acc_norm of OpenAI's models on all 10,042 items, scored as here
PUBLISHED = {"gpt2": (0.2859, 0.2955), "gpt2-xl": (0.3842, 0.4893)}


# ----------------------------------------------------------------------------------------------------
# the data

def download(split, data_dir=DATA_DIR):
    """
    The path of hellaswag_{split}.jsonl, fetched first if it is not there. Raises OSError if it cannot be had, or if
    what is there or what came is not the published file: a benchmark on a part of its items is another benchmark.
    """
    path = os.path.join(data_dir, f"hellaswag_{split}.jsonl")
    if not os.path.exists(path):
        with urllib.request.urlopen(URL.format(split=split), timeout=30) as reply:
            data = reply.read()
            if reply.status != 200 or len(data) != int(reply.headers.get("Content-Length", len(data))):
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
    if found != SHA256.get(split, found):
        raise OSError(f"{name} is not the published file of 10,042 items (sha256 {found[:12]}...): delete it")


def iterate_examples(split="val", data_dir=DATA_DIR):
    """Yield the items of a split, dicts with "ctx", "endings" and "label". Raises OSError as download does."""
    yield from read_examples(download(split, data_dir))


def read_examples(path):
    """Yield the items of a .jsonl file. A line that is none ends the program with its number."""
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                item = json.loads(line)
                texts = [item["ctx"], *item["endings"]]
                ok = len(texts) == 5 and item["label"] in range(4) and all(isinstance(t, str) and t for t in texts)
            except (ValueError, TypeError, KeyError):
                ok = False
            if not ok:
                raise UserError(f"{path}, line {number}: no HellaSwag item, which has ctx, four endings and a label "
                                f"from 0 to 3")
            yield item


def prepare(data_dir=DATA_DIR):
    """
    See to it that load_examples finds the validation items, from the first source or the second one. For one process of
    each machine, before it meets the others. If there is no way, one warning: training goes on without HellaSwag.
    """
    if load_examples(data_dir):
        return
    try:
        download("val", data_dir)
    except OSError as first:
        try:
            download_from_hub(data_dir)
        except Exception as second:  # no network, no such package, no space: its libraries have many ways to say it
            print(f"warning: no HellaSwag in this run: {first}; second source: {type(second).__name__}", flush=True)


def prepare_for(tokenizer):
    """See to it that the items are there, on each machine, and say whether a model with this tokenizer can be asked."""
    if tokenizer.spec["name"] != "gpt2":
        print0("no HellaSwag: its items are tokenized with GPT-2's tokenizer")
        return False
    if is_first_on_node():
        prepare()
    return True


def download_from_hub(data_dir=DATA_DIR):
    """The validation items from Hugging Face's copy, Rowan/hellaswag, into hellaswag_val_hub.jsonl. Or an exception."""
    # ask first whether it can be reached: the library would try six times, for half a minute
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    urllib.request.urlopen(f"{hub}/datasets/Rowan/hellaswag/resolve/main/README.md", timeout=30).close()
    from datasets import load_dataset
    items = load_dataset("Rowan/hellaswag", split="validation")
    if len(items) != 10042:
        raise OSError(f"Rowan/hellaswag has {len(items)} items, not 10,042")
    os.makedirs(data_dir, exist_ok=True)
    with atomic_write(os.path.join(data_dir, "hellaswag_val_hub.jsonl"), "w", encoding="utf-8") as f:
        for item in items:
            f.write(json.dumps({"ctx": item["ctx"], "endings": item["endings"], "label": int(item["label"])}) + "\n")


def load_examples(data_dir=DATA_DIR):
    """The validation items as a list, an empty one if this machine has none. Downloads nothing (prepare does)."""
    path = os.path.join(data_dir, "hellaswag_val.jsonl")
    hub = os.path.join(data_dir, "hellaswag_val_hub.jsonl")  # made by download_from_hub, whole or not at all
    with contextlib.suppress(OSError):
        if os.path.exists(path):
            return list(iterate_examples("val", data_dir))
    return list(read_examples(hub)) if os.path.exists(hub) else []


# ----------------------------------------------------------------------------------------------------
# rendering and scoring, one item at a time: what the numbers mean

def tokenize_example(example):
    """An item -> the tokens of its context, of its four endings (lists of ids), and the label."""
    encode = gpt2_tokenizer().encode
    # the space belongs to the ending's first word: GPT-2's tokens begin with their space, " he" is one token
    return encode(example["ctx"]), [encode(" " + ending) for ending in example["endings"]], example["label"]


def render_example(example):
    """
    An item as the four rows that a model is shown. -> data (dict, for the curious), tokens (4, N) int64,
    mask (4, N) int64, 1 where a token belongs to an ending, label (int).
    """
    ctx, endings, label = tokenize_example(example)
    N = len(ctx) + max(len(ending) for ending in endings)
    tokens = torch.zeros((4, N), dtype=torch.long)
    mask = torch.zeros((4, N), dtype=torch.long)
    for i, ending in enumerate(endings):
        # a shorter row is filled up on the right. This is exact: attention is causal, so no scored token sees it
        tokens[i, : len(ctx) + len(ending)] = torch.tensor(ctx + ending)
        mask[i, len(ctx) : len(ctx) + len(ending)] = 1
    return {"label": label, "ctx_tokens": ctx, "ending_tokens": endings}, tokens, mask, label


def score_rows(tokens, mask, logits):
    """What each row's ending costs. tokens, mask (4, N), logits (4, N, V) -> sum of its losses (4,), their mean (4,)"""
    # position i predicts token i + 1: drop the last prediction and the first token
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    losses = losses.view(tokens.size(0), -1) * mask[:, 1:]  # (4, N-1), zero outside the ending
    return losses.sum(dim=1), losses.sum(dim=1) / mask[:, 1:].sum(dim=1)


def get_most_likely_row(tokens, mask, logits):
    """The index of the ending with the lowest mean loss, the model's answer by acc_norm. Shapes as in score_rows."""
    return score_rows(tokens, mask, logits)[1].argmin().item()


# ----------------------------------------------------------------------------------------------------
# the same, many items at a time

def pack(item, block_size):
    """
    An item as one row: its context, which the four endings share, then the endings side by side, each without its last
    token, which predicts nothing. Plain rows would compute the context four times: 2.3 times as many tokens in all.
    -> for each token: its id, where it stands in its text, its part (0: the context, 1 to 4: an ending); and for each
    scored token: the index of the token before it, its id, its ending (0 to 3)
    """
    ctx, endings, _ = item
    ctx = ctx[-max(1, block_size + 1 - max(map(len, endings))) :]  # too long a text loses its beginning
    ids, pos, part = list(ctx), list(range(len(ctx))), [0] * len(ctx)
    before, targets, which = [], [], []
    for e, ending in enumerate(endings):
        before += [len(ctx) - 1, *range(len(ids), len(ids) + len(ending) - 1)]
        targets += ending
        which += [e] * len(ending)
        ids += ending[:-1]
        pos += range(len(ctx), len(ctx) + len(ending) - 1)
        part += [e + 1] * (len(ending) - 1)
    return ids, pos, part, before, targets, which


def make_batches(items, batch_tokens, block_size):
    """
    Packed items of about the same length together, so that little is filled up. A batch has at most batch_tokens
    tokens, filling included, and BATCH_POSITIONS scored ones, so that memory is bounded whatever the items; a larger
    item is a batch of its own. -> lists of (item number, packed item)
    """
    packed = [(i, pack(item, block_size)) for i, item in enumerate(items)]
    packed.sort(key=lambda p: -len(p[1][0]))  # the longest first: short memory shows at once
    batches, longest, positions = [], 0, 0
    for i, row in packed:
        ids, scored = row[0], row[3]
        positions += len(scored)
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens or positions > BATCH_POSITIONS:
            batches.append([])
            longest, positions = len(ids), len(scored)
        batches[-1].append((i, row))
    return batches


def token_losses(logits, targets):
    """The loss of each token, in float32, a piece at a time: logits (n, V), targets (n,) -> (n,) on the CPU"""
    pieces = zip(logits.split(256), targets.split(256), strict=True)
    return torch.cat([F.cross_entropy(a.float(), b, reduction="none") for a, b in pieces]).cpu()


@torch.no_grad()
def score(model, items, autocast, batch_tokens, rank=0, num_processes=1, before_each=lambda: None):
    """
    What every ending costs. model: a GPT as it is, neither compiled nor wrapped, for it sees many shapes. items: what
    tokenize_example makes -> sums (n, 4) and means (n, 4) of the losses, on the CPU, in float64; nan for the items that
    other processes do. before_each: called before each batch.
    """
    device, sums = model.lm_head.weight.device, torch.zeros(len(items) * 4, dtype=torch.float64)
    batches = make_batches(items, batch_tokens, model.config.block_size)
    mine = batches[rank::num_processes]
    others = [i for j, batch in enumerate(batches) if j % num_processes != rank for i, _ in batch]
    # as many batches in each process, one may do another's again: none shall wait for another that has left
    mine += batches[:1] * (len(mine) < -(-len(batches) // num_processes))
    with autocast:  # around all batches: the weights are cast once
        for batch in progress(mine, "HellaSwag", "--no-hellaswag or a larger --eval_every", before_each):
            N = len(batch[0][1][0])
            # filled up on the right. This is exact: attention is causal, so no scored token sees what stands there
            ids, pos, part = (torch.tensor([row[k] + [fill] * (N - len(row[k])) for _, row in batch], device=device)
                              for k, fill in ((0, 0), (1, 0), (2, -1)))  # (B, N) each
            # a token sees the context and its own ending, up to itself
            mine = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])  # (B, N, N)
            mask = mine & torch.ones(N, N, dtype=torch.bool, device=device).tril()
            wanted = torch.tensor([r * N + t for r, (_, row) in enumerate(batch) for t in row[3]], device=device)
            targets = torch.tensor([t for _, row in batch for t in row[4]], device=device)
            logits, _ = model(ids, wanted=wanted, pos=pos, mask=mask[:, None])  # (n, V): no others are ever made
            losses = token_losses(logits, targets).double()
            sums.index_add_(0, torch.tensor([4 * i + e for i, row in batch for e in row[5]]), losses)
    counts = torch.tensor([[len(ending) for ending in endings] for _, endings, _ in items])
    sums = sums.view(-1, 4)
    sums[others] = torch.nan
    return sums, sums / counts


def evaluate(model, items, autocast, batch_tokens=None, *share):
    """
    How many items the model gets right, by the sum of the losses (acc) and by their mean (acc_norm) -> int, int. share:
    rank, num_processes and before_each of score; the counts of all processes are to be added up.
    """
    was_training = model.training
    model.eval()
    try:
        sums, means = score(model, items, autocast, batch_tokens or BATCH_TOKENS[model.lm_head.weight.is_cuda], *share)
    finally:
        model.train(was_training)
    labels = torch.tensor([label for _, _, label in items])
    right = [(losses.argmin(1) == labels) & ~losses.isnan().any(1) for losses in (sums, means)]
    return int(right[0].sum()), int(right[1].sum())


if __name__ == "__main__":
    import play  # here only: it imports this file
    run_program(play.main, ["hellaswag", *sys.argv[1:]])
