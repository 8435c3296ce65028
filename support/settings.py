"""
From the command line to frozen dataclasses. Come here when a flag is refused, or to see which value
wins: typed flags > the checkpoint > the preset > the default. (A typed preset counts as its flags
typed.)

A setting is one line of a dataclass, `T: int = 1024  # tokens in a row`: name, type, default, and
a comment which --help shows.
"""
import argparse
import difflib
import inspect
import io
import math
import os
import tokenize
import types
import typing
from dataclasses import fields, replace
from typing import NamedTuple

from support import checkpoints
from support.arithmetic import SHAPE, batch_table, memory_text
from support.console import UserError, print0

# about this command on this machine: never taken from a checkpoint
LOCAL = ("log_dir", "init_from", "resume", "device", "estimate")

MOST_SEED = 2**33  # step_seed multiplies it by 1e9, and a seed has 64 bits


class Settings(NamedTuple):
    """What a run is, before its data and its processes are known."""
    gpt_config: object  # vocab_size is None: as many rows as the tokenizer needs
    config: object  # B is None unless it was typed; resume is the path of a checkpoint, or ""
    max_B: int  # the preset's B, or the checkpoint's
    start: dict | None  # what --resume or --init_from has read


def resolve(argv, doc, gpt_class, train_class, presets, load_model):
    """
    Read the command line, and the checkpoint or model that it names -> Settings. load_model: reads
    --init_from. --estimate, like --help, prints and exits.
    """
    typed = parse(argv, doc, gpt_class, train_class, presets=presets)
    preset = presets[typed.get("preset", "gpt2")]
    config = train_class(**pick(train_class, {**preset, **typed}))
    checkpoint, log_dir = find_checkpoint(config, typed, config.init_from)
    start = checkpoint
    if start is None and config.init_from:
        _, _, start = load_model(config.init_from)
    if start is not None and "task" in start:
        raise UserError(f"{start['path']} is tuned for a task: only python finetune.py goes on "
                        "with it")
    values = merge(start, typed, presets, gpt_class, train_class)
    values |= {"log_dir": log_dir, "resume": checkpoint["path"] if checkpoint else ""}
    if start is None and "vocab_size" not in typed:
        values["vocab_size"] = None
    max_B = values["B"]
    values["B"] = typed.get("B")
    gpt_config = gpt_class(**pick(gpt_class, values))
    config = train_class(**pick(train_class, values))
    check(gpt_config, config)
    if checkpoint is not None:
        checkpoints.check_steps(checkpoint, config.max_steps)
    if config.estimate:
        shape = replace(gpt_config, vocab_size=gpt_config.vocab_size or gpt_class.vocab_size)
        print(memory_text(shape, replace(config, B=config.B or max_B)))
        # GPT-2's four sizes; the presets laptop and debug fit everywhere
        shapes = {name: gpt_class(**pick(gpt_class, values)) for name, values in presets.items()
                  if name.startswith("gpt2")}
        print("\n" + batch_table(shapes, train_class()))
        argparse.ArgumentParser().exit()  # as --help does
    return Settings(gpt_config, config, max_B, start)


def find_checkpoint(config, typed, init_from=""):
    """--resume and --log_dir -> the checkpoint to resume from (dict, or None), the run's log_dir"""
    resume, log_dir = config.resume, config.log_dir
    if os.path.isdir(resume):
        resume = checkpoints.newest(resume)
    if resume not in ("", "auto") and "log_dir" not in typed:
        log_dir = os.path.dirname(resume) or "."  # a run continues where its checkpoint is
    try:
        return checkpoints.find(resume, log_dir, init_from), log_dir
    except UserError:
        if resume in ("", "auto") or os.path.exists(resume):
            raise
        raise UserError(f"there is no model {resume}: {similar_resume(resume, config.log_dir)}")


def similar_resume(resume, log_dir):
    """A --resume that is no file, perhaps only a step or a name -> what to type"""
    folder, name = os.path.split(resume)
    for path in checkpoints.list_all(folder or log_dir):
        if os.path.basename(path) in (name, f"model_{name:0>5}.pt"):
            return f"did you mean --resume={path}?"
    return f"--resume=auto takes the newest checkpoint in {log_dir}"


# --- which value wins -----------------------------------------------------------------------------

def pick(cls, values):
    """The values (dict) that are fields of a dataclass -> dict"""
    return {f.name: values[f.name] for f in fields(cls) if f.name in values}


def merge(start, typed, presets, *classes):
    """
    Values of all fields of the dataclasses: typed > start's (a checkpoint, or None) > the preset's
    > defaults -> dict. Prints what a typed flag changes; another model shape is a UserError.
    """
    defaults = {f.name: f.default for cls in classes for f in fields(cls)}
    preset = presets.get(typed.get("preset", "gpt2"), {})
    fresh = {**defaults, **preset, **typed}  # of a run that starts from nothing
    if start is None:
        return fresh
    saved = {**start["config"], **start.get("train_config", {})}
    saved = {name: saved[name] for name in saved.keys() & defaults.keys() if name not in LOCAL}
    if "preset" in typed and typed["preset"] != saved.get("preset"):
        typed = {**preset, **typed}
    for name in sorted(typed.keys() & saved.keys()):
        if typed[name] == saved[name]:
            continue
        if name in SHAPE:
            raise UserError(f"the weights to start from are of another model: {name} is "
                            f"{saved[name]}, not {typed[name]}")
        print0(f"changed since the checkpoint: {name} {saved[name]} -> {typed[name]}")
    values = {**defaults, **preset, **saved, **typed}
    if values.get("data_root") != fresh.get("data_root"):
        print0(f"the data are {values['data_root']}, as {start['path']} says")
    return values


# --- the command line -----------------------------------------------------------------------------

def parse(argv, doc, *classes, presets=(), may_be_empty=(), words=False):
    """
    Flags for the fields of some dataclasses -> the typed ones (dict). doc: the program's docstring,
    for --help; may_be_empty: names of flags for which `--flag=` is a value; words: accept words
    that are not flags, too, under "words" (list), and after a bare `--` words that begin with a
    dash. `--flag value`, `--flag=value`, `-` for `_`, --flag, --no-flag and --flag=False for a
    bool. UserError for anything else.
    """
    parser = argparse.ArgumentParser(
        usage="python %(prog)s [--flag=value ...]", description=doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    parser.error = refuse
    for cls in classes:
        comments = read_comments(cls)
        for f in fields(cls):
            add_flag(parser, f, comments[f.name], presets)
    if words:
        parser.add_argument("words", nargs="*", default=[], help=argparse.SUPPRESS)
    after_dashes = []
    if words and "--" in argv:
        place = argv.index("--")
        argv, after_dashes = argv[:place], argv[place + 1 :]
    argv = [plain_name(word) for word in argv]
    if words:  # a word after `--reference` is not its value
        switches = {f"--{f.name}" for cls in classes for f in fields(cls) if f.type is bool}
        argv = [f"{word}=True" if word in switches else word for word in argv]
    check_names(argv, parser)
    typed = vars(parser.parse_intermixed_args(argv))  # words stand before, between and after flags
    for name, value in typed.items():
        if value == "" and name not in may_be_empty:
            raise UserError(f"--{name} is empty: is a variable of your shell not set?")
        if isinstance(value, str):
            typed[name] = os.path.expanduser(value)  # a shell leaves --log_dir=~/log as it is
    if words:
        typed["words"] = [*typed["words"], *after_dashes]
    return typed


def refuse(message):
    """What argparse calls when it does not understand a command line."""
    if "--tokenizer: invalid choice" in message:  # shards may have any tokenizer, a text two
        name = message.split("'")[1]
        raise UserError(f"{message}. Another one makes shards first: python fineweb.py "
                        f"--files=YOUR_TEXT --tokenizer={name} --out=shards")
    raise UserError(f"{message} (--help lists the flags)")


def read_comments(cls):
    """A dataclass -> {field: the comment at the end of its line}"""
    comments, line = {}, []
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(cls)).readline):
        if token.type == tokenize.COMMENT and len(line) > 2 and line[1] == ":":
            comments[line[0]] = token.string.lstrip("# ")
        if token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            line = []
        else:
            line.append(token.string)
    return {f.name: comments.get(f.name, "") for f in fields(cls)}


def add_flag(parser, f, comment, presets):
    """A field of a dataclass -> a flag of an argparse parser."""
    kind = f.type
    if isinstance(kind, types.UnionType):  # int | None, bool | None
        kind = typing.get_args(kind)[0]
    choices = None
    if typing.get_origin(kind) is typing.Literal:
        kind, choices = str, typing.get_args(kind)
    elif f.name == "preset":
        choices = tuple(presets)
    off = f"; --no-{f.name}" if f.default is True else ""
    help = f"{comment} [{f.default}{off}]".replace("%", "%%")
    if kind is bool:
        parser.add_argument(f"--{f.name}", nargs="?", const=True, type=parse_bool, metavar="BOOL",
                            help=help)
        parser.add_argument(f"--no-{f.name}", dest=f.name, action="store_const", const=False,
                            help=argparse.SUPPRESS)
    elif choices and "all" in choices:  # a bare --shard means --shard=all
        parser.add_argument(f"--{f.name}", nargs="?", const="all", choices=choices, help=help)
    else:
        parser.add_argument(f"--{f.name}", type=kind, choices=choices,
                            metavar=kind.__name__.upper(), help=help)


def parse_bool(text):
    if text not in ("True", "False", "true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text in ("True", "true", "1")


def plain_name(word):
    """--max-steps=3 -> --max_steps=3, but --no-hellaswag as it is"""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_")
    if name.startswith("no_"):
        name = "no-" + name[3:]
    return f"--{name}{equals}{value}"


def check_names(argv, parser):
    """UserError for an unknown flag, with the most similar one; a line for a repeated one."""
    known = [option for action in parser._actions for option in action.option_strings]
    seen = set()
    for word in argv:
        name = word.partition("=")[0]
        if not name.startswith("--"):
            continue
        if name not in known:
            lower = {option.lower(): option for option in known}
            similar = difflib.get_close_matches(name.lower(), lower, n=1)
            hint = f": did you mean {lower[similar[0]]}?" if similar else ""
            refuse(f"unrecognized arguments: {word}{hint}")
        if name in seen:
            print0(f"{name} is given twice: the last one counts")
        seen.add(name)


# --- values that cannot work ----------------------------------------------------------------------

def refuse_unused(typed, *names, where):
    """UserError if one of these flags was typed: it would have no effect `where`."""
    for name in names:
        if name in typed:
            raise UserError(f"--{name} has no effect {where}: leave it out")


def check_least(config, least, *names):
    """UserError if one of these numbers is below `least`, infinite or nan."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value < math.inf:
            raise UserError(f"--{name}={value}: must be a finite number")
        if value is not None and value < least:
            raise UserError(f"--{name}={value}: must be at least {least}")


def check_most(config, most, *names):
    """UserError if one of these numbers is above `most`."""
    for name in names:
        if getattr(config, name) > most:
            raise UserError(f"--{name}={getattr(config, name)}: must be at most {most}")


def check_share(config, *names):
    """UserError unless these numbers are in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"--{name}={getattr(config, name)}: must be at least 0 and below 1")


def check(gpt_config, config):
    """UserError for settings that cannot work, and a line for those that may not be meant."""
    check_least(gpt_config, 1, "block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    check_least(config, 1, "B", "T", "total_batch_size", "val_tokens", "keep_last",
                "dist_timeout_s")
    check_least(config, 0, "max_steps", "warmup_steps", "eval_every", "save_every", "seed",
                "max_lr", "min_lr", "weight_decay")
    check_least(config, 1e-9, "grad_clip")
    check_share(config, "beta1", "beta2")
    check_share(gpt_config, "dropout")
    check_most(config, MOST_SEED, "seed")
    if gpt_config.n_embd % gpt_config.n_head != 0:
        raise UserError(f"n_embd {gpt_config.n_embd} is not divisible by n_head "
                        f"{gpt_config.n_head}: the heads share the channels")
    if config.T > gpt_config.block_size:
        raise UserError(f"T {config.T} is longer than block_size {gpt_config.block_size}: try "
                        f"--T={gpt_config.block_size}, or --block_size={config.T} for a new model")
    if config.val_tokens < config.T:
        raise UserError(f"val_tokens {config.val_tokens} is less than one row of T {config.T}: try "
                        f"--val_tokens={config.T}")
    if config.min_lr > config.max_lr:
        raise UserError(f"min_lr {config.min_lr} is above max_lr {config.max_lr}: try "
                        f"--min_lr={config.max_lr / 10:g}")
    if config.offload and config.shard == "no":
        raise UserError("--offload moves the shares that --shard makes: give --shard too")
    if config.compile and config.shard != "no":
        raise UserError("--compile and --shard do not go together: leave one of them out")
    if 0 < config.max_steps < config.warmup_steps:
        print0(f"warning: the warm-up takes {config.warmup_steps} steps, the run "
               f"{config.max_steps}: its learning rate never reaches max_lr {config.max_lr:g}")
