"""
What comes after pretraining. A model that has read much text is taught a task from a few thousand
examples: the other half of the paper on GPT-1 (Radford et al. 2018), and, since then, search by
meaning (SGPT, Muennighoff 2022). train_gpt2.py is the first lecture; this is the second.

    python finetune.py classify --demo           # which of nine plays is a speech from? Offline
    python finetune.py classify --model=gpt2 --train=train.jsonl --val=val.jsonl --log_dir=tuned
    python finetune.py entail ...                # does one sentence follow from another?
    python finetune.py compare ...               # do two texts say the same, or how much so?
    python finetune.py choose ...                # which ending is the right one?
    python finetune.py embed ...                 # texts as vectors: questions near their answers
    python finetune.py predict tuned items.jsonl --out=answers.jsonl   # a tuned model at work
    python finetune.py search tuned passages.jsonl "a question" --top=5
    python play.py export tuned DIR              # for transformers, or sentence-transformers

--model takes whatever play.py takes: a checkpoint, a Hugging Face directory, gpt2 ... gpt2-xl. A
line of a file is an item: {"text": ..., "label": ...}; support/tasks.py shows one of each task.
torchrun starts it on many GPUs, --resume=auto goes on, Ctrl-C saves: all as in train_gpt2.py.

Contents
    1 the task       MARKS, fit, write_rows: five ways to write an input
    2 the settings   TuneConfig, every flag with its reason
    3 the model      TunedGPT: another head on the same blocks; start_model, load_tuned
    4 the data       Example, make_examples, take_batch, to_tensors
    5 the loss       join_rows, task_losses, contrastive_losses, example_losses
    6 measuring      score, evaluate
    7 training       get_lr, prepare, main: the set-up, then the loop with THE STEP
    8 at work        predict, search, embed_texts

Letters in the comments on shapes
    n items, each with one row or more   R rows of them all   N tokens of a row   C channels
    k outputs of the head
"""
import functools
import hashlib
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.utils.rnn import pad_sequence

from support import checkpoints, hugging_face, metrics
from support.batch import choose_items
from support.console import UserError, print0, progress, run_program
from support.processes import orderly_end, sum_over_processes
from support.run import Run
from support.settings import MOST_SEED, check_least, check_most, check_share, merge, parse, pick
from support.shakespeare import read_speeches
from support.tasks import (TEXTS, Task, check_out, check_text, load_items, make_task, read_items,
                           read_task, write_answers)
from support.tokenizer import load_tokenizer, make_tokenizer, save_tokenizer
from train_gpt2 import (GPT, PRESETS, GPTConfig, TrainConfig, load_model, setup_distributed,
                        step_seed, wrap_model)

# --------------------------------------------------------------------------------------------------
# 1 the task: what a pretrained model knows, and how one puts a question to it
#
# To predict the next word well, a model has to know what the text is about, who does what to whom,
# and in which mood. At the last token all of that stands in one vector, from which the next word
# would be read. So we let the model read the question, and read our answer from the same place. The
# model stays as it is: what changes with the task is how an input is written (GPT-1, figure 1):
#
#     classify   [start] text [extract]                               -> one of k labels
#     entail     [start] premise [delimiter] hypothesis [extract]     -> one of k labels
#     compare    [start] a [delimiter] b [extract]
#              + [start] b [delimiter] a [extract]                    -> one of k labels, or a score
#     choose     [start] ctx [delimiter] ending [extract], for each ending   -> a score for each
#     embed      text                                                 -> the vector itself
#
# A pair that is compared has no order, but a row has one: so the model reads both, and the two
# scores are added.

# New tokens, which get the ids after the tokenizer's own. The model does not know them yet: it
# learns what they are for. Padding makes all rows of a batch as long as the longest; it stands on
# the right, where no token of a text can see it
MARKS = ("<|start|>", "<|delimiter|>", "<|extract|>", "<|pad|>")


def fit(task_name, parts, block_size):
    """
    The texts of an item, as lists of ids -> the same, cut where it costs least, so that each row of
    write_rows fits into the model's context.
    """
    if task_name == "embed":
        return [ids[:block_size] for ids in parts]  # no marks
    if task_name == "choose":
        context, *endings = parts
        room = block_size - 3  # the marks
        endings = [ending[: room - 1] for ending in endings]
        # what stands just before an ending tells most about it: the context loses its beginning
        longest = max(map(len, endings))
        return [context[-(room - longest) :], *endings]
    # a text says in its beginning what it is about: the end goes, of two that of the longer
    room = block_size - len(parts) - 1  # a mark before each text, and one at the end
    if len(parts) == 1:
        return [parts[0][:room]]
    first, second = parts
    shorter = min(len(first), len(second), room // 2)
    longer = room - shorter
    if len(first) > len(second):
        return [first[:longer], second[:shorter]]
    return [first[:shorter], second[:longer]]


def write_rows(task_name, parts, n_vocab):
    """
    The texts of an item, as lists of ids -> the rows that the model reads. n_vocab: the tokenizer's
    size, and so the id of start.
    """
    start, delimiter, extract = n_vocab, n_vocab + 1, n_vocab + 2
    if task_name == "embed":
        return parts
    if task_name == "choose":
        context, *endings = parts
        return [[start, *context, delimiter, *ending, extract] for ending in endings]
    if task_name == "classify":
        return [[start, *parts[0], extract]]
    first, second = parts
    row = [start, *first, delimiter, *second, extract]
    if task_name == "entail":
        return [row]
    return [row, [start, *second, delimiter, *first, extract]]  # compare


# --------------------------------------------------------------------------------------------------
# 2 the settings


@dataclass(frozen=True)
class TuneConfig:
    # what goes in and out
    model: str = ""  # a checkpoint, a Hugging Face directory, or gpt2 ... gpt2-xl
    train: str = ""  # a .jsonl file with the items to learn from
    val: str = ""  # a .jsonl file to measure on; without it a tenth of --train is kept
    demo: bool = False  # learn from input.txt, by default with the newest checkpoint in log/
    log_dir: str = "tuned"  # where log.txt, settings.json and model_*.pt go
    tensorboard: bool = False  # write the streams of log.txt for TensorBoard, too
    resume: str = ""  # a checkpoint, or auto: the newest one in log_dir, if there is one
    # the same run without pretraining: what it reaches is not the pretraining's merit
    random_weights: bool = False  # the model's shape and tokenizer, but not what it knows
    # the machine
    device: str = "auto"  # cuda, mps or cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # of the matmuls
    # what is learned. A linear probe shows what the model knew before; biases alone (BitFit,
    # Ben-Zaken et al. 2021; SGPT) are a thousandth of the weights, and often do
    tune: Literal["all", "head", "biases"] = "all"  # all weights, the new head, or biases and head
    # a model that forgets to write overfits sooner (GPT-1, section 3.2)
    lm_weight: float = 0.5  # weight of the language-model loss beside the task's (not for embed)
    # similarities lie between -1 and 1: too alike for a softmax
    temperature: float = 0.05  # embed: similarities are divided by it before the softmax
    # the optimization: GPT-1, section 4.1, "model specifications" and "fine-tuning details"
    epochs: int = 3  # how often each item is seen: enough for most tasks
    batch: int = 32  # items a step
    # B has no effect on the result, except for embed: its negatives are in the micro-batch
    B: int = 0  # items in a micro-batch; 0: what fits
    # about the rate with which pretraining ends (min_lr in train_gpt2.py): the weights are good
    # already, and should not go far
    max_lr: float = 6.25e-5  # peak learning rate
    warmup: float = 0.002  # share of the steps until max_lr
    dropout: float = 0.1  # pretraining sees a text once, tuning three times
    weight_decay: float = 0.01  # AdamW's, on matrices and embeddings only
    beta1: float = 0.9  # AdamW: decay of the running mean of gradients
    beta2: float = 0.999  # AdamW: decay of the running mean of squared gradients
    grad_clip: float = 1.0  # maximum gradient norm
    seed: int = 1337  # of new rows, head, order of the items, dropout
    save_every: int = 0  # steps between checkpoints, and one at the end; 0: about an epoch
    keep_last: int = 1  # checkpoints to keep


def check_config(config):
    """UserError for settings that cannot work."""
    check_least(config, 1, "epochs", "batch", "keep_last")
    check_least(config, 0, "B", "save_every", "seed", "max_lr", "lm_weight", "weight_decay")
    check_least(config, 1e-9, "grad_clip")
    check_least(config, 1e-4, "temperature")
    check_share(config, "warmup", "dropout", "beta1", "beta2")
    check_most(config, MOST_SEED, "seed")


# --demo: a model of the laptop's size learns with a higher rate, and its matmuls are too small for
# bfloat16 to pay
DEMO = dict(max_lr=1e-3, dtype="float32")


# --------------------------------------------------------------------------------------------------
# 3 the model


class TunedGPT(GPT):
    """
    A GPT that answers. Its parameters are named as in transformers' GPT2ForSequenceClassification.
    """

    def __init__(self, config, n_vocab, task):
        """config: a GPTConfig whose vocab_size is n_vocab, the tokenizer's size, and four MARKS."""
        super().__init__(config)
        self.n_vocab = n_vocab
        self.pad = config.vocab_size - 1  # the last of the marks
        self.embeds = task.name == "embed"
        self.dropout = nn.Dropout(config.dropout)
        if not self.embeds:
            k = max(1, len(task.labels))  # an output for each label; one for a score or an ending
            # no bias, as in transformers: ln_f, just before, has one
            self.score = nn.Linear(config.n_embd, k, bias=False)
            self._init_weights(self.score)

    def forward(self, ids, lengths, with_lm=False):
        """
        ids (R, N): rows, padded on the right to one length; lengths (R,): without the padding.
        -> scores (R, k), or, of embed, vectors (R, C) of length one; and the language-model loss of
        each row (R,) in nats a token, None unless with_lm
        """
        hidden = self.hidden(ids)  # (R, N, C)
        if self.embeds:
            # a later token has read more of the text, so it counts more: the t-th t times (SGPT,
            # section 3.1). Padding counts nothing
            columns = torch.arange(ids.size(1), device=ids.device)  # (N,)
            weights = (columns + 1) * (columns < lengths[:, None])  # (R, N)
            vectors = (weights[:, :, None] * hidden).sum(dim=1)  # (R, C)
            # their lengths mean nothing: what is compared is the direction
            return F.normalize(vectors.float(), dim=-1), None
        # only the last token has read all of the row: the last of the text. In a padded row
        # hidden[:, -1] would stand for nothing, and depend on the other rows. (Sebastian Raschka
        # measured 98.3 against 95.0% for this alone: LLMs from scratch, chapter 6)
        rows = torch.arange(len(ids), device=ids.device)
        last = self.dropout(hidden[rows, lengths - 1].float())  # (R, C)
        with torch.autocast(ids.device.type, enabled=False):
            # in 16 bits two endings that are nearly as good would get one score
            scores = self.score(last)  # (R, k)
        lm_losses = self.lm_losses(ids, hidden) if with_lm else None
        return scores, lm_losses

    def lm_losses(self, ids, hidden):
        """The mean loss of each row's text tokens: ids (R, N), hidden (R, N, C) -> (R,)"""
        targets = ids[:, 1:]
        is_text = targets < self.n_vocab  # (R, N - 1): neither a mark nor padding
        # as in pretraining the choice is among the tokens of texts: the marks would come as strong
        # rivals, which have never been told that they are not meant
        head = self.lm_head.weight[: self.n_vocab]
        logits = hidden[:, :-1][is_text] @ head.T  # (tokens, n_vocab)
        losses = F.cross_entropy(logits.float(), targets[is_text], reduction="none")
        row_of_token, _ = is_text.nonzero(as_tuple=True)
        sums = torch.zeros(len(ids), device=ids.device).index_add(0, row_of_token, losses)
        return sums / is_text.sum(dim=1).clamp(min=1)

    def freeze(self, tune):
        """Choose the parameters that learn. tune: all, head or biases, see TuneConfig"""
        for name, p in self.named_parameters():
            is_head = name == "score.weight"
            is_bias = name.endswith(".bias")
            p.requires_grad = tune == "all" or is_head or (tune == "biases" and is_bias)

    def save_pretrained(self, folder, tokenizer, task):
        """
        For others: of classify and entail what transformers loads as GPT2ForSequenceClassification,
        of embed what sentence-transformers loads. Raises OSError, or a UserError.
        """
        weights = hugging_face.transposed(self.state_dict())
        del weights["lm_head.weight"]  # the model there has no such head
        hugging_face.write_tuned(folder, self.config, weights, tokenizer, task, self.pad)
        # the marks come with the tokenizer, which puts them where write_rows does; embed has none
        save_tokenizer(tokenizer, folder, self.config.block_size, MARKS, task.name != "embed")


def start_model(saved, task, dropout=0.0, random_weights=False):
    """
    A language model, as load_model gives it -> the TunedGPT to start from, and its tokenizer.
    random_weights: its shape only.
    """
    tokenizer = load_tokenizer(saved["tokenizer"])
    n_vocab = tokenizer.n_vocab
    shape = GPTConfig(**saved["config"])
    if shape.block_size < 8 or n_vocab > shape.vocab_size:
        raise UserError(f"{saved['path']} cannot be tuned: {shape.vocab_size} rows for {n_vocab} "
                        f"tokens, a context of {shape.block_size}")
    config = replace(shape, vocab_size=n_vocab + len(MARKS), dropout=dropout)
    model = TunedGPT(config, n_vocab, task)
    if not random_weights:
        pretrained = GPT(shape)
        checkpoints.load_weights(pretrained, saved["model"], saved["path"])
        weights = pretrained.state_dict()
        # the rows of the tokens are known; in place of pretraining's padding there are the marks,
        # which start, as the head does, from random numbers
        known = weights["transformer.wte.weight"][:n_vocab]
        new = model.transformer.wte.weight.detach()[n_vocab:]
        weights["transformer.wte.weight"] = torch.cat((known, new))
        weights["lm_head.weight"] = weights["transformer.wte.weight"]  # tied
        model.load_state_dict(weights, strict=False)  # not strict: the new head is missing
    return model, tokenizer


def load_tuned(saved, dropout=0.0):
    """What load_model gives for a tuned model -> the TunedGPT, its tokenizer, its Task"""
    task = read_task(saved)
    tokenizer = load_tokenizer(saved["tokenizer"])
    config = GPTConfig(**{**saved["config"], "dropout": dropout})
    if config.vocab_size != tokenizer.n_vocab + len(MARKS):
        raise UserError(f"{saved['path']} has {config.vocab_size} rows for {tokenizer.n_vocab} "
                        f"tokens and {len(MARKS)} marks: model and tokenizer do not fit")
    model = TunedGPT(config, tokenizer.n_vocab, task)
    # older checkpoints lack lm_head, which is tied to wte
    weights = {"lm_head.weight": saved["model"].get("transformer.wte.weight"), **saved["model"]}
    checkpoints.load_weights(model, weights, saved["path"])
    return model.eval(), tokenizer, task


# --------------------------------------------------------------------------------------------------
# 4 the data


class Example(NamedTuple):
    """An item as the model reads it."""
    rows: list  # lists of ids
    target: object  # what the model should say: a label's number, an ending's, or a score
    # of embed: the number of the query and that of the passage. Equal texts have equal numbers
    keys: tuple = (0, 0)


def make_examples(items, task, tokenizer, block_size, name):
    """Items -> list of Example, and a line that says how many were too long. name: of the items"""
    examples, num_cut = [], 0
    numbers = {}  # of each text
    for item in items:
        try:
            parts = [list(tokenizer.encode(text)) for text in item.texts]
        except UserError as e:  # a character that this tokenizer does not know
            raise UserError(f"{name}, line {item.line}: {e}")
        if not all(parts):
            raise UserError(f"{name}, line {item.line}: a text has no tokens in this model's "
                            "tokenizer")
        fitting = fit(task.name, parts, block_size)
        num_cut += fitting != parts
        rows = write_rows(task.name, fitting, tokenizer.n_vocab)
        keys = [numbers.setdefault(text, len(numbers)) for text in item.texts[:2]]
        examples.append(Example(rows, task.target(item.answer), tuple(keys)))
    if num_cut:
        print0(f"{name}: {num_cut} of {len(items)} items are longer than the model's context of "
               f"{block_size} tokens, and were cut")
    return examples


def longest_row(example):
    return max(len(row) for row in example.rows)


@functools.lru_cache(maxsize=2)  # a step may need the end of one epoch and the beginning of another
def epoch_order(n, seed, epoch):
    """The numbers 0 to n - 1 in the order of an epoch -> list"""
    order = list(range(n))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order


def take_batch(examples, step, config):
    """
    The examples of a step. The epochs are one stream, each in an order of its own: a step's items
    follow from its number, so every batch is full, and a resumed run goes on with the right ones.
    The longest come first: rows of about the same length together need little padding.
    """
    batch = []
    for place in range(step * config.batch, (step + 1) * config.batch):
        epoch, i = divmod(place, len(examples))
        order = epoch_order(len(examples), config.seed, epoch)
        batch.append(examples[order[i]])
    batch.sort(key=longest_row, reverse=True)
    return batch


def to_tensors(examples, pad, device):
    """-> ids (R, N), the rows of all examples, padded; lengths (R,)"""
    rows = [torch.tensor(row) for example in examples for row in example.rows]
    lengths = torch.tensor([len(row) for row in rows])
    # on the right, which is exact: attention is causal, so no token of a text sees the padding
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    return ids.to(device), lengths.to(device)


# --------------------------------------------------------------------------------------------------
# 5 the loss


def join_rows(task, outputs, examples):
    """
    What forward gives for all rows -> what it says of each example: scores (n, answers to choose
    from), of embed the vectors of its texts (n, texts, C)
    """
    counts = [len(example.rows) for example in examples]
    if task.name == "embed":
        return torch.stack(outputs.split(counts))
    if task.name == "choose":
        endings = outputs.squeeze(1).split(counts)  # n tensors, each with a score for each ending
        # items may have different numbers of endings: what is not there is never chosen
        return pad_sequence(endings, batch_first=True, padding_value=-math.inf)
    # both orders of a pair added; everything else has one row
    return torch.stack([rows.sum(dim=0) for rows in outputs.split(counts)])


def task_losses(task, scores, examples):
    """scores (n, answers to choose from) -> how far each is from the truth (n,)"""
    targets = torch.tensor([example.target for example in examples], device=scores.device)
    if task.has_scores:
        return (scores.squeeze(1) - targets.float()) ** 2
    return F.cross_entropy(scores, targets, reduction="none")


def contrastive_losses(queries, passages, keys, passage_keys, first, temperature):
    """
    Each query has to find its passage among all that are there: the other ones are its negatives,
    which cost nothing, since they are computed anyway (Henderson et al. 2017). queries (n, C) with
    keys (n, 2), passages (m, C) with passage_keys (m, 2); the passage of query i is first + i. ->
    (n,)
    """
    similarities = queries @ passages.T / temperature  # (n, m)
    own = torch.arange(first, first + len(queries), device=queries.device)  # (n,)
    # the same query's other passages, and the same passage once more, are right as well: they must
    # not be pushed away
    right = (keys[:, None] == passage_keys).any(dim=-1)  # (n, m)
    right[torch.arange(len(own)), own] = False  # but its own stays, as the answer
    similarities = similarities.masked_fill(right, -math.inf)
    return F.cross_entropy(similarities, own, reduction="none")


def all_gather(x):
    """x (n, ...) of each process -> (n * processes, ...), and backward brings gradients home"""
    if not dist.is_initialized():
        return x
    from torch.distributed.nn.functional import all_gather as gather
    return torch.cat(gather(x.contiguous()))


def example_losses(model, task, examples, config, process):
    """The loss of each example -> (n,): the task's, and lm_weight times the language model's"""
    raw_model = model.module if isinstance(model, DDP) else model
    ids, lengths = to_tensors(examples, raw_model.pad, process.device)
    # under a linear probe nothing that the language-model loss could change is learned
    with_lm = config.lm_weight > 0 and config.tune != "head" and task.name != "embed"
    with process.autocast:
        outputs, lm_losses = model(ids, lengths, with_lm)
    outputs = join_rows(task, outputs, examples)
    if task.name == "embed":
        queries, passages = outputs.unbind(dim=1)  # (n, C)
        keys = torch.tensor([example.keys for example in examples], device=process.device)
        # among the passages of all processes: more GPUs, more negatives
        return contrastive_losses(queries, all_gather(passages), keys, all_gather(keys),
                                  process.rank * len(examples), config.temperature)
    losses = task_losses(task, outputs, examples)
    if with_lm:
        # an item's rows count alike: so the loss is a mean over items, however they are shared out
        counts = [len(example.rows) for example in examples]
        means = [part.mean() for part in lm_losses.split(counts)]
        losses = losses + config.lm_weight * torch.stack(means)
    return losses


# --------------------------------------------------------------------------------------------------
# 6 measuring

EVAL_ITEMS = 32  # in a batch


@torch.no_grad()
def score(model, examples, task, process, before_batch=None):
    """
    What the model says of each example -> in the first process, on its CPU: scores (n, answers),
    with -inf where an item has fewer; of embed vectors (n, texts, C). In the others None.
    before_batch: is called before each batch, in all processes.
    """
    longest = [longest_row(example) for example in examples]
    order = sorted(range(len(examples)), key=longest.__getitem__, reverse=True)
    batches = [order[i : i + EVAL_ITEMS] for i in range(0, len(order), EVAL_ITEMS)]
    found = {}  # the number of an example: what the model says, a numpy array
    model.eval()
    for i in progress(range(0, len(batches), process.num_processes), "scoring", "fewer items"):
        if before_batch is not None:
            before_batch()
        if i + process.rank >= len(batches):
            continue  # in the last round there is not one for each process
        numbers = batches[i + process.rank]
        batch = [examples[number] for number in numbers]
        ids, lengths = to_tensors(batch, model.pad, process.device)
        with process.autocast:
            outputs, _ = model(ids, lengths)
        outputs = join_rows(task, outputs, batch).cpu().numpy()
        found.update(zip(numbers, outputs, strict=True))
    parts = [found]
    if dist.is_initialized():
        parts = [None] * process.num_processes if process.rank == 0 else None
        dist.gather_object(found, parts)
    if process.rank > 0:
        return None
    for part in parts:
        found.update(part)
    results = [torch.from_numpy(found[i]) for i in range(len(examples))]
    return pad_sequence(results, batch_first=True, padding_value=-math.inf)


def evaluate(model, examples, task, config, process, run):
    """The validation loss and the metrics of the task -> dict; None except in the first process"""
    results = score(model, examples, task, process, run.end_if_any_process_stopped)
    model.train()
    if results is None:
        return None
    if task.name == "embed":
        queries, passages = results.unbind(dim=1)
        keys = torch.tensor([example.keys for example in examples])
        losses = contrastive_losses(queries, passages, keys, keys, 0, config.temperature)
    else:
        losses = task_losses(task, results, examples)
    return {"val": losses.mean().item(), **metrics.measure(task, examples, results)}


# --------------------------------------------------------------------------------------------------
# 7 training


def get_lr(step, steps, config):
    """The learning rate of a step: linear warm-up, then in a straight line to zero (GPT-1, 4.1)"""
    warmup = config.warmup * steps
    if step < warmup:
        return config.max_lr * min(1.0, (step + 1) / warmup)
    return config.max_lr * (steps - step) / (steps - warmup)


def find_start(config):
    """The model to start from, that of --model or the demo's -> load_model's dict"""
    if config.model:
        saved = load_model(config.model)
        if "task" in saved:
            raise UserError(f"{saved['path']} is tuned already: start from a language model; "
                            "--resume goes on with a run")
        return saved
    if not config.demo:
        raise UserError("--model is missing: a checkpoint such as log/model_19073.pt, a directory, "
                        "or gpt2")
    paths = checkpoints.list_all("log")
    if paths:
        print0(f"the newest checkpoint in log/ is the model: {paths[-1]}")
        return load_model(paths[-1])
    print0("no checkpoint in log/: a model of the laptop's shape with random weights. To see what "
           "pretraining adds, first run python train_gpt2.py --preset=laptop")
    names = {f.name for f in fields(GPTConfig)}
    shape = {name: n for name, n in PRESETS["laptop"].items() if name in names}
    torch.manual_seed(config.seed)
    gpt_config = GPTConfig(**shape, vocab_size=128)
    tokenizer = make_tokenizer("char", [speech for _, speech in read_speeches()])
    return {"path": "the demo's model", "model": GPT(gpt_config).state_dict(),
            "config": asdict(gpt_config), "tokenizer": tokenizer.spec}


@dataclass
class Plan:
    """What a run is, known before its processes meet."""
    task: Task
    config: TuneConfig
    gpt_config: GPTConfig
    checkpoint: dict | None  # the run to go on with
    model: TunedGPT
    tokenizer: object
    train: list  # of support/tasks.py's Item
    val: list
    data: str  # a hash of the items to learn from: a run goes on with what it began with


def check_same_run(checkpoint, task, data, config):
    """UserError if a run cannot go on from its checkpoint, since it would see other items."""
    path = checkpoint["path"]
    if read_task(checkpoint) != task or checkpoint.get("data") != data:
        raise UserError(f"the items of {config.train or 'the demo'} have changed since {path} was "
                        "saved: bring them back, or begin a new run without --resume")
    if checkpoint["position"] != checkpoint["step"] * config.batch:
        raise UserError(f"{path} was saved by a run with another --batch: it cannot change within "
                        "a run")


def prepare(task_name, typed):
    """Which run is this? typed: the flags that were typed (dict) -> Plan"""
    config = TuneConfig(**typed)
    log_dir = config.log_dir
    if config.resume not in ("", "auto") and "log_dir" not in typed:
        log_dir = os.path.dirname(config.resume) or "."  # a run goes on where its checkpoint is
    start = checkpoint = checkpoints.find(config.resume, log_dir)
    if checkpoint is None:
        start = find_start(config)
        if config.demo and start["config"]["n_embd"] < 256:
            config = TuneConfig(**{**DEMO, **typed})
    else:
        old_task = read_task(checkpoint).name
        if old_task != task_name:
            raise UserError(f"{checkpoint['path']} is a run of {old_task}: it cannot go on as one "
                            f"of {task_name}")
        config = TuneConfig(**merge(checkpoint, typed, {}, TuneConfig))
    config = replace(config, log_dir=log_dir, resume=checkpoint["path"] if checkpoint else "")
    check_config(config)
    if task_name == "embed" and config.tune == "head":
        raise UserError("embed has no head to tune: try --tune=biases")
    train, val = load_items(task_name, config)
    task = make_task(task_name, train, val, config)
    metrics.import_libraries(task)
    entries = json.dumps([item.entry for item in train], sort_keys=True)
    data = hashlib.sha256(entries.encode()).hexdigest()
    torch.manual_seed(config.seed)  # the same marks and head in every process
    if checkpoint is None:
        model, tokenizer = start_model(start, task, config.dropout, config.random_weights)
    else:
        check_same_run(checkpoint, task, data, config)
        model, tokenizer, _ = load_tuned(checkpoint, config.dropout)
    return Plan(task, config, model.config, checkpoint, model, tokenizer, train, val, data)


def print_choices(plan, steps, B, process):
    """The first lines of a run: what was chosen, and why; and what knowing nothing gives."""
    learning = sum(p.numel() for p in plan.model.parameters() if p.requires_grad)
    print0(f"{process.card.kind}, {str(process.dtype)[6:]} ({process.dtype_reason}); "
           f"{len(plan.train)} items, {steps} steps of {plan.config.batch}, {B} at a time in "
           f"{process.num_processes} process(es); {learning:,} numbers learn")
    if process.rank == 0:
        print0(metrics.baseline(plan.task, plan.train, plan.val))


def main(plan, run):
    # --- this process, its share of the items -----------------------------------------------------
    config, task, raw_model = plan.config, plan.task, plan.model
    # rows have many lengths: compiled code would be compiled again for each
    machine = TrainConfig(device=config.device, dtype=config.dtype, compile=False)
    process = setup_distributed(machine)
    block_size = plan.gpt_config.block_size
    train = make_examples(plan.train, task, plan.tokenizer, block_size, "items to learn from")
    val = make_examples(plan.val, task, plan.tokenizer, block_size, "items to measure on")
    B, grad_accum_steps = choose_items(plan.gpt_config, config, task, train, process)
    epochs = range(1, config.epochs + 1)
    epoch_ends = [math.ceil(epoch * len(train) / config.batch) for epoch in epochs]  # in steps
    steps = epoch_ends[-1]
    if plan.checkpoint is not None and plan.checkpoint["step"] > steps:
        raise UserError(f"{plan.checkpoint['step']} steps are done, --epochs={config.epochs} are "
                        f"{steps}")
    config = replace(config, B=B, save_every=config.save_every or epoch_ends[0])

    # --- the model, what learns in it, and how ----------------------------------------------------
    raw_model.freeze(config.tune)
    raw_model.train()
    model = wrap_model(raw_model, machine, process)
    betas = (config.beta1, config.beta2)
    optimizer = raw_model.configure_optimizers(config.weight_decay, config.max_lr, betas)
    scaler = torch.amp.GradScaler(process.device.type, enabled=process.dtype == torch.float16)
    # plan.config goes into the checkpoints: a resumed run chooses B and save_every again
    start_step = run.restore(config, process, plan.tokenizer, None, raw_model, optimizer, scaler,
                             last_step=steps, train_config=asdict(plan.config),
                             task=asdict(task), data=plan.data)
    print_choices(plan, steps, B, process)

    # --- the loop: `step` counts the updates done; saving and measuring come before the next one --
    for step in range(start_step, steps + 1):
        run.turn(step, model=raw_model, optimizer=optimizer, scaler=scaler.state_dict(),
                 position=step * config.batch)
        run.end_if_any_process_stopped()
        if step in epoch_ends:
            with run.phase("measuring", "shorter texts or a smaller --model"):
                values = evaluate(raw_model, val, task, config, process, run)
            if process.rank == 0:
                run.log(step, **values)
        if step == steps:
            break

        # ============================== THE STEP ==============================
        t0 = time.perf_counter()
        torch.manual_seed(step_seed(config.seed, step, process.rank))
        optimizer.zero_grad(set_to_none=True)
        batch = take_batch(train, step, config)
        loss_accum = 0.0
        for micro_step in range(grad_accum_steps):
            # a micro batch is B items for each process, dealt out like cards: the long ones evenly
            n = B * process.num_processes
            examples = batch[micro_step * n : (micro_step + 1) * n]
            examples = examples[process.rank :: process.num_processes]
            if isinstance(model, DDP):  # as in train_gpt2.py: average in the last micro step
                model.require_backward_grad_sync = micro_step == grad_accum_steps - 1
            losses = example_losses(model, task, examples, config, process)
            # a mean over the items of this process's share. DDP makes it one over all processes
            loss = losses.sum() / (B * grad_accum_steps)
            loss_accum += loss.detach()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), config.grad_clip)
        lr = get_lr(step, steps, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        scaler.step(optimizer)
        scaler.update()
        process.card.synchronize()
        dt = time.perf_counter() - t0
        # ======================================================================

        loss = sum_over_processes(loss_accum / process.num_processes)
        run.log(step, train=loss, lr=lr, norm=norm.item(), dt=dt)
    if not run.last_save_failed and task.name == "embed":
        print0(f'next: python finetune.py search {config.log_dir} passages.jsonl "a question"')
    elif not run.last_save_failed:
        print0(f"next: python finetune.py predict {config.log_dir} items.jsonl")


def tune(task_name, argv):
    """The command of each task. argv: its flags"""
    plan = prepare(task_name, parse(argv, __doc__, TuneConfig))
    with Run(plan.config, plan.checkpoint) as record:
        main(plan, record)


# --------------------------------------------------------------------------------------------------
# 8 at work


@dataclass(frozen=True)
class PredictConfig:
    out: str = ""  # where the answers go: answers.jsonl, or answers.npy for embed
    device: str = "auto"  # cuda, mps or cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # of the matmuls


def predict(argv):
    """python finetune.py predict tuned items.jsonl --out=answers.jsonl"""
    typed = parse(argv, __doc__, PredictConfig, words=True)
    config = PredictConfig(**pick(PredictConfig, typed))
    if len(typed["words"]) != 2:
        raise UserError("predict needs a tuned model and a file: python finetune.py predict tuned "
                        "items.jsonl --out=answers.jsonl")
    name, path = typed["words"]
    model, tokenizer, task = load_tuned(load_model(name))
    items = read_items(path, task.name, with_answers=False)
    out = check_out(config.out, task)
    with Run(config, None) as record, record.phase("scoring", "shorter texts or a smaller model"):
        process = setup_distributed(TrainConfig(device=config.device, dtype=config.dtype))
        model.to(process.device)
        examples = make_examples(items, task, tokenizer, model.config.block_size, path)
        scores = score(model, examples, task, process)
        if process.rank == 0:
            write_answers(out, task, items, scores)


def load_embedder(name):
    """MODEL -> a TunedGPT that embeds, and its tokenizer. One that was never tuned will do."""
    saved = load_model(name)
    if "task" not in saved:
        model, tokenizer = start_model(saved, Task("embed", []))
        return model.eval(), tokenizer
    model, tokenizer, task = load_tuned(saved)
    if task.name != "embed":
        raise UserError(f"{saved['path']} is tuned for {task.name}: search needs a model that was "
                        "tuned for embed, or never")
    return model, tokenizer


def embed_texts(model, tokenizer, texts, process):
    """Texts (list) -> vectors (n, C) of length one, on the CPU: their products are similarities"""
    block_size = model.config.block_size
    examples = [Example([list(tokenizer.encode(text))[:block_size]], None) for text in texts]
    return score(model, examples, Task("embed", []), process).squeeze(1)


@dataclass(frozen=True)
class SearchConfig:
    top: int = 5  # number of passages to print
    device: str = "auto"  # cuda, mps or cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # of the matmuls


def search(argv):
    """Print the passages that are nearest to a question, by what they mean, not by their words."""
    typed = parse(argv, __doc__, SearchConfig, words=True)
    words = typed.pop("words")
    config = SearchConfig(**typed)
    if len(words) != 3:
        raise UserError("search needs a model, a file and a question: python finetune.py search "
                        'tuned passages.jsonl "a question"')
    check_least(config, 1, "top")
    name, path, question = words
    if problem := check_text(question):
        raise UserError(f"the question {problem}")
    items = read_items(path, "embed", with_answers=False)
    passages = [item.texts[-1] for item in items]  # the passage of a pair, not its query
    model, tokenizer = load_embedder(name)
    with orderly_end("search", "shorter passages or --device=cpu"):
        process = setup_distributed(TrainConfig(device=config.device, dtype=config.dtype))
        model.to(process.device)
        vectors = embed_texts(model, tokenizer, [question, *passages], process)
    similarities = vectors[1:] @ vectors[0]  # (number of passages,), cosines
    best = similarities.topk(min(config.top, len(passages)))
    for similarity, number in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print0(f"{similarity:.3f}  {' '.join(passages[number].split())}")


def run(argv):
    names = f"{', '.join(TEXTS)}, predict or search"
    if not argv or argv[0].startswith("-"):
        parse(argv, __doc__, TuneConfig)  # --help ends here
        raise UserError(f"name a task first: {names} (--help shows them)")
    command, *flags = argv
    if command == "predict":
        predict(flags)
    elif command == "search":
        search(flags)
    elif command in TEXTS:
        tune(command, flags)
    else:
        raise UserError(f"there is no task {command}: {names} (--help shows them)")


if __name__ == "__main__":
    run_program(run)
