"""
A picture of one or several runs: train and validation loss, and HellaSwag where it was measured.

    python plot.py log                                       # log/log.txt -> log.png
    python plot.py log log2 --out=curves.svg --tokens        # two runs, over tokens
    python plot.py log --reference                           # beside two public runs

A run is named by its --log_dir or by its log.txt. No model is loaded. It needs matplotlib.

Contents
    1 reading runs      Run, read_run, read_runs, check_comparable
    2 drawing           draw_stream, draw_run, draw_laptop_band, draw_public_runs, draw_openai,
                        loss_limits
    3 the picture       draw, save
    4 the command line  PlotConfig, main
"""
import json
import os
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from support.console import UserError, run_program
from support.files import asset, atomic_write, check_replaceable
from support.health import read_reference
from support.runlog import read_log
from support.settings import parse

# --------------------------------------------------------------------------------------------------
# 1 reading runs

TOKENS_A_STEP = 2**19  # in the original recipe


class Run(NamedTuple):
    """What the picture shows of a run."""
    path: str  # as typed
    name: str  # for the legend
    log: dict  # {stream: {step: value}}
    tokenizer: dict  # its spec, as in support/tokenizer.py
    tokens_a_step: int
    settings: dict  # and the number of tokens it trains on; {} without settings.json


def read_run(path):
    """The log directory of a run, or its log.txt -> Run. Raises UserError."""
    log, settings = read_log(path)
    folder = os.path.abspath(path.removesuffix("log.txt"))
    # the original program wrote no settings.json, and all its runs followed one recipe
    has_settings = os.path.exists(os.path.join(folder, "settings.json"))
    default = "unknown" if has_settings else "gpt2"
    tokenizer = settings.get("tokenizer", {"name": default})
    tokens_a_step = settings.get("train_config", {}).get("total_batch_size", TOKENS_A_STEP)
    values = {}
    for part in ("config", "train_config", "stream"):
        values.update(settings.get(part, {}))
    return Run(path, os.path.basename(folder), log, tokenizer, tokens_a_step, values)


def read_runs(paths):
    """
    Log directories -> list of Run. A run is called by the name of its directory, or by its path
    where two directories have the same name.
    """
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    named = []
    for run in runs:
        name = run.name if names.count(run.name) == 1 else run.path
        if name.startswith("_"):
            name = f" {name}"  # matplotlib leaves names that begin with _ out of a legend
        named.append(run._replace(name=name))
    return named


def check_comparable(runs):
    """UserError for a run that cannot be compared with the public ones."""
    for run in runs:
        # a loss per character cannot be compared with a loss per token
        name = run.tokenizer["name"]
        if name != "gpt2":
            raise UserError(f"the tokenizer of {run.path} is {name}, not gpt2: leave "
                            "--reference out")


# --------------------------------------------------------------------------------------------------
# 2 drawing. axes: the panel of the losses, then HellaSwag's panel if there is one

# Okabe and Ito's colours, which people who see red and green alike can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GPT2_VAL = 3.2924  # OpenAI's GPT-2 124M on FineWeb-Edu's validation split, nats per token
GPT2_HELLA = 0.2955  # acc_norm of GPT-2's 124M model
GPT3_HELLA = 0.337  # acc_norm of GPT-3's 125M model


def draw_stream(ax, values, scale, group, fmt, **style):
    """
    Draw one stream of a log, {step: value}, as a line. scale: the length of a step on the x axis;
    group: number of consecutive values that become one point, their mean; fmt, style: for ax.plot
    """
    pairs = sorted(values.items())  # (step, value)
    points = [np.mean(pairs[i : i + group], axis=0) for i in range(0, len(pairs), group)]
    if points:
        x, y = np.transpose(points)
        # a line of one point would be invisible
        ax.plot(x * scale, y, fmt if len(points) > 1 else "o", markersize=3, **style)


def draw_run(axes, run, colour, tokens):
    """tokens: the x axis counts millions of tokens, not steps"""
    scale = run.tokens_a_step / 1e6 if tokens else 1
    train = run.log.get("train", {})
    # the loss of a single batch says little: each point is the mean of a 200th of the run
    group = max(1, len(train) // 200)
    draw_stream(axes[0], train, scale, group, "-", color=colour, linewidth=0.8,
                label=f"{run.name}, train")
    thick = dict(color=colour, linewidth=1.8)
    draw_stream(axes[0], run.log.get("val", {}), scale, 1, "o-", **thick,
                label=f"{run.name}, validation")
    draw_stream(axes[-1], run.log.get("hella", {}), scale, 1, "o-", **thick, label=run.name)


def in_bits_per_byte(run):
    """A Run -> one whose validation losses are in bits per byte, without its train losses"""
    log = {"val": run.log["bpb"], "hella": run.log.get("hella", {})}
    return run._replace(log={stream: values for stream, values in log.items() if values})


def choose_unit(runs):
    """
    Losses in nats per token compare only if the runs share a tokenizer; bits per byte always do
    -> runs, if possible all in one unit; its name
    """
    share = all(run.tokenizer == runs[0].tokenizer for run in runs)
    if not share and all("bpb" in run.log for run in runs):
        return [in_bits_per_byte(run) for run in runs], "bits per byte"
    if not share:
        return runs, "nats per token, different tokenizers: not comparable"
    chars = all(run.tokenizer["name"] == "char" for run in runs)
    return runs, "nats per character" if chars else "nats per token"


def draw_laptop_band(ax, runs, tokens):
    """If a run is the laptop preset's: where the validation losses of ten seeds were, in gray."""
    with open(asset("laptop_curve.json"), encoding="utf-8") as f:
        curve = json.load(f)
    # nine tenths of input.txt, the tokens it trains on: on another text the losses are others
    settings = {**curve["settings"], "tokens": curve["bytes"] * 9 // 10}
    for run in runs:
        if all(run.settings.get(name) == value for name, value in settings.items()):
            scale = run.tokens_a_step / 1e6 if tokens else 1
            x = [int(step) * scale for step in curve["val"]]
            mean, spread = np.transpose(list(curve["val"].values()))
            ax.fill_between(x, mean - 3 * spread, mean + 3 * spread, color="black", alpha=0.15,
                            linewidth=0, label="validation, ten seeds")
            return


def draw_public_runs(axes, tokens):
    """Draw two runs of the original recipe that others have published, in black."""
    loss_ax, hella_ax = axes
    scale = TOKENS_A_STEP / 1e6 if tokens else 1
    columns = read_reference()
    x = [step * scale for step in columns["step"]]
    for run, fmt in (("a", "k-"), ("b", "k:")):
        style = dict(linewidth=1, label=f"public run {run}")
        loss_ax.plot(x, columns[f"val_{run}"], fmt, **style)
        hella_ax.plot(x, columns[f"hella_{run}"], fmt, **style)


def draw_openai(axes, unit):
    """Draw a horizontal line for each of OpenAI's models: only the end of their runs is known."""
    loss_ax, hella_ax = axes
    gpt2 = dict(color="gray", linewidth=1, linestyle="--", label="OpenAI's GPT-2 124M")
    gpt3 = dict(color="gray", linewidth=1, linestyle=":", label="OpenAI's GPT-3 125M")
    if unit == "nats per token":
        loss_ax.axhline(GPT2_VAL, **gpt2)
    hella_ax.axhline(GPT2_HELLA, **gpt2)
    hella_ax.axhline(GPT3_HELLA, **gpt3)


def loss_limits(runs, reference):
    """
    The lowest and the highest loss in the picture -> two floats. The first twentieth of a run is
    left out: its fall from ln(vocab_size) would flatten the rest.
    """
    losses = []
    for run in runs:
        for stream in ("train", "val"):
            values = run.log.get(stream, {})
            start = max(values, default=0) / 20
            losses += [loss for step, loss in values.items() if step >= start]
    if reference or not losses:  # a log may hold nothing but HellaSwag
        losses += read_reference()["val_a"][4:]  # from step 1000 on
    lowest, highest = min(losses), max(losses)
    margin = 0.05 * (highest - lowest) + 0.01
    return lowest - margin, highest + margin


# --------------------------------------------------------------------------------------------------
# 3 the picture

MARK = "drawn by plot.py"  # in each picture, because we replace no others


def import_pyplot():
    """matplotlib.pyplot, set to draw into files, without a screen and without TeX"""
    os.environ["MPLBACKEND"] = "Agg"  # before the import, which fails for a missing backend
    import matplotlib  # here, so that --help and errors need no matplotlib
    matplotlib.rcParams["text.usetex"] = False
    from matplotlib import pyplot
    return pyplot


def draw(runs, reference, tokens):
    """Runs -> a matplotlib figure. reference, tokens: see PlotConfig"""
    runs, unit = choose_unit(runs)
    with_hellaswag = reference or any("hella" in run.log for run in runs)
    fig, grid = import_pyplot().subplots(1, 2 if with_hellaswag else 1, figsize=(8.5, 4), dpi=100,
                                         layout="constrained", squeeze=False)
    axes = grid[0]
    for i, run in enumerate(runs):
        draw_run(axes, run, COLOURS[i % len(COLOURS)], tokens)
    if unit != "bits per byte":
        draw_laptop_band(axes[0], runs, tokens)
    if reference:
        draw_public_runs(axes, tokens)
    if with_hellaswag:
        draw_openai(axes, unit)
        axes[1].set_title("HellaSwag (acc_norm)")
    axes[0].set_title(f"loss ({unit})")
    axes[0].set_ylim(*loss_limits(runs, reference))
    for ax in axes:
        ax.set_xlabel("million tokens" if tokens else "step")
        ax.grid(alpha=0.3)
        for text in ax.legend(fontsize=8).get_texts():
            text.set_parse_math(False)  # a $ in a name is a dollar, not the start of a formula
    return fig


def save(fig, path):
    """Write a figure in the format that the name ends in. Raises UserError."""
    suffix = os.path.splitext(path)[1].removeprefix(".")
    key = "Software" if suffix == "png" else "Creator"
    try:
        check_replaceable(path, MARK)
        with atomic_write(path) as f, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # it draws a box, which one sees
            fig.savefig(f, format=suffix, metadata={key: MARK})
    except OSError as e:
        raise UserError(f"cannot write {path} ({e.strerror}): choose another place with --out")


# --------------------------------------------------------------------------------------------------
# 4 the command line


@dataclass(frozen=True)
class PlotConfig:
    out: str = "log.png"  # the picture: .png, .svg or .pdf
    reference: bool = False  # also draw two public runs of the original recipe
    tokens: bool = False  # over millions of tokens instead of steps


def main(argv):
    typed = parse(argv, __doc__, PlotConfig, words=True)
    paths = typed.pop("words")
    config = PlotConfig(**typed)
    if not paths:
        raise UserError("name a run by its --log_dir: python plot.py log")
    if os.path.splitext(config.out)[1] not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out={config.out}: the name must end in .png, .svg or .pdf")
    runs = read_runs(paths)
    if config.reference:
        check_comparable(runs)
    save(draw(runs, config.reference, config.tokens), config.out)
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run_program(main)
