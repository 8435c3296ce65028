"""
How the bench measures: the clock, the memory, made-up data, contenders, and runs that are watched.
Each piece of work is returned as a function that does it once, ready to be timed.

Contents
    1 clock and memory    timed, in_turn, Memory, fitting_B
    2 made-up data        made_up_items, made_up_shards
    3 a training step     contender, products
    4 attention           attention, attention_to_new_lengths
    5 checkpoints         trained_model, save_ours, save_plainly, read_all
    6 whole runs          train, read_configs, watch
    7 the machine         cpu_name, describe_machine
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

import train_gpt2
from support import checkpoints, hellaswag_file
from support.arithmetic import FILLED, peak
from support.processes import keep_freed_memory
from support.run import Run
from support.runlog import read_log
from support.tokenizer import gpt2_tokenizer, tokenize_file
from tools import ROOT

PLAYS = os.path.join(ROOT, "input.txt")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# -------------------------------------------------------------------------------------------------
# 1 clock and memory

def synchronize():
    """Wait until a GPU has finished its queue: before that, the clock says nothing about it."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(function):
    """Call a function -> the seconds it took."""
    t0 = time.perf_counter()
    function()
    return time.perf_counter() - t0


def in_turn(runs, *functions):
    """
    Call the functions in turn (A B A B ...), `runs` times each, after a warm-up that is not counted
    -> a list of seconds for each function. If the machine is slow for a while, all of them suffer.
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
    taken: int  # from the card, including gaps between tensors and CUDA itself


def forget_peak():
    """Reset the peak of a card. The peak of a CPU process cannot be reset."""
    if torch.cuda.is_initialized():  # initializing CUDA only for this would take memory
        torch.cuda.empty_cache()  # PyTorch's cache would count as taken
        torch.cuda.reset_peak_memory_stats()


def peak_memory():
    """-> Memory. On a CPU both numbers are the peak of the whole process."""
    if DEVICE.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        # a few hundred MB of CUDA's own code and tables, and other programs on the card
        context = total - free - torch.cuda.memory_reserved()
        return Memory(torch.cuda.max_memory_allocated(),
                      torch.cuda.max_memory_reserved() + context)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "darwin":
        highest *= 1024  # KB; a Mac says bytes
    return Memory(highest, highest)


def fitting_B(gpt_config, config, size):
    """The largest power of two (at most 64) that fits into `size` bytes by the estimate"""
    for B in (64, 32, 16, 8, 4, 2):
        trial = replace(config, B=B)
        if peak(gpt_config, trial, 1)[1] <= FILLED * size:
            return B
    return 1


# -------------------------------------------------------------------------------------------------
# 2 made-up data

def single_tokens():
    """Words of input.txt that are one token each, with the space before them -> list"""
    with open(PLAYS, encoding="utf-8") as f:
        words = dict.fromkeys(f.read(200_000).split())
    encode = gpt2_tokenizer().encode
    return [word for word in words if len(encode(" " + word)) == 1]


def made_up_items(n):
    """
    Items as long as HellaSwag's -> list of dicts. A third of HellaSwag's validation items are
    captions of films: contexts of 9 to 52 tokens, endings of 4 to 34 (counted on the first 300).
    The others come from articles and are two to three times as long: 40 to 110 and 10 to 50 here.
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
    """Write made-up items where train_gpt2.py, started in folder, looks for HellaSwag's."""
    data_dir = os.path.join(folder, hellaswag_file.DATA_DIR)
    os.makedirs(data_dir, exist_ok=True)
    path = os.path.join(data_dir, "hellaswag_val_hub.jsonl")
    with open(path, "w", encoding="utf-8") as f:
        for item in made_up_items(n):
            f.write(json.dumps(item) + "\n")


def made_up_shards(folder, train_tokens, val_tokens):
    """Write a shard of each split: random tokens, in documents of 1,000 tokens."""
    os.makedirs(folder, exist_ok=True)
    generator = np.random.default_rng(1337)
    eot = gpt2_tokenizer().eot
    for i, (split, n) in enumerate([("val", val_tokens), ("train", train_tokens)]):
        tokens = generator.integers(0, eot, n, dtype=np.uint16)
        tokens[::1000] = eot
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
    """The mean loss of x, y (B, T), as a contender computes it."""
    if name == "plain":
        logits, _ = model(x)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
    if name == "transformers":
        return model(x, labels=x).loss  # transformers shifts the labels itself
    _, loss = model(x, y)
    return loss


def contender(name, gpt_config, B, T):
    """
    A training step -> the function that does it. name: "ours" (compiled, in the dtype that a run
    picks), "eager" (ours, not compiled), "plain" (eager, bfloat16 autocast, AdamW as PyTorch picks
    it by default), "transformers", or "products" (see there).
    """
    if name == "products":
        return products(gpt_config, B, T)
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
    Only the matrix products of a step -> the function that does them: forward (y = x w) and
    backward (gx = gy w, gw = gy x), each shape as often as a step has it.
    """
    n, C, V, L = B * T, gpt_config.n_embd, gpt_config.vocab_size, gpt_config.n_layer
    dtype = train_gpt2.setup_distributed(train_gpt2.TrainConfig()).dtype

    def make(*shape):
        return torch.randn(shape, device=DEVICE, dtype=dtype)
    linear = []
    # how often, inputs, outputs: c_attn, c_proj, c_fc and c_proj of each block, and the head
    for times, K, N in ((L, C, 3 * C), (L, C, C), (L, C, 4 * C), (L, 4 * C, C), (1, C, V)):
        linear.append((times, make(n, K), make(N, K), make(n, N)))
    # attention: causal, so half of each product would do
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
# 4 attention

KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")  # PyTorch's names


def use_kernel(name):
    """Within `with use_kernel(name):`, attention runs on this kernel or raises RuntimeError."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    return sdpa_kernel(getattr(SDPBackend, name))


def attention(kernel, gpt_config, B, T):
    """
    Causal attention of one block, forward and backward, by one of KERNELS -> the function that does
    it. As in training, q, k and v are views of one tensor.
    """
    C, nh = gpt_config.n_embd, gpt_config.n_head
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    qkv = torch.randn(B, T, 3 * C, device=DEVICE, dtype=dtype, requires_grad=True)
    y_grad = torch.randn(B, nh, T, C // nh, device=DEVICE, dtype=dtype)

    def attend():
        q, k, v = (part.view(B, T, nh, C // nh).transpose(1, 2) for part in qkv.split(C, dim=2))
        with use_kernel(kernel):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, nh, T, hs)
        qkv.grad = None
        y.backward(y_grad)
        synchronize()
    return attend


def attention_to_new_lengths(kernel, gpt_config, lengths=200):
    """
    One query to 1, 2, 3 ... keys, the shapes of sampling with a cache -> the function that does
    them all. cuDNN may plan anew for each shape: then the first call is much slower.
    """
    nh, hs = gpt_config.n_head, gpt_config.n_embd // gpt_config.n_head
    q = torch.randn(4, nh, 1, hs, device=DEVICE, dtype=torch.bfloat16)

    def attend():
        with use_kernel(kernel):
            for T in range(1, 1 + lengths):
                keys = q.expand(4, nh, T, hs).contiguous()
                F.scaled_dot_product_attention(q, keys, keys)
        synchronize()
    return attend


# -------------------------------------------------------------------------------------------------
# 5 checkpoints

def trained_model(gpt_config):
    """A model after one step, so that the optimizer has moments -> model, optimizer"""
    model = train_gpt2.GPT(gpt_config).to(DEVICE)
    optimizer = model.configure_optimizers(0.1, 6e-4)
    x = torch.zeros(1, 8, dtype=torch.long, device=DEVICE)
    _, loss = model(x, x)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def save_ours(log_dir, model, optimizer):
    """Write log_dir/model_00001.pt as train_gpt2.py would."""
    state = {"model": model, "optimizer": optimizer, "step": 1}
    checkpoints.save(log_dir, 2, state, {"config": asdict(model.config)}, step_seconds=0.0)


def save_plainly(path, model, optimizer, flush):
    """torch.save. flush: wait until the file is on the disk, as we do."""
    # a new file each time, as ours: overwriting pages of the old one would be cheaper
    with open(f"{path}.new", "wb") as f:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f)
        f.flush()
        if flush:
            os.fsync(f.fileno())
    os.replace(f"{path}.new", path)


def read_all(state):
    """Touch every weight of a checkpoint (dict): loading may only have mapped the file."""
    for value in state.values():
        if isinstance(value, dict):
            read_all(value)
        elif torch.is_tensor(value):
            value.sum()


# -------------------------------------------------------------------------------------------------
# 6 whole runs

def train(log_dir, *flags, processes=1, torchrun=False, cwd=ROOT, **env):
    """
    Run train_gpt2.py in fresh processes -> its log, {stream: {step: value}}. torchrun: use it for
    one process, too; env: environment variables.
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
    """The settings of a finished run -> GPTConfig, TrainConfig, the dtype of its matmuls (str)"""
    _, settings = read_log(log_dir)
    config = train_gpt2.TrainConfig(**settings["train_config"])
    # with --shard, this process would wait for others; the dtype does not depend on it
    dtype = train_gpt2.setup_distributed(replace(config, shard="no")).dtype
    return train_gpt2.GPTConfig(**settings["config"]), config, str(dtype).removeprefix("torch.")


class Use(NamedTuple):
    """Time and memory of one phase of a run."""
    phase: str  # step, validation, hellaswag, samples or save
    seconds: float
    memory: Memory


# the functions that run between two steps, and the names of their phases in support.arithmetic
BETWEEN_STEPS = {(checkpoints, "save"): "save", (train_gpt2, "evaluate_val_loss"): "validation",
                 (train_gpt2, "evaluate_hellaswag"): "hellaswag",
                 (train_gpt2, "print_samples"): "samples"}


class Watch:
    """Records time and memory of each phase of a run, and when its steps end. See watch."""

    def __init__(self):
        self.uses = []  # Use, in the order of the run
        self.step_ends = []  # time.perf_counter()
        self.began = time.perf_counter()

    def note(self, phase):
        """Record the phase that has just ended; the next one begins."""
        synchronize()
        self.uses.append(Use(phase, time.perf_counter() - self.began, peak_memory()))
        forget_peak()
        self.began = time.perf_counter()

    def between(self, phase, function):
        """Wrap a function that runs between two steps: record the steps before it, then itself."""
        def call(*args, **kwargs):
            self.note("step")
            result = function(*args, **kwargs)
            self.note(phase)
            return result
        return call

    def at_step_end(self, log):
        """Wrap Run.log: record the time whenever a step has ended."""
        def call(run, step, **values):
            if "train" in values:
                self.step_ends.append(time.perf_counter())
            return log(run, step, **values)
        return call

    def most(self, phase):
        """The largest Memory of a phase; None if the run had no such phase."""
        found = [use.memory for use in self.uses if use.phase == phase]
        return max(found, default=None, key=lambda memory: memory.taken)

    def seconds(self, phase):
        """Seconds of the last time that this phase ran, when everything is warm."""
        return [use.seconds for use in self.uses if use.phase == phase][-1]


@contextlib.contextmanager
def watch():
    """Within `with watch() as seen:`, train_gpt2.run(flags) is watched -> Watch"""
    forget_peak()
    seen = Watch()
    with contextlib.ExitStack() as stack:
        for (module, name), phase in BETWEEN_STEPS.items():
            watched = seen.between(phase, getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, watched))
        stack.enter_context(mock.patch.object(Run, "log", seen.at_step_end(Run.log)))
        yield seen


# -------------------------------------------------------------------------------------------------
# 7 the machine

def cpu_name():
    """The CPU's name where Linux knows it, else its architecture."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as f:
        for text in f:
            if text.startswith("model name"):
                return text.split(": ")[1].strip()
    return platform.machine()


def describe_machine():
    """CPU, card, versions and dtype -> text"""
    card = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_name()
    process = train_gpt2.setup_distributed(train_gpt2.TrainConfig())
    dtype = str(process.dtype).removeprefix("torch.")
    return (f"{cpu_name()}, {card}, Python {platform.python_version()}, PyTorch "
            f"{torch.__version__}, {dtype} ({process.dtype_reason})")
