"""
The numbers and the pictures of docs/concepts.md. Each worked example of the page is a function
that computes it and yields its lines.

    python tools/concepts.py    # fills both pages, and writes assets/concepts/*.svg

In the pages an example stands between <!-- example: NAME --> and <!-- end -->. A sentence may
have a number with a decimal point only if an example of the same section has it too.

Contents
    1 the examples   softmax, backward, bpe, attention, heads, stream, layernorm, gelu, variance,
                     logits, tying, adamw, decay, beta2, clipping, autocast, flash, sampling
    2 the pictures   merges, adamw, variance
    3 the pages      fill, stray_numbers, main
"""
import argparse
import functools
import math
import os
import re
import sys
from collections import Counter
from itertools import accumulate

import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import train_gpt2
from support.console import UserError, run_program
from support.files import ASSETS, asset, atomic_write, read_json
from support.health import read_reference
from tools import ROOT
from tools.pictures import box, line, page, plot, text

# --------------------------------------------------------------------------------------------------
# 1 the examples


def row(label, values, form=".3f", width=18):
    """A label, and values in columns of ten characters. Words are written as they are."""
    cells = (value if isinstance(value, str) else f"{value:{form}}" for value in values)
    return f"{label:<{width}}" + "".join(f"{cell:>10}" for cell in cells)


def softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0], requires_grad=True)
    exp = logits.detach().exp()
    probs = exp / exp.sum()
    loss = F.cross_entropy(logits, torch.tensor(1))
    loss.backward()
    yield row("token", ["a", "b", "c", "d", "sum"])
    yield row("logit", logits.tolist())
    yield row("exp(logit)", [*exp, exp.sum()])
    yield row("softmax", [*probs, probs.sum()])
    yield row("-log(softmax)", -probs.log())
    yield f"b follows: loss {loss:.3f} (equal logits: ln 4 = {math.log(4):.3f})"
    yield row("dloss/dlogit", [*logits.grad, logits.grad.sum().abs()])


SAMPLES = [(3.0, 4.0), (1.0, 2.0), (2.0, 1.0), (2.0, 2.0)]  # x and target of the neuron


def micro_steps(samples):
    """w.grad of the neuron after each backward; the loss is divided by the number of samples"""
    w, b = torch.tensor(2.0, requires_grad=True), torch.tensor(-1.0)
    for x, target in samples:
        loss = (w * x + b - target) ** 2
        (loss / len(samples)).backward()
        yield w.grad.item()


def backward():
    w, b, x = (torch.tensor(value, requires_grad=True) for value in (2.0, -1.0, 3.0))
    z = w * x + b
    loss = (z - 4) ** 2
    loss.backward()
    growth = (2.001 * 3 - 1 - 4) ** 2 - 1
    yield f"forward   z = w x + b = 2 * 3 - 1 = {z:.0f}    loss = (z - 4)^2 = {loss:.0f}"
    yield f"backward  dloss/dz = 2 (z - 4) = {2 * (z - 4):.0f}"
    yield f"          dloss/dw = 2 * x = {w.grad:.0f}    dloss/db = 2 * 1 = {b.grad:.0f}"
    yield f"          dloss/dx = 2 * w = {x.grad:.0f}"
    yield f"check     w = 2.001 makes the loss {growth:.6f} larger: {growth / 0.001:.3f} per unit"


def accumulation():
    single = [g for sample in SAMPLES for g in micro_steps([sample])]
    yield row("micro-step", ["1", "2", "3", "4"])
    yield row("x, target", [f"{x:.0f}, {target:.0f}" for x, target in SAMPLES])
    yield row("its dloss/dw", single, ".1f")
    yield row("divided by 4", [g / 4 for g in single], ".1f")
    yield row("w.grad so far", micro_steps(SAMPLES), ".1f")


def merge(word, pair):
    """Join each occurrence of a pair: ["l", "o", "w"], ("l", "o") -> ["lo", "w"]"""
    joined = []
    for token in word:
        if joined and (joined[-1], token) == pair:
            joined[-1] += token
        else:
            joined.append(token)
    return joined


def train_bpe(words, num_merges):
    """words: lists of tokens -> [(pair, number of times it was seen, the words after its merge)]"""
    merges = []
    for _ in range(num_merges):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        pair, seen = pairs.most_common(1)[0]  # of equally frequent pairs, the first in the text
        words = [merge(word, pair) for word in words]
        merges.append((pair, seen, words))
    return merges


MERGES = train_bpe([list("low"), list("_lower"), list("_lowest")], 6)


def encode(word):
    """A word -> its tokens: every merge that applies, in the order of training"""
    return functools.reduce(merge, (pair for pair, _, _ in MERGES), list(word))


def bpe():
    yield "merge             seen   the text after it; _ is a space"
    yield "                         l o w   _ l o w e r   _ l o w e s t"
    for i, (pair, seen, words) in enumerate(MERGES, 1):
        yield f"{i}  {' + '.join(pair):<15}{seen}      {'   '.join(map(' '.join, words))}"
    for word in ("_lowest", "_lowly", "_slow"):
        yield f"encode {word:<10} ->    {' '.join(encode(word))}"


WORDS = ["dogs", "often", "bark"]
X = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])  # how much noun, how much verb
Q = X @ torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # a verb looks for a noun, a noun for a verb
K = X  # a token offers what it is
V = X @ torch.tensor([[3.0, 1.0], [0.0, 0.0]])  # a noun passes on (3, 1), a verb nothing


def attend(q, k):
    """-> the causal attention weights"""
    scores = q @ k.T / math.sqrt(q.size(1))
    future = torch.ones_like(scores).triu(diagonal=1).bool()
    return scores.masked_fill(future, -math.inf).softmax(dim=1)


def attention():
    weights = attend(Q, K)
    y = weights @ V
    yield row("", ["x", "query", "key", "value"], width=10)
    for i, word in enumerate(WORDS):
        yield row(word, [f"({a:.0f}, {b:.0f})" for a, b in (X[i], Q[i], K[i], V[i])], width=10)
    yield ""
    yield row("bark attends to", WORDS)
    yield row("query . key", Q[2] @ K.T, ".0f")
    yield row("/ sqrt(2)", Q[2] @ K.T / math.sqrt(2))
    yield row("softmax", weights[2])
    mixed = (f"{w:.3f} * ({a:.0f}, {b:.0f})" for w, (a, b) in zip(weights[2], V, strict=True))
    yield f"y = {' + '.join(mixed)} = ({y[2, 0]:.2f}, {y[2, 1]:.2f})"
    yield ""
    yield row("with q = k = x", attend(X, X)[2])


def heads():
    mean = (V[0] + V[1]) / 2
    yield row("weights", WORDS)
    yield row("one head", ["0.5", "0.5", "0"]) + f"    y = ({mean[0]:.1f}, {mean[1]:.1f})"
    yield row("head 0, channel 0", ["1", "0", "0"]) + f"    y = ({V[0, 0]:.1f},"
    yield row("head 1, channel 1", ["0", "1", "0"]) + f"         {V[1, 1]:.1f})"


def stream():
    first, second = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    head = torch.tensor([0.5, 1.0])  # the row of lm_head for one token
    writes = {"attention: 3 * (1, 1)": 3 * first, "MLP: 2 * (1, -1)": 2 * second,
              "MLP: -3 * (1, 1)": -3 * first}
    yield row("a branch adds", ["x[0]", "x[1]", "first", "second", "to logit"], width=24)
    x = torch.zeros(2)
    for name, added in writes.items():
        x = x + added
        yield row(name, [*x, x @ first / 2, x @ second / 2, added @ head], ".1f", 24)
    yield row("logit = x . (0.5, 1.0)", ["", "", "", "", f"{x @ head:.1f}"], width=24)
    yield f"768 channels: two random directions overlap by about {768**-0.5:.3f}; equal ones by 1"


def layernorm():
    for scale in (1, 100):
        x = scale * torch.tensor([1.0, 2.0, 3.0, 6.0])
        mean, std = x.mean(), x.std(correction=0)
        yield row("x", x, ".0f") + f"    mean {mean:.0f}, std {std:.3f}"
        yield row("(x - mean) / std", F.layer_norm(x, (4,)))


def gelu():
    x = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], requires_grad=True)
    y = F.gelu(x, approximate="tanh")
    y.sum().backward()
    yield row("x", x, ".0f", 14)
    yield row("ReLU", x.relu(), ".0f", 14)
    yield row("GELU", y, ".3f", 14)
    yield row("slope of ReLU", (x > 0).float(), ".0f", 14)
    yield row("slope of GELU", x.grad, ".3f", 14)
    yield row("four ReLUs", x.relu() - (x - 1).relu() - (x - 2).relu() + (x - 3).relu(), ".0f", 14)


@functools.lru_cache(maxsize=1)
@torch.no_grad()
def streams():
    """
    Two fresh models of 12 blocks, first with GPT-2's small c_proj, then with std 0.02 for all ->
    for each: the variance of the stream before the blocks and after each of them, and the mean
    logit of the token that was just read
    """
    torch.manual_seed(1337)
    config = train_gpt2.GPTConfig(block_size=64, vocab_size=512)
    model = train_gpt2.GPT(config)
    idx = torch.randint(config.vocab_size, (2, config.block_size))
    measured = []
    for factor in (1.0, math.sqrt(2 * config.n_layer)):
        for module in model.modules():
            if getattr(module, "adds_to_residual", False):
                module.weight *= factor
        x = model.transformer.wte(idx) + model.transformer.wpe.weight
        variances = [x.var().item()]
        for block in model.transformer.h:
            x = block(x)
            variances.append(x.var().item())
        own = model.lm_head(model.transformer.ln_f(x)).gather(2, idx[..., None])
        measured.append((variances, own.mean().item()))
    return measured


def variance():
    (scaled, own), (unscaled, drowned) = streams()
    depths = [0, 1, 2, 4, 8, 12]
    yield row("after block", map(str, depths), width=38)
    yield row("c_proj scaled", [scaled[i] for i in depths], ".4f", 38)
    yield row("std 0.02 for all", [unscaled[i] for i in depths], ".4f", 38)
    yield ""
    yield row("", ["scaled", "std 0.02"], width=38)
    yield row("variance at the end", [f"{scaled[12]:.2f}", f"{unscaled[12]:.1f}"], width=38)
    yield row("a branch adds, on average", [scaled[12] / 24, unscaled[12] / 24], ".4f", 38)
    yield row("ln_f divides by", [scaled[12] ** 0.5, unscaled[12] ** 0.5], ".2f", 38)
    shares = [100 * v[0] / v[12] for v in (scaled, unscaled)]
    yield row("share of the embedding, percent", shares, ".2f", 38)
    yield row("logit of the token just read", [own, drowned], ".2f", 38)
    expected = [768 * 0.02**2 / v[12] ** 0.5 for v in (scaled, unscaled)]
    yield row("expected: 768 * 0.02^2 / divisor", expected, ".2f", 38)
    for name, losses in read_json(asset("concepts.json"))["laptop, 500 steps"].items():
        yield row(f"loss at step 500, {name}", losses, ".2f", 38)


def logits():
    spreads = [0.1, 0.5, 1.0, 2.0]
    yield row("logits +s, +s, -s, -s: s =", spreads, ".1f", 28)
    yield row("loss above ln 4", [math.log(math.cosh(s)) for s in spreads], ".4f", 28)
    yield row("s^2 / 2", [s * s / 2 for s in spreads], ".4f", 28)
    yield ""
    torch.manual_seed(1337)
    z = 0.02 * math.sqrt(768) * torch.randn(50304, dtype=torch.float64)
    above = z.logsumexp(0) - z.mean() - math.log(50304)
    yield f"50,304 random logits of variance 768 * 0.02^2 = {768 * 0.02**2:.3f}:"
    yield f"loss above ln 50304: {above:.3f}"


def tying():
    runs = [*read_json(asset("chapters.json"))["runs"], *read_json(asset("concepts.json"))["runs"]]
    ends = {(run["chapter"], run["seed"]): sum(run["losses"][-10:]) / 10 for run in runs}
    yield row("", ["seed 1337", "seed 1338"], width=44)
    for name, chapter in (("chapter 9: untied, embedding of std 1", 9),
                          ("chapter 10: tied, std 0.0208", 10),
                          ("chapter 9 with an embedding of std 0.0208", "9, small embedding")):
        yield row(name, [ends[chapter, 1337], ends[chapter, 1338]], ".2f", 44)
    lost = [ends[10, seed] - ends[9, seed] for seed in (1337, 1338)]
    yield row("chapter 10 minus chapter 9", lost, ".2f", 44)
    yield ""
    yield "six tokens in the vocabulary; the text is 0 1 0 1; one backward"
    for tied in (False, True):
        wte, head = torch.nn.Embedding(6, 2), torch.nn.Linear(2, 6, bias=False)
        if tied:
            wte.weight = head.weight
        F.cross_entropy(head(wte(torch.tensor([0, 1, 0]))), torch.tensor([1, 0, 1])).backward()
        n = wte.weight.grad.any(dim=1).sum()
        yield f"{'tied' if tied else 'untied':<8} rows of the embedding with a gradient: {n} of 6"


def adam(gradients, beta2=0.95, lr=0.1, weight_decay=0.1, coupled=False):
    """
    AdamW on one weight that begins at 1: yields w, m, v and the direction after each gradient.
    coupled: the decay is added to the gradient, as Adam did before AdamW
    """
    w, m, v = 1.0, 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        if coupled:
            g = g + weight_decay * w
        else:
            w -= lr * weight_decay * w
        m = 0.9 * m + 0.1 * g  # running mean of the gradients
        v = beta2 * v + (1 - beta2) * g * g  # running mean of their squares
        # both began at 0: so far the weights in each mean sum to 1 - beta^t only
        direction = m / (1 - 0.9**t) / (math.sqrt(v / (1 - beta2**t)) + 1e-8)
        w -= lr * direction
        yield w, m, v, direction


def directions(gradients, beta2):
    return [direction for _, _, _, direction in adam(gradients, beta2)]


def adamw():
    gradients = [4.0, 2.0, 3.0]
    w, m, v, direction = zip(*adam(gradients), strict=True)
    yield "in each step: m = 0.9 m + 0.1 g    v = 0.95 v + 0.05 g^2"
    yield row("step", ["1", "2", "3"])
    yield row("gradient g", gradients, ".1f")
    yield row("m", m)
    yield row("v", v)
    yield row("m / (1 - 0.9^t)", [m[t] / (1 - 0.9 ** (t + 1)) for t in range(3)])
    yield row("v / (1 - 0.95^t)", [v[t] / (1 - 0.95 ** (t + 1)) for t in range(3)])
    yield row("direction", direction)
    yield row("w with AdamW", w)
    yield row("w with SGD", [1 - 0.1 * g for g in accumulate(gradients)])
    yield row("AdamW, 100 g", [w for w, _, _, _ in adam([100 * g for g in gradients])])
    yield row("SGD, 100 g", [1 - 0.1 * 100 * g for g in accumulate(gradients)])
    yield f"step 1 without the corrections: m / sqrt(v) = {m[0] / math.sqrt(v[0]):.3f}"
    [(_, m, v, _)] = adam(gradients[:1], beta2=0.999)
    yield f"                      with beta2 = 0.999: {m / math.sqrt(v):.3f}"


def decay():
    yield "two weights of 1; 100 steps with lr 0.01 and decay 0.1; the gradient's sign alternates"
    yield row("size of the gradient", ["10", "0.1"], width=28)
    for name, coupled in (("decay in the gradient", True), ("decoupled decay (AdamW)", False)):
        ends = [[*adam([size, -size] * 50, 0.95, 0.01, 0.1, coupled)][-1][0] for size in (10, 0.1)]
        yield row(name, ends, width=28)


def beta2():
    betas = [0.95, 0.99, 0.999]
    yield row("beta2", map(str, betas), width=50)
    yield row("memory of v in steps, 1 / (1 - beta2)", [1 / (1 - b) for b in betas], ".0f", 50)
    grown = [max(directions([1.0] * 5000 + [10.0] * 30, b)) for b in betas]
    yield row("gradients grow from 1 to 10: longest direction", grown, ".2f", 50)
    # the direction falls below a half within 20 steps, as m forgets; then v has to
    waits = [next(t for t, d in enumerate(directions([1.0] * 5000 + [0.1] * 5000, b)[5000:], 1)
                  if t > 20 and d > 0.5) for b in betas]
    yield row("they fall to a tenth: steps until direction is 0.5", waits, ",.0f", 50)


def clipping():
    gradients = [1.0] * 500 + [-100.0] + [1.0] * 200
    shown = [0, 1, 2, 11, 21, 51, 101]
    yield row("steps since", ["before", "spike", "1", "10", "20", "50", "100"])
    for name, largest in (("gradient 1, once -100", 100), ("the same, clipped at 1", 1)):
        steps = [*adam([max(g, -largest) for g in gradients])][499:]
        yield name
        yield row("  m", [steps[i][1] for i in shown], ".2f")
        yield row("  sqrt(v)", [math.sqrt(steps[i][2]) for i in shown], ".2f")
        yield row("  direction", [steps[i][3] for i in shown], ".2f")
        wrong = sum(direction < 0 for _, _, _, direction in steps)
        short = max(i for i, step in enumerate(steps) if step[3] < 0.9)
        yield f"  {wrong} steps in the wrong direction, {short} steps below 0.9"
    public = read_reference()
    norms = [norm for step, norm in zip(public["step"], public["norm_a"], strict=True)
             if step > 715]
    yield f"norms of a full 124M run after its warm-up: {min(norms):.2f} to {max(norms):.2f}"


def autocast():
    dtypes = [torch.float16, torch.bfloat16, torch.float32]

    def stored(value):
        return [torch.tensor(value, dtype=dtype).item() for dtype in dtypes]
    infos = [torch.finfo(dtype) for dtype in dtypes]
    scaled = stored(1e-8 * 2**16)
    yield row("", [str(dtype).removeprefix("torch.") for dtype in dtypes], width=26)
    yield row("largest number", [info.max for info in infos], ".1e", 26)
    yield row("smallest number above 0", [info.tiny * info.eps for info in infos], ".1e", 26)
    yield row("next number after 1", [1 + info.eps for info in infos], ".7f", 26)
    yield row("1 - 0.0001 is stored as", stored(1 - 0.0001), ".4f", 26)
    yield row("a gradient of 1e-8", stored(1e-8), ".2e", 26)
    yield row("times 65536", scaled, ".2e", 26)
    yield row("/ 65536 in float32", [g / 2**16 for g in scaled], ".2e", 26)
    yield row("a gradient of 2 * 65536", stored(2.0 * 2**16), ".2e", 26)
    layer = torch.nn.Linear(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.ones(1, 2))
    y.retain_grad()
    y.sum().backward()
    tensors = {"weight": layer.weight, "output": y, "output.grad": y.grad,
               "weight.grad": layer.weight.grad}
    yield ", ".join(f"{name} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors.items())


def flash():
    scores, values = [1.0, 3.0, 2.0, 5.0], [10.0, 20.0, 30.0, 40.0]
    yield row("score", scores, ".0f")
    yield row("value", values, ".0f")
    largest, total, out = -math.inf, 0.0, 0.0
    for block in (slice(0, 2), slice(2, 4)):
        new_largest = max(largest, *scores[block])
        rescale = math.exp(largest - new_largest)
        weights = [math.exp(score - new_largest) for score in scores[block]]
        total = total * rescale + sum(weights)
        out = out * rescale + sum(w * v for w, v in zip(weights, values[block], strict=True))
        largest = new_largest
        yield f"block {block.stop // 2}: largest score {largest:.0f}, old sums times {rescale:.3f}"
        yield row("  exp(score - max)", weights)
        yield f"  sum {total:.3f}    weighted sum of values {out:.3f}    y = {out / total:.3f}"
    y = torch.tensor(scores).softmax(0) @ torch.tensor(values)
    yield f"softmax of all four at once: y = {y:.3f}"
    rows = 64 * 12 * 1024
    yield "one layer of GPT-2: B * heads * T = 64 * 12 * 1024 rows"
    yield f"  1024 weights of 2 bytes in each row: {rows * 1024 * 2 / 1e9:.2f} GB"
    yield f"  one number of 4 bytes for each row: {rows * 4 / 1e6:.1f} MB"


NEXT = ["mat", "sofa", "roof", "moon", "of"]
NEXT_LOGITS = torch.tensor([3.0, 2.0, 1.0, 0.0, -2.0])
SAMPLERS = {"temperature 1": {}, "temperature 0.5": dict(temperature=0.5),
            "temperature 2": dict(temperature=2.0), "top_k 2": dict(top_k=2),
            "top_p 0.9": dict(top_p=0.9)}


def next_probs(temperature=1.0, top_k=5, top_p=1.0):
    """The probabilities with which play.sample_token draws"""
    probs = (NEXT_LOGITS[:top_k] / temperature).softmax(0)  # the most likely token is first
    mass_before = probs.cumsum(0) - probs
    probs = probs.masked_fill(mass_before >= top_p, 0.0)
    return F.pad(probs / probs.sum(), (0, len(NEXT) - len(probs)))


def sampling():
    yield row("the cat sat on the", NEXT, width=20)
    yield row("logit", NEXT_LOGITS, ".0f", 20)
    for name, settings in SAMPLERS.items():
        yield row(name, next_probs(**settings), width=20)
    yield row("so far, temp. 1", next_probs().cumsum(0), width=20)


EXAMPLES = {f.__name__: f for f in (
    softmax, backward, accumulation, bpe, attention, heads, stream, layernorm, gelu, variance,
    logits, tying, adamw, decay, beta2, clipping, autocast, flash, sampling)}

# --------------------------------------------------------------------------------------------------
# 2 the pictures, with the pens of tools/pictures.py


def draw_merges():
    made_by = {"".join(pair): (i, pair) for i, (pair, _, _) in enumerate(MERGES, 1)}
    parts, x = [text(425, 30, "the numbers say which merge made a token; _ is a space")], 46

    def draw(token):
        """Draw the letters of a token, then what joins them -> middle and top of its box"""
        nonlocal x
        if token not in made_by:
            x += 44
            middle, y, width, look = x - 24, 330, 34, ""
        else:
            rank, pair = made_by[token]
            ends = [draw(part) for part in pair]
            middle, y = sum(end[0] for end in ends) / 2, min(end[1] for end in ends) - 46
            width, look = 68, "blue"
            parts.extend(line([end, (middle, y + 30)]) for end in ends)
            parts.append(text(middle + 38, y + 21, str(rank), "left small"))
        parts.extend([box(middle - width / 2, y, width, 30, look), text(middle, y + 21, token)])
        return middle, y

    for word in MERGES[-1][2]:
        for token in word:
            draw(token)
        x += 24
    return page(384, "Merges as trees", "The letters of low, lower and lowest are joined from "
                "below: l and o first, then lo and w, then what follows.", parts)


def draw_adamw():
    torch.manual_seed(1337)
    noise = torch.randn(120).tolist()
    gradients = [(1 if t < 60 else 0.2) * (1 + 0.5 * noise[t]) for t in range(120)]
    _, m, v, direction = zip(*adam(gradients), strict=True)
    place, parts = plot((0, 120), (-0.5, 2.5), range(0, 121, 20), {y: str(y) for y in range(3)},
                        frame=(70, 30, 750, 320))
    for t, g in enumerate(gradients):
        x, y = place(t, g)
        parts.append(f'<circle class="blue" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    root = [math.sqrt(value) for value in v]
    for i, (name, values, look) in enumerate((
            ("m, the mean", m, "medium blue"), ("sqrt(v), the usual size", root, "medium orange"),
            ("AdamW's direction", direction, "thick green"))):
        parts += [line([place(t, y) for t, y in enumerate(values)], look),
                  line([(500, 64 + 26 * i), (536, 64 + 26 * i)], look),
                  text(546, 70 + 26 * i, name, "left")]
    parts += [text(500, 44, "dots: gradients, and so SGD's steps", "left small"),
              text(445, 398, "step; at step 60 the gradients become five times smaller", "small")]
    return page(414, "m and v beside SGD", "Gradients scatter around 1, then around 0.2. SGD's "
                "steps shrink with them; AdamW's recover once v has forgotten the old size.", parts)


def draw_variance():
    place, parts = plot((0, 12), (0, 2.8), range(0, 13, 2), {y: str(y) for y in range(3)},
                        frame=(70, 30, 740, 300))
    for (variances, _), name, look in zip(streams(), ("c_proj scaled", "std 0.02 for all"),
                                          ("blue", "orange"), strict=True):
        parts.append(line([place(i, y) for i, y in enumerate(variances)], f"thick {look}"))
        x, y = place(12, variances[12])
        parts.append(text(x - 4, y - 16, f"{name}: {variances[12]:.2f}", f"right {look}"))
    parts.append(text(440, 378, "variance of the residual stream after each block of a fresh model",
                      "small"))
    return page(396, "The stream's variance by depth", "Unscaled, it grows by 0.2 a block to 2.5; "
                "scaled, it stays near 0.1.", parts)


PICTURES = {"merges": draw_merges, "adamw": draw_adamw, "variance": draw_variance}

# --------------------------------------------------------------------------------------------------
# 3 the pages

PAGES = [os.path.join(ROOT, "docs", *folder, "concepts.md") for folder in ((), ("zh",))]
EXAMPLE = re.compile(r"(<!-- example: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
DECIMAL = r"(?<![\w.])\d+\.\d+(?:e-?\d+)?"


def fill(markdown):
    """A page, with the lines of each example between its marks"""
    def write(mark):
        lines = "\n".join(line.rstrip() for line in EXAMPLES[mark[2]]())
        return f"{mark[1]}```text\n{lines}\n```\n{mark[3]}"
    return EXAMPLE.sub(write, markdown)


def stray_numbers(markdown):
    """Numbers with a decimal point in sentences, if no example of their section has them"""
    strays = []
    for section in re.split(r"^(?=## )", markdown, flags=re.MULTILINE):
        computed = "".join(mark[0] for mark in EXAMPLE.finditer(section))
        strays += [number for number in re.findall(DECIMAL, EXAMPLE.sub("", section))
                   if number not in re.findall(DECIMAL, computed)]
    return strays


def outputs():
    """What this program writes -> {path: contents}"""
    files = {}
    for path in PAGES:
        with open(path, encoding="utf-8") as f:
            files[path] = fill(f.read())
        if strays := stray_numbers(files[path]):
            raise UserError(f"{path}: no example computes {', '.join(strays)}")
    for name, draw in PICTURES.items():
        files[os.path.join(ASSETS, "concepts", f"{name}.svg")] = draw()
    return files


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)  # --help is its only flag
    for path, contents in outputs().items():
        with atomic_write(path, "w", encoding="utf-8") as f:
            f.write(contents)


if __name__ == "__main__":
    run_program(main)
