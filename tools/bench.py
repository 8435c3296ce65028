"""
Measures the parts of this project beside what a user would run instead, in turn (A B A B ...), in one process or each
contender in a fresh one, and prints a table of medians and ratios. Compare ratios: the times depend on the machine, and
on what else it does. All of it takes a quarter of an hour, --quick two minutes; 17 GB of memory for the largest pairs.

    python tools/bench.py [part ...] [--quick] [--hellaswag hellaswag_val.jsonl] [--files docs.jsonl]

Parts
    step        a training step, 124M: tokens/s and peak memory, against the plain recipe and against transformers;
                the share of it that its matrix products take; on CUDA also MFU, at B=64, T=1024
    laptop      --preset=laptop: the time until the validation loss is 1.85
    loader      next_batch on shards of 100M tokens: median call, worst call, private memory
    ddp         two gloo processes against one, same batch, one thread each
    import      importing train_gpt2 against importing torch
    checkpoint  saving and loading 1.5 GB against torch.save and torch.load
    attention   flash, memory-efficient and math kernels, forward and backward (CUDA only)
    hellaswag   items per second, 124M parameters: the batched eval against one item at a time with all logits
    fineweb     tokens per second, from .jsonl to shards, all workers, on 50 MB of --files (or of input.txt): against
                plain tiktoken on one core, and against a pool of half the cores and one numpy array a document
    generate    tokens per second, 124M, 4 rows, 8 -> 256 tokens: against transformers, and without a cache
    scale       8 to 512 GPUs over three kinds of links: step time and efficiency, on paper

The plain recipe: eager, bfloat16 autocast, AdamW as PyTorch picks it by default, the loss from all logits at once.

What a profile of it said (torch.profiler; B=4, T=1024, two busy cores of an AMD EPYC, 2026-11-22; shares of the step)
    39%  matrix products of the linear layers                               bfloat16 is 4 to 5 times float32 here
    19%  attention: forward 7, backward 12                                  PyTorch's flash kernel; left as it is
    12%  AdamW, tensor by tensor                                            fused: a fifth of that
    10%  copies: weights cast to bfloat16, gradients and logits to float32  compiling fuses most of them
     5%  log-softmax, besides its copies                                    the loss in pieces: less memory, see below
     7%  GELU, layer norms, zero-filled gradients                           compiling fuses them
and at T=32, besides: a tenth to a quarter went into pages that the kernel zeroes anew (keep_freed_memory).
The loss in pieces of n tokens, B=4, T=1024: peak memory, and seconds of a step (medians of 2 to 5 runs)
    n = 512     compiled 4.6 to 4.8 GB, 8.6 s    eager 4.9 to 5.0 GB, 8.0 s
    n = 1024             4.4 to 4.5 GB, 7.1 s          5.2 to 5.3 GB, 7.7 s
    n = 2048             4.3 to 4.4 GB, 7.0 s          5.6 to 5.7 GB, 8.6 s
    n = 4096             4.3 to 4.4 GB, 7.4 s
Compiled, each piece's gradient of the head (77 MB) waits for all others: many weigh more than the logits they save.
Tried and left out (times the time before): huge pages (THP_MEM_ALLOC_ENABLE=1) 1.14, the head checkpointed 1.25, its
gradients made in its forward 0.97 for 20 lines (compiled), F.linear_cross_entropy with pieces of 256 tokens 1.6,
one matmul for all logits and pieces for the loss alone: no slower, but 4.8 GB.
"""
import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from multiprocessing.pool import ThreadPool
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import fineweb
import hellaswag
import train_gpt2
from support.tokenizer import gpt2_tokenizer, tokenize_file
from support.arithmetic import mfu
from support.processes import keep_freed_memory

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
synchronize = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None


# ----------------------------------------------------------------------------------------------------
# the frame: pairs in this process, pairs of fresh processes, the lines of the table

def in_turn(runs, *functions):
    """Call the functions one after another, `runs` times, after one warm-up each -> the seconds of each."""
    times = [[] for _ in functions]
    for i in range(runs + 1):
        for function, mine in zip(functions, times, strict=True):
            t0 = time.perf_counter()
            function()
            if i > 0:
                mine.append(time.perf_counter() - t0)
    return times


@contextlib.contextmanager
def worker(kind, *words, env=None):
    """
    A fresh process of this file for one contender, so that it has a memory and settings of its own; it waits while the
    others work. -> ask(), which has it do its work once, and ask("peak"), the most memory it has held, in GB.
    """
    command = [sys.executable, os.path.abspath(__file__), "--worker", kind, *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, **(env or {})}) as process:
        def ask(word="work"):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith("answer "):
                    return float(line.split()[1])
            raise SystemExit(f"the worker {kind} {words} has died")
        yield ask
        process.stdin.close()  # the end of its input is the end of its loop


def serve(kind, *words):
    """The other side of worker(): prepare, then work once for each line of stdin."""
    work = WORKERS[kind](*words)
    for line in sys.stdin:
        answer = 0.0
        if line.strip() == "work":
            work()
        else:  # ru_maxrss is in KB on Linux, in bytes on a Mac
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            answer = (torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else rss) / 1e9
        print(f"answer {answer}", flush=True)


def line(what, here, against="", ratio="", aim=""):
    return f"| {what} | {here} | {against} | {ratio} | {aim} |"


def spread(ratios):
    """Ratios pair by pair -> median (min to max), as text."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def row(what, unit, amount, ours, theirs, aim=""):
    """A line of the table: rates (amount / seconds) as medians, and the ratio of each pair; above 1 we are faster."""
    here, there = (f"{amount / statistics.median(seconds):,.1f} {unit}" for seconds in (ours, theirs))
    return line(what, here, there, spread([b / a for a, b in zip(ours, theirs, strict=True)]), aim)


# ----------------------------------------------------------------------------------------------------
# step: a training step of 124M parameters

def contender(name, B, T):
    """
    One training step as somebody would run it -> the function that does it. name: "ours" (compiled, in the dtype that
    choose_dtype picks), "eager" (the same, not compiled), "plain" or "transformers".
    """
    B, T = int(B), int(T)
    torch.manual_seed(1337)
    mine = name in ("ours", "eager")
    config = train_gpt2.TrainConfig(B=B, T=T, compile=name == "ours", dtype="auto" if mine else "bfloat16")
    process = train_gpt2.setup_distributed(config)
    torch.set_float32_matmul_precision("high")
    if mine:
        keep_freed_memory()
        raw_model = train_gpt2.GPT(train_gpt2.GPTConfig()).to(DEVICE)
        model = train_gpt2.wrap_model(raw_model, config, process)
        optimizer = raw_model.configure_optimizers(0.1, 6e-4)
    else:
        raw_model = model = (transformers_gpt2() if name == "transformers" else train_gpt2.GPT(train_gpt2.GPTConfig())
                             ).to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)
    loss_of = {"plain": lambda x, y: F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten()),
               "transformers": lambda x, y: model(x, labels=x).loss}.get(name, lambda x, y: model(x, y, ())[1])
    loader = train_gpt2.DataLoaderLite(tokenize_file(os.path.join(ROOT, "input.txt"), "gpt2")[1], B, T)

    def step():
        optimizer.zero_grad(set_to_none=True)
        x, y = (t.to(DEVICE) for t in loader.next_batch())
        with process.autocast:
            loss = loss_of(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), 1.0)
        optimizer.step()
        synchronize()
    return step


def transformers_gpt2():
    """The same model from transformers, with the same number of rows and without dropout."""
    import transformers
    transformers.logging.set_verbosity_error()  # a warning of its own, about its loss
    config = transformers.GPT2Config(vocab_size=50304, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)
    return transformers.GPT2LMHeadModel(config)


@torch.no_grad()
def products(B, T):
    """
    Nothing but the matrix products of that step, forward (y = x w) and backward (gx = gy w, gw = gy x), each shape as
    often as in the step. In attention half of each product is asked for: no token looks ahead.
    """
    n, C, V = int(B) * int(T), 768, 50304
    dtype = train_gpt2.setup_distributed(train_gpt2.TrainConfig()).dtype

    def make(*shape):
        return torch.randn(shape, device=DEVICE, dtype=dtype)
    linear = [(times, make(n, K), make(N, K), make(n, N)) for times, K, N in
              ((12, C, 3 * C), (12, C, C), (12, C, 4 * C), (12, 4 * C, C), (1, C, V))]
    q, k, p = make(int(B) * 12, int(T) // 2, 64), make(int(B) * 12, int(T), 64), make(int(B) * 12, int(T) // 2, int(T))

    def work():
        for times, x, w, g in linear:
            for _ in range(times):
                x @ w.t(), g @ w, g.t() @ x
        for _ in range(3 * 12):  # one forward, two backward; of both products, q k^T and p v
            q @ k.transpose(1, 2), p @ k
        synchronize()
    return work


def steps_in_turn(B, T, runs, *names):
    """Contenders (and "products"), each in a process of its own, in turn -> {name: seconds}, {name: peak memory, GB}"""
    if DEVICE.type == "cuda" and len(names) > 1:  # two of them do not fit into a card: one after the other
        times, peaks = zip(*(steps_in_turn(B, T, runs, name) for name in names), strict=True)
        return {k: v for d in times for k, v in d.items()}, {k: v for d in peaks for k, v in d.items()}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(*(["step", name] if name != "products" else [name]), B, T))
                   for name in names]
        if T < 1024 or DEVICE.type == "cuda":  # short steps: the first few take their memory, page by page
            in_turn(3, *workers)
        times = in_turn(runs, *workers)
        return dict(zip(names, times, strict=True)), {name: w("peak") for name, w in zip(names, workers, strict=True)}


def bench_step(args):
    lines = []
    for B, T, runs, aims in (((64, 1024, 20, ("", "")),) if DEVICE.type == "cuda" else
                             ((4, 1024, 3, ("1.25", "1.4")), (4, 32, 8, ("1.5", "1.5"))))[-1 if args.quick else 0 :]:
        what = f"step, 124M, B={B}, T={T}"
        groups = {"plain": ["ours", "plain", *(["eager", "products"] if T == 1024 else [])],
                  "transformers": ["ours", "transformers"]}
        for (other, names), aim in list(zip(groups.items(), aims, strict=True))[: 1 if args.quick else 2]:
            times, peaks = steps_in_turn(B, T, runs, *names)
            for mine, how in (("ours", "compiled"), ("eager", "eager")):
                if mine in names:
                    lines.append(row(f"{what}, {how}, against {other}", "tok/s", B * T, times[mine], times[other],
                                     aim if mine == "ours" else ""))
                    lines.append(line("its peak memory", f"{peaks[mine]:.2f} GB", f"{peaks[other]:.2f} GB",
                                      f"{peaks[mine] / peaks[other]:.2f}",
                                      "at most 0.7" if (mine, other, B, T) == ("ours", "plain", 4, 1024) else ""))
            if "products" in names:
                alone, compiled = times["products"], times["ours"]
                lines.append(line("matrix products alone, share of the compiled step",
                                  *(f"{statistics.median(seconds):.3f} s" for seconds in (alone, compiled)),
                                  spread([a / b for a, b in zip(alone, compiled, strict=True)]), "0.55"))
            if DEVICE.type == "cuda":
                config, card = train_gpt2.GPTConfig(), torch.cuda.get_device_name()
                shares = (mfu(card, config, T, B * T / statistics.median(times[name])) for name in ("ours", other))
                lines.append(line(f"MFU of the compiled step, against {other}", *(s[7:] or "n/a" for s in shares)))
    return lines


# ----------------------------------------------------------------------------------------------------
# laptop, ddp, import: whole programs

def train(log_dir, *flags, processes=1, env=None):
    """Run train_gpt2.py in fresh processes -> its log as {stream: {step: value}}"""
    start = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone",
                                                     f"--nproc_per_node={processes}"]
    with open(os.devnull, "w") as nowhere:
        subprocess.run([*start, "train_gpt2.py", f"--log_dir={log_dir}", "--save_every=0", *flags], cwd=ROOT,
                       check=True, stdout=nowhere, env={**os.environ, **(env or {})})
    log = {}
    with open(os.path.join(log_dir, "log.txt"), encoding="utf-8") as f:
        for step, stream, value in map(str.split, f):
            log.setdefault(stream, {})[int(step)] = float(value)
    return log


def bench_laptop(args):
    flags = ["--preset=laptop", "--device=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:  # not the whole of it: what its steps take
            dt = train(folder, *flags, "--max_steps=200", "--eval_every=0", "--val_tokens=65")["dt"]
            ms, steps = statistics.median(dt.values()), train_gpt2.PRESETS["laptop"]["max_steps"]
            return [line(f"laptop preset: all {steps} steps, from the median of 200", f"{ms * steps / 1000:.0f} s")]
        log = train(folder, *flags, "--eval_every=300")
    there = next((step for step, val in log["val"].items() if val <= 1.85), None)
    if there is None:
        return [line("laptop preset: never at validation loss 1.85", f"{min(log['val'].values())}", aim="150 s")]
    seconds = sum(dt for step, dt in log["dt"].items() if step < there) / 1000
    what = f"laptop preset: training time to validation loss 1.85 (step {there})"
    return [line(what, f"{seconds:.0f} s", aim="150 s")]


def bench_ddp(args):
    """
    The efficiency of two: the time of one process over twice the time that two take for the same tokens. They share the
    memory of one machine; what that costs is shown by two that know nothing of each other, each with half of the rows.
    """
    B, T, n, flags = (8, 64, 58, ["--preset=laptop", "--eval_every=0", "--val_tokens=65"]) if args.quick else (
                      4, 1024, 2, ["--preset=debug", "--T=1024"])
    what, efficiency = ("laptop preset", "") if args.quick else (f"124M, {B} rows of {T:,}", "0.85")

    def steps(B, n, processes=1):
        """-> seconds of n steps after the first two: DDP lays out its buckets in the first, and again in the second"""
        with tempfile.TemporaryDirectory() as folder:
            log = train(folder, *flags, f"--B={B // processes}", f"--total_batch_size={B * T}", f"--max_steps={2 + n}",
                        "--device=cpu", processes=processes, env={"OMP_NUM_THREADS": "1"})
            return [ms / 1000 for ms in list(log["dt"].values())[2:]]
    one, two = steps(B, n // 2), steps(B, n, 2)
    with ThreadPool(2) as pool:  # each waits for its process
        apart = list(map(max, zip(*pool.starmap(steps, 2 * [(B // 2, n)]), strict=True)))
    one += steps(B, n // 2)  # half of its steps before the two, half after
    lines = []
    for name, mine, aim in (("two gloo processes", two, efficiency), ("two that do not talk", apart, "")):
        here, there = (f"{statistics.median(times) * 1000:,.0f} ms" for times in (mine, one))
        ratios = [a / b / 2 for a, b in zip(one, mine, strict=True)]
        lines.append(line(f"{name} against one, {what}: efficiency", here, there, spread(ratios), aim))
    return lines


def bench_import(args):
    def importing(name):
        subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, check=True)
    ours, torchs = in_turn(args.runs, lambda: importing("train_gpt2"), lambda: importing("torch"))
    here, there = (f"{statistics.median(seconds):.2f} s" for seconds in (ours, torchs))
    return [line("importing train_gpt2, against importing torch", here, there,
                 spread([a / b for a, b in zip(ours, torchs, strict=True)]), "at most 1.2")]


def scaled(gpus, link, overlap, n_params=124.5e6, tokens=2**19, flops_per_token=8.55e8, peak=989e12, mfu=0.4):
    """
    Seconds of a step on paper, on machines of eight H100. link: bits a second between machines, for all eight together.
    A ring all-reduce sends 2 (m - 1) / m of the gradients, 4 bytes a parameter, from each of m. Overlap: with
    backward, two thirds of the step.
    """
    compute = tokens * flops_per_token / (gpus * peak * mfu)
    machines, here = max(1, gpus // 8), min(gpus, 8)
    within = 2 * (here - 1) / here * 4 * n_params / 450e9  # NVLink 4: 450 GB/s each way
    between = 2 * (machines - 1) / machines * 4 * n_params / (link / 8)
    talk = within + between
    return compute, max(compute, compute / 3 + talk) if overlap else compute + talk


def bench_scale(args):
    """Not measured but computed, for want of GPUs; the part ddp has what two processes reach here."""
    links = {"8 x 400 Gb/s InfiniBand": 3.2e12, "100 Gb/s Ethernet": 1e11, "10 Gb/s Ethernet": 1e10}
    lines = ["", "Computed: 124M, 524,288 tokens a step, H100 at 40% MFU, gradients in float32; efficiency overlapped "
             "(and without).", "", "| GPUs | compute | " + " | ".join(links) + " |", "|---" * (2 + len(links)) + "|"]
    for gpus in (8, 16, 32, 64, 128, 256, 512):
        cells = []
        for link in links.values():
            (compute, hidden), (_, plain) = scaled(gpus, link, True), scaled(gpus, link, False)
            cells.append(f"{hidden * 1000:.0f} ms, {compute / hidden:.0%} ({compute / plain:.0%})")
        lines.append(f"| {gpus} | {compute * 1000:.0f} ms | " + " | ".join(cells) + " |")
    return lines


# ----------------------------------------------------------------------------------------------------
# loader, checkpoint, attention

class PlainLoader:
    """What the original does: a shard is loaded as a whole, and becomes int64 as a whole."""

    def __init__(self, paths, B, T):
        self.paths, self.B, self.T, self.current, self.at = paths, B, T, 0, 0
        self.tokens = self.load(paths[0])

    def load(self, path):
        return torch.tensor(np.load(path).astype(np.int32), dtype=torch.long)

    def next_batch(self):
        n = self.B * self.T
        buf = self.tokens[self.at : self.at + n + 1]
        self.at += n
        if self.at + n + 1 > len(self.tokens):
            self.current, self.at = (self.current + 1) % len(self.paths), 0
            self.tokens = self.load(self.paths[self.current])
        return buf[:-1].view(self.B, self.T), buf[1:].view(self.B, self.T)


def bench_loader(args):
    """Both read on past the end of a shard, 64 rows of 1,024 at a time, in turn."""
    size, B, T = (10_000_000 if args.quick else 100_000_000), 64, 1024
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"a_train_{i}.npy") for i in range(2)]
        for i, path in enumerate(paths):
            np.save(path, np.random.default_rng(i).integers(0, 50257, size, dtype=np.uint16))
        before = private_memory()
        ours = train_gpt2.DataLoaderLite([train_gpt2.load_tokens(path) for path in paths], B, T, n_vocab=50257)
        first = [timed(ours.next_batch) for _ in range(size // (B * T) - 2)]
        across = [timed(ours.next_batch) for _ in range(4)]
        grown = private_memory() - before
        del ours
        plain = PlainLoader(paths, B, T)
        theirs = [timed(plain.next_batch) for _ in range(size // (B * T) + 2)]
        plain_grown = private_memory() - before

    def ms(seconds):
        return f"{seconds * 1000:.2f} ms"
    return [line("next_batch, 64 x 1,024: median call, against loading whole shards", ms(statistics.median(first)),
                 ms(statistics.median(theirs)), aim="< 1 ms"),
            line("worst call of all", ms(max(first + across)), ms(max(theirs)), aim=""),
            line("worst call at a shard's end", ms(max(across)), ms(max(theirs)), aim="< 20 ms"),
            line("growth of private memory", f"{grown / 1e6:.0f} MB", f"{plain_grown / 1e6:.0f} MB", aim="< 50 MB")]


def timed(function):
    t0 = time.perf_counter()
    function()
    return time.perf_counter() - t0


def private_memory():
    """Bytes that are this process's own, the file cache not counted; 0 where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/self/status") as f:
        return next((int(text.split()[1]) * 1024 for text in f if text.startswith("RssAnon")), 0)
    return 0


def bench_checkpoint(args):
    """Loading counts until every weight has been read. The check of all checksums is ours alone: not counted, shown."""
    model = train_gpt2.GPT(train_gpt2.GPTConfig(n_layer=2 if args.quick else 12))
    optimizer = model.configure_optimizers(0.1, 6e-4)
    x = torch.zeros(1, 8, dtype=torch.long)
    model(x, x)[1].backward()
    optimizer.step()
    optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (os.path.join(folder, name) for name in ("model_1.pt", "theirs.pt"))

        def save(flush):
            with open(f"{theirs}.new", "wb") as f:  # beside the old one, as ours: over its pages would be cheaper
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f)
                f.flush()
                if flush:
                    os.fsync(f.fileno())
            os.replace(f"{theirs}.new", theirs)

        def read(state):
            return sum(read(v) if isinstance(v, dict) else float(v.sum()) if torch.is_tensor(v) else 0
                       for v in state.values())
        config = {"config": vars(model.config), "step": 1}
        with contextlib.redirect_stdout(io.StringIO()):
            saves = in_turn(args.runs, lambda: train_gpt2.save_checkpoint(ours, 2, 0.0, model, optimizer, **config),
                            lambda: save(True), lambda: save(False),
                            getattr(os, "sync", lambda: None))  # the disk works on: not for the next one to wait for
        with mock.patch.object(zipfile.ZipFile, "testzip", lambda self: None):
            loads = in_turn(args.runs, lambda: read(train_gpt2.load_checkpoint(ours)),
                            lambda: read(torch.load(theirs, weights_only=True)))
        crc, _ = in_turn(2, lambda: zipfile.ZipFile(ours).testzip(), lambda: None)
        gb = os.path.getsize(ours) / 1e9

    def compare(what, ours, theirs, aim=""):
        here, there = (f"{statistics.median(seconds):.2f} s" for seconds in (ours, theirs))
        return line(what, here, there, spread([a / b for a, b in zip(ours, theirs, strict=True)]), aim)
    aim = "at most 1.3"
    return [compare(f"save a checkpoint of {gb:.2f} GB, against torch.save and a flush to disk", *saves[:2], aim),
            compare("the same, against torch.save, which does not wait for the disk", saves[0], saves[2], aim),
            compare("load it, against torch.load", *loads, aim),
            line("the check of its checksums, which torch.load lacks", f"{statistics.median(crc):.2f} s")]


def bench_attention(args):
    """Causal attention of 64 rows of 1,024 tokens, 12 heads of 64, forward and backward, by each kernel."""
    if DEVICE.type != "cuda":
        return [line("attention kernels", "n/a: no CUDA here")]
    from torch.nn.attention import SDPBackend, sdpa_kernel
    q, k, v = (torch.randn(64, 12, 1024, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def attend():
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
        synchronize()
    lines = []
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                torch.cuda.reset_peak_memory_stats()
                (seconds,) = in_turn(args.runs, attend)
        except RuntimeError as e:  # not on this card
            lines.append(line(f"attention, {name}", f"n/a: {str(e).splitlines()[0][:60]}"))
            continue
        peak = torch.cuda.max_memory_allocated() / 1e9
        lines.append(line(f"attention, {name}", f"{statistics.median(seconds) * 1000:.2f} ms", f"{peak:.2f} GB"))
    return lines


# ----------------------------------------------------------------------------------------------------
# hellaswag


def made_up_items(n):
    """Items as long as HellaSwag's: contexts of about 50 tokens, endings of about 20, from the plays in input.txt."""
    with open(os.path.join(ROOT, "input.txt"), encoding="utf-8") as f:
        words = f.read(200_000).split()
    generator = torch.Generator().manual_seed(0)

    def some(least, most):
        start, length = (int(torch.randint(a, b, (), generator=generator)) for a, b in ((0, 30_000), (least, most)))
        return " ".join(words[start : start + length])
    return [{"ctx": some(10, 70), "endings": [some(5, 25) for _ in range(4)], "label": 0} for _ in range(n)]


@torch.no_grad()
def plain_hellaswag(model, examples, autocast):
    """The lecture's eval: one item at a time, the logits of all positions of its four rows."""
    predicted = []
    for example in examples:
        _, tokens, mask, _ = hellaswag.render_example(example)
        with autocast:
            logits, _ = model(tokens.to(model.lm_head.weight.device))
        predicted.append(hellaswag.get_most_likely_row(tokens.to(logits.device), mask.to(logits.device), logits))
    return predicted


def bench_hellaswag(args):
    gpt2_tokenizer()
    n = 8 if args.quick else 16
    examples = list(hellaswag.read_examples(args.hellaswag))[:n] if args.hellaswag else made_up_items(n)
    torch.manual_seed(0)
    model = train_gpt2.GPT(train_gpt2.GPTConfig()).eval().to(DEVICE)
    items = [hellaswag.tokenize_example(e) for e in examples]
    autocast = torch.autocast(DEVICE.type, dtype=torch.bfloat16)
    ours, plain = in_turn(min(3, args.runs), lambda: hellaswag.evaluate(model, items, autocast),
                          lambda: plain_hellaswag(model, examples, autocast))
    return [row("HellaSwag, 124M, bfloat16, against one item at a time", "items/s", n, ours, plain)]


def tokenize_plainly(line):
    """A line of .jsonl -> one array, as in the lecture's fineweb.py."""
    t = gpt2_tokenizer()
    return np.array([t.eot, *t.bpe.encode_ordinary(json.loads(line)["text"])]).astype(np.uint16)


def plain_shards(path, out, pool, shard_size=10**7):
    """The lecture's recipe: a pool of processes, imap in chunks of 16, and what comes goes into shards."""
    buffer, filled, shards = np.empty(shard_size, np.uint16), 0, 0
    with open(path, encoding="utf-8") as f:
        for tokens in pool.imap(tokenize_plainly, f, chunksize=16):
            while len(tokens):
                part = tokens[: shard_size - filled]
                buffer[filled : filled + len(part)] = part
                filled, tokens = filled + len(part), tokens[len(part) :]
                if filled == shard_size:
                    np.save(os.path.join(out, f"plain_{shards}.npy"), buffer)
                    filled, shards = 0, shards + 1
    np.save(os.path.join(out, f"plain_{shards}.npy"), buffer[:filled])


def bench_fineweb(args):
    """The pool and the tokenizers stand ready before the clock starts, for everybody."""
    files = args.files or os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "input.txt")
    with open(files, encoding="utf-8") as f:
        text = f.read()
    docs = ([json.loads(line)["text"] for line in text.splitlines()] if files.endswith(".jsonl") else
            [text[i : i + 5000] for i in range(0, len(text), 5000)])
    docs *= (10 if args.quick else 50) * 10**6 // len(text) + 1
    t, cores = gpt2_tokenizer(), os.cpu_count()
    with tempfile.TemporaryDirectory() as tmp, multiprocessing.Pool(max(1, cores // 2)) as pool:
        path = os.path.join(tmp, "docs.jsonl")
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(json.dumps({"text": doc}) + "\n" for doc in docs)
        out = itertools.count()

        def ours():
            with contextlib.redirect_stdout(io.StringIO()):
                fineweb.main([f"--files={path}", "--shard_size=10000000", f"--out={tmp}/{next(out)}"])
        n = sum(len(t.encode(doc)) + 1 for doc in docs)
        here, core, plain = in_turn(min(3, args.runs), ours, lambda: [len(t.bpe.encode_ordinary(doc)) for doc in docs],
                                    lambda: plain_shards(path, tmp, pool))
    return [row(f"shards, {cores} cores, against plain tiktoken on one of them", "tokens/s", n, here, core),
            row(f"shards, {cores} cores, against the plain recipe", "tokens/s", n, here, plain)]


def bench_generate(args):
    """Recomputing the prefix takes minutes: eight of its steps are run, in even distances, and count for all."""
    import transformers
    new = 56 if args.quick else 248
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = train_gpt2.GPT(train_gpt2.GPTConfig(vocab_size=50257)).eval().to(device)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval().to(device)
    idx = torch.randint(0, 50257, (4, 8), device=device)

    def of_transformers():
        theirs.generate(idx, attention_mask=torch.ones_like(idx), do_sample=True, top_k=50, max_new_tokens=new,
                        min_new_tokens=new, pad_token_id=50256)

    @torch.no_grad()
    def without_cache():
        for length in range(8 + new // 16, 8 + new, new // 8):
            logits = model(idx[:, :1].expand(-1, length))[0][:, -1].topk(50).values
            torch.multinomial(logits.softmax(dim=-1), 1)
    ours, other, plain = in_turn(2, lambda: model.generate(idx, new), of_transformers, without_cache)
    return [row("generation, 124M, 4 rows, float32, against transformers", "tokens/s", 4 * new, ours, other),
            row("the same, against recomputing the prefix", "tokens/s", 4 * new, ours, [new / 8 * t for t in plain])]


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
    "scale": bench_scale,
}
WORKERS = {"step": contender, "products": products}


def cpu_name():
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as f:
        return next((text.split(": ")[1].strip() for text in f if text.startswith("model name")), platform.machine())
    return platform.machine()


def main():
    if sys.argv[1:2] == ["--worker"]:
        return serve(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="all of them if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs")
    parser.add_argument("--hellaswag", help="a file with HellaSwag items; otherwise items are made up")
    parser.add_argument("--files", help="a .jsonl or .txt file for the part fineweb; otherwise it is input.txt")
    args = parser.parse_args()
    args.runs = 2 if args.quick else 5
    if set(args.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(set(args.parts) - PARTS.keys())}; there are {', '.join(PARTS)}")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    process = train_gpt2.setup_distributed(train_gpt2.TrainConfig())
    print(f"{cpu_name()}, {card}, Python {platform.python_version()}, PyTorch {torch.__version__}, "
          f"{str(process.dtype)[6:]} ({process.reason}), {time.strftime('%Y-%m-%d')}\n\n"
          "| what | here | against | ratio (min to max) | to reach |\n|---|---|---|---|---|", flush=True)
    for part in args.parts or PARTS:
        print("\n".join(PARTS[part](args)), flush=True)


if __name__ == "__main__":
    main()
