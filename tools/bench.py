"""
Measures the parts of this project beside what a user would run instead, in turn (A B A B ...),
in one process or each contender in a fresh one, and prints a table of medians and ratios.
Compare ratios: the times depend on the machine, and on what else it does. All of it takes a
quarter of an hour, --quick two minutes; 17 GB of memory for the largest pairs.

    python tools/bench.py [part ...] [--quick] [--hellaswag items.jsonl] [--files docs.jsonl]

Parts
    step        a training step, 124M: tokens/s and peak memory, against the plain recipe and
                against transformers; the share of it that its matrix products take; on CUDA also
                MFU, at B=64, T=1024
    laptop      --preset=laptop: the time until the validation loss is 1.85
    loader      next_batch on shards of 100M tokens: median call, worst call, private memory
    ddp         two gloo processes against one, same batch, one thread each
    import      importing train_gpt2 against importing torch
    checkpoint  saving and loading 1.5 GB against torch.save and torch.load
    attention   each of PyTorch's kernels, forward and backward
    hellaswag   items per second, 124M parameters: the batched eval against one item at a time
                with all logits
    fineweb     tokens per second, from .jsonl to shards, all workers, on 50 MB of --files (or of
                input.txt): against plain tiktoken on one core, and against a pool of half the
                cores and one numpy array a document
    generate    tokens per second, 124M, 4 rows, 8 -> 256 tokens: against transformers, and
                without a cache
    finetune    tokens per second, 124M, steps of 32 speeches: against a plain loop with
                transformers
    scale       8 to 512 GPUs over three kinds of links: step time and efficiency, on paper

What is measured stands in measure.py, which gpu_report.py uses too. A contender that dies is a row
that says so.

The plain recipe: eager, bfloat16 autocast, AdamW as PyTorch picks it by default.

docs/speed.md has the table, where the time of a step goes, and what was tried and left out.

Contents
    1 the frame               worker, and the lines of the table
    2 a training step         step
    3 whole programs          laptop, ddp, import
    4 on paper                scale
    5 data, files, kernels    loader, checkpoint, attention
    6 evals, shards, writing  hellaswag, fineweb, generate
    7 the command line        PARTS, serve, main
"""
import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from multiprocessing.pool import ThreadPool
from statistics import median
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import finetune
import fineweb
import hellaswag
import train_gpt2
from support import checkpoints
from support.arithmetic import mfu
from support.hellaswag_file import read_examples
from support.shakespeare import demo_entries
from support.tasks import make_item
from support.tokenizer import gpt2_tokenizer
from tools.measure import (DEVICE, KERNELS, PLAYS, ROOT, attention, contender, describe_machine,
                           forget_peak, generation, in_turn, made_up_items, peak_memory, products,
                           read_all, save_ours, save_plainly, synchronize, timed, train,
                           trained_model)

GPT2 = train_gpt2.GPTConfig()  # 124M

# -------------------------------------------------------------------------------------------------
# 1 the frame: contenders in this process, contenders in fresh ones, the lines of the table

class Died(Exception):
    """A worker has ended before its work was done: out of memory, as a rule."""


@contextlib.contextmanager
def worker(kind, *words):
    """
    A fresh process of this file for one contender, which has a memory and settings of its own,
    and waits while the others work. -> ask: ask() has it do its work once, ask("peak") is the
    most memory that it has held, in GB. The other side of it is serve.
    """
    command = [sys.executable, os.path.abspath(__file__), "--worker", kind, *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        def ask(word="work"):
            with contextlib.suppress(BrokenPipeError):  # it has died: see below
                process.stdin.write(f"{word}\n")
                process.stdin.flush()
            for printed in process.stdout:
                if printed.startswith("answer "):
                    return float(printed.split()[1])
            raise Died(f"died with exit code {process.wait()}")
        try:
            yield ask
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # the end of its input is the end of its loop


def line(what, here, against="", ratio="", aim=""):
    """A line of the table. aim: the ratio, or the time, that we want to reach."""
    return f"| {what} | {here} | {against} | {ratio} | {aim} |"


def spread(ratios):
    """Ratios -> median (min to max), as text."""
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def ratio_of(times, others):
    """
    Seconds over seconds -> text. Pair by pair, since neighbours in time had the same machine;
    the ratio of two medians would not.
    """
    return spread([a / b for a, b in zip(times, others, strict=True)])


def row(what, unit, amount, ours, theirs, aim=""):
    """A line of rates (amount / median seconds). The ratio is above 1 where we are faster."""
    here = f"{amount / median(ours):,.1f} {unit}"
    there = f"{amount / median(theirs):,.1f} {unit}"
    return line(what, here, there, ratio_of(theirs, ours), aim)


def seconds_row(what, ours, theirs, aim=""):
    """A line of median seconds. The ratio is above 1 where we are slower."""
    here = f"{median(ours):.2f} s"
    there = f"{median(theirs):.2f} s"
    return line(what, here, there, ratio_of(ours, theirs), aim)


# -------------------------------------------------------------------------------------------------
# 2 a training step of 124M parameters

class Size(NamedTuple):
    """What a step is measured at."""
    B: int
    T: int
    runs: int  # steps of each contender
    aims: dict  # {the other contender: how much faster we want to be}


CPU_SIZES = (
    Size(4, 1024, 3, {"plain": "1.25", "transformers": "1.4"}),
    Size(4, 32, 8, {"plain": "1.5", "transformers": "1.5"}),
)
CUDA_SIZES = (Size(64, 1024, 20, {"plain": "", "transformers": ""}),)


def steps_one_by_one(B, T, runs, *names):
    """
    steps_in_turn, where two contenders do not fit into a card. One that dies is a row of its own.
    """
    times, peaks = {}, {}
    for name in names:
        try:
            its_times, its_peak = steps_in_turn(B, T, runs, name)
        except Died as e:
            print(line(f"step, 124M, B={B}, T={T}: {name}", str(e)), flush=True)
            continue
        times.update(its_times)
        peaks.update(its_peak)
    return times, peaks


def steps_in_turn(B, T, runs, *names):
    """
    Contenders (and "products"), each in a process of its own, in turn -> {name: seconds},
    {name: peak memory in GB}
    """
    if DEVICE.type == "cuda" and len(names) > 1:
        return steps_one_by_one(B, T, runs, *names)
    with contextlib.ExitStack() as stack:
        workers = []
        for name in names:
            kind = ["products"] if name == "products" else ["step", name]
            workers.append(stack.enter_context(worker(*kind, B, T)))
        if T < 1024 or DEVICE.type == "cuda":
            # short steps: the first few take their memory, page by page
            in_turn(3, *workers)
        times = dict(zip(names, in_turn(runs, *workers), strict=True))
        peaks = {name: ask("peak") for name, ask in zip(names, workers, strict=True)}
    return times, peaks


def mfu_text(size, seconds):
    """What share of a card's peak a step of 124M reaches -> text"""
    rate = size.B * size.T / median(seconds)
    text = mfu(torch.cuda.get_device_name(), train_gpt2.GPTConfig(), size.T, rate)
    if text == "":
        return "n/a"  # a card whose peak we do not know
    return text.removeprefix(" | mfu ")


def compare_steps(size, other):
    """Yield the lines of a step of ours against the one of "plain" or of "transformers"."""
    names = ["ours", other]
    in_detail = other == "plain" and size.T == 1024
    if in_detail:
        names += ["eager", "products"]
    times, peaks = steps_in_turn(size.B, size.T, size.runs, *names)
    what = f"step, 124M, B={size.B}, T={size.T}"
    tokens = size.B * size.T
    memory_aim = "at most 0.7" if in_detail and size.B == 4 else ""
    contenders = [("ours", "compiled", size.aims[other], memory_aim)]
    if in_detail:
        contenders.append(("eager", "eager", "", ""))

    for name, how, aim, its_memory_aim in contenders:
        if not {name, other} <= times.keys():
            continue  # one of them has died, and has a row that says so
        yield row(f"{what}, {how}, against {other}", "tok/s", tokens, times[name], times[other],
                  aim)
        yield line("its peak memory", f"{peaks[name]:.2f} GB", f"{peaks[other]:.2f} GB",
                   f"{peaks[name] / peaks[other]:.2f}", its_memory_aim)
    if in_detail and {"products", "ours"} <= times.keys():
        alone, compiled = times["products"], times["ours"]
        yield line("matrix products alone, share of the compiled step",
                   f"{median(alone):.3f} s", f"{median(compiled):.3f} s",
                   ratio_of(alone, compiled), "0.55")
    if DEVICE.type == "cuda":
        for name in names:
            if name in times and name != "products":
                rate = f"{tokens / median(times[name]):,.0f} tok/s"
                yield line(f"MFU, {name}", mfu_text(size, times[name]), rate)


def bench_step(args):
    """A training step, beside the plain recipe and beside transformers."""
    sizes = CUDA_SIZES if DEVICE.type == "cuda" else CPU_SIZES
    others = ["plain", "transformers"]
    if args.quick:
        sizes = sizes[-1:]
        others = ["plain"]
    for size in sizes:
        for other in others:
            yield from compare_steps(size, other)


# -------------------------------------------------------------------------------------------------
# 3 whole programs

def bench_laptop(args):
    """How long the laptop preset trains until it is at 1.85; --quick: what its steps take."""
    flags = ["--preset=laptop", "--device=cpu"]
    if args.quick:
        flags += ["--max_steps=200", "--eval_every=0", "--val_tokens=65"]
    else:
        flags += ["--eval_every=300"]
    with tempfile.TemporaryDirectory() as folder:
        log = train(folder, *flags)
    if args.quick:
        ms = median(log["dt"].values())
        steps = train_gpt2.PRESETS["laptop"]["max_steps"]
        return [line(f"laptop preset: all {steps} steps, from the median of 200",
                     f"{ms * steps / 1000:.0f} s")]
    reached = [step for step, val in log["val"].items() if val <= 1.85]
    if not reached:
        return [line("laptop preset: never at validation loss 1.85",
                     f"{min(log['val'].values())}", aim="150 s")]
    seconds = sum(dt for step, dt in log["dt"].items() if step < reached[0]) / 1000
    what = f"laptop preset: training time to validation loss 1.85 (step {reached[0]})"
    return [line(what, f"{seconds:.0f} s", aim="150 s")]


def ddp_steps(flags, B, T, n, processes=1):
    """Train with B rows of T in all on the CPU -> the seconds of n steps, after the first two."""
    # DDP lays out its buckets in the first step, and again in the second
    flags = [*flags, f"--B={B // processes}", f"--total_batch_size={B * T}",
             f"--max_steps={2 + n}", "--device=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        log = train(folder, *flags, processes=processes, OMP_NUM_THREADS="1")
    times = list(log["dt"].values())
    return [ms / 1000 for ms in times[2:]]


def bench_ddp(args):
    """
    The efficiency of two: the time of one process over twice the time that two take for the
    same tokens. They share the memory of one machine; what that costs is shown by two that know
    nothing of each other, each with half of the rows.
    """
    if args.quick:
        B, T, n = 8, 64, 58
        flags = ["--preset=laptop", "--eval_every=0", "--val_tokens=65"]
        what, aim = "laptop preset", ""
    else:
        B, T, n = 4, 1024, 2
        flags = ["--preset=debug", "--T=1024"]
        what, aim = f"124M, {B} rows of {T:,}", "0.85"

    # one process takes half of its steps before the others, and half after
    one = ddp_steps(flags, B, T, n // 2)
    two = ddp_steps(flags, B, T, n, processes=2)
    half = (flags, B // 2, T, n)
    with ThreadPool(2) as pool:  # each thread waits for its process
        left, right = pool.starmap(ddp_steps, [half, half])
    one += ddp_steps(flags, B, T, n // 2)
    apart = [max(pair) for pair in zip(left, right, strict=True)]  # the slower one counts

    lines = []
    for name, times, its_aim in (("two gloo processes", two, aim),
                                 ("two that do not talk", apart, "")):
        efficiency = [a / (2 * b) for a, b in zip(one, times, strict=True)]
        lines.append(line(f"{name} against one, {what}: efficiency",
                          f"{median(times) * 1000:,.0f} ms", f"{median(one) * 1000:,.0f} ms",
                          spread(efficiency), its_aim))
    return lines


def import_freshly(name):
    """Import a module in a fresh process."""
    subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, check=True)


def bench_import(args):
    """What train_gpt2 adds to torch, which it cannot do without."""
    ours, theirs = in_turn(args.runs, partial(import_freshly, "train_gpt2"),
                           partial(import_freshly, "torch"))
    return [seconds_row("importing train_gpt2, against importing torch", ours, theirs,
                        "at most 1.2")]


# -------------------------------------------------------------------------------------------------
# 4 on paper

LINKS = {  # bits a second between machines, for all eight GPUs of one together
    "8 x 400 Gb/s InfiniBand": 3.2e12,
    "100 Gb/s Ethernet": 1e11,
    "10 Gb/s Ethernet": 1e10,
}
NVLINK = 450e9  # bytes a second each way, between the GPUs of a machine (NVLink 4)


def compute_seconds(gpus):
    """The arithmetic of a step of 2**19 tokens, 124M, on H100s at 40% MFU -> seconds"""
    flops = 2**19 * 8.55e8  # tokens a step, FLOPs a token
    return flops / (gpus * 0.4 * 989e12)  # MFU, and what an H100 could do


def talk_seconds(gpus, link):
    """
    Adding up the gradients of a step, on machines of eight GPUs -> seconds. link: as in LINKS.
    A ring all-reduce sends 2 (m - 1) / m of the gradients from each of m.
    """
    gradients = 4 * 124.5e6  # bytes: float32
    here = min(gpus, 8)
    machines = max(1, gpus // 8)
    within = 2 * (here - 1) / here * gradients / NVLINK
    between = 2 * (machines - 1) / machines * gradients / (link / 8)
    return within + between


def bench_scale(args):
    """Not measured but computed. The part ddp shows what two processes reach here."""
    lines = ["", "Computed: 124M, 524,288 tokens a step, H100 at 40% MFU, gradients in float32; "
             "efficiency overlapped (and without).", ""]
    lines.append("| GPUs | compute | " + " | ".join(LINKS) + " |")
    lines.append("|---" * (2 + len(LINKS)) + "|")
    for gpus in (8, 16, 32, 64, 128, 256, 512):
        compute = compute_seconds(gpus)
        cells = []
        for link in LINKS.values():
            talk = talk_seconds(gpus, link)
            plain = compute + talk
            # gradients can travel during backward, which is two thirds of the step
            overlapped = max(compute, compute / 3 + talk)
            cells.append(f"{overlapped * 1000:.0f} ms, {compute / overlapped:.0%} "
                         f"({compute / plain:.0%})")
        lines.append(f"| {gpus} | {compute * 1000:.0f} ms | " + " | ".join(cells) + " |")
    return lines


# -------------------------------------------------------------------------------------------------
# 5 data, files, kernels

class PlainLoader:
    """What the original does: a shard is loaded as a whole, and becomes int64 as a whole."""

    def __init__(self, paths, B, T):
        self.paths = paths
        self.B = B
        self.T = T
        self.current = 0  # shard
        self.at = 0  # token of it
        self.tokens = self.load(paths[0])

    def load(self, path):
        return torch.tensor(np.load(path).astype(np.int32), dtype=torch.long)

    def next_batch(self):
        n = self.B * self.T
        buf = self.tokens[self.at : self.at + n + 1]
        self.at += n
        if self.at + n + 1 > len(self.tokens):
            self.current = (self.current + 1) % len(self.paths)
            self.at = 0
            self.tokens = self.load(self.paths[self.current])
        return buf[:-1].view(self.B, self.T), buf[1:].view(self.B, self.T)


def private_memory():
    """Bytes of this process alone, without the file cache; 0 where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/self/status") as f:
        for text in f:
            if text.startswith("RssAnon"):
                return int(text.split()[1]) * 1024
    return 0


def bench_loader(args):
    """Both read on past the end of a shard, 64 rows of 1,024 at a time."""
    size = 10_000_000 if args.quick else 100_000_000
    B, T = 64, 1024
    batches = size // (B * T)  # in a shard
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"a_train_{i}.npy") for i in range(2)]
        for i, path in enumerate(paths):
            rng = np.random.default_rng(i)
            np.save(path, rng.integers(0, 50257, size, dtype=np.uint16))
        before = private_memory()
        shards = [train_gpt2.load_tokens(path) for path in paths]
        for shard in shards:
            shard.n_vocab = 50257  # each token is checked, as in a run
        ours = train_gpt2.DataLoaderLite(shards, B, T)
        first = [timed(ours.next_batch) for _ in range(batches - 2)]
        across = [timed(ours.next_batch) for _ in range(4)]
        grown = private_memory() - before
        del ours, shards
        plain = PlainLoader(paths, B, T)
        theirs = [timed(plain.next_batch) for _ in range(batches + 2)]
        plain_grown = private_memory() - before

    def ms(seconds):
        return f"{seconds * 1000:.2f} ms"
    worst = ms(max(theirs))
    return [line("next_batch, 64 x 1,024: median call, against loading whole shards",
                 ms(median(first)), ms(median(theirs)), aim="< 1 ms"),
            line("worst call of all", ms(max(first + across)), worst),
            line("worst call at a shard's end", ms(max(across)), worst, aim="< 20 ms"),
            line("growth of private memory", f"{grown / 1e6:.0f} MB",
                 f"{plain_grown / 1e6:.0f} MB", aim="< 50 MB")]


def let_the_disk_finish():
    """What the disk still has to write should not be the next contender's burden."""
    if hasattr(os, "sync"):
        os.sync()


def bench_checkpoint(args):
    """
    Loading counts until every weight has been read. The check of all checksums is ours alone:
    it is not counted, but shown.
    """
    model, optimizer = trained_model(train_gpt2.GPTConfig(n_layer=2 if args.quick else 12))
    with tempfile.TemporaryDirectory() as folder:
        ours = os.path.join(folder, "model_00001.pt")
        theirs = os.path.join(folder, "theirs.pt")

        def load_ours():
            read_all(checkpoints.read(ours))

        def load_theirs():
            read_all(torch.load(theirs, weights_only=True))

        def check_ours():
            zipfile.ZipFile(ours).testzip()
        save_theirs = partial(save_plainly, theirs, model, optimizer)
        with contextlib.redirect_stdout(io.StringIO()):
            saved, flushed, unflushed, _ = in_turn(
                args.runs, partial(save_ours, folder, model, optimizer),
                partial(save_theirs, True), partial(save_theirs, False), let_the_disk_finish)
        with mock.patch.object(zipfile.ZipFile, "testzip", lambda self: None):
            loads = in_turn(args.runs, load_ours, load_theirs)
        [checks] = in_turn(2, check_ours)
        gb = os.path.getsize(ours) / 1e9

    aim = "at most 1.3"
    return [seconds_row(f"save a checkpoint of {gb:.2f} GB, against torch.save and a flush to "
                        "disk", saved, flushed, aim),
            seconds_row("the same, against torch.save, which does not wait for the disk", saved,
                        unflushed, aim),
            seconds_row("load it, against torch.load", *loads, aim),
            line("the check of its checksums, which torch.load lacks", f"{median(checks):.2f} s")]


def bench_attention(args):
    """Causal attention of a block of 124M, with backward, by each of PyTorch's kernels."""
    B = 64 if DEVICE.type == "cuda" else 4
    for kernel in KERNELS:
        what = f"attention, B={B}, T=1024, {kernel}"
        try:
            attend = attention(kernel, GPT2, B, 1024)
            forget_peak()
            [seconds] = in_turn(args.runs, attend)
        except RuntimeError as e:  # not on this device
            yield line(what, f"n/a: {str(e).splitlines()[0][:60]}")
            continue
        yield line(what, f"{median(seconds) * 1000:.2f} ms",
                   f"{peak_memory().allocated / 1e9:.2f} GB")


# -------------------------------------------------------------------------------------------------
# 6 evals, shards, writing

@torch.no_grad()
def plain_hellaswag(model, examples, autocast):
    """The lecture's eval: one item at a time, the logits of all positions of its four rows."""
    device = model.lm_head.weight.device
    predicted = []
    for example in examples:
        _, tokens, mask, _ = hellaswag.render_example(example)
        tokens, mask = tokens.to(device), mask.to(device)
        with autocast:
            logits, _ = model(tokens)
        predicted.append(hellaswag.get_most_likely_row(tokens, mask, logits))
    return predicted


def bench_hellaswag(args):
    """The eval on a model that knows nothing: the time is that of any other."""
    gpt2_tokenizer()  # made before the clock starts
    n = 8 if args.quick else 16
    if args.hellaswag:
        examples = list(read_examples(args.hellaswag))[:n]
    else:
        examples = made_up_items(n)
    torch.manual_seed(0)
    model = train_gpt2.GPT(train_gpt2.GPTConfig()).eval().to(DEVICE)
    items = [hellaswag.tokenize_example(example) for example in examples]
    process = train_gpt2.setup_distributed(train_gpt2.TrainConfig(dtype="bfloat16"))
    runs = min(3, args.runs)
    ours, plain = in_turn(runs, partial(hellaswag.evaluate, model, items, process),
                          partial(plain_hellaswag, model, examples, process.autocast))
    return [row("HellaSwag, 124M, bfloat16, against one item at a time", "items/s", n, ours,
                plain)]


def read_docs(path, least):
    """
    The documents of a .jsonl file, or a text in pieces, again and again until they have `least`
    characters -> list of str
    """
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if path.endswith(".jsonl"):
        docs = [json.loads(doc)["text"] for doc in text.splitlines()]
    else:
        docs = [text[i : i + 5000] for i in range(0, len(text), 5000)]
    return docs * (least // len(text) + 1)


def tokenize_plainly(doc):
    """A line of .jsonl -> one array, as in the lecture's fineweb.py."""
    t = gpt2_tokenizer()
    return np.array([t.eot, *t.bpe.encode_ordinary(json.loads(doc)["text"])]).astype(np.uint16)


def plain_shards(path, out, pool, shard_size=10**7):
    """The lecture's recipe: a pool of processes, imap in chunks of 16, shards of what comes."""
    buffer = np.empty(shard_size, np.uint16)
    filled = 0
    shards = 0
    with open(path, encoding="utf-8") as f:
        for tokens in pool.imap(tokenize_plainly, f, chunksize=16):
            while len(tokens):
                part = tokens[: shard_size - filled]
                buffer[filled : filled + len(part)] = part
                filled += len(part)
                tokens = tokens[len(part) :]
                if filled == shard_size:
                    np.save(os.path.join(out, f"plain_{shards}.npy"), buffer)
                    filled = 0
                    shards += 1
    np.save(os.path.join(out, f"plain_{shards}.npy"), buffer[:filled])


def bench_fineweb(args):
    """The pool and the tokenizers stand ready before the clock starts, for everybody."""
    source = args.files if args.files else PLAYS
    docs = read_docs(source, least=10_000_000 if args.quick else 50_000_000)
    tokenizer = gpt2_tokenizer()
    n = sum(len(tokenizer.encode(doc)) + 1 for doc in docs)
    cores = os.cpu_count()
    runs = min(3, args.runs)
    processes = max(1, cores // 2)
    with tempfile.TemporaryDirectory() as folder, multiprocessing.Pool(processes) as pool:
        path = os.path.join(folder, "docs.jsonl")
        with open(path, "w", encoding="utf-8") as f:
            for doc in docs:
                f.write(json.dumps({"text": doc}) + "\n")
        numbers = itertools.count()  # a new directory each time

        def ours():
            out = os.path.join(folder, str(next(numbers)))
            with contextlib.redirect_stdout(io.StringIO()):
                fineweb.main([f"--files={path}", "--shard_size=10000000", f"--out={out}"])

        def one_core():
            for doc in docs:
                tokenizer.bpe.encode_ordinary(doc)
        here, core, plain = in_turn(runs, ours, one_core,
                                    partial(plain_shards, path, folder, pool))
    return [row(f"shards, {cores} cores, against plain tiktoken on one of them", "tokens/s", n,
                here, core),
            row(f"shards, {cores} cores, against the plain recipe", "tokens/s", n, here, plain)]


def bench_generate(args):
    """
    Recomputing the prefix takes minutes: eight of its steps are run, in even distances, and
    stand for all.
    """
    import transformers
    new = 56 if args.quick else 248
    torch.manual_seed(0)
    model = train_gpt2.GPT(train_gpt2.GPTConfig(vocab_size=50257)).eval().to(DEVICE)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval().to(DEVICE)
    idx = torch.randint(0, 50257, (4, 8), device=DEVICE)

    def of_transformers():
        theirs.generate(idx, attention_mask=torch.ones_like(idx), do_sample=True, top_k=50,
                        max_new_tokens=new, min_new_tokens=new, pad_token_id=50256)

    @torch.no_grad()
    def without_cache():
        for length in range(8 + new // 16, 8 + new, new // 8):
            logits, _ = model(idx[:, :1].expand(-1, length))  # (4, length, V)
            likeliest = logits[:, -1].topk(50).values
            torch.multinomial(likeliest.softmax(dim=-1), 1)
    ours, other, eight = in_turn(2, generation(model, idx, new), of_transformers,
                                 without_cache)
    plain = [new / 8 * seconds for seconds in eight]
    return [row("generation, 124M, 4 rows, float32, against transformers", "tokens/s", 4 * new,
                ours, other),
            row("the same, against recomputing the prefix", "tokens/s", 4 * new, ours, plain)]


def plain_finetune_step(model, optimizer, batch, autocast):
    """A step as one writes it with transformers: all rows filled up to the longest."""
    ids, lengths = finetune.to_tensors(batch, 50260, DEVICE)
    mask = torch.arange(ids.size(1), device=DEVICE) < lengths[:, None]
    labels = torch.tensor([example.target for example in batch], device=DEVICE)
    with autocast:
        loss = model(ids, attention_mask=mask.long(), labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def finetune_step(model, optimizer, batch, task, config, process):
    """THE STEP of finetune.py on a CPU: sorted by length, eight at a time."""
    for i in range(0, config.batch, 8):
        with process.autocast:
            losses = finetune.example_losses(model, task, batch[i : i + 8], config, process)
        (losses.sum() / config.batch).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def bench_finetune(args):
    """Both see the same texts; without the language-model loss, which transformers lacks."""
    import transformers
    process = train_gpt2.setup_distributed(train_gpt2.TrainConfig(device=DEVICE.type))
    entries = demo_entries("classify")[: 32 * (1 if args.quick else 4)]
    items = [make_item(entry, number, "classify") for number, entry in enumerate(entries, 1)]
    task = finetune.Task("classify", sorted({item.answer for item in items} | {"another play"}))
    shape = dict(vocab_size=50261, n_layer=12, n_head=12, n_embd=768)
    torch.manual_seed(0)
    model = finetune.TunedGPT(train_gpt2.GPTConfig(**shape), 50257, task).to(DEVICE)
    theirs = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(
        **shape, num_labels=len(task.labels), pad_token_id=50260, attn_pdrop=0.0, embd_pdrop=0.0,
        resid_pdrop=0.0)).to(DEVICE)
    examples = finetune.make_examples(items, task, gpt2_tokenizer(), 1024, "speeches")
    config = finetune.TuneConfig(lm_weight=0.0, dropout=0.0)
    optimizer = model.configure_optimizers(0.01, 1e-5)
    their_optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-5)

    def ours():
        for step in range(len(examples) // config.batch):
            batch = finetune.take_batch(examples, step, config)
            finetune_step(model, optimizer, batch, task, config, process)
        synchronize()

    def plain():
        for i in range(0, len(examples), config.batch):
            batch = examples[i : i + config.batch]
            plain_finetune_step(theirs, their_optimizer, batch, process.autocast)
        synchronize()
    here, there = in_turn(args.runs, ours, plain)
    tokens = sum(len(row) for example in examples for row in example.rows)
    return [row("finetune.py classify, 124M, against a plain loop with transformers", "tokens/s",
                tokens, here, there, "at least 1")]


# -------------------------------------------------------------------------------------------------
# 7 the command line

PARTS = {
    "step": bench_step,
    "laptop": bench_laptop,
    "loader": bench_loader,
    "ddp": bench_ddp,
    "import": bench_import,
    "checkpoint": bench_checkpoint,
    "attention": bench_attention,
    "hellaswag": bench_hellaswag,
    "fineweb": bench_fineweb,
    "generate": bench_generate,
    "finetune": bench_finetune,
    "scale": bench_scale,
}
WORKERS = {"step": contender, "products": products}


def serve(kind, *words):
    """The other side of worker(): prepare, then work once for each line of stdin."""
    *names, B, T = words
    work = WORKERS[kind](*names, GPT2, int(B), int(T))
    for asked in sys.stdin:
        answer = 0.0
        if asked.strip() == "work":
            work()
        else:
            answer = peak_memory().allocated / 1e9
        print(f"answer {answer}", flush=True)


def main():
    if sys.argv[1:2] == ["--worker"]:
        serve(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="all of them if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs")
    parser.add_argument("--hellaswag", help="a file with HellaSwag items; otherwise items are "
                                            "made up")
    parser.add_argument("--files", help="a .jsonl or .txt file for the part fineweb; otherwise "
                                        "it is input.txt")
    args = parser.parse_args()
    args.runs = 2 if args.quick else 5
    unknown = set(args.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")

    print(f"{describe_machine()}, {time.strftime('%Y-%m-%d')}\n\n"
          "| what | here | against | ratio (min to max) | to reach |\n|---|---|---|---|---|",
          flush=True)
    for part in args.parts if args.parts else PARTS:
        try:
            for printed in PARTS[part](args):
                print(printed, flush=True)
        except Died as e:
            print(line(part, str(e)), flush=True)


if __name__ == "__main__":
    main()
