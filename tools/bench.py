"""
Measures every part of this project: speed and memory, beside what one would run instead.

    python tools/bench.py                          # all parts: half an hour on two cores
    python tools/bench.py --quick                  # fewer and smaller runs, in some minutes
    python tools/bench.py --parts=step,attention   # these only
    python tools/bench.py --gpu                    # the report on a rented card, in ten minutes
    python tools/bench.py --gpu --quick            # in five
    python tools/bench.py --gpu --parts=evals      # a part of that report

Each row is printed as it is measured, and written at once into report.md, to be read, and
report.json. A later call adds to both; what it measures again replaces the older row. The report
begins with what one wants to know first, so one that is stopped early is of use.

Each measurement runs in a process of its own, without network. Shards hold random tokens,
HellaSwag's items are made up. What dies or hangs becomes a row that says so; report.log has what
it printed. Without a card --gpu trains tiny models: their figures show that each part runs, and
nothing else.

Compare ratios: times depend on the machine, and on what else it does. On a CPU, contenders
therefore take turns (A B A B ...). The plain recipe is eager, bfloat16 autocast, and AdamW as
PyTorch picks it by default. 17 GB of memory are enough.

Parts
    environment  the card, its driver and clocks, PyTorch, a product of two large matrices
    step         a training step, 124M: ours, the plain recipe, transformers
    evals        validation, HellaSwag, samples, saving: time, peak memory against the estimate
    checkpoint   saving and loading, against torch.save and torch.load
    attention    PyTorch's kernels in the shape of training, alone and in a compiled step
    plans        HellaSwag and samples with cuDNN's attention, which plans each shape, and without
    generate     with a cache, against transformers and without one
    gpt2-medium, gpt2-large, gpt2-xl
                 peak memory against the estimate, with the flags that save memory
    dtypes       float16 and float32
    resume       the same steps again, from a checkpoint
    small-cards  the evals with 24, 16 and 8 GB of a card
    ddp          what torchrun, DDP and --shard cost
    between      the time between two steps
    hellaswag    the batched eval against one item at a time
    fineweb      from .jsonl to shards, against tiktoken on one core

docs/speed.md has the table, where the time of a step goes, and what was tried and left out. The
parts are in parts.py, the clock and the contenders in measure.py, processes in children.py.

Contents
    1 the report          Report, show, table
    2 measuring           work, measure, measure_all
    3 the command line    parse, main
"""
import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from support.console import UserError, run_program
from support.files import atomic_write
from tools.children import SPAWN, Child, Died
from tools.measure import DEVICE, describe_machine, made_up_shards
from tools.parts import BENCH, REPORT, Setting, list_parts

GPU_LIMIT = 150  # seconds: a rented card should not wait for a measurement that hangs

# -------------------------------------------------------------------------------------------------
# 1 the report

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
                self.rows = json.load(f)["rows"]

    def forget(self, part, measurement):
        """Remove the rows of a measurement that this machine is about to repeat."""
        repeated = (self.machine, part, measurement)
        self.rows = [row for row in self.rows
                     if (row["machine"], row["part"], row["measurement"]) != repeated]

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
# 2 measuring

def work(pipe, function, setting, log):
    """The process of a measurement: send its rows one by one, then None."""
    with open(log, "ab") as f:
        os.dup2(f.fileno(), 1)  # what runs and libraries print
        os.dup2(f.fileno(), 2)
    os.chdir(setting.folder)  # train_gpt2.py looks for HellaSwag's items here
    for row in function(setting):
        pipe.send(row)
    pipe.send(None)


def measure(part, measurement, setting, report, end):
    """Add the rows of a measurement to the report. end: when to stop it, by time.monotonic()"""
    name, function = measurement.name, measurement.function
    report.forget(part, name)
    if measurement.needs_cuda and DEVICE.type != "cuda":
        report.add(part, name, name, {"note": "needs CUDA"})
        return
    if time.monotonic() > end:
        report.add(part, name, name, {"note": "not measured: no time was left"})
        return
    log = os.path.join(os.path.abspath(report.folder), "report.log")
    with Child(work, function, setting, log) as child:
        try:
            while row := child.receive(end - time.monotonic()):
                report.add(part, name, *row)
        except Died as e:
            report.add(part, name, name, {"note": f"{e}: see report.log"})


def measure_all(args, report):
    """Measure the parts that were asked for, until the minutes are over."""
    minutes = 240 if not args.gpu else 5 if args.quick else 10
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder  # files that a killed process leaves there go with it
        made_up_shards(os.path.join(folder, "shards"), train_tokens=2**22, val_tokens=2**20 + 1)
        for part in args.parts:
            print(f"{part} ({(end - time.monotonic()) / 60:.1f} min left)", flush=True)
            tiny = DEVICE.type == "cpu" and (args.gpu or part not in BENCH)
            setting = Setting(folder, tiny, args.quick, args.hellaswag, args.files)
            for measurement in list_parts()[part]:
                if args.quick and not measurement.quick:
                    continue
                limit = min(end, time.monotonic() + GPU_LIMIT) if args.gpu else end
                measure(part, measurement, setting, report, limit)


# -------------------------------------------------------------------------------------------------
# 3 the command line

def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="", help="names with commas between them")
    parser.add_argument("--gpu", action="store_true", help="the report on a rented card")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs")
    parser.add_argument("--hellaswag", default="", metavar="FILE",
                        help="HellaSwag items for the part hellaswag; otherwise they are made up")
    parser.add_argument("--files", default="", metavar="FILE",
                        help=".jsonl or .txt for the part fineweb; otherwise input.txt")
    parser.add_argument("--out", default=".", help="the folder of report.md and report.json")
    args = parser.parse_args(argv)
    known = list_parts()
    args.parts = args.parts.split(",") if args.parts else list(REPORT if args.gpu else BENCH)
    if unknown := [part for part in args.parts if part not in known]:
        raise UserError(f"no such part: {', '.join(unknown)}; there are {', '.join(known)}")
    args.files = args.files and os.path.abspath(args.files)  # a part works in another directory
    args.hellaswag = args.hellaswag and os.path.abspath(args.hellaswag)
    return args


def main(argv):
    args = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no process stays behind
    with SPAWN.Pool(1) as pool:  # CUDA takes memory in each process that uses it: not in this one
        machine = pool.apply(describe_machine)
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
