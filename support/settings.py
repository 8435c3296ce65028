"""
Flags -> checked dataclasses. Come here when a flag is refused, or to see who wins: what was given
on the command line, then what a checkpoint says, then the preset, then the default.

A setting is one line of a dataclass: `B: int = knob(64, "rows in a micro batch", least=1)`. Its
value, its help and its limits stand together, and --help, the parser and check_limits read them
there.
"""
import argparse
import math
import sys
from dataclasses import field, fields, replace

from support.console import UserError, print0, printable

# what the weights of a checkpoint fix
SHAPE = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")


def knob(default, help, least=0, most=None, below=math.inf, choices=None, alone=None, here=False,
         empty=False):
    """
    A field of a dataclass that becomes a flag. least <= value <= most and value < below, for
    numbers; choices: the values there are; alone: the value of the bare flag, without `=`; here: it
    is about this command on this machine, and never taken from a checkpoint; empty: an empty text
    is a value, too.
    """
    metadata = dict(help=help, least=least, most=most, below=below, choices=choices, alone=alone,
                    here=here, empty=empty)
    return field(default=default, metadata=metadata)


def refuse_flags(message):
    """What argparse calls when it does not understand a command line."""
    raise UserError(f"{message} (--help lists the flags)")


class LastCounts(argparse.Action):
    """Of a flag that is given twice the last value counts, and a line says so."""

    def __call__(self, parser, namespace, value, option_string=None):
        before = getattr(namespace, self.dest, value)
        if before != value:
            print0(f"--{self.dest} is given twice: the last, {printable(value)}, counts")
        setattr(namespace, self.dest, value)


def add_flag(parser, f, presets):
    """A field of a dataclass made by knob -> a flag of an argparse parser."""
    help = f"{f.metadata['help']} [{f.default}]".replace("%", "%%")
    if f.type in (bool, bool | None):
        parser.add_argument(f"--{f.name}", help=help, action=argparse.BooleanOptionalAction)
        return
    choices = presets if f.name == "preset" else f.metadata["choices"]
    kind = dict(type=f.type, choices=choices, metavar=f.type.__name__.upper(), action=LastCounts)
    if f.metadata["alone"] is not None:
        kind.update(nargs="?", const=f.metadata["alone"])
    parser.add_argument(f"--{f.name}", help=help, **kind)


def parse_flags(argv, doc, presets, *classes):
    """
    A flag for each field of some dataclasses -> an object of each class, and the dict of the flags
    that were given. doc: the program's docstring, for --help. presets: named sets of values, the
    first one is the default.
    """
    parser = argparse.ArgumentParser(
        usage="python %(prog)s [--flag=value ...]", description=doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    parser.error = refuse_flags
    for cls in classes:
        for f in fields(cls):
            add_flag(parser, f, presets)
    given_flags = vars(parser.parse_args(argv))
    for f in (f for cls in classes for f in fields(cls)):
        if given_flags.get(f.name) == "" and not f.metadata["empty"]:
            raise UserError(f"--{f.name} is empty: is a variable of your shell not set?")
    values = {**presets.get(given_flags.get("preset", "gpt2"), {}), **given_flags}
    configs = []
    for cls in classes:
        names = {f.name for f in fields(cls)}
        configs.append(cls(**{name: value for name, value in values.items() if name in names}))
    return *configs, given_flags


def merge_settings(checkpoint, gpt_config, config, given_flags, presets):
    """
    The settings of a run that starts from a checkpoint (dict): its own, but for the flags that were
    given, which win, and whose changes are printed; only the model's shape cannot be changed. ->
    gpt_config, config, and given_flags with the values of a preset that was given and is not the
    checkpoint's.
    """
    saved = checkpoint.get("train_config", {})
    if "task" in checkpoint and not hasattr(config, "tune"):
        raise UserError(f"{checkpoint['path']} is tuned for a task: only python finetune.py goes "
                        "on with it")
    if "preset" in saved and given_flags.get("preset", saved["preset"]) != saved["preset"]:
        given_flags = {**presets[given_flags["preset"]], **given_flags}
    merged = []
    for settings, old_values in ((gpt_config, checkpoint["config"]), (config, saved)):
        kept = {}
        for f in fields(settings):
            if f.metadata["here"]:
                continue
            name, new = f.name, getattr(settings, f.name)
            old = old_values.get(name, new)
            if name not in given_flags:
                check_value(f, old, f"{checkpoint['path']}: {name}")
                if name == "data_root" and old != new:
                    print0(f"the data are {printable(old)}, as {checkpoint['path']} says")
                kept[name] = old
            elif name in SHAPE and new != old:
                raise UserError(f"the weights to start from are of another model: {name} is "
                                f"{old}, not {new}")
            elif str(new) != str(old):  # as texts, since a file may hold anything under this name
                print0(f"changed since the checkpoint: {name} {printable(old)} -> {new}")
        merged.append(replace(settings, **kept))
    return *merged, given_flags


def check_value(f, value, name=""):
    """
    UserError unless a value is of the type and within the limits of a field made by knob. name:
    what the line calls it, by default the flag.
    """
    name = name or f"--{f.name}"
    number = f.type in (int, float)
    kinds = (int, float) if f.type is float else f.type
    if not isinstance(value, kinds) or number and isinstance(value, bool):
        raise UserError(f"{name}={str(value)[:50]}: must be of type "
                        f"{getattr(f.type, '__name__', f.type)}")
    least, most, below = f.metadata["least"], f.metadata["most"], f.metadata["below"]
    if most is None:
        # what one can count to; what is finite
        most = 2**48 if f.type is int else sys.float_info.max
    # nan is refused too: it compares with nothing
    if number and not (least <= value <= most and value < below):
        limit = f"at most {most}" if below == math.inf else f"below {below:g}"
        raise UserError(f"{name}={value}: must be at least {least} and {limit}")
    choices = f.metadata["choices"]
    if choices is not None and value not in choices:
        raise UserError(f"{name}={str(value)[:50]}: must be one of {', '.join(choices)}")


def check_limits(*configs):
    """
    UserError for values that cannot work, whether they were given as flags or stood in a
    checkpoint.
    """
    for config in configs:
        for f in fields(config):
            check_value(f, getattr(config, f.name))


def check_settings(gpt_config, config):
    """The same for values that do not go together, and a line for those that may not be meant."""
    check_limits(gpt_config, config)
    if gpt_config.n_embd % gpt_config.n_head != 0:
        raise UserError(f"n_embd {gpt_config.n_embd} is not divisible by n_head "
                        f"{gpt_config.n_head}: the heads share "
                        "the channels")
    if config.shard == "no" and config.offload:
        raise UserError("--offload moves the shares that --shard makes: give --shard too")
    if config.shard != "no" and config.compile:
        raise UserError("--compile and --shard do not go together here: leave one of them out")
    if config.min_lr > config.max_lr:
        raise UserError(f"min_lr {config.min_lr} is above max_lr {config.max_lr}: try "
                        f"--min_lr={config.max_lr / 10:g}")
    if config.val_tokens < config.T:
        raise UserError(f"val_tokens {config.val_tokens} is less than one row of T {config.T}: try "
                        f"--val_tokens={config.T}")
    if 0 < config.max_steps < config.warmup_steps:
        print0(f"warning: the warm-up takes {config.warmup_steps} steps, the run "
               f"{config.max_steps}: "
               f"its learning rate never reaches max_lr {config.max_lr:g}")
    if config.T > gpt_config.block_size:
        raise UserError(f"T {config.T} is longer than block_size {gpt_config.block_size}: try "
                        f"--T={gpt_config.block_size}")


def check_length(config, given_flags, train_tokens, val_tokens):
    """UserError if the splits are too short for a batch, and for one row of validation."""
    advice = "try a smaller --B or --T"
    if "preset" not in given_flags:
        advice = "try --preset=laptop, or a smaller --B or --T"
    needs = (("train", train_tokens, config.B * config.T), ("val", val_tokens, config.T))
    for split, tokens, needed in needs:
        if tokens <= needed:
            raise UserError(f"the {split} split of {config.data_root} has {tokens} tokens: too "
                            f"short for a batch of {needed}: {advice}")
