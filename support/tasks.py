"""
The files of a task, one JSON object a line: items come in, predictions go out. Come here when a
line is refused, or to see what a file must contain.

    classify  {"text": "a charming journey", "label": 1}
    entail    {"premise": "All men are mortal.", "hypothesis": "Socrates is.", "label": "yes"}
    compare   {"a": "He left.", "b": "He went away.", "label": 1}   or "score": 4.2 instead
    choose    {"ctx": "He sat down and", "endings": ["ate.", "flew."], "label": 0}
    embed     {"query": "Hamlet", "passage": "A tragedy in five acts ..."}

A label is a text or a whole number; for choose it is the place of the right ending, from 0 on.
"""
import hashlib
import json
import math
import os
import random
import shlex
import statistics
import unicodedata
from typing import NamedTuple

import numpy as np

from support.console import UserError, print0
from support.files import atomic_write
from support.settings import refuse_unused
from support.shakespeare import demo_entries

MOST_PAIRS = 2000  # of embed, to measure on


class Item(NamedTuple):
    """A line of a file."""
    line: int  # its number, from 1 on
    entry: dict  # everything in it
    texts: list  # for choose the context, then the endings
    answer: object  # a label, a score (float), or None: for embed, and for items to predict


# --- reading: these functions raise ValueError with what is missing or wrong ----------------------

def check_text(value):
    """What is wrong with an entry that should be a text -> words, "" if nothing is"""
    if not isinstance(value, str):
        return "is not a text"
    if not value.strip():
        return "is empty"
    if any("\ud800" <= c <= "\udfff" for c in value):  # JSON can spell them, UTF-8 cannot
        return "contains half a character (a surrogate)"
    return ""


def read_texts(entry, names):
    """The texts of an entry (dict) -> list"""
    texts = []
    for name in names:
        if name not in entry:
            raise ValueError(f'"{name}" is missing')
        values = entry[name] if name == "endings" else [entry[name]]
        if name == "endings" and not (isinstance(values, list) and len(values) >= 2):
            raise ValueError('"endings" is not a list of two texts or more')
        for text in values:
            if problem := check_text(text):
                raise ValueError(f'"{name}" {problem}')
        texts += values
    return texts


def read_answer(entry, task, num_endings):
    """The label or the score of an entry (dict). task: a class or an object of finetune.py"""
    if task.answer is None:
        return None
    if task.answer == "label or score" and "score" in entry:
        score = entry["score"]
        # True is a number in Python, and nan and infinity are numbers in JSON
        is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not is_number or not abs(score) < 1e30:
            raise ValueError('"score" is not a number, or a very large one')
        return float(score)
    if "label" not in entry:
        raise ValueError(f'"{task.answer}" is missing')
    label = entry["label"]
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # some programs write 1.0 for 1
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise ValueError('"label" is neither a text nor a whole number')
    if "endings" in task.entries and isinstance(label, str) and label.isdecimal():
        label = int(label)  # Hugging Face's copy of HellaSwag has "2" for 2
    if "endings" in task.entries and label not in range(num_endings):
        raise ValueError(f'"label" is {label!r}, and there are {num_endings} endings: it is the '
                         "place of the right one, from 0 on")
    return label


def make_item(entry, number, task, with_answers=True):
    """An entry (dict) and the number of its line -> Item"""
    names = task.entries
    if task.answer is None and not with_answers:
        # one text is enough for a vector, under any of these names
        names = [name for name in ("text", "query", "passage") if name in entry]
        if not names:
            raise ValueError('"text", "query" or "passage" is missing')
    if not with_answers and task.answer is not None and "prediction" in entry:
        raise ValueError('"prediction" is there already: give it another name')
    texts = read_texts(entry, names)
    answer = read_answer(entry, task, len(texts) - 1) if with_answers else None
    return Item(number, entry, texts, answer)


def read_entry(line):
    """A line of a file (bytes) -> dict"""
    try:
        entry = json.loads(line.decode("utf-8-sig"))  # without a byte order mark
    except ValueError:
        raise ValueError("not JSON in UTF-8")
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    return entry


def read_items(path, task, with_answers=True):
    """
    A .jsonl file -> list of Item, and a list of problems: a line for each line of the file that is
    no item. Empty lines are skipped. UserError if not one line is good.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}: give one JSON object a line")
    items, problems = [], []
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                item = make_item(read_entry(line), number, task, with_answers)
                check_alike(items[0] if items else item, item)
                items.append(item)
            except ValueError as e:
                entries = ", ".join(filter(None, (*task.entries, task.answer)))
                problems.append(f"{path}, line {number}: {e}. The entries of {task.name}: "
                                f"{entries}")
    if not items:
        raise UserError(problems[0] if problems else f"{path} has no items: give one JSON object "
                        "a line")
    return items, problems


def check_alike(first, item):
    """All items of a file need the same kind of answer and, for embed, as many texts."""
    if (type(first.answer) is float) != (type(item.answer) is float):
        raise ValueError("it has a label and the first item a score, or the other way round: all "
                         "items of a file need the same")
    is_vector = item.answer is None and "endings" not in item.entry
    if is_vector and len(first.texts) != len(item.texts):
        raise ValueError(f"it has {len(item.texts)} text(s), the first item {len(first.texts)}: "
                         "all items of a file need the same")


def report_problems(problems):
    """After the work is done: the lines that were left out, if any -> a UserError, exit code 1."""
    for problem in problems[:20]:
        print0(problem)
    if problems:
        raise UserError(f"{len(problems)} line(s) could not be read and were left out",
                        exit_code=1)


# --- the items of a run ---------------------------------------------------------------------------

def check_flags(task_name, tune, typed):
    """UserError for a typed flag that has no effect on the task. tune: all, head or biases"""
    where = f"on {task_name} with --tune={tune}"
    if task_name != "embed":
        refuse_unused(typed, "temperature", where=where)
    if task_name == "embed" or tune == "head":
        refuse_unused(typed, "lm_weight", where=where)


def read_training_items(path, task):
    """A .jsonl file -> list of Item; each line has to be one."""
    items, problems = read_items(path, task)
    if problems:
        raise UserError(problems[0])
    return items


def load_items(task, config):
    """
    --train and --val, or --demo -> training items, items to measure on, and what a task saves with
    its model, see find_answers. config: a TuneConfig
    """
    if config.demo:
        entries = demo_entries(task.name)
        items = [make_item(entry, number, task) for number, entry in enumerate(entries, 1)]
    elif config.train:
        items = read_training_items(config.train, task)
    else:
        raise UserError(f"nothing to learn from: give --train=train.jsonl, or try python "
                        f"finetune.py {task.name} --demo")
    if config.val:
        train, val = items, read_training_items(config.val, task)
    else:
        train, val = split_items(items)
        print0(f"no --val: a tenth of the items is kept to measure on, the same in each run: "
               f"{len(train)} to learn from, {len(val)} to measure on")
    if task.name == "embed" and len(val) > MOST_PAIRS:
        print0(f"of {len(val)} pairs the first {MOST_PAIRS} are measured on: each query meets each "
               "passage")
        val = val[:MOST_PAIRS]
    times = math.ceil(config.epochs * len(train) / config.batch) * config.batch / len(train)
    if times > config.epochs + 1:
        print0(f"warning: --batch={config.batch} of {len(train)} items: each is seen {times:.0f} "
               f"times, not {config.epochs}")
    seen = {tuple(item.texts) for item in train}
    known = sum(tuple(item.texts) in seen for item in val)
    if known:
        print0(f"warning: {known} of {len(val)} items to measure on are also learned from: the "
               "metrics will look better than they are")
    return train, val, find_answers(task, train, val, config)


def split_items(items):
    """
    Without a file to measure on: keep a tenth of the items, the same tenth in each run, whatever
    the seed -> train, val
    """
    order = list(range(len(items)))
    random.Random(0).shuffle(order)
    num_val = max(1, len(items) // 10)
    val = [items[i] for i in sorted(order[:num_val])]
    train = [items[i] for i in sorted(order[num_val:])]
    if not isinstance(items[0].answer, float):
        # a label that only the tenth has could not be learned
        known = {item.answer for item in train}
        train += [item for item in val if item.answer not in known]
        val = [item for item in val if item.answer in known]
    if not train or not val:
        raise UserError(f"{len(items)} item(s) are too few: a tenth of them is kept to measure on, "
                        "and its labels must occur among the others")
    return train, val


def find_answers(task, train, val, config):
    """
    What a task saves with its model -> labels (list, empty if it has none), mean and standard
    deviation of the scores. UserError if val asks for something that train does not teach.
    """
    train_path, val_path = config.train or "--demo", config.val or config.train or "--demo"
    if task.answer is None:
        check_pairs(train, train_path, "to learn from")
        check_pairs(val, val_path, "to measure on")
    if task.answer is None or "endings" in task.entries:
        return [], 0.0, 1.0
    if isinstance(train[0].answer, float) != isinstance(val[0].answer, float):
        raise UserError(f"one of {train_path} and {val_path} has labels, the other scores")
    if not isinstance(train[0].answer, float):
        return find_labels(train, val, train_path, val_path), 0.0, 1.0
    scores = [item.answer for item in train]
    if len(set(scores)) == 1:
        raise UserError(f"all items of {train_path} have the score {scores[0]}: there is nothing "
                        "to learn")
    return [], statistics.fmean(scores), statistics.pstdev(scores)


def check_pairs(pairs, path, purpose):
    """UserError if all queries or all passages are equal: then no passage is a wrong answer."""
    queries, passages = zip(*[item.texts for item in pairs], strict=True)
    if len(set(queries)) == 1 or len(set(passages)) == 1:
        raise UserError(f"{path}: the {len(pairs)} pair(s) {purpose} have the same query or the "
                        "same passage, so there is no wrong answer: add other pairs")


def find_labels(train, val, train_path, val_path):
    """The different labels -> sorted list, numbers before texts. UserError if there is only one."""
    known = {item.answer for item in train}
    for item in val:
        if item.answer not in known:
            raise UserError(f"{val_path}, line {item.line}: label {item.answer!r} does not occur "
                            "in the items to learn from: add some there, or leave it out")
    if len(known) == 1:
        raise UserError(f"all items of {train_path} have the label {known.pop()!r}: there is "
                        "nothing to tell apart")
    labels = sorted(known, key=lambda label: (isinstance(label, str), label))
    spelled = {}  # a label's text in one Unicode form, without extra spaces -> the label
    for label in labels:
        text = " ".join(unicodedata.normalize("NFC", str(label)).split())
        other = spelled.setdefault(text, label)
        if other is not label:
            raise UserError(f"{train_path} has the labels {other!r} and {label!r}, which differ "
                            "only in spaces, in Unicode form, or as a number and a text: use one "
                            "of them")
    return labels


# --- a run that continues -------------------------------------------------------------------------

def hash_items(items):
    """A hash of the items (list of Item), as text"""
    entries = json.dumps([item.entry for item in items], sort_keys=True)
    return hashlib.sha256(entries.encode()).hexdigest()


def check_continues(checkpoint, task_name, typed):
    """UserError unless this is a run of the task, and no typed flag asks for another model."""
    path = checkpoint["path"]
    if "task" not in checkpoint:
        raise UserError(f"{path} is of a language model: go on with python train_gpt2.py")
    if checkpoint["task"]["name"] != task_name:
        raise UserError(f"{path} is a run of {checkpoint['task']['name']}: it cannot go on as one "
                        f"of {task_name}")
    for name in ("model", "random_weights", "tune"):
        saved = checkpoint["train_config"].get(name)
        if name in typed and saved is not None and typed[name] != saved:
            raise UserError(f"{path} began with --{name}={saved}, and a run that goes on keeps its "
                            f"model: leave out --{name}, or leave out --resume for a new run")


def check_same_items(checkpoint, train, config):
    """UserError if the run would see other training items (list of Item) than it began with."""
    path = checkpoint["path"]
    if checkpoint.get("data") != hash_items(train):
        raise UserError(f"the items of {config.train or 'the demo'} have changed since {path} was "
                        "saved: bring them back, or begin a new run without --resume")
    if checkpoint["position"] != checkpoint["step"] * config.batch:
        raise UserError(f"{path} was saved by a run with another --batch: it cannot change within "
                        "a run")


# --- predictions ----------------------------------------------------------------------------------

def check_out(path, task):
    """Where the predictions go: the path that was given, or a default. Or a UserError."""
    suffix = ".npy" if task.name == "embed" else ".jsonl"
    path = path or f"answers{suffix}"
    if not path.endswith(suffix):
        raise UserError(f"--out={path}: the answers of {task.name} are a {suffix} file")
    if os.path.lexists(path):
        raise UserError(f"{path} is there already: give another --out")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise UserError(f"--out={path} cannot be written: choose a file in a folder that is there")
    return path


def write_predictions(path, task, items, scores):
    """
    Write each item with its prediction, a line each; for embed an array of vectors. scores: what
    finetune.predict_scores returns. Or a UserError.
    """
    try:
        if task.name == "embed":
            with atomic_write(path) as f:
                np.save(f, scores.squeeze(1).numpy())  # (items, C) where an item has one text
        else:
            with atomic_write(path, "w", encoding="utf-8") as f:
                for item, row in zip(items, scores, strict=True):
                    f.write(json.dumps({**item.entry, **task.prediction(row, item)}) + "\n")
    except OSError as e:
        raise UserError(f"cannot write {path} ({e.strerror}): choose another place with --out")
    print0(f"wrote {path}: {len(items)} items")


# --- what to type next ----------------------------------------------------------------------------

DEMO_ITEMS = {  # shell commands that write something to try a model of --demo on
    "classify": """echo '{"text": "My kingdom for a horse!"}' > demo.jsonl; """,
    "choose": """echo '{"ctx": "Who is there?", "endings": ["A friend.", "At noon."]}' """
              "> demo.jsonl; ",
    "embed": """printf '{"passage": "%s"}\\n' "A friend." "At noon, my lord." > demo.jsonl; """,
}


def print_next(task_name, config):
    """What to type after a run. After --demo the line can be pasted as it is."""
    write, path, question = "", "items.jsonl", "a question"
    if config.demo:
        write, path, question = DEMO_ITEMS[task_name], "demo.jsonl", "Who is there?"
    log_dir = shlex.quote(config.log_dir)
    if task_name == "embed":
        print0(f'next: {write}python finetune.py search {log_dir} {path} "{question}"')
    else:
        print0(f"next: {write}python finetune.py predict {log_dir} {path}")
