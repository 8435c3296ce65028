"""
Measures the parts of this project beside what a user would run instead, in turn (A B A B ...) in one process, and
prints a table of medians and ratios. Compare ratios: the times depend on the machine, and on what else it does.

    python tests/bench.py [part ...] [--quick] [--hellaswag hellaswag_val.jsonl] [--files docs.jsonl]

Parts
    hellaswag   items per second, 124M parameters: the batched eval against one item at a time with all logits
    fineweb     tokens per second, from .jsonl to shards, all workers, on 50 MB of --files (or of input.txt): against
                plain tiktoken on one core, and against a pool of half the cores and one numpy array a document
    generate    tokens per second, 124M, 4 rows, 8 -> 256 tokens: against transformers, and without a cache
"""
import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import fineweb
import hellaswag
import train_gpt2
from fineweb import gpt2_tokenizer


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


def row(what, unit, amount, ours, theirs):
    """A line of the table: rates (amount / seconds) as medians, their ratio pair by pair as median (min to max)."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    here, there = (amount / statistics.median(seconds) for seconds in (ours, theirs))
    return (f"| {what} | {here:,.1f} {unit} | {there:,.1f} {unit} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")


def made_up_items(n):
    """Items as long as HellaSwag's: contexts of about 50 tokens, endings of about 20, from the plays in input.txt."""
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "input.txt")
    with open(path, encoding="utf-8") as f:
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
    n = 12 if args.quick else 60
    examples = list(hellaswag.read_examples(args.hellaswag))[:n] if args.hellaswag else made_up_items(n)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = train_gpt2.GPT(train_gpt2.GPTConfig()).eval().to(device)
    items = [hellaswag.tokenize_example(e) for e in examples]
    autocast = torch.autocast(device.type, dtype=torch.bfloat16)
    ours, plain = in_turn(args.runs, lambda: hellaswag.evaluate(model, items, autocast),
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
        here, core, plain = in_turn(args.runs, ours, lambda: [len(t.bpe.encode_ordinary(doc)) for doc in docs],
                                    lambda: plain_shards(path, tmp, pool))
    return [row(f"shards, {cores} cores, against plain tiktoken on one of them", "tokens/s", n, here, core),
            row(f"shards, {cores} cores, against the plain recipe", "tokens/s", n, here, plain)]


def bench_generate(args):
    """Recomputing the prefix takes minutes: only every eighth of its steps is run, and its time counts eight times."""
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
        for length in range(8, 8 + new, 8):
            logits = model(idx[:, :1].expand(-1, length))[0][:, -1].topk(50).values
            torch.multinomial(logits.softmax(dim=-1), 1)
    ours, other, plain = in_turn(args.runs, lambda: model.generate(idx, new), of_transformers, without_cache)
    return [row("generation, 124M, 4 rows, float32, against transformers", "tokens/s", 4 * new, ours, other),
            row("the same, against recomputing the prefix", "tokens/s", 4 * new, ours, [8 * t for t in plain])]


PARTS = {"hellaswag": bench_hellaswag, "fineweb": bench_fineweb, "generate": bench_generate}


def main():
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
    print(f"{platform.machine()}, {card}, Python {platform.python_version()}, PyTorch {torch.__version__}, "
          f"{time.strftime('%Y-%m-%d')}\n\n| what | here | against | ratio (min to max) |\n|---|---|---|---|")
    for part in args.parts or PARTS:
        print("\n".join(PARTS[part](args)), flush=True)


if __name__ == "__main__":
    main()
