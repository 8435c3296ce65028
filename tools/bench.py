"""
Measures every part of this project: speed and memory, beside what one would run instead.

    python tools/bench.py                          # all parts: half an hour on two cores
    python tools/bench.py --quick                  # fewer and smaller runs, in some minutes
    python tools/bench.py --parts=step,attention   # these only
    python tools/bench.py --gpu                    # the report on a rented card, in 25 minutes
    python tools/bench.py --gpu --quick            # in five
    python tools/bench.py --gpu --parts=evals      # a part of that report

The rows are printed as they are measured, and kept in report.md, to be read, and report.json. A
later call adds to both; what it measures again replaces the older row.

Each part runs in a process of its own, without network. Shards hold random tokens, HellaSwag's
items are made up. What dies or hangs becomes a row that says why; its output is in report.log.
With --gpu a part has at most four minutes. Without a card --gpu trains tiny models: their figures
show that each part runs, and nothing else.

Compare ratios: times depend on the machine, and on what else it does. On a CPU, contenders
therefore take turns (A B A B ...). The plain recipe is eager, bfloat16 autocast, and AdamW as
PyTorch picks it by default. 17 GB of memory are enough.

Parts
    environment  the card, its driver and clocks, PyTorch, a product of two large matrices
    step         a training step, 124M: ours, the plain recipe, transformers
    ddp          what torchrun, DDP and --shard cost
    attention    PyTorch's kernels in the shape of training; cuDNN's on shapes it has not met
    evals        validation, HellaSwag, samples, saving; also with 24, 16 and 8 GB of a card
    hellaswag    the batched eval against one item at a time
    fineweb      from .jsonl to shards, against tiktoken on one core
    generate     with a cache, against transformers and without one
    between      the time between two steps
    checkpoint   saving and loading, against torch.save and torch.load
    gpt2-medium, gpt2-large, gpt2-xl
                 peak memory against the estimate, with the flags that save memory
    dtypes       float16 and float32

docs/speed.md has the table, where the time of a step goes, and what was tried and left out. The
parts are in parts.py, the clock and the contenders in measure.py, processes in children.py.

Contents
    1 a part's process    work
    2 the report          Report, show, table
    3 the command line    parse, report_part, main
"""
import argparse
import gc
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from support.console import UserError, run_program
from support.files import atomic_write
from tools import ROOT
from tools.children import measure_part
from tools.measure import DEVICE, forget_peak, made_up_shards
from tools.parts import BENCH, REPORT, Setting, list_parts, serve

GPU_PART_LIMIT = 240  # seconds: a rented card should not wait for a part that hangs
GPU_ROW_LIMIT = 150

# -------------------------------------------------------------------------------------------------
# 1 a part's process: one measurement after another, each row printed when it is known

def start_afresh():
    """Clear what the measurement before this one has left behind."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_initialized():
        torch.cuda.set_per_process_memory_fraction(1.0)
    forget_peak()


def work(part, names, setting):
    """Take these measurements of a part, and print what children.py expects."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runs print goes to stderr, and so into report.log

    def say(**what):
        print(json.dumps(what), file=out, flush=True)
    os.chdir(setting.folder)  # train_gpt2.py looks for HellaSwag's items here
    for measurement in list_parts()[part]:
        if measurement.name not in names:
            continue
        say(begins=measurement.name)
        start_afresh()
        t0 = time.perf_counter()
        for row, figures in measurement.function(setting):
            say(row=row, figures=figures)
        say(ended=measurement.name, seconds=time.perf_counter() - t0)


# -------------------------------------------------------------------------------------------------
# 2 the report

@dataclass
class Report:
    """The rows of report.json, and report.md made from them."""
    folder: str
    machine: str
    rows: list = field(default_factory=list)  # of dicts: machine, part, measurement, row, figures

    def read(self):
        """Start from the rows of earlier calls."""
        path = os.path.join(self.folder, "report.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                try:
                    self.rows = json.load(f)["rows"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path} is not a report: move it away, or choose another "
                                    "--out")

    def forget(self, part, names):
        """Remove the rows of measurements that this machine is about to repeat."""
        self.rows = [row for row in self.rows
                     if (row["machine"], row["part"]) != (self.machine, part)
                     or row["measurement"] not in names]

    def add(self, part, measurement, row, figures):
        """Print a row, and write it into both files."""
        self.rows.append({"machine": self.machine, "part": part, "measurement": measurement,
                          "row": row, "when": time.strftime("%Y-%m-%d %H:%M"),
                          "figures": figures})
        print(f"  {row}: {', '.join(f'{k} {show(v)}' for k, v in figures.items())}", flush=True)
        self.write()

    def write(self):
        with atomic_write(os.path.join(self.folder, "report.json"), "w", encoding="utf-8") as f:
            json.dump({"rows": self.rows}, f, indent=1)
        with atomic_write(os.path.join(self.folder, "report.md"), "w", encoding="utf-8") as f:
            f.write(self.text())

    def text(self):
        """report.md"""
        lines = ["# What a machine makes of this program", ""]
        for machine in dict.fromkeys(row["machine"] for row in self.rows):
            lines += [f"## {machine}", ""]
            mine = [row for row in self.rows if row["machine"] == machine]
            for part in list_parts():
                rows = [row for row in mine if row["part"] == part]
                if rows:
                    lines += [f"### {part}", "", *table(rows), ""]
        return "\n".join(lines)


def show(figure):
    """A figure as text, with three or four digits: a machine never repeats itself to more."""
    if not isinstance(figure, float):
        return str(figure)
    if figure == 0 or not math.isfinite(figure):
        return f"{figure:g}"
    digits = 3 - math.floor(math.log10(abs(figure)))
    return f"{figure:,.{max(0, min(digits, 6))}f}"


def table(rows):
    """Rows of a part -> lines of Markdown, with a column for each figure that any row has"""
    columns = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    lines = [f"| what | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for row in rows:
        cells = [show(row["figures"].get(name, "")) for name in columns]
        text = [cell.replace("|", "/") for cell in (row["row"], *cells)]
        lines.append(f"| {' | '.join(text)} |")
    return lines


# -------------------------------------------------------------------------------------------------
# 3 the command line

def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="part", help="the same as --parts=part,part")
    parser.add_argument("--parts", default="", help="names with commas between them")
    parser.add_argument("--gpu", action="store_true", help="the report on a rented card")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs")
    parser.add_argument("--minutes", type=float,
                        help="when to stop [with --gpu 25, with --gpu --quick 5, otherwise 240]")
    parser.add_argument("--hellaswag", default="", metavar="FILE",
                        help="HellaSwag items for the part hellaswag; otherwise they are made up")
    parser.add_argument("--files", default="", metavar="FILE",
                        help=".jsonl or .txt for the part fineweb; otherwise input.txt")
    parser.add_argument("--out", default=".", help="the folder of report.md and report.json")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # JSON: the process of a part
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # JSON: the process of a contender
    args = parser.parse_args(argv)
    known = list_parts()
    named = args.names + (args.parts.split(",") if args.parts else [])
    args.parts = named or list(REPORT if args.gpu else BENCH)
    if unknown := [part for part in args.parts if part not in known]:
        raise UserError(f"no such part: {', '.join(unknown)}; there are {', '.join(known)}")
    args.files = args.files and os.path.abspath(args.files)  # a part works in another directory
    args.hellaswag = args.hellaswag and os.path.abspath(args.hellaswag)
    if args.minutes is None:
        args.minutes = 240 if not args.gpu else 5 if args.quick else 25
    return args


def interrupt(number, frame):
    """SIGTERM ends us as Ctrl-C does: no process stays behind."""
    raise KeyboardInterrupt


def ask_for_machine():
    """
    describe_machine, asked in a process of its own: CUDA takes memory in every process that uses
    it, and this one runs beside all that is measured.
    """
    command = [sys.executable, "-c", "from tools import measure; print(measure.describe_machine())"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if asked.returncode != 0:
        raise UserError(f"nothing can be measured here: {asked.stderr.strip().splitlines()[-1]}")
    return asked.stdout.strip()


def report_part(part, setting, report, end, part_limit=math.inf, row_limit=math.inf):
    """Measure a part into the report; all three limits are seconds, `end` by time.monotonic()."""
    chosen = [m for m in list_parts()[part] if m.quick or not setting.quick]
    report.forget(part, [m.name for m in chosen])
    add = partial(report.add, part)
    names = []
    for measurement in chosen:
        if measurement.needs_cuda and DEVICE.type != "cuda":
            add(measurement.name, measurement.name, {"note": "needs CUDA"})
        else:
            names.append(measurement.name)

    def command(left):
        task = json.dumps({"part": part, "names": left, "setting": setting._asdict()})
        return [sys.executable, os.path.abspath(__file__), f"--part={task}"]
    deadline = min(end, time.monotonic() + part_limit)
    log = os.path.join(report.folder, "report.log")
    measure_part(command, names, log, deadline, row_limit, add)


def measure_all(args, report):
    """Measure the parts that were asked for, until the minutes are over."""
    end = time.monotonic() + 60 * args.minutes
    limits = (GPU_PART_LIMIT, GPU_ROW_LIMIT) if args.gpu else ()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder  # files that a killed process leaves there go with it
        made_up_shards(os.path.join(folder, "shards"), train_tokens=2**22, val_tokens=2**20 + 1)
        for part in args.parts:
            print(f"{part} ({(end - time.monotonic()) / 60:.1f} min left)", flush=True)
            tiny = DEVICE.type == "cpu" and (args.gpu or part not in BENCH)
            setting = Setting(folder, tiny, args.quick, hellaswag=args.hellaswag, files=args.files)
            report_part(part, setting, report, end, *limits)


def main(argv):
    args = parse(argv)
    if args.part:
        task = json.loads(args.part)
        work(task["part"], task["names"], Setting(**task["setting"]))
        return
    if args.contender:
        task = json.loads(args.contender)
        serve(**{**task, "setting": Setting(**task["setting"])})
        return
    signal.signal(signal.SIGTERM, interrupt)
    machine = ask_for_machine()
    if args.gpu and DEVICE.type == "cpu":
        machine += ": no CUDA, tiny models; the figures only show that parts run"
    report = Report(args.out, machine)
    report.read()
    print(report.machine, flush=True)
    try:
        measure_all(args, report)
    finally:  # after Ctrl-C, too: what is measured is kept
        print(f"{len(report.rows)} rows are in {os.path.join(args.out, 'report.md')} and in "
              "report.json", flush=True)


if __name__ == "__main__":
    run_program(main)
