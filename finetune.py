"""
What comes after pretraining: a model that has read a lot of text is taught a task from a few
thousand examples. This is the other half of the paper on GPT-1 (Radford et al. 2018), plus search
by meaning (SGPT, Muennighoff 2022). train_gpt2.py is the first lecture; this is the second.

    python finetune.py classify --demo           # which of nine plays is a speech from? Offline
    python finetune.py classify --model=gpt2 --train=train.jsonl --val=val.jsonl --log_dir=tuned
    python finetune.py entail ...                # does one sentence follow from another?
    python finetune.py compare ...               # do two texts mean the same, or how similar?
    python finetune.py choose ...                # which ending is the right one?
    python finetune.py embed ...                 # texts as vectors: questions near their answers
    python finetune.py predict tuned items.jsonl --out=answers.jsonl   # use a tuned model
    python finetune.py search tuned passages.jsonl "a question" --top=5
    python play.py export tuned DIR              # for transformers, or sentence-transformers

--model takes whatever play.py takes: a checkpoint, a Hugging Face directory, gpt2 ... gpt2-xl. Each
line of a file is an item, {"text": ..., "label": ...}; support/tasks.py shows one for each task.
torchrun, --resume=auto and Ctrl-C work as in train_gpt2.py.

Contents
    1 the tasks      SPECIAL_TOKENS, shorten; Classify, Entail, Compare, Similarity, Choose, Embed
    2 the settings   TuneConfig
    3 the model      TunedGPT: another head on the same blocks; load_tuned
    4 the data       Example, make_examples, make_order, to_tensors
    5 the loss       contrastive_losses, example_losses
    6 measuring      predict_scores, evaluate
    7 training       get_lr, prepare, main: the set-up, then the loop with THE STEP
    8 using a tuned model    predict, search

Letters in shapes
    n items; each becomes one row or more   B rows, of all items together   T tokens in a row
    C channels, n_embd   k outputs of the head
"""
import math
import random
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.utils.rnn import pad_sequence

from support import checkpoints, metrics, tasks
from support.batch import choose_micro_batch
from support.console import UserError, print0, progress, run_program
from support.processes import orderly_end, sum_over_processes
from support.prompts import read_prompt
from support.run import Run
from support.settings import (MOST_SEED, check_least, check_most, check_share, find_checkpoint,
                              merge, parse, pick)
from support.shakespeare import read_speeches
from support.tokenizer import load_tokenizer, make_tokenizer
from train_gpt2 import (GPT, PRESETS, GPTConfig, TrainConfig, load_model, setup_distributed,
                        step_seed, wrap_model)

# --------------------------------------------------------------------------------------------------
# 1 the tasks
#
# To predict the next word, a model has to understand the words before it, and the hidden state of
# the last token is all that the prediction is made from. So that state summarizes the text, and we
# can read other answers from it too: a small new head turns it into the scores of a task. Each task
# says how to write its items as rows of tokens (GPT-1, figure 1), what the head's outputs mean,
# what a wrong answer costs, and how the answers are measured:
#
#     classify   [start] text [extract]                               -> one of k labels
#     entail     [start] premise [delimiter] hypothesis [extract]     -> one of k labels
#     compare    [start] a [delimiter] b [extract]
#              + [start] b [delimiter] a [extract]                    -> one of k labels, or a score
#     choose     [start] ctx [delimiter] ending [extract], for each ending   -> a score for each
#     embed      text                                                 -> a vector

# New tokens, with the ids after the tokenizer's own; tuning teaches the model what they mean. The
# answer is read at extract. Padding fills a row on the right, where no token of the text sees it
SPECIAL_TOKENS = ("<|start|>", "<|delimiter|>", "<|extract|>", "<|pad|>")


def shorten(texts, room):
    """
    Cut texts (lists of ids) until they have `room` tokens in all -> new lists. Texts usually open
    with their topic, so the cut is at the end, always of the text that is longest at the moment.
    """
    lengths = [len(text) for text in texts]
    while sum(lengths) > room:
        # a tie: cut the text that was shorter at first, as Hugging Face's tokenizers do. So an
        # exported model reads the same rows
        longest = max(range(len(texts)), key=lambda i: (lengths[i], -len(texts[i])))
        lengths[longest] -= 1
    return [text[:length] for text, length in zip(texts, lengths, strict=True)]


@dataclass
class Classify:
    """One text, one of several labels. The other tasks say only what they do differently."""
    # these three depend on the training items, and are saved with the model
    labels: list = field(default_factory=list)  # in the order of the head's outputs
    mean: float = 0.0  # for Similarity: mean and standard deviation of the scores
    std: float = 1.0
    # these are fixed for each task; without a type they are not dataclass fields
    name = "classify"
    entries = ("text",)  # the entries of an item with its texts
    answer = "label"  # what support/tasks.py reads as the right answer
    libraries = ("sklearn.metrics",)  # needed to measure; imported before training starts

    @property
    def num_outputs(self):  # k
        return len(self.labels)

    def target(self, answer):
        """What the head should say for an item's answer: here, the number of its label."""
        return self.labels.index(answer)

    def truncate(self, texts, block_size):
        """Texts (lists of ids) -> the same, short enough for the rows to fit into the context"""
        num_special = 2 if len(texts) == 1 else 3  # start, extract; delimiter between two texts
        return shorten(texts, block_size - num_special)

    def rows(self, texts, special):
        """Texts (lists of ids) -> rows (lists of ids). special: the four ids of SPECIAL_TOKENS"""
        start, _, extract, _ = special
        return [[start, *texts[0], extract]]

    def join(self, outputs, examples):
        """The head's outputs for all rows (B, k) -> scores (n, k): add the rows of an item."""
        counts = [len(example.rows) for example in examples]
        return torch.stack([rows.sum(dim=0) for rows in outputs.split(counts)])

    def losses(self, scores, examples, config, process=None):
        """scores (n, k) -> (n,). config, process: Embed alone uses them"""
        targets = torch.tensor([example.target for example in examples], device=scores.device)
        return F.cross_entropy(scores, targets, reduction="none")

    def measure(self, scores, examples):
        """scores (n, k) -> {metric: value}"""
        targets = [example.target for example in examples]
        return metrics.of_labels(targets, scores.argmax(dim=1).tolist(), self.labels)

    def baseline(self, train, val):
        """The result without reading the texts: always the most frequent label -> a line"""
        return metrics.majority_baseline([item.answer for item in train],
                                         [item.answer for item in val], self.labels)

    def prediction(self, scores, item):
        """scores (k,) of an item -> what predict writes beside it (dict)"""
        probs = F.softmax(scores, dim=0).tolist()
        return {"prediction": self.labels[probs.index(max(probs))],
                "prediction_scores": dict(zip(map(str, self.labels), probs, strict=True))}


class Entail(Classify):
    """A pair of texts, in this order."""
    name, entries = "entail", ("premise", "hypothesis")

    def rows(self, texts, special):
        start, delimiter, extract, _ = special
        first, second = texts
        return [[start, *first, delimiter, *second, extract]]


class Compare(Entail):
    """A pair whose order does not matter: one row for each order, whose outputs join adds."""
    name, entries, answer = "compare", ("a", "b"), "label or score"

    def rows(self, texts, special):
        return super().rows(texts, special) + super().rows(texts[::-1], special)


class Similarity(Compare):
    """compare with scores: the head learns (score - mean) / std."""
    libraries = ("scipy.stats",)
    num_outputs = 1

    def target(self, answer):
        return (answer - self.mean) / self.std

    def losses(self, scores, examples, config, process=None):
        targets = torch.tensor([example.target for example in examples], device=scores.device)
        return (scores.squeeze(1) - targets.float()) ** 2

    def measure(self, scores, examples):
        return metrics.of_scores([example.target for example in examples], scores[:, 0].tolist())

    def baseline(self, train, val):
        return "baseline: the mean score for all items has a loss near 1 and no correlation"

    def prediction(self, scores, item):
        return {"prediction": scores[0].item() * self.std + self.mean}


class Choose(Classify):
    """A context and several endings: one row for each ending, one score for each row."""
    name, entries, libraries = "choose", ("ctx", "endings"), ()
    num_outputs = 1

    def target(self, answer):
        return answer  # the place of the right ending, from 0 on

    def truncate(self, texts, block_size):
        context, *endings = texts
        room = block_size - 3  # start, delimiter, extract
        endings = [ending[: room - 1] for ending in endings]  # 1: some context always remains
        longest = max(map(len, endings))
        # the words just before an ending matter most: keep the end of the context
        return [context[-(room - longest) :], *endings]

    def rows(self, texts, special):
        start, delimiter, extract, _ = special
        context, *endings = texts
        return [[start, *context, delimiter, *ending, extract] for ending in endings]

    def join(self, outputs, examples):
        scores = outputs.squeeze(1).split([len(example.rows) for example in examples])
        # where an item has fewer endings, the missing ones are never chosen
        return pad_sequence(scores, batch_first=True, padding_value=-math.inf)

    def baseline(self, train, val):
        # an item's texts are the context and its endings
        chance = sum(1 / (len(item.texts) - 1) for item in val) / len(val)
        return f"baseline: a random ending is right for {chance:.1%} of val"

    def prediction(self, scores, item):
        num_endings = len(item.texts) - 1
        probs = F.softmax(scores, dim=0)[:num_endings].tolist()
        return {"prediction": probs.index(max(probs)), "prediction_scores": probs}


class Embed(Classify):
    """
    A query and the passage that answers it: their vectors should point the same way. Section 5
    explains the loss. For it each text gets a number, and equal texts get the same one.
    """
    name, entries, answer = "embed", ("query", "passage"), None
    libraries = ("rank_bm25",)
    num_outputs = 0  # no head: the vector itself is the answer

    def target(self, answer):
        return None

    def truncate(self, texts, block_size):
        return [text[:block_size] for text in texts]

    def rows(self, texts, special):
        return texts

    def join(self, outputs, examples):
        """Vectors (B, C) -> (n, 2, C): query and passage of each item"""
        return torch.stack(outputs.split([len(example.rows) for example in examples]))

    def losses(self, vectors, examples, config, process=None):
        """process: in training. Then each query also meets the passages of all processes"""
        queries, passages = vectors.unbind(dim=1)  # (n, C)
        numbers = torch.tensor([example.text_numbers for example in examples],
                               device=vectors.device)  # (n, 2)
        if process is None:
            return contrastive_losses(queries, passages, numbers, numbers, 0, config.temperature)
        return contrastive_losses(queries, gather_with_gradients(passages), numbers,
                                  gather_with_gradients(numbers), process.rank * len(examples),
                                  config.temperature)

    def measure(self, vectors, examples):
        queries, passages = vectors.unbind(dim=1)
        return metrics.of_search((queries @ passages.T).numpy(),
                                 [example.text_numbers for example in examples])

    def baseline(self, train, val):
        queries, passages = zip(*[item.texts for item in val], strict=True)
        return metrics.search_baseline(queries, passages)


TASKS = {task.name: task for task in (Classify, Entail, Compare, Choose, Embed)}


def make_task(name, labels, mean=0.0, std=1.0):
    """A name in TASKS and the fields that a model is saved with -> task; compare has two kinds"""
    if name == "compare" and not labels:
        return Similarity(labels, mean, std)
    return TASKS[name](labels, mean, std)


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
    tensorboard: bool = False  # also write the log for TensorBoard
    resume: str = ""  # a checkpoint, or auto: the newest one in log_dir, if there is one
    # a control experiment: what a model reaches without pretraining, tuning alone explains
    random_weights: bool = False  # same shape and tokenizer, no pretraining
    # the machine
    device: str = "auto"  # cuda, mps or cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # of the matmuls
    # what is trained. The head alone, a linear probe, shows what the model knew before. The biases
    # (BitFit, Ben-Zaken et al. 2021; SGPT) are a thousandth of the weights, and they often suffice
    tune: Literal["all", "head", "biases"] = "all"  # all weights, the new head, or biases and head
    # predicting words as well delays overfitting (GPT-1, section 3.2)
    lm_weight: float = 0.5  # weight of the language-model loss beside the task's (not for embed)
    # cosines lie between -1 and 1, too close together for a softmax
    temperature: float = 0.05  # embed: similarities are divided by it before the softmax
    # the optimization: GPT-1, section 4.1, "model specifications" and "fine-tuning details"
    epochs: int = 3  # how often each item is seen: enough for most tasks
    batch: int = 32  # items in a step
    # B changes memory and speed only; for embed also the task: its passages are in the micro-batch
    B: int | None = None  # items that a process takes at a time; None: as many as fit
    # about the rate at which pretraining ends (min_lr in train_gpt2.py): the weights are good
    # already and should not move far
    max_lr: float = 6.25e-5  # peak learning rate
    warmup: float = 0.002  # fraction of all steps in which the rate rises to max_lr
    dropout: float = 0.1  # pretraining sees a text once, tuning three times
    weight_decay: float = 0.01  # AdamW's, on matrices and embeddings only
    beta1: float = 0.9  # AdamW: decay of the running mean of gradients
    beta2: float = 0.999  # AdamW: decay of the running mean of squared gradients
    grad_clip: float = 1.0  # maximum gradient norm
    seed: int = 1337  # of new weights, order of the items, dropout
    save_every: int = 0  # steps between checkpoints, and one at the end; 0: about an epoch
    keep_last: int = 1  # checkpoints to keep


# a small model, such as the laptop's, learns --demo with a higher rate, and its matmuls are too
# small for bfloat16 to help
DEMO = dict(max_lr=1e-3, dtype="float32")


def check_config(task_name, config):
    """UserError for settings that cannot work."""
    check_least(config, 1, "epochs", "batch", "keep_last", "B")
    check_least(config, 0, "save_every", "seed", "max_lr", "lm_weight", "weight_decay")
    check_least(config, 1e-9, "grad_clip")
    check_least(config, 1e-4, "temperature")
    check_share(config, "warmup", "dropout", "beta1", "beta2")
    check_most(config, MOST_SEED, "seed")
    if task_name == "embed" and config.tune == "head":
        raise UserError("embed has no head to tune: try --tune=biases")
    if config.demo and config.train:
        raise UserError("--demo has items of its own: leave out --demo or --train")


# --------------------------------------------------------------------------------------------------
# 3 the model


class TunedGPT(GPT):
    """
    A GPT with the head of a task. Its parameters are named as in transformers'
    GPT2ForSequenceClassification.
    """

    def __init__(self, config, task):
        """config: a GPTConfig whose vocab_size is the tokenizer's size + len(SPECIAL_TOKENS)"""
        super().__init__(config)
        self.task = task
        self.n_vocab = config.vocab_size - len(SPECIAL_TOKENS)
        self.pad = config.vocab_size - 1  # the last special token
        self.dropout = nn.Dropout(config.dropout)
        if task.num_outputs > 0:
            # no bias, as in transformers: ln_f, just before, has one
            self.score = nn.Linear(config.n_embd, task.num_outputs, bias=False)
            self._init_weights(self.score)

    def forward(self, idx, lengths, with_lm=False):
        """
        idx (B, T): rows of ids, padded on the right; lengths (B,): their lengths without padding
        -> scores (B, k), or for embed unit vectors (B, C); and the language-model loss of each row
        (B,) in nats per token, None unless with_lm
        """
        hidden = self.hidden(idx)  # (B, T, C)
        if self.task.num_outputs == 0:
            # a weighted mean: a later token has read more of the text, so token t has weight t
            # (SGPT, section 3.1), and padding has weight 0
            columns = torch.arange(idx.size(1), device=idx.device)  # (T,)
            weights = (columns + 1) * (columns < lengths[:, None])  # (B, T)
            vectors = (weights[:, :, None] * hidden).sum(dim=1)  # (B, C)
            # to length 1: only directions are compared, so the mean's division can be left out
            return F.normalize(vectors.float(), dim=-1), None
        # Only the last token has read the whole text. A trap: in most rows hidden[:, -1] is padding
        rows = torch.arange(len(idx), device=idx.device)
        last = self.dropout(hidden[rows, lengths - 1].float())  # (B, C)
        with torch.autocast(idx.device.type, enabled=False):
            scores = self.score(last)  # (B, k), in float32: 16 bits would make close scores equal
        lm_losses = self.lm_losses(idx, hidden) if with_lm else None
        return scores, lm_losses

    def lm_losses(self, idx, hidden):
        """The mean loss of each row's text tokens: idx (B, T), hidden (B, T, C) -> (B,)"""
        ignore = -100  # cross_entropy's value for "no target here": special tokens and padding
        targets = idx[:, 1:].masked_fill(idx[:, 1:] >= self.n_vocab, ignore)  # (B, T - 1)
        # they are never targets, so they do not compete in the softmax either: their rows of
        # lm_head are left out, as if they were not there
        logits = hidden[:, :-1] @ self.lm_head.weight[: self.n_vocab].T  # (B, T - 1, n_vocab)
        losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none",
                                 ignore_index=ignore)  # (B, T - 1)
        return losses.sum(dim=1) / (targets != ignore).sum(dim=1).clamp(min=1)


def from_language_model(pretrained, n_vocab, task, dropout=0.0, random_weights=False):
    """
    A GPT whose tokenizer has n_vocab tokens -> the TunedGPT to start from. random_weights: take
    only its shape.
    """
    if pretrained.config.block_size < 8:
        raise UserError(f"a context of {pretrained.config.block_size} tokens is too short to tune")
    config = replace(pretrained.config, vocab_size=n_vocab + len(SPECIAL_TOKENS), dropout=dropout)
    model = TunedGPT(config, task)
    if not random_weights:
        weights = pretrained.state_dict()
        # its rows beyond n_vocab are unused (50,304 rows for 50,257 tokens). In their place come
        # the special tokens, which start from random numbers, as the head does
        new = model.transformer.wte.weight.detach()[n_vocab:]
        weights["transformer.wte.weight"] = torch.cat((weights["transformer.wte.weight"][:n_vocab],
                                                       new))
        weights["lm_head.weight"] = weights["transformer.wte.weight"]  # tied
        model.load_state_dict(weights, strict=False)  # not strict: the task's head is new
    return model


def make_tuned(saved, dropout=0.0):
    """A checkpoint of a tuned model (dict) -> the TunedGPT, its tokenizer"""
    task = make_task(**saved["task"])
    tokenizer = load_tokenizer(saved["tokenizer"])
    model = TunedGPT(replace(GPTConfig(**saved["config"]), dropout=dropout), task)
    if model.n_vocab != tokenizer.n_vocab:
        raise UserError(f"{saved['path']} has rows for {model.n_vocab} tokens, its tokenizer "
                        f"{tokenizer.n_vocab}: they do not belong together")
    # older checkpoints lack lm_head, which is tied to wte
    model.load_state_dict({"lm_head.weight": saved["model"]["transformer.wte.weight"],
                           **saved["model"]})
    return model, tokenizer


def load_tuned(name):
    """
    A checkpoint of a tuned model, or the directory of its run -> TunedGPT in eval mode, on the CPU;
    its tokenizer; what the file says (dict), as from load_model
    """
    if not checkpoints.is_tuned(name):
        raise UserError(f"{name} is a language model: it has not been tuned for a task. python "
                        "finetune.py --help shows how")
    saved = checkpoints.read(checkpoints.find_file(name))
    model, tokenizer = make_tuned(saved)
    return model.eval(), tokenizer, saved


# --------------------------------------------------------------------------------------------------
# 4 the data


class Example(NamedTuple):
    """An item as the model reads it."""
    rows: list  # lists of ids
    target: object  # what the head should say: the number of a label or an ending, or a score
    text_numbers: tuple = (0, 0)  # for embed: of the query and of the passage


def make_examples(items, task, tokenizer, block_size, source):
    """Items -> list of Example. Prints how many were cut. source: their file, for errors"""
    special = range(tokenizer.n_vocab, tokenizer.n_vocab + len(SPECIAL_TOKENS))
    examples, num_cut = [], 0
    number_of = {}  # text -> its number, in order of appearance
    for item in items:
        try:
            texts = [list(tokenizer.encode(text)) for text in item.texts]
        except UserError as e:  # a character that this tokenizer does not know
            raise UserError(f"{source}, line {item.line}: {e}")
        if not all(texts):
            raise UserError(f"{source}, line {item.line}: a text has no tokens in this model's "
                            "tokenizer")
        short = task.truncate(texts, block_size)
        num_cut += short != texts
        target = None if item.answer is None else task.target(item.answer)
        numbers = tuple(number_of.setdefault(text, len(number_of)) for text in item.texts[:2])
        examples.append(Example(task.rows(short, special), target, numbers))
    if num_cut:
        print0(f"{source}: {num_cut} of {len(items)} items are longer than the model's context of "
               f"{block_size} tokens, and were cut")
    return examples


def longest_row(example):
    return max(len(row) for row in example.rows)


def make_order(n, num_epochs, seed):
    """
    The order in which n items are seen: num_epochs epochs, each shuffled, one after the other
    -> list of n * num_epochs numbers. Step s takes the next `batch` of them, so a resumed run
    continues with the right items.
    """
    order = []
    for epoch in range(num_epochs):
        numbers = list(range(n))
        random.Random(f"{seed} {epoch}").shuffle(numbers)
        order += numbers
    return order


def to_tensors(examples, pad, device):
    """-> idx (B, T), the rows of all examples, padded with the id pad; their lengths (B,)"""
    rows = [torch.tensor(row) for example in examples for row in example.rows]
    lengths = torch.tensor([len(row) for row in rows])
    # padding on the right is exact: attention is causal, so no token of a text sees it
    idx = pad_sequence(rows, batch_first=True, padding_value=pad)
    return idx.to(device), lengths.to(device)


# --------------------------------------------------------------------------------------------------
# 5 the loss


def contrastive_losses(queries, passages, numbers, passage_numbers, first_own, temperature):
    """
    Each query has to find its own passage among all of them. The other queries' passages are its
    wrong answers, its negatives; they are computed anyway, so they come for free (Henderson et al.
    2017).
        queries (n, C)           passages (m, C), of which that of query i is first_own + i
        numbers (n, 2)           of the texts of each query's item: equal texts, equal numbers
        passage_numbers (m, 2)   the same for each passage's item     -> losses (n,)
    """
    similarities = queries @ passages.T / temperature  # (n, m)
    own = first_own + torch.arange(len(queries), device=queries.device)  # (n,)
    # another passage for the same query, and the same passage once more, are right as well: they
    # must not be pushed away
    same_query = numbers[:, None, 0] == passage_numbers[:, 0]  # (n, m)
    same_passage = numbers[:, None, 1] == passage_numbers[:, 1]
    also_right = same_query | same_passage
    also_right[torch.arange(len(own)), own] = False  # its own passage stays, as the answer
    similarities = similarities.masked_fill(also_right, -math.inf)
    return F.cross_entropy(similarities, own, reduction="none")


def gather_with_gradients(x):
    """A collective: x (n, ...) of each process -> (n * processes, ...)"""
    if not dist.is_initialized():
        return x
    from torch.distributed.nn.functional import all_gather  # dist.all_gather has no backward
    return torch.cat(all_gather(x.contiguous()))


def example_losses(model, task, examples, config, process):
    """The loss of each example -> (n,): the task's, plus lm_weight times the language model's"""
    raw_model = model.module if isinstance(model, DDP) else model
    idx, lengths = to_tensors(examples, raw_model.pad, process.device)
    # a linear probe trains nothing that the language-model loss could change
    with_lm = config.lm_weight > 0 and config.tune != "head" and task.num_outputs > 0
    with process.autocast:
        outputs, lm_losses = model(idx, lengths, with_lm)
    losses = task.losses(task.join(outputs, examples), examples, config, process)
    if with_lm:
        # first a mean over the rows of an item, so that each item counts alike
        of_items = lm_losses.split([len(example.rows) for example in examples])
        losses = losses + config.lm_weight * torch.stack([rows.mean() for rows in of_items])
    return losses


# --------------------------------------------------------------------------------------------------
# 6 measuring

EVAL_ITEMS = 32  # in a batch


@torch.no_grad()
def predict_scores(model, examples, process, before_batch=lambda: None):
    """
    The model's scores for each example -> in the first process, on its CPU: scores (n, k), with
    -inf where an item has fewer endings; for embed vectors (n, texts, C). In the others None.
    before_batch: called before each batch, in all processes
    """
    task = model.task
    order = sorted(range(len(examples)), key=lambda i: longest_row(examples[i]), reverse=True)
    batches = [order[i : i + EVAL_ITEMS] for i in range(0, len(order), EVAL_ITEMS)]
    found = {}  # number of an example -> its scores
    model.eval()
    for i in progress(range(0, len(batches), process.num_processes), "scoring",
                      if_slow="fewer items"):
        before_batch()
        # in the last round some processes have no batch left
        numbers = batches[i + process.rank] if i + process.rank < len(batches) else []
        if numbers:
            batch = [examples[number] for number in numbers]
            idx, lengths = to_tensors(batch, model.pad, process.device)
            with process.autocast:
                outputs, _ = model(idx, lengths)
            # numpy: gather_object pickles it quickly
            found.update(zip(numbers, task.join(outputs, batch).cpu().numpy(), strict=True))
    if dist.is_initialized():
        parts = [None] * process.num_processes if process.rank == 0 else None
        dist.gather_object(found, parts)
        if process.rank > 0:
            return None
        for part in parts:
            found.update(part)
    results = [torch.from_numpy(found[i]) for i in range(len(examples))]
    # padded again: a batch may have items with fewer endings than another
    return pad_sequence(results, batch_first=True, padding_value=-math.inf)


def evaluate(model, examples, config, process, run):
    """
    The task's loss and its metrics -> dict; None except in the first process. The training loss is
    another number: it has the language model's loss in it, and for embed fewer negatives.
    """
    scores = predict_scores(model, examples, process, run.end_if_any_process_stopped)
    model.train()
    if scores is None:
        return None
    losses = model.task.losses(scores, examples, config)
    return {"val": losses.mean().item(), **model.task.measure(scores, examples)}


# --------------------------------------------------------------------------------------------------
# 7 training


def get_lr(step, steps, config):
    """Learning rate of a step: linear warm-up, then a straight line to zero (GPT-1, section 4.1)"""
    warmup_steps = config.warmup * steps  # in short runs less than one
    if step < warmup_steps:
        return config.max_lr * min(1.0, (step + 1) / warmup_steps)
    return config.max_lr * (steps - step) / (steps - warmup_steps)


def choose_trainable(model, tune):
    """Freeze all parameters that are not trained. tune: all, head or biases, see TuneConfig"""
    for name, p in model.named_parameters():
        is_head = name == "score.weight"
        is_bias = name.endswith(".bias")
        p.requires_grad = tune == "all" or is_head or (tune == "biases" and is_bias)


def load_pretrained(config):
    """The language model to start from, --model or the demo's -> GPT, tokenizer"""
    name = config.model
    if config.demo and not name and checkpoints.list_all("log"):
        name = "log"
        print0(f"the newest checkpoint in log/ is the model: {checkpoints.find_file(name)}")
    if name:
        model, tokenizer, _ = load_model(name)
        return model, tokenizer
    if not config.demo:
        raise UserError("--model is missing: a checkpoint such as log/model_19073.pt, a directory, "
                        "or gpt2")
    print0("no checkpoint in log/: a model of the laptop's shape with random weights. To see what "
           "pretraining adds, first run python train_gpt2.py --preset=laptop")
    torch.manual_seed(config.seed)
    shape = pick(GPTConfig, PRESETS["laptop"])
    tokenizer = make_tokenizer("char", [speech for _, speech in read_speeches()])
    return GPT(GPTConfig(**shape, vocab_size=tokenizer.n_vocab)), tokenizer


class Plan(NamedTuple):
    """What each process has read and checked before it meets the others."""
    config: TuneConfig
    checkpoint: dict | None  # of the run to continue
    model: TunedGPT
    tokenizer: object
    train: list  # of support/tasks.py's Item
    val: list


def plan_new_run(task_name, config, typed):
    """config: from the flags that were typed (dict) -> Plan"""
    check_config(task_name, config)
    pretrained, tokenizer = load_pretrained(config)
    if config.demo and pretrained.config.n_embd < 256:
        config = replace(config, **{**DEMO, **pick(TuneConfig, typed)})  # a typed flag wins
    train, val, answers = tasks.load_items(TASKS[task_name], config)
    torch.manual_seed(config.seed)  # the same new weights in every process
    model = from_language_model(pretrained, tokenizer.n_vocab, make_task(task_name, *answers),
                                config.dropout, config.random_weights)
    return Plan(replace(config, resume=""), None, model, tokenizer, train, val)


def plan_resumed_run(task_name, checkpoint, log_dir, typed):
    """checkpoint: of the run to continue (dict) -> Plan. Typed flags may change some settings."""
    tasks.check_continues(checkpoint, task_name, typed)
    config = TuneConfig(**merge(checkpoint, typed, {}, TuneConfig))
    config = replace(config, resume=checkpoint["path"], log_dir=log_dir)
    check_config(task_name, config)
    train, val, _ = tasks.load_items(TASKS[task_name], config)
    tasks.check_same_items(checkpoint, train, config)
    model, tokenizer = make_tuned(checkpoint, config.dropout)
    return Plan(config, checkpoint, model, tokenizer, train, val)


def prepare(task_name, typed):
    """Read the model and the items. typed: the flags that were typed (dict) -> Plan"""
    config = TuneConfig(**typed)
    tasks.check_flags(task_name, config.tune, typed)
    checkpoint, log_dir = find_checkpoint(config, typed)
    if checkpoint is None:
        plan = plan_new_run(task_name, config, typed)
    else:
        plan = plan_resumed_run(task_name, checkpoint, log_dir, typed)
    metrics.import_libraries(plan.model.task.libraries)
    return plan


def print_choices(plan, steps, B, process):
    """The first lines of a run: what was chosen, and the baseline to beat."""
    trainable = sum(p.numel() for p in plan.model.parameters() if p.requires_grad)
    dtype = str(process.dtype).removeprefix("torch.")
    print0(f"{process.card.kind}, {dtype} ({process.dtype_reason}); {len(plan.train)} items, "
           f"{steps} steps of {plan.config.batch}, {B} at a time in {process.num_processes} "
           f"process(es); {trainable:,} trainable parameters")
    if process.rank == 0:  # only there: counting words takes time
        print0(plan.model.task.baseline(plan.train, plan.val))


def main(plan, run):
    config, raw_model, task = plan.config, plan.model, plan.model.task
    # --- this process and its data ----------------------------------------------------------------
    # rows have many lengths, and torch.compile would compile again for each
    machine = TrainConfig(device=config.device, dtype=config.dtype, compile=False)
    process = setup_distributed(machine)
    block_size = raw_model.config.block_size
    train = make_examples(plan.train, task, plan.tokenizer, block_size, config.train or "--demo")
    val = make_examples(plan.val, task, plan.tokenizer, block_size,
                        config.val or config.train or "--demo")
    # config.batch items = B * process.num_processes * grad_accum_steps
    B, grad_accum_steps = choose_micro_batch(raw_model.config, config, task, train, process)
    epoch_ends = [math.ceil(epoch * len(train) / config.batch)  # in steps
                  for epoch in range(1, config.epochs + 1)]
    steps = epoch_ends[-1]
    if plan.checkpoint is not None and plan.checkpoint["step"] > steps:
        raise UserError(f"{plan.checkpoint['step']} steps are done, --epochs={config.epochs} are "
                        f"{steps}: give a larger --epochs")
    # the last batch may need some items from an epoch more than was asked for
    order = make_order(len(train), math.ceil(steps * config.batch / len(train)), config.seed)

    # --- the model, what is trained of it, and how ------------------------------------------------
    choose_trainable(raw_model, config.tune)
    model = wrap_model(raw_model.train(), machine, process)
    optimizer = raw_model.configure_optimizers(config.weight_decay, config.max_lr,
                                               (config.beta1, config.beta2))
    scaler = torch.amp.GradScaler(process.device.type, enabled=process.dtype == torch.float16)
    # this run saves about once an epoch and takes B items at a time. In the checkpoints is what was
    # asked for (None, 0), so that a resumed run on another machine chooses again
    chosen = replace(config, B=B, save_every=config.save_every or epoch_ends[0])
    start_step = run.restore(chosen, process, plan.tokenizer, None, raw_model, optimizer, scaler,
                             last_step=steps, train_config=asdict(config),
                             task={"name": task.name, **asdict(task)},
                             data=tasks.hash_items(plan.train))
    print_choices(plan, steps, B, process)

    # --- the loop: `step` counts the updates done; saving and measuring come before the next one --
    for step in range(start_step, steps + 1):
        # what a checkpoint needs: saved now if due, or when the run ends before the next update
        run.turn(step, model=raw_model, optimizer=optimizer, scaler=scaler.state_dict(),
                 position=step * config.batch)
        run.end_if_any_process_stopped()
        if step in epoch_ends:
            with run.phase("measuring", if_out_of_memory="shorter texts or a smaller --model"):
                values = evaluate(raw_model, val, config, process, run)
            if process.rank == 0:
                run.log(step, **values)
        if step == steps:
            break

        # ============================== THE STEP ==============================
        t0 = time.perf_counter()
        torch.manual_seed(step_seed(config.seed, step, process.rank))
        optimizer.zero_grad(set_to_none=True)
        batch = [train[i] for i in order[step * config.batch : (step + 1) * config.batch]]
        batch.sort(key=longest_row, reverse=True)  # rows of similar length need little padding
        loss_accum = 0.0
        for micro_step in range(grad_accum_steps):
            # B items for each process, dealt out like cards, so that all get equally long ones
            num_items = B * process.num_processes
            examples = batch[micro_step * num_items : (micro_step + 1) * num_items]
            examples = examples[process.rank :: process.num_processes]
            if isinstance(model, DDP):  # average in the last micro step only, see train_gpt2.py
                model.require_backward_grad_sync = micro_step == grad_accum_steps - 1
            losses = example_losses(model, task, examples, config, process)
            # the mean over this process's share of the batch; DDP averages over the processes
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
    if not run.last_save_failed:
        tasks.print_next(task.name, config)


# --------------------------------------------------------------------------------------------------
# 8 using a tuned model


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
    model, tokenizer, _ = load_tuned(name)
    out = tasks.check_out(config.out, model.task)
    items, problems = tasks.read_items(path, model.task, with_answers=False)
    with orderly_end("scoring", "shorter texts or --device=cpu"):
        process = setup_distributed(TrainConfig(device=config.device, dtype=config.dtype))
        model.to(process.device)
        examples = make_examples(items, model.task, tokenizer, model.config.block_size, path)
        scores = predict_scores(model, examples, process)
        if process.rank == 0:
            tasks.write_predictions(out, model.task, items, scores)
    tasks.report_problems(problems)


@dataclass(frozen=True)
class SearchConfig:
    top: int = 5  # number of passages to print
    device: str = "auto"  # cuda, mps or cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # of the matmuls


def load_embedder(name):
    """A model tuned for embed, or a language model that was never tuned -> TunedGPT, tokenizer"""
    if checkpoints.is_tuned(name):
        model, tokenizer, _ = load_tuned(name)
        if model.task.name != "embed":
            raise UserError(f"{name} is tuned for {model.task.name}: search needs a model that was "
                            "tuned for embed, or never")
    else:
        pretrained, tokenizer, _ = load_model(name)
        model = from_language_model(pretrained, tokenizer.n_vocab, Embed())
    return model.eval(), tokenizer


def embed_texts(model, tokenizer, texts, process):
    """Texts (list) -> unit vectors (n, C), on the CPU: their dot products are similarities"""
    block_size = model.config.block_size
    examples = [Example([list(tokenizer.encode(text))[:block_size]], None) for text in texts]
    return predict_scores(model, examples, process).squeeze(1)


def search(argv):
    """Print the passages nearest in meaning to a question: a text, @file, or - for stdin"""
    typed = parse(argv, __doc__, SearchConfig, words=True)
    config = SearchConfig(**pick(SearchConfig, typed))
    if len(typed["words"]) != 3:
        raise UserError("search needs a model, a file and a question: python finetune.py search "
                        'tuned passages.jsonl "a question"')
    check_least(config, 1, "top")
    name, path, prompt = typed["words"]
    question = read_prompt(prompt)
    if problem := tasks.check_text(question):
        raise UserError(f"the question {problem}")
    items, problems = tasks.read_items(path, Embed(), with_answers=False)
    items = [item._replace(texts=item.texts[-1:]) for item in items]  # without their queries
    model, tokenizer = load_embedder(name)
    with orderly_end("search", "shorter passages or --device=cpu"):
        process = setup_distributed(TrainConfig(device=config.device, dtype=config.dtype))
        model.to(process.device)
        block_size = model.config.block_size
        examples = make_examples(items, model.task, tokenizer, block_size, path)
        examples.append(Example([list(tokenizer.encode(question))[:block_size]], None))
        vectors = predict_scores(model, examples, process)
    if process.rank == 0:
        similarities = vectors[:-1, 0] @ vectors[-1, 0]  # (n,), cosines
        best = similarities.topk(min(config.top, len(items)))
        for similarity, number in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"{similarity:.3f}  {' '.join(items[number].texts[0].split())}")
    tasks.report_problems(problems)


def run(argv):
    names = f"{', '.join(TASKS)}, predict or search"
    if not argv or argv[0].startswith("-"):
        parse(argv, __doc__, TuneConfig)  # --help ends here
        raise UserError(f"name a task first: {names} (--help shows them)")
    command, *flags = argv
    if command in ("predict", "search"):
        {"predict": predict, "search": search}[command](flags)
    elif command in TASKS:
        plan = prepare(command, parse(flags, __doc__, TuneConfig))
        with Run(plan.config, plan.checkpoint) as this_run:
            main(plan, this_run)
    else:
        raise UserError(f"there is no task {command}: {names} (--help shows them)")


if __name__ == "__main__":
    run_program(run)
