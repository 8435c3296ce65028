"""
HellaSwag (Zellers et al. 2019, arXiv:1905.07830). Each item is the start of a text with four
endings. One is real; the others were written by a language model, and chosen because they fooled
other models. People pick the real one 96 times in 100; guessing gives 25.

    python hellaswag.py --model=gpt2                # OpenAI's GPT-2, or gpt2-medium ... gpt2-xl
    python hellaswag.py --model=log/model_19073.pt  # a checkpoint, or a Hugging Face directory
    torchrun --standalone --nproc_per_node=8 hellaswag.py --model=gpt2-xl

An item looks like this (one JSON object per line, 10,042 of them in the validation split):

    {"ctx": "A man is sitting on a roof. he", "label": 3,
     "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.",
                 "is holding a rubik's cube.", "starts pulling up roofing on a roof."], ...}

A model as small as GPT-2 124M cannot answer multiple-choice questions: it does not know what A, B,
C and D are for. But it can complete text, so we ask how likely each ending is as a continuation of
the context. The model's answer is the ending with the lowest loss. acc is the share of right
answers if the loss of an ending is the sum over its tokens, which favours short endings; acc_norm
is the share if the loss is the mean. train_gpt2.py logs acc_norm.

Contents
    1 item by item     Item, render_example, get_most_likely_row: what the numbers mean
    2 many at a time   pack, make_batches, score, evaluate: the same numbers, faster
    3 the program      prepare, load_items_in_all_processes (for train_gpt2.py); report, run
support/hellaswag_file.py downloads and reads the file.
"""
import functools
import math
import os
import time
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from support.compiling import attention_for_any_shape
from support.console import UserError, is_first_on_node, print0, progress, run_program
from support.hellaswag_file import (NUM_ITEMS, download_examples, is_published, iterate_examples,
                                    read_examples)
from support.processes import orderly_end, sum_over_processes
from support.settings import check_least, parse
from support.tokenizer import gpt2_tokenizer

# acc, acc_norm of OpenAI's models on all 10,042 items of the validation split
PUBLISHED = {"gpt2": (0.2859, 0.2955), "gpt2-xl": (0.3842, 0.4893)}

# --------------------------------------------------------------------------------------------------
# 1 item by item, for the reader: the program uses section 2, and a test checks that both agree


class Item(NamedTuple):
    """An item as token ids."""
    context: list[int]
    endings: list[list[int]]  # four
    label: int  # the right ending, 0 to 3


def tokenize_example(example):
    """A line of the file (dict) -> Item"""
    encode = gpt2_tokenizer().encode
    # the space belongs to the ending: GPT-2's tokens for words start with their space, " he"
    endings = [encode(" " + ending) for ending in example["endings"]]
    return Item(encode(example["ctx"]), endings, example["label"])


def render_example(example):
    """
    A line of the file (dict) -> data (dict with the ids, as in the lecture), tokens (4, N), a row
    for each ending, mask (4, N), 1 where a token belongs to an ending, and label (int)
    """
    item = tokenize_example(example)
    start = len(item.context)
    N = start + max(len(ending) for ending in item.endings)
    tokens = torch.zeros((4, N), dtype=torch.long)
    mask = torch.zeros((4, N), dtype=torch.long)
    for i, ending in enumerate(item.endings):
        # shorter rows are padded on the right. This is exact: attention is causal, so no scored
        # token sees the padding
        end = start + len(ending)
        tokens[i, :end] = torch.tensor(item.context + ending)
        mask[i, start:end] = 1
    data = {"label": item.label, "ctx_tokens": item.context, "ending_tokens": item.endings}
    return data, tokens, mask, item.label


def score_rows(tokens, mask, logits):
    """tokens, mask (4, N), logits (4, N, V) -> sums (4,), means (4,) of each ending's losses"""
    # position i predicts token i + 1: drop the last prediction and the first token
    predictions = logits[:, :-1].float().transpose(1, 2)  # (4, V, N-1)
    in_ending = mask[:, 1:]
    losses = F.cross_entropy(predictions, tokens[:, 1:], reduction="none") * in_ending  # (4, N-1)
    sums = losses.sum(dim=1)
    return sums, sums / in_ending.sum(dim=1)


def get_most_likely_row(tokens, mask, logits):
    """-> 0 to 3, the ending with the lowest mean loss: the model's answer for acc_norm"""
    _, means = score_rows(tokens, mask, logits)
    return means.argmin().item()


# --------------------------------------------------------------------------------------------------
# 2 many at a time: the same numbers, faster
#
# The four endings share their context, so an item becomes one row: the context once, then the
# endings side by side. (Four separate rows would have 2.3 times as many tokens.) With the context
# A B C and two endings, d e f and g h:
#
# for each token of the row
#     index           0 1 2  3 4  5
#     ids             A B C  d e  g    without f and h: the last token of an ending predicts nothing
#     position_ids    0 1 2  3 4  3    position in its own text
#     part            . . .  0 0  1    which ending it belongs to; . is the context
#
# for each predicted token
#     targets         d e f  g h
#     predicted_by    2 3 4  2 5       index of the token that predicts it: C predicts both d and g
#
# A token attends to the context and to its own ending, up to itself: d to A B C d, g to A B C g.

CONTEXT, PADDING = -1, -2  # values of part for tokens outside the endings

# tokens in a batch: a GPU needs many to stay busy; a CPU is faster if they fit its caches
BATCH_TOKENS = {"cuda": 16384, "cpu": 512, "mps": 512}
# predicted tokens in a batch: their logits are by far the largest tensor, 0.4 GB in 16 bits
BATCH_PREDICTIONS = 4096


class Row(NamedTuple):
    """An item as one row."""
    number: int  # index of the item
    # for each token of the row
    ids: list
    position_ids: list
    part: list  # 0 to 3 for the endings, or CONTEXT
    # for each predicted token, ending by ending
    targets: list  # ids of the predicted tokens
    predicted_by: list  # indices, in the row, of the tokens that predict them


def pack(number, item, block_size):
    """Item -> Row"""
    # the longest ending limits the context, which keeps at least 1 token after truncate_endings.
    # + 1, because the last token of an ending is not in the row
    room = block_size + 1 - max(map(len, item.endings))
    context = item.context[-room:]
    n = len(context)
    row = Row(number, ids=list(context), position_ids=list(range(n)), part=[CONTEXT] * n,
              targets=[], predicted_by=[])
    for e, ending in enumerate(item.endings):
        inputs = ending[:-1]
        places = range(len(row.ids), len(row.ids) + len(inputs))  # indices of the inputs in the row
        row.targets.extend(ending)
        # the last token of the context predicts the first target, each input predicts the next
        row.predicted_by.extend([n - 1, *places])
        row.ids.extend(inputs)
        row.position_ids.extend(range(n, n + len(inputs)))
        row.part.extend([e] * len(inputs))
    return row


def truncate_endings(items, block_size):
    """
    Cut endings to their last block_size tokens, and print how many items this affects. Needed only
    for models with a smaller context than GPT-2's 1024. -> list of Item
    """
    num_cut = sum(max(map(len, item.endings)) > block_size for item in items)
    if num_cut:
        print0(f"HellaSwag: {num_cut} of {len(items)} items have endings of more than {block_size} "
               "tokens, the model's context: only their last tokens count")
    return [item._replace(endings=[ending[-block_size:] for ending in item.endings])
            for item in items]


def fits(batch, batch_tokens):
    """Do these rows fit into one batch? The others are padded to the first, the longest."""
    predictions = sum(len(row.targets) for row in batch)
    return len(batch) * len(batch[0].ids) <= batch_tokens and predictions <= BATCH_PREDICTIONS


def make_batches(items, batch_tokens, block_size):
    """
    Group rows of similar length, so that there is little padding. A row that is too large for a
    batch gets a batch to itself. -> list of lists of Row
    """
    rows = [pack(number, item, block_size) for number, item in enumerate(items)]
    # longest first: if the memory does not suffice, that shows at once
    rows.sort(key=lambda row: len(row.ids), reverse=True)
    batches = []
    for row in rows:
        if batches and fits([*batches[-1], row], batch_tokens):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def attend_to_own_text(part):
    """part (B, N), as in Row, or PADDING -> attend for GPT.hidden: each text sees only itself"""
    N = part.size(1)
    in_context = part[:, None, :] == CONTEXT  # (B, 1, N)
    same_part = part[:, None, :] == part[:, :, None]  # (B, N, N)
    causal = torch.ones(N, N, dtype=torch.bool, device=part.device).tril()
    # mask[b, 0, i, j]: may token i attend to token j?
    mask = ((in_context | same_part) & causal)[:, None]  # (B, 1, N, N)

    def attend(layer, q, k, v):
        with attention_for_any_shape():  # without kernels that prepare for each new shape
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attend


def batch_losses(model, batch, device):
    """Loss of each predicted token, row after row -> (n,), on the CPU"""
    def pad(lists, value):
        rows = [torch.tensor(ids) for ids in lists]
        return pad_sequence(rows, batch_first=True, padding_value=value).to(device)  # (B, N)
    ids = pad([row.ids for row in batch], 0)
    position_ids = pad([row.position_ids for row in batch], 0)
    part = pad([row.part for row in batch], PADDING)
    x = model.hidden(ids, position_ids, attend_to_own_text(part))  # (B, N, C)
    rows = torch.tensor([i for i, row in enumerate(batch) for _ in row.targets])  # (n,)
    places = torch.tensor([place for row in batch for place in row.predicted_by])
    targets = torch.tensor([token for row in batch for token in row.targets], device=device)
    logits = model.lm_head(x[rows.to(device), places.to(device)])  # (n, V), not (B, N, V)
    losses = []
    # .float() and cross_entropy each make a float32 copy, so 256 predictions at a time
    for some_logits, some_targets in zip(logits.split(256), targets.split(256), strict=True):
        losses.append(F.cross_entropy(some_logits.float(), some_targets, reduction="none"))
    return torch.cat(losses).cpu().double()  # float64: the order of a sum does not show


@torch.no_grad()
def score(model, items, process, batch_tokens, before_batch=None):
    """
    Compute the losses of the endings. Items that other processes score stay 0.
        model         a plain GPT, neither compiled nor in DDP, because it sees many shapes
        process       rank, num_processes, device and autocast
        before_batch  called before each batch, in all processes
    -> sums (n, 4), means (n, 4), and which items this process has scored (n,), on the CPU
    """
    items = truncate_endings(items, model.config.block_size)
    batches = make_batches(items, batch_tokens, model.config.block_size)
    sums = torch.zeros(len(items), 4, dtype=torch.float64)
    scored = torch.zeros(len(items), dtype=torch.bool)
    # In each round every process takes one batch. A sharded model needs all processes in each
    # forward pass, so a process without a batch computes the first one again and drops the result
    rounds = range(0, len(batches), process.num_processes)
    with process.autocast:  # around all batches: autocast keeps its 16-bit weights until it ends
        for first in progress(rounds, "HellaSwag", if_slow="--limit (in training --no-hellaswag)"):
            if before_batch is not None:
                before_batch()
            mine = first + process.rank
            has_batch = mine < len(batches)
            batch = batches[mine if has_batch else 0]
            losses = batch_losses(model, batch, process.device)
            if has_batch:
                lengths = [len(ending) for row in batch for ending in items[row.number].endings]
                ending_sums = torch.stack([part.sum() for part in losses.split(lengths)])
                numbers = [row.number for row in batch]
                sums[numbers] = ending_sums.view(-1, 4)
                scored[numbers] = True
    lengths = torch.tensor([[len(ending) for ending in item.endings] for item in items])
    return sums, sums / lengths, scored


def evaluate(model, items, process, before_batch=None, batch_tokens=None):
    """
    Number of this process's items that the model gets right, by the sum of the losses (acc) and by
    their mean (acc_norm) -> two ints, to be summed over all processes
    """
    was_training = model.training
    model.eval()
    batch_tokens = batch_tokens or BATCH_TOKENS[process.device.type]
    sums, means, scored = score(model, items, process, batch_tokens, before_batch)
    model.train(was_training)
    labels = torch.tensor([item.label for item in items])

    def num_correct(losses):
        return int((losses.argmin(dim=1) == labels)[scored].sum())
    return num_correct(sums), num_correct(means)


# --------------------------------------------------------------------------------------------------
# 3 the program


def prepare(tokenizer):
    """Download the items, in one process per machine, before setup_distributed."""
    if tokenizer.spec["name"] != "gpt2":
        print0("no HellaSwag: its items are tokenized with GPT-2's tokenizer")
    elif is_first_on_node():
        download_examples()


def load_items_in_all_processes(tokenizer):
    """All processes must call this -> list of Item; [] in all of them if any has no items"""
    if tokenizer.spec["name"] != "gpt2":  # prepare has printed why
        return []
    items = [tokenize_example(example) for example in iterate_examples()]
    processes_without = sum_over_processes(len(items) == 0)
    # if one process cannot evaluate, none does: the others would wait for it
    return items if processes_without == 0 else []


@dataclass(frozen=True)
class Config:
    model: str = ""  # gpt2 ... gpt2-xl, a checkpoint, a run's directory or a Hugging Face directory
    data: str = ""  # a .jsonl file with items, instead of the published validation split
    limit: int | None = None  # score only the first `limit` items
    batch_tokens: int | None = None  # tokens in a batch; None: depends on the device
    device: str = "auto"  # cuda, mps or cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # format of the matmuls


def report(name, acc, acc_norm, n, is_validation_split):
    """
    The result, its standard error, and the published results of OpenAI's models -> text. acc,
    acc_norm: shares of n items; is_validation_split: are these the published items?
    """
    standard_error = math.sqrt(acc_norm * (1 - acc_norm) / n)  # of a share of n items
    lines = [f"{name}: acc {acc:.4f}, acc_norm {acc_norm:.4f} +- {standard_error:.4f} (standard "
             f"error), n {n}"]
    for model, (their_acc, their_norm) in PUBLISHED.items():
        line = f"published, {model}: acc {their_acc:.4f}, acc_norm {their_norm:.4f}"
        if not is_validation_split or n != NUM_ITEMS:
            line += f", on all {NUM_ITEMS:,} items: not these, so not comparable"
        elif standard_error > 0:  # it is 0 if all answers are right, or all wrong
            distance = (acc_norm - their_norm) / standard_error
            line += f": this model is {distance:+.1f} standard errors from it"
        lines.append(line)
    return "\n".join(lines)


def measure(config, train_gpt2):
    """Print acc and acc_norm of a model. train_gpt2: the module, see run"""
    model, tokenizer, _ = train_gpt2.load_model(config.model)
    if tokenizer.spec["name"] != "gpt2":
        raise UserError(f"{config.model} has another tokenizer than GPT-2's: its losses per token "
                        "cannot be compared")
    if not config.data and is_first_on_node():  # the other processes wait in setup_distributed
        download_examples()
    process = train_gpt2.setup_distributed(
        train_gpt2.TrainConfig(device=config.device, dtype=config.dtype))
    model.to(process.device)
    examples = read_examples(config.data) if config.data else iterate_examples()
    items = [tokenize_example(example) for example in islice(examples, config.limit)]
    if not items:
        raise UserError("no HellaSwag items: give a file with --data", who="me")

    t0 = time.time()
    counts = evaluate(model, items, process, batch_tokens=config.batch_tokens)
    acc, acc_norm = (sum_over_processes(count) / len(items) for count in counts)
    is_validation_split = not config.data or is_published(config.data)
    print0(report(config.model, acc, acc_norm, len(items), is_validation_split))
    dtype = str(process.dtype).removeprefix("torch.")
    print0(f"{time.time() - t0:.1f}s on {process.num_processes} x {process.device.type}, {dtype} "
           f"({process.dtype_reason})")


def run(train_gpt2, argv):
    """The command line. train_gpt2: the module. It imports this one, so it is passed in"""
    config = Config(**parse(argv, __doc__, Config))
    if not config.model:
        raise UserError("--model is missing: try --model=gpt2")
    check_least(config, 1, "limit", "batch_tokens")
    if config.data and not os.path.isfile(config.data):
        raise UserError(f"--data={config.data}: there is no such file")
    with orderly_end("HellaSwag", "a smaller --batch_tokens"):
        measure(config, train_gpt2)


if __name__ == "__main__":
    import train_gpt2
    run_program(functools.partial(run, train_gpt2))
