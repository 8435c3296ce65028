"""
What does a card make of this program? One command measures all that a CPU cannot show, in under 25
minutes on an H100, and writes report.md, to be read, and report.json.

    python -m pytest -m cuda              # first: does everything work there?
    python tools/gpu_report.py            # then: how fast is it, and how much memory does it take?
    python tools/gpu_report.py --quick    # in five minutes
    python tools/gpu_report.py --parts=attention,sampling    # these only, added to report.json

It needs no network and no data: shards hold random tokens, HellaSwag's items are made up. Each part
runs in a process of its own, at most four minutes. One that dies goes on with its next row, and
what died is a row that says why; what it printed stands in report.log. Without a card the models
are tiny: then the figures show that each part runs, and nothing else.

Parts
    environment  the card, its driver and clocks, PyTorch, and a product of two large matrices
    step         train_gpt2.py as it is started, compiled and eager: time, MFU, peak memory
    others       the plain recipe and transformers, eager, at the largest B that they can
    torchrun     one process under torchrun: what DDP costs
    attention    each of PyTorch's kernels in the shape of training, forward and backward
    evals        validation, HellaSwag, samples and saving; also with 24, 16 and 8 GB of memory
    sampling     generating tokens, with and without cuDNN's attention
    between      the time between steps
    checkpoint   saving and loading
    gpt2-medium, gpt2-large, gpt2-xl
                 peak memory against the estimate, with the flags that save memory
    dtypes       float16 and float32
    resume       a run that goes on from a checkpoint, against one that was never stopped
    cards        all cards of the machine: DDP against one, --shard against DDP

Contents
    1 a setting         Setting, flags, run_rows
    2 the parts         a function for each, which yields rows
    3 in a process      PARTS, work: what a part's process does
    4 the report        Report, main
What is done when a process dies or hangs stands in children.py.
"""
import argparse
import contextlib
import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import NamedTuple
from unittest import mock

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import hellaswag
import play
import train_gpt2
from support import checkpoints, hellaswag_file
from support.arithmetic import mfu, phases, total
from support.console import UserError, run_program
from support.files import atomic_write
from support.runlog import read_log
from tools.children import measure_part
from tools.measure import (DEVICE, KERNELS, attention, contender, describe_machine, fitting_B,
                           forget_peak, generation, in_turn, made_up_shards, peak_memory, read_all,
                           read_configs, save_ours, save_plainly, synchronize, timed, train,
                           trained_model, watch, write_items)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PART_LIMIT = 240  # seconds
# the rows that a CPU has no figures for
CUDA_ONLY = ("attention: CUDNN_ATTENTION", "attention: EFFICIENT_ATTENTION", "evals: in 24 GB",
             "evals: in 16 GB", "evals: in 8 GB")
TINY = ("--n_layer=2 --n_head=2 --n_embd=32 --block_size=64 --T=64 --B=2 "
        "--total_batch_size=256").split()

# -------------------------------------------------------------------------------------------------
# 1 a setting, and a run in it

class Setting(NamedTuple):
    """What all parts are told."""
    folder: str  # where shards, items and logs are
    tiny: bool  # no card: a model that is small enough for a CPU
    quick: bool
    compile: bool = True  # a test does without

    def gpt_config(self):
        """The model of all parts but those named gpt2-..."""
        if self.tiny:
            return train_gpt2.GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=32)
        return train_gpt2.GPTConfig()

    def B_and_T(self):
        """The batch of what is measured outside of a run. B is what fits, as in a run."""
        if self.tiny:
            return 2, 64
        free, _ = torch.cuda.mem_get_info()
        return fitting_B(self.gpt_config(), train_gpt2.TrainConfig(), free), 1024

    def steps(self):
        """How many steps a run has."""
        if self.tiny:
            return 4
        return 8 if self.quick else 12


def flags(setting, *more):
    """The flags of a run of train_gpt2.py -> its log directory, list of flags; `more` win"""
    log_dir = tempfile.mkdtemp(prefix="log_", dir=setting.folder)
    tokens = 2**17 if setting.quick else 2**19
    given = [f"--data_root={setting.folder}/shards", f"--log_dir={log_dir}",
             f"--max_steps={setting.steps()}", "--warmup_steps=0", "--eval_every=0",
             "--save_every=0", "--no-hellaswag", "--val_tokens=65536",
             f"--total_batch_size={tokens}", *more]
    if setting.tiny:
        given += [*TINY, "--val_tokens=256"]
    if not setting.compile:
        given += ["--no-compile"]
    return log_dir, given


class Finished(NamedTuple):
    """A run that has been watched."""
    seen: object  # Watch
    log: dict  # {stream: {step: value}}
    gpt_config: object
    config: object
    dtype: str  # of the matmuls


def run(setting, *more):
    """Run train_gpt2.py in this process, as the command line would -> Finished"""
    log_dir, given = flags(setting, *more)
    # HellaSwag has 10,042 items; a file with fewer would be taken for a damaged one
    as_many = mock.patch.object(hellaswag_file, "NUM_ITEMS", n_items(setting))
    with as_many, watch() as seen:
        train_gpt2.run(given)
    log, _ = read_log(log_dir)
    return Finished(seen, log, *read_configs(log_dir))


def step_seconds(log):
    """The seconds of each step but the first two, in which memory is taken and code is loaded."""
    return [ms / 1000 for ms in log["dt"].values()][2:]


def speed_figures(gpt_config, tokens, T, seconds, dtype="bfloat16"):
    """How fast steps of so many tokens are, seconds: of each -> {what: figure}"""
    rate = tokens / median(seconds)
    figures = {"ms a step": 1000 * median(seconds), "tokens a step": tokens, "tokens/s": rate}
    if DEVICE.type == "cuda" and dtype != "float32":
        share = mfu(torch.cuda.get_device_name(), gpt_config, T, rate)
        figures["MFU"] = share.removeprefix(" | mfu ") if share else "n/a"
    return figures


def memory_figures(memory, estimate=None):
    """Memory, and the bytes that were expected -> {what: figure}"""
    figures = {"peak GB": memory.taken / 1e9, "of tensors GB": memory.allocated / 1e9}
    if estimate is not None:
        figures["estimate GB"] = estimate / 1e9
        if DEVICE.type == "cuda":  # a CPU's process holds much that the estimate is not about
            figures["peak / estimate"] = memory.taken / estimate
    return figures


def phase_figures(finished, phase, tokens=None, items=None):
    """What a phase of a run took. tokens, items: how many it was about -> {what: figure}"""
    needs = phases(finished.gpt_config, finished.config, 1, finished.dtype,
                   compiled=bool(finished.config.compile))
    figures = {"B": finished.config.B}
    if phase != "step":
        seconds = finished.seen.seconds(phase)
        figures["seconds"] = seconds
        if tokens is not None:
            figures["tokens/s"] = tokens / seconds
        if items is not None:
            figures["items/s"] = items / seconds
    return figures | memory_figures(finished.seen.most(phase), total(needs[phase]))


def step_figures(finished):
    """The same for its steps, with their speed."""
    config = finished.config
    seconds = step_seconds(finished.log)
    speed = speed_figures(finished.gpt_config, config.total_batch_size, config.T, seconds,
                          finished.dtype)
    return speed | phase_figures(finished, "step")


# -------------------------------------------------------------------------------------------------
# 2 the parts: each function yields rows, (name, figures)

def nvidia_smi(*names):
    """What the driver says of the first card -> {name: text}, empty where there is none"""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}",
               "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    values = result.stdout.strip().split(", ")
    if result.returncode != 0 or len(values) != len(names):
        return {"nvidia-smi": "no answer"}
    return dict(zip(names, values, strict=True))


def environment(setting):
    figures = {"PyTorch": str(torch.__version__), "CUDA": str(torch.version.cuda),
               "HIP": str(torch.version.hip), "cuDNN": str(torch.backends.cudnn.version()),
               "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if DEVICE.type == "cuda":
        free, all_of_it = torch.cuda.mem_get_info()
        capability = torch.cuda.get_device_capability()
        figures |= {"cards": torch.cuda.device_count(), "free GB": free / 1e9,
                    "memory GB": all_of_it / 1e9, "capability": ".".join(map(str, capability))}
    yield describe_machine(), figures
    # before and under load: a card may be slowed down by its power limit or by its heat
    yield "at rest", clocks()
    n = 256 if setting.tiny else 8192
    a, b = torch.randn(2, n, n, device=DEVICE).bfloat16()

    def multiply():
        for _ in range(20):
            a @ b
        synchronize()
    [seconds] = in_turn(10, multiply)
    tflops = 20 * 2 * n**3 / median(seconds) / 1e12
    yield f"product of two {n} x {n} matrices, bfloat16", {"TFLOP/s": tflops} | clocks()


def clocks():
    """What may change while we measure -> {what: text}"""
    figures = nvidia_smi("driver_version", "clocks.sm", "clocks.mem", "power.draw", "power.limit",
                         "temperature.gpu")
    if hasattr(os, "getloadavg"):
        figures["load of the CPUs"] = os.getloadavg()[0]
    return figures


def step(setting, how):
    """train_gpt2.py as it is started, without --B. how: "--compile" or "--no-compile" """
    finished = run(setting, how)
    yield how, step_figures(finished)


def other(setting, name):
    """A step of somebody else's at the largest B that runs, and ours, eager, at that B."""
    gpt_config = setting.gpt_config()
    B, T = setting.B_and_T()
    while True:
        forget_peak()
        try:
            [seconds] = in_turn(3 if setting.quick else 8, contender(name, gpt_config, B, T))
            break
        except torch.OutOfMemoryError:
            yield f"{name}, B={B}", {"note": "out of memory"}
        gc.collect()  # the traceback held its tensors until here
        B = B // 2
        if B == 0:
            return
    yield f"{name}, B={B}", (speed_figures(gpt_config, B * T, T, seconds)
                             | memory_figures(peak_memory()))


def torchrun(setting):
    """The run of part step under torchrun: with DDP, but nobody to average with."""
    log_dir, given = flags(setting)
    log = train(log_dir, *given, torchrun=True, cwd=setting.folder)
    _, config, _ = read_configs(log_dir)
    speed = speed_figures(setting.gpt_config(), config.total_batch_size, config.T,
                          step_seconds(log))
    yield "torchrun, 1 process", speed | {"B": config.B}


def kernel(setting, name):
    """The attention of one block of GPT-2 by one kernel."""
    B, T = setting.B_and_T()
    attend = attention(name, setting.gpt_config(), B, T)
    forget_peak()
    [seconds] = in_turn(20, attend)
    yield f"{name}, B={B}", {"ms": 1000 * median(seconds)} | memory_figures(peak_memory())


@contextlib.contextmanager
def kernels_of_evals(cudnn):
    """Let evals and samples use cuDNN's attention, or do without it, as they do by themselves."""
    name = "attention_for_any_shape"
    with contextlib.ExitStack() as stack:
        for module in (play, hellaswag) if cudnn else ():
            stack.enter_context(mock.patch.object(module, name, contextlib.nullcontext))
        yield


def hellaswag_with_cudnn(setting):
    """The same with cuDNN's attention, which may make a plan for each shape of a batch."""
    with kernels_of_evals(cudnn=True):
        finished = run(setting, "--no-compile", "--hellaswag", "--max_steps=1", "--eval_every=1",
                       "--B=2", "--total_batch_size=2048")
    yield "HellaSwag, cuDNN may be used", phase_figures(finished, "hellaswag",
                                                        items=n_items(setting))


def evals(setting, limit=None):
    """
    A run with every eval, which all come twice: the second time counts. limit: the memory of a
    smaller card in bytes, for which B is chosen.
    """
    more = ["--no-compile", "--hellaswag", "--save_every=2", "--max_steps=2",
            "--eval_every=2"]
    what = ""
    if limit is not None:
        free, whole = torch.cuda.mem_get_info()
        if limit > whole:
            yield f"in {limit / 1e9:.0f} GB", {"note": f"this card has {whole / 1e9:.1f}"}
            return
        context = whole - free - torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction((limit - context) / whole)
        B = fitting_B(setting.gpt_config(), train_gpt2.TrainConfig(), limit)
        more += [f"--B={B}", f"--total_batch_size={2 * B * 1024}"]
        what = f"in {limit / 1e9:.0f} GB: "
    val_tokens = 256 if setting.tiny else 2**20
    finished = run(setting, *more, f"--val_tokens={val_tokens}")
    yield f"{what}step", phase_figures(finished, "step")  # of two steps no speed is told
    yield f"{what}validation", phase_figures(finished, "validation", tokens=val_tokens)
    yield f"{what}HellaSwag", phase_figures(finished, "hellaswag", items=n_items(setting))
    yield f"{what}4 samples", phase_figures(finished, "samples", tokens=4 * 24)
    yield f"{what}save", phase_figures(finished, "save")


def n_items(setting):
    """How many HellaSwag items there are."""
    if setting.tiny:
        return 20
    return 2000 if setting.quick else 10042  # as many as HellaSwag's


def sampling(setting, cudnn):
    """
    Four rows, 200 tokens each, twice. Each token has a key length of its own, for which cuDNN may
    have to plan anew: the first time shows it.
    """
    process = train_gpt2.setup_distributed(train_gpt2.TrainConfig())
    model = train_gpt2.GPT(setting.gpt_config()).eval().to(DEVICE)
    new = 20 if setting.tiny else 200
    idx = torch.zeros(4, 8, dtype=torch.long, device=DEVICE)
    with process.autocast, kernels_of_evals(cudnn):
        generate = generation(model, idx, new)
        first, second = timed(generate), timed(generate)
    what = "cuDNN may be used" if cudnn else "without cuDNN"
    for which, seconds in (("first", first), ("second", second)):
        yield f"{what}, the {which} time", {"seconds": seconds, "tokens/s": 4 * new / seconds}


def between(setting):
    """From the end of a step's clock to the start of the next: what dt does not show."""
    steps = 6 if setting.tiny else 30
    B, T = setting.B_and_T()
    finished = run(setting, "--no-compile", f"--max_steps={steps}", f"--B={B}",
                   f"--total_batch_size={B * T}")
    ends = finished.seen.step_ends
    lost = []
    for i in range(2, steps):
        whole_turn = ends[i] - ends[i - 1]
        lost.append(whole_turn - finished.log["dt"][i] / 1000)
    yield f"one micro step a step, B={B}", {
        "ms a step": 1000 * median(step_seconds(finished.log)),
        "ms between": 1000 * median(lost), "ms at most": 1000 * max(lost)}


def checkpoint(setting):
    """Saving and loading, ours against torch.save and torch.load."""
    model, optimizer = trained_model(setting.gpt_config())
    ours = os.path.join(setting.folder, "model_00001.pt")
    theirs = os.path.join(setting.folder, "theirs.pt")

    def load():
        read_all(checkpoints.read(ours))

    def load_plainly():
        read_all(torch.load(theirs, weights_only=True, map_location="cpu"))
    runs = 1 if setting.quick else 3
    saved, plain = in_turn(runs, partial(save_ours, setting.folder, model, optimizer),
                           partial(save_plainly, theirs, model, optimizer, True))
    loaded, plainly = in_turn(runs, load, load_plainly)
    gigabytes = os.path.getsize(ours) / 1e9
    yield "save", {"GB": gigabytes, "seconds": median(saved), "torch.save, s": median(plain)}
    yield "load, checksums included", {"GB": gigabytes, "seconds": median(loaded),
                                       "torch.load, s": median(plainly)}


def large(setting, preset, more):
    """Three steps of a larger model with the flags that save memory, at the B that fits."""
    shape = {name: value for name, value in train_gpt2.PRESETS[preset].items()
             if name in ("n_layer", "n_head", "n_embd")}
    config = train_gpt2.TrainConfig(
        shard="all" if "--shard" in more else "no", offload="--offload" in more,
        activation_checkpointing="--activation_checkpointing" in more)
    B, T = 2, 64
    if not setting.tiny:
        B, T = fitting_B(train_gpt2.GPTConfig(**shape), config, torch.cuda.mem_get_info()[0]), 1024
    finished = run(setting, f"--preset={preset}", "--no-compile", *more, f"--B={B}",
                   f"--total_batch_size={B * T}", "--max_steps=4")
    yield " ".join(more) if more else "no flags", step_figures(finished)


def dtype(setting, name):
    """Eager steps in a dtype that is not the one that is chosen here."""
    finished = run(setting, "--no-compile", f"--dtype={name}", "--max_steps=6",
                   *small_batch(setting, name))
    losses = finished.log["train"]
    yield name, step_figures(finished) | {"first loss": losses[0], "last loss": losses[5]}


def small_batch(setting, dtype_name):
    """A micro batch that fits in float32 too, and two of them in a step -> flags"""
    if setting.tiny:
        return []
    B, T = setting.B_and_T()
    if dtype_name == "float32":
        B = max(1, B // 2)
    return [f"--B={B}", f"--total_batch_size={2 * B * T}"]


def resume(setting):
    """Six steps at once, against four and two more from the checkpoint; eager, one micro step."""
    B, T = setting.B_and_T()
    log_dir, given = flags(setting, "--no-compile", f"--B={B}", f"--total_batch_size={B * T}",
                           "--save_every=4", "--keep_last=5")
    train_gpt2.run([*given, "--max_steps=6"])
    whole, _ = read_log(log_dir)
    os.remove(os.path.join(log_dir, "model_00006.pt"))
    t0 = time.perf_counter()
    train_gpt2.run([*given, "--max_steps=6", "--resume=auto"])
    seconds = time.perf_counter() - t0
    resumed, _ = read_log(log_dir)
    differences = [abs(whole["train"][i] - resumed["train"][i]) for i in (4, 5)]
    yield "steps 5 and 6, resumed", {"difference of the losses": max(differences),
                                     "seconds with loading": seconds}


def cards(setting, *more):
    """All cards of the machine together. more: flags. Without a card: two processes of gloo."""
    n = torch.cuda.device_count() if DEVICE.type == "cuda" else 2
    if n < 2:
        yield " ".join(["DDP", *more]), {"note": "needs two cards"}
        return
    gpt_config = setting.gpt_config()
    seconds = {}
    for processes in (1, n):
        # the same tokens for each process
        tokens = 2**7 if setting.tiny else 2**17
        log_dir, given = flags(setting, "--no-compile", *more)
        given += [f"--total_batch_size={tokens * processes}"]
        log = train(log_dir, *given, processes=processes, torchrun=True, cwd=setting.folder,
                    OMP_NUM_THREADS="1" if setting.tiny else str(os.cpu_count() // n))
        seconds[processes] = step_seconds(log)
        figures = speed_figures(gpt_config, tokens, 1024, seconds[processes])
        figures["efficiency"] = median(seconds[1]) / median(seconds[processes])
        what = "--shard" if "--shard" in more else "DDP"
        yield f"{what}, {processes} process(es), each", figures


# -------------------------------------------------------------------------------------------------
# 3 in a process of its own: one measurement after another, each row printed when it is known

class Measurement(NamedTuple):
    """Some rows of a part, made together."""
    name: str
    function: object  # Setting -> yields (row, figures)
    quick: bool = True  # is it in --quick?


def list_parts():
    """-> {part: list of Measurement}, in the order in which they are measured"""
    parts = {
        "environment": [Measurement("machine", environment)],
        "step": [Measurement("compiled", partial(step, how="--compile")),
                 Measurement("eager", partial(step, how="--no-compile"))],
        "others": [Measurement("plain", partial(other, name="plain")),
                   Measurement("transformers", partial(other, name="transformers"), quick=False)],
        "torchrun": [Measurement("one process", torchrun, quick=False)],
        "attention": [Measurement(name, partial(kernel, name=name)) for name in KERNELS],
        "evals": [Measurement("all memory", evals)],
        "sampling": [Measurement("cuDNN", partial(sampling, cudnn=True)),
                     Measurement("without cuDNN", partial(sampling, cudnn=False))],
        "between": [Measurement("between steps", between)],
        "checkpoint": [Measurement("save and load", checkpoint)],
    }
    for size in (24, 16, 8):
        parts["evals"].append(Measurement(f"in {size} GB", partial(evals, limit=size * 1e9),
                                          quick=False))
    parts["evals"].append(Measurement("cuDNN", hellaswag_with_cudnn, quick=False))
    recompute, shard, offload = "--activation_checkpointing", "--shard", "--offload"
    for preset in ("gpt2-medium", "gpt2-large", "gpt2-xl"):
        parts[preset] = []
        for more in ([], [recompute], [shard], [shard, recompute], [shard, offload, recompute]):
            name = " ".join(more) if more else "no flags"
            part = partial(large, preset=preset, more=more)
            parts[preset].append(Measurement(name, part, quick=preset == "gpt2-medium"
                                             and more in ([], [recompute])))
    parts["dtypes"] = [Measurement(name, partial(dtype, name=name), quick=False)
                       for name in ("float16", "float32")]
    parts["resume"] = [Measurement("resume", resume, quick=False)]
    parts["cards"] = [Measurement("DDP", cards, quick=False),
                      Measurement("--shard", shard_cards, quick=False)]
    return parts


def shard_cards(setting):
    yield from cards(setting, "--shard")


def is_available(part, measurement):
    """Can this machine measure it?"""
    return DEVICE.type == "cuda" or f"{part}: {measurement.name}" not in CUDA_ONLY


def start_afresh():
    """What one measurement leaves behind should not be in the next one's way."""
    gc.collect()
    torch._dynamo.reset()
    if DEVICE.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    forget_peak()


def work(part, names, setting):
    """What a part's process does: print a line of JSON for each thing that happens."""
    out = os.fdopen(os.dup(1), "w")  # what runs print goes to stderr, and so into report.log
    os.dup2(2, 1)

    def say(**what):
        print(json.dumps(what), file=out, flush=True)
    os.chdir(setting.folder)  # HellaSwag's items are looked for here
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
# 4 the report

@dataclass
class Report:
    """The rows of report.json, and report.md made of them."""
    folder: str
    machine: str
    rows: list = field(default_factory=list)  # of dicts: machine, part, measurement, row, figures

    def read(self):
        """Take up the rows of earlier calls."""
        path = os.path.join(self.folder, "report.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                try:
                    self.rows = json.load(f)["rows"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path} is not a report: move it away, or choose another "
                                    "--out")

    def forget(self, part, names):
        """What is measured again replaces what was there."""
        self.rows = [row for row in self.rows
                     if (row["machine"], row["part"]) != (self.machine, part)
                     or row["measurement"] not in names]

    def add(self, part, measurement, row, figures):
        """A row: into both files, and onto the screen."""
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
        lines = ["# What a card makes of this program", ""]
        for machine in dict.fromkeys(row["machine"] for row in self.rows):
            lines += [f"## {machine}", ""]
            mine = [row for row in self.rows if row["machine"] == machine]
            for part in list_parts():
                rows = [row for row in mine if row["part"] == part]
                if rows:
                    lines += [f"### {part}", "", *table(rows), ""]
        return "\n".join(lines)


def show(figure):
    """A figure as text: three or four digits say enough."""
    if not isinstance(figure, float):
        return str(figure)
    if figure == 0 or not math.isfinite(figure):
        return f"{figure:g}"
    digits = 3 - math.floor(math.log10(abs(figure)))
    return f"{figure:,.{max(0, min(digits, 6))}f}"


def table(rows):
    """Rows of a part -> lines of Markdown; a column for each figure that one of them has"""
    columns = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    lines = [f"| what | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for row in rows:
        cells = [show(row["figures"].get(name, "")) for name in columns]
        text = [cell.replace("|", "/") for cell in (row["row"], *cells)]
        lines.append(f"| {' | '.join(text)} |")
    return lines


def prepare(setting):
    """Write shards and items into the folder."""
    train_tokens, val_tokens = 2**24, 2**20 + 1
    if setting.tiny:
        train_tokens, val_tokens = 2**14, 2**10
    made_up_shards(os.path.join(setting.folder, "shards"), train_tokens, val_tokens)
    write_items(setting.folder, n_items(setting))


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="", help="names with commas between; by default all")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter, in five minutes")
    parser.add_argument("--minutes", type=float, help="when to stop [25, with --quick 5]")
    parser.add_argument("--out", default=".", help="the folder of report.md and report.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # JSON: what a part's process does
    args = parser.parse_args(argv)
    known = list_parts()
    args.parts = args.parts.split(",") if args.parts else list(known)
    if unknown := [part for part in args.parts if part not in known]:
        raise UserError(f"no such part: {', '.join(unknown)}; there are {', '.join(known)}")
    if args.minutes is None:
        args.minutes = 5 if args.quick else 25
    return args


def interrupt(number, frame):
    """SIGTERM ends us as Ctrl-C does: no process stays behind."""
    raise KeyboardInterrupt


def ask_for_machine():
    """
    describe_machine, in a process of its own: CUDA takes memory in each process that asks the card
    anything, and this one runs beside all that is measured.
    """
    command = [sys.executable, "-c", "from tools import measure; print(measure.describe_machine())"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if asked.returncode != 0:
        raise UserError(f"nothing can be measured here: {asked.stderr.strip().splitlines()[-1]}")
    if DEVICE.type == "cuda":
        return asked.stdout.strip()
    return f"{asked.stdout.strip()}: no CUDA, tiny models; the figures only show that parts run"


def report_part(part, setting, report, end):
    """Measure a part into the report, until `end` at the latest (by time.monotonic())."""
    chosen = [m for m in list_parts()[part] if m.quick or not setting.quick]
    report.forget(part, [m.name for m in chosen])
    add = partial(report.add, part)
    names = []
    for measurement in chosen:
        if is_available(part, measurement):
            names.append(measurement.name)
        else:
            add(measurement.name, measurement.name, {"note": "needs CUDA"})

    def command(left):
        task = json.dumps({"part": part, "names": left, "setting": setting._asdict()})
        return [sys.executable, os.path.abspath(__file__), f"--worker={task}", "--debug"]
    deadline = min(end, time.monotonic() + PART_LIMIT)
    measure_part(command, names, os.path.join(report.folder, "report.log"), deadline, add)


def main(argv):
    args = parse(argv)
    if args.worker:
        task = json.loads(args.worker)
        work(task["part"], task["names"], Setting(**task["setting"]))
        return
    signal.signal(signal.SIGTERM, interrupt)
    end = time.monotonic() + 60 * args.minutes
    report = Report(args.out, ask_for_machine())
    report.read()
    print(report.machine, flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder  # what a killed process leaves there goes with it
        setting = Setting(folder, tiny=DEVICE.type == "cpu", quick=args.quick)
        prepare(setting)
        try:
            for part in args.parts:
                print(f"{part} ({(end - time.monotonic()) / 60:.1f} min left)", flush=True)
                report_part(part, setting, report, end)
        finally:  # Ctrl-C, too: what is measured is kept
            print(f"{len(report.rows)} rows are in {os.path.join(args.out, 'report.md')} and in "
                  "report.json", flush=True)


if __name__ == "__main__":
    run_program(main)
