"""
The parts of the bench: what is measured, beside what one would run instead. Each measurement is a
function that takes a Setting and yields rows, (name, {what: figure}). To add one, write such a
function and give it a line in list_parts.

Contents
    1 a setting               Setting, train_flags, run
    2 figures                 rate_figures, time_figures, speed_figures, memory_figures
    3 training                step, ddp, evals, between, large, dtype, resume
    4 files and kernels       checkpoint, kernel, compiled_kernel, new_lengths, plans
    5 evals, shards, writing  compare_hellaswag, make_shards, generate
    6 the machine             environment
    7 the list                list_parts
"""
import contextlib
import gc
import io
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from functools import partial
from statistics import median
from typing import NamedTuple
from unittest import mock

import torch

import fineweb
import hellaswag
import play
import train_gpt2
from support import checkpoints, hellaswag_file
from support.arithmetic import mfu, phases, total
from support.hellaswag_file import read_examples
from support.runlog import read_log
from support.tokenizer import gpt2_tokenizer
from tools.children import Child, Died
from tools.measure import (DEVICE, KERNELS, PLAYS, attention, attention_to_new_lengths, contender,
                           fitting_B, forget_peak, in_turn, made_up_items, peak_memory, read_all,
                           read_configs, save_ours, save_plainly, synchronize, timed, train,
                           trained_model, transformers_gpt2, use_kernel, watch, write_items)

TINY_MODEL = train_gpt2.GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=32)
TINY_FLAGS = ("--n_layer=2 --n_head=2 --n_embd=32 --block_size=64 --T=64 --B=2 "
              "--total_batch_size=256 --val_tokens=256").split()

# -------------------------------------------------------------------------------------------------
# 1 a setting, and a run of train_gpt2.py in it

class Setting(NamedTuple):
    """What every measurement may ask for."""
    folder: str  # holds the shards, and the logs of runs
    tiny: bool = False  # a model that a CPU trains in no time, to show that a part runs
    quick: bool = False
    hellaswag: str = ""  # a file with items; otherwise items are made up
    files: str = ""  # a .jsonl or .txt file with documents; otherwise input.txt

    def gpt_config(self):
        return TINY_MODEL if self.tiny else train_gpt2.GPTConfig()

    def B_and_T(self):
        """The batch of a measurement: on a card as many rows as fit."""
        if self.tiny:
            return 2, 64
        if DEVICE.type == "cpu":
            return 4, 1024
        free, _ = torch.cuda.mem_get_info()
        return fitting_B(self.gpt_config(), train_gpt2.TrainConfig(), free), 1024

    def runs(self):
        """How often contenders take turns."""
        return 2 if self.quick else 5


def train_flags(setting, *more):
    """The flags of a run of train_gpt2.py -> its log directory, list of flags; `more` win"""
    log_dir = tempfile.mkdtemp(prefix="log_", dir=setting.folder)
    flags = [f"--data_root={setting.folder}/shards", f"--log_dir={log_dir}", "--max_steps=8",
             "--warmup_steps=0", "--eval_every=0", "--save_every=0", "--no-hellaswag",
             "--val_tokens=65536"]
    if setting.tiny:
        flags += TINY_FLAGS
    return log_dir, [*flags, *more]


def one_micro_step(setting):
    """Flags: a step is one micro-batch."""
    B, T = setting.B_and_T()
    return [f"--B={B}", f"--total_batch_size={B * T}"]


class Finished(NamedTuple):
    """A run that was watched."""
    seen: object  # measure.Watch
    log: dict  # {stream: {step: value}}
    gpt_config: object
    config: object
    dtype: str  # of the matmuls


def run(setting, *more):
    """Run train_gpt2.py in this process -> Finished"""
    log_dir, flags = train_flags(setting, *more)
    # a file with fewer than HellaSwag's 10,042 items would be refused as damaged
    with mock.patch.object(hellaswag_file, "NUM_ITEMS", n_items(setting)), watch() as seen:
        train_gpt2.run(flags)
    log, _ = read_log(log_dir)
    return Finished(seen, log, *read_configs(log_dir))


def n_items(setting):
    """The number of made-up HellaSwag items."""
    if setting.tiny:
        return 20
    return 2000 if setting.quick else 10042  # as many as HellaSwag has


def step_seconds(log):
    """Seconds of each step but the first two, which load code and take memory."""
    return [ms / 1000 for ms in log["dt"].values()][2:]


# -------------------------------------------------------------------------------------------------
# 2 figures

def ratio_of(times, others):
    """
    Seconds over seconds -> text: the median of the ratios, and their range. Each time is divided by
    its neighbour's, which met the same machine.
    """
    ratios = [a / b for a, b in zip(times, others, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def rate_figures(unit, amount, ours, theirs):
    """The same amount of work, done by us and by somebody else -> {what: figure}"""
    return {unit: amount / median(ours), f"theirs, {unit}": amount / median(theirs),
            "our speed / theirs (min to max)": ratio_of(theirs, ours)}


def time_figures(ours, theirs):
    """Seconds of ours and of somebody else's -> {what: figure}"""
    return {"seconds": median(ours), "theirs, seconds": median(theirs),
            "our time / theirs (min to max)": ratio_of(ours, theirs)}


def speed_figures(tokens, seconds):
    """The speed of steps of so many tokens -> {what: figure}"""
    return {"ms a step": 1000 * median(seconds), "tokens a step": tokens,
            "tokens/s": tokens / median(seconds)}


def mfu_figures(gpt_config, T, tokens_per_second, dtype="bfloat16"):
    """The share of the card's peak -> {"MFU": text}, empty without a card"""
    if DEVICE.type == "cpu" or dtype == "float32":
        return {}
    text = mfu(torch.cuda.get_device_name(), gpt_config, T, tokens_per_second)
    return {"MFU": text.removeprefix(" | mfu ") if text else "n/a"}  # n/a: the peak is unknown


def memory_figures(memory, estimate=None):
    """Peak memory beside the estimate, both in bytes -> {what: figure}"""
    figures = {"peak GB": memory.taken / 1e9, "of tensors GB": memory.allocated / 1e9}
    if estimate is not None:
        figures["estimate GB"] = estimate / 1e9
        if DEVICE.type == "cuda":  # the estimate is about cards: a CPU process holds much more
            figures["peak / estimate"] = memory.taken / estimate
    return figures


def phase_figures(finished, phase):
    """Memory that a phase of a run took -> {what: figure}"""
    needs = phases(finished.gpt_config, finished.config, 1, finished.dtype,
                   compiled=bool(finished.config.compile))
    return {"B": finished.config.B,
            **memory_figures(finished.seen.most(phase), total(needs[phase]))}


def eval_figures(finished, phase, unit, amount):
    """Time and memory of a phase that handled so many tokens or items -> {what: figure}"""
    seconds = finished.seen.seconds(phase)
    return {"seconds": seconds, unit: amount / seconds, **phase_figures(finished, phase)}


def step_figures(finished):
    """Time and memory of the steps of a run -> {what: figure}"""
    config = finished.config
    speed = speed_figures(config.total_batch_size, step_seconds(finished.log))
    share = mfu_figures(finished.gpt_config, config.T, speed["tokens/s"], finished.dtype)
    return {**speed, **share, **phase_figures(finished, "step")}


# -------------------------------------------------------------------------------------------------
# 3 training

def serve(pipe, name, setting, B, T):
    """
    The process of a contender: take a step for each question "step"; for "memory", answer with B
    and how much was needed. B=0: as many rows as fit; where memory runs out, half of them.
    """
    gpt_config = setting.gpt_config()
    if B == 0:
        B, _ = setting.B_and_T()
    work = None
    while work is None:
        try:
            work = contender(name, gpt_config, B, T)
            work()
        except torch.OutOfMemoryError:
            if B == 1:
                raise
            work = None
            B = B // 2
        gc.collect()  # outside of except: there the traceback holds the tensors
    forget_peak()
    while pipe.recv() == "step":
        work()
        pipe.send("done")
    config = train_gpt2.TrainConfig(B=B, T=T)
    needs = phases(gpt_config, config, 1, compiled=name == "ours")
    estimate = total(needs["step"]) if name in ("ours", "eager") else None
    pipe.send((B, memory_figures(peak_memory(), estimate)))


def steps_in_turn(setting, names, B, T, runs):
    """
    Contenders take steps in turn -> {name: list of seconds}, {name: its B, and what its memory was}
    """
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(serve, name, setting, B, T)) for name in names]
        steps = [partial(child.ask, "step") for child in children]
        if T < 1024:
            in_turn(2, *steps)  # short steps: the first few take their memory, page by page
        seconds = dict(zip(names, in_turn(runs, *steps), strict=True))
        memories = {name: child.ask("memory") for name, child in zip(names, children, strict=True)}
    return seconds, memories


def step(setting, names, T=1024):
    """
    A training step of 124M, each contender in a process of its own. On a CPU several of them take
    turns; a card holds one at a time. names: see measure.contender.
    """
    B, runs = 0, 20  # B=0: its process finds out what fits
    if DEVICE.type == "cpu":
        B, runs = 4, 3 if T == 1024 else 8
    if setting.tiny:
        B, T = 2, 64
    try:
        seconds, memories = steps_in_turn(setting, names, B, T, runs)
    except Died as e:
        yield ", ".join(names), {"note": f"{e}: see report.log"}
        return
    for name in names:
        B, memory = memories[name]
        speed = speed_figures(B * T, seconds[name])
        share = mfu_figures(setting.gpt_config(), T, speed["tokens/s"])
        figures = {**speed, **share, **memory}
        if name == "products":  # the matrix products alone: what share of our step are they?
            figures = {"share of our step": ratio_of(seconds[name], seconds[names[0]])}
        elif name != names[0]:
            figures["speed of ours / this"] = ratio_of(seconds[name], seconds[names[0]])
        yield f"{name}, B={B}, T={T}", figures


def ddp(setting, more=()):
    """
    One process against one under torchrun, and against as many as there are cards (on a CPU two,
    over gloo), eager. Each has the same number of tokens in all three runs: if talking to the
    others cost nothing, the time of a step would stay the same. more: flags
    """
    B, T = setting.B_and_T()
    n, threads, steps = 2, 1, 5
    if DEVICE.type == "cuda":
        n, steps = torch.cuda.device_count(), 12
        threads = max(1, os.cpu_count() // n)
    elif setting.quick:
        T = min(T, 64)
    alone = None
    for processes, torchrun in sorted({(1, False), (1, True), (n, True)}):
        log_dir, flags = train_flags(setting, "--no-compile", f"--B={B}", f"--T={T}",
                                     f"--total_batch_size={B * T * processes}",
                                     f"--max_steps={steps}", *more)
        log = train(log_dir, *flags, processes=processes, torchrun=torchrun, cwd=setting.folder,
                    OMP_NUM_THREADS=str(threads))
        seconds = step_seconds(log)
        alone = alone or seconds
        how = "under torchrun" if torchrun else "alone"
        yield " ".join([f"{processes} process(es) {how}, each", *more]), {
            **speed_figures(B * T, seconds), "efficiency": median(alone) / median(seconds)}


def evals(setting, limit=None):
    """
    A run with every eval, as train_gpt2.py is started. limit: B is chosen for a card of so many
    bytes, and no more can be allocated.
    """
    more, prefix = [], ""
    if limit is not None:
        free, whole = torch.cuda.mem_get_info()
        if limit > whole:
            yield f"in {limit / 1e9:.0f} GB", {"note": f"this card has {whole / 1e9:.1f}"}
            return
        context = whole - free - torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction((limit - context) / whole)
        B = fitting_B(setting.gpt_config(), train_gpt2.TrainConfig(), limit)
        more = ["--no-compile", f"--B={B}", f"--total_batch_size={2 * B * 1024}"]
        prefix = f"in {limit / 1e9:.0f} GB: "
    items, val_tokens = n_items(setting), 256 if setting.tiny else 2**20
    write_items(setting.folder, items)
    finished = run(setting, "--hellaswag", "--save_every=4", "--max_steps=4", "--eval_every=4",
                   f"--val_tokens={val_tokens}", *more)
    yield f"{prefix}step", step_figures(finished)
    for phase, unit, amount in (("validation", "tokens/s", val_tokens),
                                ("hellaswag", "items/s", items), ("samples", "tokens/s", 4 * 24)):
        yield f"{prefix}{phase}", eval_figures(finished, phase, unit, amount)
    yield f"{prefix}save", {"seconds": finished.seen.seconds("save"),
                            **phase_figures(finished, "save")}


def between(setting):
    """The time from the end of a step's clock to the start of the next, which dt does not show"""
    steps = 6 if setting.tiny else 30
    finished = run(setting, "--no-compile", f"--max_steps={steps}", *one_micro_step(setting))
    ends = finished.seen.step_ends
    lost = []
    for i in range(2, steps):
        whole_turn = ends[i] - ends[i - 1]
        lost.append(whole_turn - finished.log["dt"][i] / 1000)
    yield f"B={finished.config.B}", {"ms a step": 1000 * median(step_seconds(finished.log)),
                                     "ms between": 1000 * median(lost),
                                     "ms at most": 1000 * max(lost)}


def large(setting, preset, more):
    """Four steps of a larger model with flags that save memory, at the B that fits"""
    shape = {name: value for name, value in train_gpt2.PRESETS[preset].items()
             if name in ("n_layer", "n_head", "n_embd")}
    config = train_gpt2.TrainConfig(
        shard="all" if "--shard" in more else "no", offload="--offload" in more,
        activation_checkpointing="--activation_checkpointing" in more)
    B, T = 2, 64
    if not setting.tiny:
        free, _ = torch.cuda.mem_get_info()
        B, T = fitting_B(train_gpt2.GPTConfig(**shape), config, free), 1024
    finished = run(setting, f"--preset={preset}", "--no-compile", *more, f"--B={B}",
                   f"--total_batch_size={B * T}", "--max_steps=4")
    yield " ".join(more) if more else "no flags", step_figures(finished)


def dtype(setting, name):
    """Eager steps in a dtype that is not the one chosen here. Half the rows: float32 must fit"""
    B, T = setting.B_and_T()
    B = max(1, B // 2)
    finished = run(setting, "--no-compile", f"--dtype={name}", f"--B={B}",
                   f"--total_batch_size={2 * B * T}")
    losses = finished.log["train"]
    yield name, {**step_figures(finished), "first loss": losses[0], "last loss": losses[7]}


def resume(setting):
    """Eight steps, and the last four once more from the checkpoint before them"""
    log_dir, flags = train_flags(setting, "--no-compile", *one_micro_step(setting),
                                 "--save_every=4")
    train_gpt2.run(flags)
    whole, _ = read_log(log_dir)
    os.remove(os.path.join(log_dir, "model_00008.pt"))
    seconds = timed(partial(train_gpt2.run, [*flags, "--resume=auto"]))
    resumed, _ = read_log(log_dir)
    differences = [abs(whole["train"][step] - resumed["train"][step]) for step in range(4, 8)]
    yield "4 steps from a checkpoint", {"largest difference of a loss": max(differences),
                                        "seconds": seconds}


# -------------------------------------------------------------------------------------------------
# 4 files and kernels

def checkpoint(setting):
    """Save and load against torch.save and torch.load; a load ends when every weight was read"""
    gpt_config = TINY_MODEL if setting.tiny else train_gpt2.GPTConfig(
        n_layer=2 if setting.quick else 12)
    model, optimizer = trained_model(gpt_config)
    runs = 2 if DEVICE.type == "cuda" else setting.runs()  # a disk is slow, a card dear
    with tempfile.TemporaryDirectory() as folder:
        ours = os.path.join(folder, "model_00001.pt")
        theirs = os.path.join(folder, "theirs.pt")
        save = partial(save_ours, folder, model, optimizer)
        flush = partial(save_plainly, theirs, model, optimizer, flush=True)
        no_flush = partial(save_plainly, theirs, model, optimizer, flush=False)
        with contextlib.redirect_stdout(io.StringIO()):
            # os.sync: otherwise the next save would wait for what this one has not written yet
            saved, flushed, unflushed, _ = in_turn(runs, save, flush, no_flush, os.sync)
        loaded, plain = in_turn(
            runs, lambda: read_all(checkpoints.read(ours)),
            lambda: read_all(torch.load(theirs, weights_only=True, map_location="cpu")))
        [checked] = in_turn(2, lambda: zipfile.ZipFile(ours).testzip())
        gb = os.path.getsize(ours) / 1e9
    yield f"save {gb:.2f} GB, against torch.save and a flush to disk", time_figures(saved, flushed)
    yield "save, against torch.save without waiting for the disk", time_figures(saved, unflushed)
    yield "load, checksums included, against torch.load", time_figures(loaded, plain)
    yield "checksums alone", {"seconds": median(checked)}


def kernel(setting, name):
    """Causal attention of one block of GPT-2, forward and backward, by one of PyTorch's kernels"""
    B, T = setting.B_and_T()
    try:
        attend = attention(name, setting.gpt_config(), B, T)
        forget_peak()
        [seconds] = in_turn(setting.runs(), attend)
    except RuntimeError as e:  # PyTorch has no such kernel for this device
        yield name, {"note": f"n/a: {str(e).splitlines()[0][:60]}"}
        return
    yield f"{name}, B={B}", {"ms": 1000 * median(seconds), **memory_figures(peak_memory())}


def compiled_kernel(setting, name):
    """
    A compiled step in which attention has one kernel to choose from. What is compiled already is
    forgotten, and the compiler's cache is off, because neither asks for the kernel: a second kernel
    could run the first one's code. "ran" is what the profiler saw.
    """
    from torch._inductor import config as inductor
    B, T = setting.B_and_T()
    torch._dynamo.reset()
    with use_kernel(name), inductor.patch(force_disable_caches=True):
        work = contender("ours", setting.gpt_config(), B, T)
        [seconds] = in_turn(setting.runs(), work)
        with torch.profiler.profile() as profile:
            work()
    ran = sorted(event.key for event in profile.key_averages()
                 if "scaled_dot_product" in event.key)
    yield f"compiled step, {name}, B={B}", {"ms": 1000 * median(seconds),
                                            "ran": ", ".join(ran) or "no kernel of attention"}


def new_lengths(setting, name):
    """One query to 1 ... 200 keys, twice: is a kernel slow where it meets a new shape?"""
    attend = attention_to_new_lengths(name, setting.gpt_config())
    yield f"{name}, 200 lengths", {"first time, ms": 1000 * timed(attend),
                                   "second time, ms": 1000 * timed(attend)}


def plans(setting, cudnn):
    """
    HellaSwag and samples twice: with cuDNN's attention, which may plan for each new shape and keeps
    its plans, or without it, as in a run. cudnn: may it be used?
    """
    gpt_config, n = setting.gpt_config(), 20 if setting.tiny else 1000
    process = train_gpt2.setup_distributed(train_gpt2.TrainConfig())
    model = train_gpt2.GPT(gpt_config).eval().to(DEVICE)
    items = [hellaswag.tokenize_example(example) for example in made_up_items(n)]
    idx = torch.zeros(4, 8, dtype=torch.long, device=DEVICE)

    def sample():
        with process.autocast:
            play.generate(model, idx, gpt_config.block_size // 5)
        synchronize()
    how = "with cuDNN's attention" if cudnn else "without"
    with contextlib.ExitStack() as stack:
        if cudnn:
            for module in (hellaswag, play):
                stack.enter_context(mock.patch.object(module, "attention_for_any_shape",
                                                      contextlib.nullcontext))
        for name, work in (("HellaSwag", partial(hellaswag.evaluate, model, items, process)),
                           ("samples", sample)):
            yield f"{name}, {how}", {"first time, s": timed(work), "second time, s": timed(work)}


# -------------------------------------------------------------------------------------------------
# 5 evals, shards, writing

@torch.no_grad()
def plain_hellaswag(model, examples, autocast):
    """The lecture's eval: one item at a time, logits at all positions of its four rows."""
    predicted = []
    for example in examples:
        _, tokens, mask, _ = hellaswag.render_example(example)
        tokens, mask = tokens.to(DEVICE), mask.to(DEVICE)
        with autocast:
            logits, _ = model(tokens)
        predicted.append(hellaswag.get_most_likely_row(tokens, mask, logits))
    return predicted


def compare_hellaswag(setting):
    """HellaSwag on random weights, which take as long as trained ones"""
    n = 8 if setting.quick else 16
    if setting.hellaswag:
        examples = list(itertools.islice(read_examples(setting.hellaswag), n))
    else:
        examples = made_up_items(n)
    torch.manual_seed(0)
    model = train_gpt2.GPT(train_gpt2.GPTConfig()).eval().to(DEVICE)
    items = [hellaswag.tokenize_example(example) for example in examples]
    process = train_gpt2.setup_distributed(train_gpt2.TrainConfig(dtype="bfloat16"))
    ours, plain = in_turn(min(3, setting.runs()),
                          partial(hellaswag.evaluate, model, items, process),
                          partial(plain_hellaswag, model, examples, process.autocast))
    yield "against one item at a time", rate_figures("items/s", len(items), ours, plain)


def read_docs(path, least):
    """
    The documents of a .jsonl file, or a text in pieces, repeated until they have `least`
    characters -> list of str
    """
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if path.endswith(".jsonl"):
        docs = [json.loads(doc)["text"] for doc in text.splitlines()]
    else:
        docs = [text[i : i + 5000] for i in range(0, len(text), 5000)]
    return docs * (least // len(text) + 1)


def make_shards(setting):
    """fineweb.py on 50 MB of text, against plain tiktoken on one core"""
    docs = read_docs(setting.files or PLAYS, least=10_000_000 if setting.quick else 50_000_000)
    tokenizer = gpt2_tokenizer()  # ready before the clock runs
    n = sum(len(tokenizer.encode(doc)) + 1 for doc in docs)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "docs.jsonl")
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(json.dumps({"text": doc}) + "\n" for doc in docs)
        numbers = itertools.count()  # a new directory each time

        def ours():
            out = os.path.join(folder, str(next(numbers)))
            with contextlib.redirect_stdout(io.StringIO()):
                fineweb.main([f"--files={path}", "--shard_size=10000000", f"--out={out}"])

        def one_core():
            for doc in docs:
                tokenizer.bpe.encode_ordinary(doc)
        here, core = in_turn(min(3, setting.runs()), ours, one_core)
    yield f"{os.cpu_count()} cores, against plain tiktoken on one", rate_figures("tokens/s", n,
                                                                              here, core)


def generate(setting):
    """
    play.py's generate, 4 rows, against transformers and against recomputing the prefix. The latter
    would take minutes, so eight steps at even distances stand for all.
    """
    gpt_config = TINY_MODEL if setting.tiny else train_gpt2.GPTConfig(vocab_size=50257)
    new = 56 if setting.quick or setting.tiny else 248
    torch.manual_seed(0)
    model = train_gpt2.GPT(gpt_config).eval().to(DEVICE)
    theirs = transformers_gpt2(gpt_config).eval().to(DEVICE)
    idx = torch.randint(0, 50257, (4, 8), device=DEVICE)

    def ours():
        play.generate(model, idx, new)
        synchronize()

    def of_transformers():
        theirs.generate(idx, attention_mask=torch.ones_like(idx), do_sample=True, top_k=50,
                        max_new_tokens=new, min_new_tokens=new, pad_token_id=50256, use_cache=True)
        synchronize()

    @torch.no_grad()
    def without_cache():
        for length in range(8 + new // 16, 8 + new, new // 8):
            logits, _ = model(idx[:, :1].expand(-1, length))  # (4, length, V)
            likeliest = logits[:, -1].topk(50).values
            torch.multinomial(likeliest.softmax(dim=-1), 1)
        synchronize()
    ours_times, other, eight = in_turn(2, ours, of_transformers, without_cache)
    plain = [new / 8 * seconds for seconds in eight]
    yield "float32, against transformers", rate_figures("tokens/s", 4 * new, ours_times, other)
    yield "against recomputing the prefix", rate_figures("tokens/s", 4 * new, ours_times, plain)


# -------------------------------------------------------------------------------------------------
# 6 the machine

def nvidia_smi(*names):
    """What the driver reports about the first card -> {name: text}, empty without one"""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}",
               "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    values = result.stdout.strip().split(", ")
    if result.returncode != 0 or len(values) != len(names):
        return {"nvidia-smi": "no answer"}
    return dict(zip(names, values, strict=True))


def machine_load():
    """What may change while we measure -> {what: figure}"""
    figures = nvidia_smi("driver_version", "clocks.sm", "clocks.mem", "power.draw", "power.limit",
                         "temperature.gpu")
    return {**figures, "load of the CPUs": os.getloadavg()[0]}


def environment(setting):
    """The machine, at rest and multiplying: heat or a power limit may slow a card down"""
    figures = {"PyTorch": str(torch.__version__), "CUDA": str(torch.version.cuda),
               "HIP": str(torch.version.hip), "cuDNN": str(torch.backends.cudnn.version()),
               "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if DEVICE.type == "cuda":
        free, memory = torch.cuda.mem_get_info()
        capability = torch.cuda.get_device_capability()
        figures |= {"cards": torch.cuda.device_count(), "free GB": free / 1e9,
                    "memory GB": memory / 1e9, "capability": ".".join(map(str, capability))}
    yield "the machine", figures
    yield "at rest", machine_load()
    n = 8192 if DEVICE.type == "cuda" else 256
    a, b = torch.randn(2, n, n, device=DEVICE).bfloat16()

    def multiply():
        for _ in range(20):
            a @ b
        synchronize()
    [seconds] = in_turn(10, multiply)
    tflops = 20 * 2 * n**3 / median(seconds) / 1e12
    yield f"product of two {n} x {n} matrices, bfloat16", {"TFLOP/s": tflops, **machine_load()}


# -------------------------------------------------------------------------------------------------
# 7 the list

class Measurement(NamedTuple):
    """Some rows of a part, made together."""
    name: str
    function: object  # Setting -> yields (row, figures)
    quick: bool = True  # is it in --quick?
    needs_cuda: bool = False


def list_steps():
    """The measurements of the part step: on a CPU contenders take turns, on a card they cannot."""
    names = ("ours", "eager", "plain", "transformers", "products")
    if DEVICE.type == "cuda":
        return [Measurement(name, partial(step, names=[name]), quick=name in names[:3])
                for name in names[:4]]
    return [Measurement("plain", partial(step, names=["ours", "eager", "plain", "products"]),
                        quick=False),
            Measurement("transformers", partial(step, names=["ours", "transformers"]),
                        quick=False),
            Measurement("plain, T=32", partial(step, names=["ours", "plain"], T=32)),
            Measurement("transformers, T=32", partial(step, names=["ours", "transformers"], T=32),
                        quick=False)]


def list_large(preset):
    """The measurements of a larger model, with flags that save more memory the larger it is."""
    recompute, shard, offload = "--activation_checkpointing", "--shard", "--offload"
    flags = {"gpt2-medium": ([], [recompute]), "gpt2-large": ([recompute], [shard, recompute]),
             "gpt2-xl": ([recompute], [shard, offload, recompute])}
    return [Measurement(" ".join(more) if more else "no flags",
                        partial(large, preset=preset, more=more), quick=preset == "gpt2-medium")
            for more in flags[preset]]


def list_parts():
    """-> {part: list of Measurement}, in the order in which they are measured"""
    kernels = [Measurement(name, partial(kernel, name=name),
                           needs_cuda=name in ("CUDNN_ATTENTION", "EFFICIENT_ATTENTION"))
               for name in KERNELS]
    kernels += [Measurement(f"{name}, compiled", partial(compiled_kernel, name=name), quick=False,
                            needs_cuda=True) for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION")]
    kernels += [Measurement(f"{name}, new lengths", partial(new_lengths, name=name),
                            needs_cuda=True) for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION")]
    limits = [Measurement(f"in {size} GB", partial(evals, limit=size * 1e9), quick=False,
                          needs_cuda=True) for size in (24, 16, 8)]
    return {
        "environment": [Measurement("machine", environment)],
        "step": list_steps(),
        "evals": [Measurement("all memory", evals)],
        "checkpoint": [Measurement("save and load", checkpoint)],
        "attention": kernels,
        "plans": [Measurement("without cuDNN", partial(plans, cudnn=False)),
                  Measurement("with cuDNN", partial(plans, cudnn=True))],
        "generate": [Measurement("with a cache", generate)],
        "gpt2-medium": list_large("gpt2-medium"),
        "gpt2-large": list_large("gpt2-large"),
        "gpt2-xl": list_large("gpt2-xl"),
        "dtypes": [Measurement(name, partial(dtype, name=name), quick=False)
                   for name in ("float16", "float32")],
        "resume": [Measurement("resume", resume)],
        "small-cards": limits,
        "ddp": [Measurement("DDP", ddp),
                Measurement("--shard", partial(ddp, more=["--shard"]), quick=False)],
        "between": [Measurement("between steps", between)],
        "hellaswag": [Measurement("HellaSwag", compare_hellaswag)],
        "fineweb": [Measurement("shards", make_shards)],
    }


BENCH = ("step", "ddp", "attention", "hellaswag", "fineweb", "generate",
         "checkpoint")  # by default
REPORT = ("environment", "step", "evals", "checkpoint", "attention", "plans", "generate",
          "gpt2-medium", "gpt2-large", "gpt2-xl", "dtypes", "resume", "small-cards", "ddp",
          "between")  # with --gpu: what one wants first, first, for the time may run out
