"""
HellaSwag (Zellers et al. 2019, arXiv:1905.07830): four ways to go on, three of them written by a machine to look right
to machines. A person picks the right one 96 times in 100; chance is 25.

An item looks like this (one JSON object a line, 10,042 of them in the validation split):

    {"ctx": "A man is sitting on a roof. he", "label": 3, "endings": ["is using wrap to wrap a pair of skis.",
     "is ripping level tiles off.", "is holding a rubik's cube.", "starts pulling up roofing on a roof."], ...}

A model as small as GPT-2 124M cannot answer a multiple-choice question: it does not know what A, B, C, D are for. So it
is asked what it can do, completing text: for each ending, how likely is it as the continuation of the context? The
ending with the lowest loss is the answer. acc takes the sum of the losses of an ending's tokens, acc_norm their mean,
which does not favour short endings. acc_norm is what the plots show. OpenAI's GPT-2 124M: acc 0.2859, acc_norm 0.2955;
GPT-2 XL: 0.3842, 0.4893 (all 10,042 items, scored as here).
"""
import contextlib
import hashlib
import json
import os
import sys
import urllib.request

import torch
from torch.nn import functional as F

from fineweb import atomic_write, gpt2_tokenizer, progress

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_{split}.jsonl"
SHA256 = {"val": "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"}
DATA_DIR = "hellaswag"


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
        os.makedirs(data_dir, exist_ok=True)
        with atomic_write(path) as f:
            f.write(data)
    with open(path, "rb") as f:
        found = hashlib.sha256(f.read()).hexdigest()
    if found != SHA256.get(split, found):
        raise OSError(f"{path} is not the published file (sha256 {found[:12]}...): delete it")
    return path


def iterate_examples(split="val", data_dir=DATA_DIR):
    """Yield the items of a split, dicts with "ctx", "endings" and "label". Raises OSError as download does."""
    with open(download(split, data_dir), encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)


def try_download(split="val", data_dir=DATA_DIR):
    """download, with a warning where it raises OSError: training goes on without HellaSwag."""
    try:
        download(split, data_dir)
    except OSError as e:
        print(f"warning: no HellaSwag in this run ({e})", file=sys.stderr, flush=True)


def load_examples(split="val", data_dir=DATA_DIR):
    """The items of a split as a list, an empty one if the file is not there or not right."""
    with contextlib.suppress(OSError):
        if os.path.exists(os.path.join(data_dir, f"hellaswag_{split}.jsonl")):
            return list(iterate_examples(split, data_dir))
    return []


# ----------------------------------------------------------------------------------------------------
# rendering and scoring

def render_example(example):
    """
    An item as the four rows that a model is shown. -> data (dict, for the curious), tokens (4, N) int64,
    mask (4, N) int64, 1 where a token belongs to an ending, label (int). Shorter rows are filled up with zeros on the
    right: under causal attention no scored token can see them.
    """
    tokenizer = gpt2_tokenizer()
    ctx = tokenizer.encode(example["ctx"])
    # the space belongs to the ending's first word: GPT-2's tokens begin with their space, " he" is one token
    endings = [tokenizer.encode(" " + ending) for ending in example["endings"]]
    N = len(ctx) + max(len(ending) for ending in endings)
    tokens = torch.zeros((4, N), dtype=torch.long)
    mask = torch.zeros((4, N), dtype=torch.long)
    for i, ending in enumerate(endings):
        tokens[i, : len(ctx) + len(ending)] = torch.tensor(ctx + ending)
        mask[i, len(ctx) : len(ctx) + len(ending)] = 1
    data = {"label": example["label"], "ctx_tokens": ctx, "ending_tokens": endings}
    return data, tokens, mask, example["label"]


def score_rows(tokens, mask, logits):
    """What each row's ending costs. tokens, mask (4, N), logits (4, N, V) -> sum of its losses (4,), their mean (4,)"""
    # position i predicts token i + 1: drop the last prediction and the first token
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    losses = losses.view(tokens.size(0), -1) * mask[:, 1:]  # (4, N-1), zero outside the ending
    return losses.sum(dim=1), losses.sum(dim=1) / mask[:, 1:].sum(dim=1)


def get_most_likely_row(tokens, mask, logits):
    """The index of the ending with the lowest mean loss, the model's answer by acc_norm. Shapes as in score_rows."""
    return score_rows(tokens, mask, logits)[1].argmin().item()


@torch.no_grad()
def count_correct(model, examples, autocast):
    """How many of the examples (a list) the model gets right by acc_norm -> int. Leaves the model in training mode."""
    device, correct = model.lm_head.weight.device, 0
    model.eval()
    for example in progress(examples, "HellaSwag", "--no-hellaswag or a larger --eval_every"):
        _, tokens, mask, label = render_example(example)
        # the longest item has about 170 tokens; a model with a shorter context sees its end
        tokens, mask = (t[:, -model.config.block_size :].to(device) for t in (tokens, mask))
        with autocast:
            logits, _ = model(tokens)
        correct += get_most_likely_row(tokens, mask, logits) == label
    model.train()
    return correct
