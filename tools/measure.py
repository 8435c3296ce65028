"""
What the measuring programs share: the clock, the memory, made-up data, and each thing that is
measured, as a function that does it once. bench.py compares such functions with each other;
gpu_report.py says what a card makes of them.

Contents
    1 clock and memory    timed, in_turn, Memory, fitting_B
    2 made-up data        made_up_items, made_up_shards
    3 a training step     contender, products
    4 its pieces          attention, generation, save_plainly, read_all
    5 whole runs          train, read_configs, watch
    6 the machine         cpu_name, describe_machine
"""
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F

import play
import train_gpt2
from support import checkpoints, hellaswag_file
from support.arithmetic import FILLED, peak
from support.processes import keep_freed_memory
from support.run import Run
from support.runlog import read_log
from support.tokenizer import gpt2_tokenizer, tokenize_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PLAYS = os.path.join(ROOT, "input.txt")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# -------------------------------------------------------------------------------------------------
# 1 clock and memory

def synchronize():
    """Wait until a GPU has done what was queued: only then is its time known."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(function):
    """Call a function -> the seconds it took."""
    t0 = time.perf_counter()
    function()
    return time.perf_counter() - t0


def in_turn(runs, *functions):
    """
    Call the functions one after another, `runs` times, after one warm-up each -> the seconds
    of each (a list of lists). What slows the machine down for a while slows all of them.
    """
    times = [[] for _ in functions]
    for i in range(runs + 1):
        for function, its_times in zip(functions, times, strict=True):
            seconds = timed(function)
            if i > 0:
                its_times.append(seconds)
    return times


class Memory(NamedTuple):
    """The most memory that this process has held, in bytes, since forget_peak."""
    allocated: int  # by tensors
    taken: int  # from the card: gaps between tensors and CUDA itself included


def forget_peak():
    """From now on a new highest value is looked for. Of a CPU the old one stays."""
    if DEVICE.type == "cuda":
        torch.cuda.init()  # unless somebody has asked the card before, there is nothing to reset
        torch.cuda.empty_cache()  # what PyTorch keeps for later would count as taken
        torch.cuda.reset_peak_memory_stats()


def peak_memory():
    """-> Memory. On a CPU the whole process counts, for both."""
    if DEVICE.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        # CUDA's own code and tables, a few hundred MB, and whatever else is on the card
        context = total - free - torch.cuda.memory_reserved()
        return Memory(torch.cuda.max_memory_allocated(),
                      torch.cuda.max_memory_reserved() + context)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "darwin":
        highest *= 1024  # KB; a Mac says bytes
    return Memory(highest, highest)


def fitting_B(gpt_config, config, size, n=1):
    """The largest power of two that fits into `size` bytes by the estimate, or 1"""
    for B in (64, 32, 16, 8, 4, 2):
        trial = replace(config, B=B)
        if peak(gpt_config, trial, n)[1] <= FILLED * size:
            return B
    return 1


# -------------------------------------------------------------------------------------------------
# 2 made-up data

def single_tokens(n=2000):
    """Words that are one token each with their space, from the plays in input.txt -> list"""
    with open(PLAYS, encoding="utf-8") as f:
        words = dict.fromkeys(f.read(200_000).split())
    encode = gpt2_tokenizer().encode
    return [word for word in words if len(encode(" " + word)) == 1][:n]


def made_up_items(n):
    """
    Items as long as HellaSwag's -> list of dicts. A third of its validation items come from
    captions of films: contexts of 9 to 52 tokens and endings of 4 to 34 (the first 300 were
    counted). The others come from articles and are two to three times as long; here they have 40
    to 110 and 10 to 50.
    """
    words = single_tokens()
    generator = torch.Generator().manual_seed(0)

    def some(least, most):
        length = int(torch.randint(least, most + 1, (), generator=generator))
        numbers = torch.randint(len(words), (length,), generator=generator)
        return " ".join(words[i] for i in numbers.tolist())
    items = []
    for i in range(n):
        context, ending = (9, 52), (4, 34)
        if i % 3 > 0:
            context, ending = (40, 110), (10, 50)
        items.append({"ctx": some(*context), "endings": [some(*ending) for _ in range(4)],
                      "label": i % 4})
    return items


def write_items(folder, n):
    """Put made-up items where train_gpt2.py finds HellaSwag's when it runs in folder."""
    data_dir = os.path.join(folder, hellaswag_file.DATA_DIR)
    os.makedirs(data_dir, exist_ok=True)
    path = os.path.join(data_dir, "hellaswag_val_hub.jsonl")
    with open(path, "w", encoding="utf-8") as f:
        for item in made_up_items(n):
            f.write(json.dumps(item) + "\n")


def document_lengths(n_tokens, generator):
    """
    Lengths of documents that hold n_tokens in all. Log-normal, median 620 tokens, sigma 1: few
    long ones and many short ones, on average 620 * exp(1/2) = 1,022. FineWeb-Edu's 10B sample has
    about 9.7M documents, so about 1,030 tokens each; that they are spread like this is assumed.
    """
    n = 1 + n_tokens // 100  # certainly enough of them
    lengths = np.maximum(1, generator.lognormal(np.log(620), 1.0, n)).astype(int)
    return lengths[: 1 + int(np.searchsorted(lengths.cumsum(), n_tokens))]


def made_up_shards(folder, train_tokens, val_tokens):
    """Write a shard of each split: random tokens, in documents that begin with <|endoftext|>."""
    os.makedirs(folder, exist_ok=True)
    generator = np.random.default_rng(1337)
    eot = gpt2_tokenizer().eot
    for i, (split, n) in enumerate([("val", val_tokens), ("train", train_tokens)]):
        tokens = generator.integers(0, eot, n, dtype=np.uint16)
        ends = document_lengths(n, generator).cumsum()
        tokens[0] = eot
        tokens[ends[ends < n]] = eot
        np.save(os.path.join(folder, f"edufineweb_{split}_{i:06d}.npy"), tokens)


# -------------------------------------------------------------------------------------------------
# 3 a training step, as several people would write it

def our_model(gpt_config, config, process):
    """The model and the optimizer as in train_gpt2.py -> raw_model, model, optimizer"""
    keep_freed_memory()
    raw_model = train_gpt2.GPT(gpt_config)
    model = train_gpt2.wrap_model(raw_model, config, process)
    return raw_model, model, raw_model.configure_optimizers(0.1, 6e-4)


def transformers_gpt2(gpt_config):
    """The same model from transformers, with the same number of rows and without dropout."""
    import transformers
    transformers.logging.set_verbosity_error()  # it would warn about its own loss
    config = transformers.GPT2Config(
        vocab_size=gpt_config.vocab_size, n_positions=gpt_config.block_size,
        n_layer=gpt_config.n_layer, n_head=gpt_config.n_head, n_embd=gpt_config.n_embd,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)
    return transformers.GPT2LMHeadModel(config)


def other_model(name, gpt_config):
    """What "plain" or "transformers" trains -> model, optimizer"""
    if name == "transformers":
        model = transformers_gpt2(gpt_config)
    else:
        model = train_gpt2.GPT(gpt_config)
    model.to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95),
                                  weight_decay=0.1)
    return model, optimizer


def compute_loss(name, model, x, y):
    """The mean loss of x, y (B, T), as a contender gets it."""
    if name == "plain":
        logits, _ = model(x)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
    if name == "transformers":
        return model(x, labels=x).loss  # it moves the labels on by itself
    _, loss = model(x, y)
    return loss


def contender(name, gpt_config, B, T):
    """
    One training step as somebody would run it -> the function that does it. name: "ours"
    (compiled, in the dtype that a run picks), "eager" (the same, not compiled), "plain"
    or "transformers".
    """
    torch.manual_seed(1337)
    is_ours = name in ("ours", "eager")
    dtype = "auto" if is_ours else "bfloat16"
    compiled = name == "ours"
    config = train_gpt2.TrainConfig(B=B, T=T, dtype=dtype, compile=compiled)
    process = train_gpt2.setup_distributed(config)
    torch.set_float32_matmul_precision("high")
    if is_ours:
        raw_model, model, optimizer = our_model(gpt_config, config, process)
    else:
        model, optimizer = other_model(name, gpt_config)
        raw_model = model
    _, train_shards, _ = tokenize_file(PLAYS, "gpt2")
    loader = train_gpt2.DataLoaderLite(train_shards, B, T)

    def step():
        optimizer.zero_grad(set_to_none=True)
        x, y = loader.next_batch()
        x, y = x.to(DEVICE), y.to(DEVICE)
        with process.autocast:
            loss = compute_loss(name, model, x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), 1.0)
        optimizer.step()
        synchronize()
    return step


def products(gpt_config, B, T):
    """
    Nothing but the matrix products of that step -> the function that does them: forward (y = x w)
    and backward (gx = gy w, gw = gy x), each shape as often as in the step.
    """
    n, C, V, L = B * T, gpt_config.n_embd, gpt_config.vocab_size, gpt_config.n_layer
    dtype = train_gpt2.setup_distributed(train_gpt2.TrainConfig()).dtype

    def make(*shape):
        return torch.randn(shape, device=DEVICE, dtype=dtype)
    linear = []
    # how often, inputs, outputs: c_attn, c_proj, c_fc and c_proj of each block, and the head
    for times, K, N in ((L, C, 3 * C), (L, C, C), (L, C, 4 * C), (L, 4 * C, C), (1, C, V)):
        linear.append((times, make(n, K), make(N, K), make(n, N)))
    # in attention half of each product is asked for: no token looks ahead
    nh, hs = gpt_config.n_head, C // gpt_config.n_head
    q = make(B * nh, T // 2, hs)
    k = make(B * nh, T, hs)
    p = make(B * nh, T // 2, T)

    def work():
        for times, x, w, g in linear:
            for _ in range(times):
                x @ w.t()
                g @ w
                g.t() @ x
        for _ in range(3 * L):  # one forward and two backward, in each block
            q @ k.transpose(1, 2)
            p @ k  # as large as p v
        synchronize()
    return work


# -------------------------------------------------------------------------------------------------
# 4 the pieces of a run

KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")  # of PyTorch


def attention(kernel, gpt_config, B, T):
    """
    Causal attention of one block, forward and backward, by one of KERNELS -> the function that does
    it. As in training q, k and v are views of one tensor. Raises RuntimeError where that kernel
    cannot be used.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    C, nh = gpt_config.n_embd, gpt_config.n_head
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    qkv = torch.randn(B, T, 3 * C, device=DEVICE, dtype=dtype, requires_grad=True)
    y_grad = torch.randn(B, nh, T, C // nh, device=DEVICE, dtype=dtype)

    def attend():
        q, k, v = (part.view(B, T, nh, C // nh).transpose(1, 2) for part in qkv.split(C, dim=2))
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, nh, T, hs)
        qkv.grad = None
        y.backward(y_grad)
        synchronize()
    return attend


def generation(model, idx, new):
    """Continue idx (B, T) by `new` tokens -> the function that does it, with play.py's cache"""
    def generate():
        play.generate(model, idx, new)
        synchronize()
    return generate


def trained_model(gpt_config):
    """A model after one step, whose optimizer therefore has moments -> model, optimizer"""
    model = train_gpt2.GPT(gpt_config).to(DEVICE)
    optimizer = model.configure_optimizers(0.1, 6e-4)
    x = torch.zeros(1, 8, dtype=torch.long, device=DEVICE)
    _, loss = model(x, x)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def save_ours(log_dir, model, optimizer):
    """Write log_dir/model_00001.pt, a checkpoint like train_gpt2.py's."""
    state = {"model": model, "optimizer": optimizer, "step": 1}
    checkpoints.save(log_dir, 2, state, {"config": asdict(model.config)}, step_seconds=0.0)


def save_plainly(path, model, optimizer, flush):
    """torch.save. flush: wait until it is on the disk, as we do."""
    # beside the old file, as ours: writing over its pages would be cheaper
    with open(f"{path}.new", "wb") as f:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f)
        f.flush()
        if flush:
            os.fsync(f.fileno())
    os.replace(f"{path}.new", path)


def read_all(state):
    """Read every weight of a checkpoint (dict): of a mapped file nothing was read before."""
    for value in state.values():
        if isinstance(value, dict):
            read_all(value)
        elif torch.is_tensor(value):
            value.sum()


# -------------------------------------------------------------------------------------------------
# 5 whole runs

def train(log_dir, *flags, processes=1, torchrun=False, cwd=ROOT, **env):
    """
    Run train_gpt2.py in fresh processes -> its log, {stream: {step: value}}. torchrun: even for
    one; env: variables of the environment.
    """
    python = [sys.executable]
    if processes > 1 or torchrun:
        python += ["-m", "torch.distributed.run", "--standalone",
                   f"--nproc_per_node={processes}"]
    program = os.path.join(ROOT, "train_gpt2.py")
    command = [*python, program, f"--log_dir={log_dir}", "--save_every=0", *flags]
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, **env})
    log, _ = read_log(log_dir)
    return log


def read_configs(log_dir):
    """What a run was -> GPTConfig, TrainConfig, the dtype of its matmuls (str)"""
    _, settings = read_log(log_dir)
    config = train_gpt2.TrainConfig(**settings["train_config"])
    # the dtype does not depend on --shard, for which this process would wait for others
    dtype = train_gpt2.setup_distributed(replace(config, shard="no")).dtype
    return train_gpt2.GPTConfig(**settings["config"]), config, str(dtype).removeprefix("torch.")


class Use(NamedTuple):
    """What a phase of a run took."""
    phase: str  # step, validation, hellaswag, samples or save
    seconds: float
    memory: Memory


# what runs between two steps (module, function), and its name in support.arithmetic
BETWEEN_STEPS = {(checkpoints, "save"): "save", (train_gpt2, "evaluate_val_loss"): "validation",
                 (train_gpt2, "evaluate_hellaswag"): "hellaswag",
                 (train_gpt2, "print_samples"): "samples"}


class Watch:
    """Notes what each phase of a run takes, and when its steps end. See watch."""

    def __init__(self):
        self.uses = []  # of Use, in their order
        self.step_ends = []  # time.perf_counter() of each
        self.began = time.perf_counter()

    def note(self, phase):
        """A phase has ended, the next one begins."""
        synchronize()
        self.uses.append(Use(phase, time.perf_counter() - self.began, peak_memory()))
        forget_peak()
        self.began = time.perf_counter()

    def between(self, phase, function):
        """The function with a note before and after it: what came before it was steps."""
        def call(*args, **kwargs):
            self.note("step")
            result = function(*args, **kwargs)
            self.note(phase)
            return result
        return call

    def at_step_end(self, log):
        """Run.log, and before it the time is noted if a step has ended."""
        def call(run, step, **values):
            if "train" in values:
                self.step_ends.append(time.perf_counter())
            return log(run, step, **values)
        return call

    def most(self, phase):
        """The largest Memory of a phase; None if it did not come."""
        found = [use.memory for use in self.uses if use.phase == phase]
        return max(found, default=None, key=lambda memory: memory.taken)

    def seconds(self, phase):
        """How long a phase took the last time, when everything is warm."""
        return [use.seconds for use in self.uses if use.phase == phase][-1]


@contextlib.contextmanager
def watch():
    """Within it, train_gpt2.run(flags) is watched -> Watch"""
    forget_peak()
    seen = Watch()
    with contextlib.ExitStack() as stack:
        for (module, name), phase in BETWEEN_STEPS.items():
            watched = seen.between(phase, getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, watched))
        stack.enter_context(mock.patch.object(Run, "log", seen.at_step_end(Run.log)))
        yield seen


# -------------------------------------------------------------------------------------------------
# 6 the machine

def cpu_name():
    """What Linux calls the CPU, or its architecture."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as f:
        for text in f:
            if text.startswith("model name"):
                return text.split(": ")[1].strip()
    return platform.machine()


def describe_machine():
    """What the figures were measured on -> text"""
    card = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_name()
    process = train_gpt2.setup_distributed(train_gpt2.TrainConfig())
    dtype = str(process.dtype).removeprefix("torch.")
    return (f"{cpu_name()}, {card}, Python {platform.python_version()}, PyTorch "
            f"{torch.__version__}, {dtype} ({process.dtype_reason})")
