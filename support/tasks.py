"""
The files of a task, one JSON object a line: items come in, answers go out. Come here when a line is
refused, or to see what a file must hold.

    classify  {"text": "a charming journey", "label": 1}
    entail    {"premise": "All men are mortal.", "hypothesis": "Socrates is.", "label": "yes"}
    compare   {"a": "He left.", "b": "He went away.", "label": 1}   or "score": 4.2 instead
    choose    {"ctx": "He sat down and", "endings": ["ate.", "flew."], "label": 0}
    embed     {"query": "Hamlet", "passage": "A tragedy in five acts ..."}

A label is a text or a whole number; that of choose is the place of the right ending, from 0 on.
"""
import json
import os
import random
import statistics
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from support.console import UserError, print0
from support.files import atomic_write
from support.shakespeare import demo_entries

# the entries that hold the texts, in the order in which the model reads them
TEXTS = {
    "classify": ("text",),
    "entail": ("premise", "hypothesis"),
    "compare": ("a", "b"),
    "choose": ("ctx", "endings"),
    "embed": ("query", "passage"),
}


# and the one with the answer
ANSWERS = {"classify": ("label",), "entail": ("label",), "compare": ("label or score",),
           "choose": ("label",), "embed": ()}
MOST_PAIRS = 2000  # of embed, to measure on


class Item(NamedTuple):
    """A line of a file."""
    line: int  # its number, from 1 on
    entry: dict  # all that it says
    texts: list  # of choose the context, then the endings
    answer: object  # a label, a score (float), or None: embed has none, nor has what we predict


@dataclass
class Task:
    """What a model is tuned for. It is saved with the model, which is of no use without it."""
    name: str  # a name in TEXTS
    labels: list  # the answers, in the order of the head's outputs; empty if they are none
    # compare with scores: those of the training data. The model learns (score - mean) / std
    mean: float = 0.0
    std: float = 1.0

    @property
    def has_scores(self):
        return self.name == "compare" and not self.labels

    def target(self, answer):
        """What the model should say for an item's answer: a number. None stays None."""
        if answer is None:
            return None
        if self.labels:
            return self.labels.index(answer)
        if self.has_scores:
            return (answer - self.mean) / self.std
        return answer  # the place of the right ending


def check_text(value):
    """What is wrong with an entry that should be a text -> words, "" if nothing is"""
    if not isinstance(value, str):
        return "is no text"
    if not value.strip():
        return "is empty"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half a character (a surrogate)"
    return ""


def read_texts(entry, names):
    """The texts of an entry (dict) -> list. Raises ValueError with what is missing or wrong."""
    texts = []
    for name in names:
        if name not in entry:
            raise ValueError(f'"{name}" is missing')
        value = entry[name]
        if name != "endings":
            values = [value]
        elif isinstance(value, list) and len(value) >= 2:
            values = value
        else:
            raise ValueError('"endings" is no list of two texts or more')
        for text in values:
            if problem := check_text(text):
                raise ValueError(f'"{name}" {problem}')
        texts += values
    return texts


def read_answer(entry, task, num_endings):
    """The label or the score of an entry. Raises ValueError with what is missing or wrong."""
    if task == "embed":
        return None  # the passage is the answer
    if task == "compare" and "score" in entry:
        score = entry["score"]
        # True and False are numbers in Python. nan and infinity are numbers in JSON files
        is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not is_number or not abs(score) < 1e30:
            raise ValueError('"score" is no number, or a very large one')
        return float(score)
    if "label" not in entry:
        raise ValueError('"label" is missing')
    label = entry["label"]
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise ValueError('"label" is neither a text nor a whole number')
    if task == "choose" and label not in range(num_endings):
        raise ValueError(f'"label" is {label!r}, and there are {num_endings} endings: it is the '
                         "place of the right one, from 0 on")
    return label


def make_item(entry, number, task, with_answers=True):
    """An entry (dict), the number of its line -> Item. ValueError with what is missing or wrong."""
    names = TEXTS[task]
    if task == "embed" and not with_answers:
        # to embed, one text is enough, under any of these names
        names = [name for name in ("text", "query", "passage") if name in entry]
        if not names:
            raise ValueError('"text", "query" or "passage" is missing')
    texts = read_texts(entry, names)
    answer = read_answer(entry, task, len(texts) - 1) if with_answers else None
    return Item(number, entry, texts, answer)


def read_entry(line):
    """A line of a file (bytes) -> dict. Raises ValueError."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON in UTF-8")
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    return entry


def read_items(path, task, with_answers=True):
    """
    A .jsonl file -> list of Item; empty lines are skipped. with_answers: must each line have a
    label or a score? UserError with the line's number and what is missing in it.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}: give one JSON object a line")
    items = []
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                items.append(make_item(read_entry(line), number, task, with_answers))
            except ValueError as e:
                raise UserError(f"{path}, line {number}: {e}. The entries of {task}: "
                                f"{', '.join((*TEXTS[task], *ANSWERS[task]))}")
    if not items:
        raise UserError(f"{path} has no items: give one JSON object a line")
    check_answers_alike(items, task, path)
    return items


def check_answers_alike(items, task, path):
    """
    UserError for a file with labels in some lines and scores in others, or, for embed, with one
    text in some and two in others.
    """
    kind = type(items[0].answer) is float
    for item in items:
        if task == "embed" and len(item.texts) != len(items[0].texts):
            raise UserError(f"{path}, line {item.line}: it has {len(item.texts)} text(s), the "
                            f"first item {len(items[0].texts)}: all items need the same")
        if (type(item.answer) is float) != kind:
            raise UserError(f"{path}, line {item.line}: it has a label and the first item a score, "
                            "or the other way round: all items of a file need the same")


def split_items(items):
    """
    Without a file for validation: keep a tenth of the items, the same tenth in each run, whatever
    the seed of the run. -> train, val
    """
    order = list(range(len(items)))
    random.Random(0).shuffle(order)
    num_val = max(1, len(items) // 10)
    val = [items[i] for i in sorted(order[:num_val])]
    train = [items[i] for i in sorted(order[num_val:])]
    # a label that only the tenth has could not be learned
    known = {item.answer for item in train}
    if not isinstance(items[0].answer, float):
        train += [item for item in val if item.answer not in known]
        val = [item for item in val if item.answer in known]
    if not train or not val:
        raise UserError(f"{len(items)} item(s) are too few: a tenth of them is kept to measure on, "
                        "and its labels must occur among the others")
    return train, val


def find_labels(train, val, train_path, val_path):
    """
    The set of labels -> sorted list, numbers before texts. UserError if there is only one, or if a
    label of val does not occur in train.
    """
    known = {item.answer for item in train}
    for item in val:
        if item.answer not in known:
            raise UserError(f"{val_path}, line {item.line}: label {item.answer!r} does not occur "
                            "in the items to learn from: add some there, or leave it out")
    if len(set(map(str, known))) < len(known):
        raise UserError(f"{train_path} has a label once as a number and once as a text, as 1 and "
                        '"1": use one of the two')
    if len(known) == 1:
        raise UserError(f"all items of {train_path} have the label {known.pop()!r}: there is "
                        "nothing to tell apart")
    numbers = sorted(label for label in known if isinstance(label, int))
    texts = sorted(label for label in known if isinstance(label, str))
    return numbers + texts


def load_items(task, config):
    """
    --train and --val, or --demo -> the items to learn from, the items to measure on. config: a
    TuneConfig.
    """
    if config.demo:
        entries = demo_entries(task)
        items = [make_item(entry, number, task) for number, entry in enumerate(entries, 1)]
    elif config.train:
        items = read_items(config.train, task)
    else:
        raise UserError(f"nothing to learn from: give --train=train.jsonl, or try python "
                        f"finetune.py {task} --demo")
    if config.val:
        train, val = items, read_items(config.val, task)
    else:
        train, val = split_items(items)
        print0(f"no --val: a tenth of the items is kept to measure on, the same in each run: "
               f"{len(train)} to learn from, {len(val)} to measure on")
    if task == "embed" and len(val) > MOST_PAIRS:
        print0(f"of {len(val)} pairs the first {MOST_PAIRS} are measured on: each query meets each "
               "passage")
        val = val[:MOST_PAIRS]
    return train, val


def make_task(name, train, val, config):
    """The items of both files -> Task. UserError if val asks for what train does not teach."""
    if name in ("choose", "embed"):
        return Task(name, [])
    if isinstance(train[0].answer, float) != isinstance(val[0].answer, float):
        raise UserError(f"one of {config.train} and {config.val} has labels, the other scores")
    if not isinstance(train[0].answer, float):
        return Task(name, find_labels(train, val, config.train, config.val or config.train))
    scores = [item.answer for item in train]
    std = statistics.pstdev(scores)
    if std == 0:
        raise UserError(f"all items of {config.train} have the score {scores[0]}: there is nothing "
                        "to learn")
    return Task(name, [], statistics.fmean(scores), std)


def read_task(saved):
    """
    The task of a tuned model (dict), as its checkpoint says -> Task. Or a UserError: the file may
    be anybody's.
    """
    path, values = saved["path"], saved.get("task")
    if values is None:
        raise UserError(f"{path} is a language model: it has not been tuned for a task. python "
                        "finetune.py --help shows how that is done")
    try:
        task = Task(**values)
        labels = task.labels
        good = task.name in TEXTS and isinstance(labels, list) and len(labels) < 2**20
        good = good and all(isinstance(label, (str, int)) for label in labels)
        good = good and len(set(map(str, labels))) == len(labels)
        good = good and abs(task.mean) < 1e30 and 0 < task.std < 1e30
        if task.name in ("classify", "entail"):
            good = good and len(labels) > 1
    except TypeError:
        good = False
    if not good:
        raise UserError(f"{path} is tuned for something that we do not know: "
                        f"{str(values)[:100]}")
    return task


def describe_answer(task, num_answers, scores):
    """The scores of an item (answers,), numpy -> {"answer": ..., "scores": ...}"""
    if task.has_scores:
        return {"answer": float(scores[0]) * task.std + task.mean}
    exps = np.exp(scores[:num_answers] - scores[:num_answers].max())
    probs = (exps / exps.sum()).tolist()  # a softmax
    best = int(np.argmax(probs))
    if task.name == "choose":
        return {"answer": best, "scores": probs}
    names = map(str, task.labels)
    return {"answer": task.labels[best], "scores": dict(zip(names, probs, strict=True))}


def check_out(path, task):
    """Where the answers go: the path that was given, or a default. Or a UserError."""
    suffix = ".npy" if task.name == "embed" else ".jsonl"
    path = path or f"answers{suffix}"
    if not path.endswith(suffix):
        raise UserError(f"--out={path}: the answers of {task.name} are a {suffix} file")
    if not os.path.isdir(os.path.dirname(path) or ".") or os.path.isdir(path):
        raise UserError(f"--out={path} cannot be written: choose a file in a folder that is there")
    return path


def write_answers(path, task, items, scores):
    """
    The entry of each item with the answer and the scores beside it, a line each; of embed an array
    of vectors. scores: what finetune.score says of the items. Or a UserError.
    """
    scores = scores.numpy()
    try:
        if task.name == "embed":
            with atomic_write(path) as f:
                np.save(f, scores.squeeze(1) if scores.shape[1] == 1 else scores)
        else:
            with atomic_write(path, "w", encoding="utf-8") as f:
                for item, row in zip(items, scores, strict=True):
                    num_answers = len(task.labels) or len(item.texts) - 1
                    answer = describe_answer(task, num_answers, row)
                    f.write(json.dumps({**item.entry, **answer}) + "\n")
    except OSError as e:
        raise UserError(f"cannot write {path} ({e.strerror}): choose another place with --out")
    print0(f"wrote {path}: {len(items)} items")
