"""
Draws the pictures of docs/ as SVG, from the code and the data of this repository. A picture is 850
units wide, its text at least 15 high, its colours light or dark as the reader's browser prefers.

    python tools/pictures.py            # writes assets/*.svg

Contents
    1 pens            text, box, labelled, line, arrow, grid, page
    2 the model       block, heads, mask
    3 the data        dataflow, shift, stream
    4 the step        batch, step, micro_step, schedule
    5 curves          laptop, faults
    6 finetuning      inputs
    7 the command     PICTURES, main
"""
import argparse
import math
import os
import sys
from collections import Counter
from xml.sax.saxutils import escape

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import finetune
import train_gpt2
from plot import GPT2_VAL
from support.arithmetic import PEAKS, count_parameters
from support.files import ASSETS, asset, read_json
from support.health import read_reference
from support.tokenizer import gpt2_tokenizer, tokenize_file
from tools import ROOT

# --------------------------------------------------------------------------------------------------
# 1 pens: each returns a piece of SVG (str). look: names of classes in STYLE

WIDTH = 850
# the paper is drawn too: a browser may prefer another theme than the page has
STYLE = """
    svg { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #8c959f; --empty: #f6f8fa;
          --blue: #0969da; --blue-tint: #ddf0ff; --orange: #bc4c00; --orange-tint: #ffecdc;
          --green: #1a7f37; --green-tint: #dcf7e1; --red: #cf222e }
    @media (prefers-color-scheme: dark) {
      svg { --paper: #0d1117; --ink: #e6edf3; --soft: #9da7b1; --line: #6e7681; --empty: #161b22;
            --blue: #58a6ff; --blue-tint: #12304f; --orange: #f0883e; --orange-tint: #43260f;
            --green: #3fb950; --green-tint: #12361d; --red: #ff7b72 } }
    text { fill: var(--ink); font: 18px Helvetica, Arial, sans-serif; text-anchor: middle }
    text.small { font-size: 15px; fill: var(--soft) }
    text.left { text-anchor: start }
    text.right { text-anchor: end }
    text.bold { font-weight: bold }
    text.blue { fill: var(--blue) }
    text.orange { fill: var(--orange) }
    text.green { fill: var(--green) }
    text.red { fill: var(--red) }
    rect, circle { stroke: var(--line); stroke-width: 1.2; fill: var(--empty) }
    rect.paper { stroke: none; fill: var(--paper) }
    rect.blue, circle.blue { fill: var(--blue-tint); stroke: var(--blue) }
    rect.orange { fill: var(--orange-tint); stroke: var(--orange) }
    rect.green { fill: var(--green-tint); stroke: var(--green) }
    rect.frame { fill: none; stroke-dasharray: 6 5 }
    polyline { fill: none; stroke: var(--line); stroke-width: 1.5 }
    polyline.medium { stroke-width: 2.2 }
    polyline.thick { stroke-width: 3 }
    polyline.river { stroke-width: 7 }
    polyline.dashed { stroke-dasharray: 6 5 }
    polyline.blue { stroke: var(--blue) }
    polyline.orange { stroke: var(--orange) }
    polyline.green { stroke: var(--green) }
    polyline.red { stroke: var(--red) }
    polyline.ink { stroke: var(--ink) }
    polygon.band { fill: var(--blue); opacity: 0.25 }
    polygon.tip { fill: var(--line) }
"""


def text(x, y, words, look=""):
    return f'<text class="{look}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def box(x, y, width, height, look="", round=4):
    return (f'<rect class="{look}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'rx="{round}"/>')


def labelled(x, y, width, height, look, words, below=""):
    """A box with a word in it, and a smaller line of text below the word if there is one."""
    middle = x + width / 2
    drawn = box(x, y, width, height, look)
    if below:
        return (drawn + text(middle, y + height / 2 - 4, words)
                + text(middle, y + height / 2 + 16, below, "small"))
    return drawn + text(middle, y + height / 2 + 6, words)


def written(points):
    """A list of (x, y), as SVG wants it"""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def line(points, look=""):
    return f'<polyline class="{look}" points="{written(points)}"/>'


def arrow(points, look=""):
    """A line that ends in a tip. Its last piece must be horizontal or vertical."""
    (x0, y0), (x, y) = points[-2:]
    length = math.dist((x0, y0), (x, y))
    dx, dy = (x - x0) / length, (y - y0) / length  # where it points
    back = (x - 9 * dx, y - 9 * dy)
    left = (back[0] - 5 * dy, back[1] + 5 * dx)
    right = (back[0] + 5 * dy, back[1] - 5 * dx)
    tip = " ".join(f"{px:g},{py:g}" for px, py in ((x, y), left, right))
    return line([*points[:-1], back], look) + f'<polygon class="tip" points="{tip}"/>'


def grid(x, y, size, looks):
    """A matrix of square cells. looks: a list of rows, each a list of looks"""
    cells = []
    for i, row in enumerate(looks):
        for j, look in enumerate(row):
            cells.append(box(x + j * size, y + i * size, size, size, look, round=0))
    return "".join(cells)


def page(height, title, description, parts):
    """The parts of a picture -> the file (str). description: for those who cannot see it"""
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}">\n<title>{escape(title)}</title>\n'
            f"<desc>{escape(description)}</desc>\n<style>{STYLE}</style>\n")
    paper = box(0, 0, WIDTH, height, "paper", round=8)
    return head + "\n".join([paper, *parts]) + "\n</svg>\n"


# --------------------------------------------------------------------------------------------------
# 2 the model


def branch(x, y, norm, layer, width, remark):
    """A branch of the block: it leaves the stream at x, passes two boxes, and is added to it"""
    end = x + 130 + width
    return [
        arrow([(x, y), (x, 120), (x + 24, 120)]), labelled(x + 24, 95, 62, 50, "", norm),
        arrow([(x + 86, 120), (x + 106, 120)]),
        labelled(x + 106, 95, width, 50, "blue", layer),
        arrow([(x + 106 + width, 120), (end, 120), (end, y - 14)]),
        text(x + 106 + width / 2, 82, remark, "small"),
        f'<circle cx="{end}" cy="{y}" r="14"/>', text(end, y + 6, "+", "bold")]


def draw_block():
    y = 230
    parts = [
        box(136, 42, 566, 236, "frame"), text(420, 30, "a block; GPT-2 has twelve of them"),
        line([(110, y), (740, y)], "river blue"),
        *branch(166, y, "ln_1", "attention", 108, "where tokens meet"),
        *branch(444, y, "ln_2", "MLP", 96, "each token alone"),
        labelled(14, y - 26, 104, 52, "", "wte + wpe"),
        labelled(722, y - 26, 114, 52, "", "lm_head", "after ln_f"),
        text(66, y + 50, "ids (B, T)", "small"), text(779, y + 50, "logits", "small"),
        text(779, y + 70, "(B, T, V)", "small"),
        text(420, y + 30, "the residual stream (B, T, C)", "blue"),
        text(420, 312, "the stream itself has only additions, so gradients flow straight "
                       "to the first block", "small")]
    return page(330, "A block and its residual stream",
                "The stream runs from the embeddings to the head. Attention and the MLP are in "
                "branches, each after a norm, and their outputs are added to the stream.", parts)


def draw_heads():
    looks, size = ["blue", "orange", "green"], 24
    T, hs = 4, 2
    token = ["blue"] * hs + ["orange"] * hs + ["green"] * hs  # its channels
    parts = [
        grid(60, 150, size, [token] * T),
        text(132, 136, "C = 3 heads of 2", "small"), text(132, 276, "(B, T, C)", "bold"),
        text(50, 203, "T", "small right"),
        arrow([(226, 198), (304, 198)]), text(264, 186, "view")]
    for head, look in enumerate(looks):
        x = 326 + head * (hs * size + 16)
        parts.append(grid(x, 150, size, [[look] * hs] * T))
        y = 44 + head * (T * size + 20)
        parts.append(grid(640, y, size, [[look] * hs] * T))
        parts.append(text(704, y + 54, f"head {head}: (T, hs)", "left small"))
    parts += [
        text(414, 276, "(B, T, nh, hs)", "bold"),
        arrow([(520, 198), (618, 198)]), text(568, 186, "transpose"), text(568, 222, "(1, 2)"),
        text(664, 402, "(B, nh, T, hs)", "bold"),
        text(60, 340, "One row of the batch. Matmuls work on the last", "left small"),
        text(60, 362, "two dimensions, so now each head has a matrix", "left small"),
        text(60, 384, "of its own, and one call computes all heads.", "left small")]
    return page(420, "From channels to heads",
                "The C channels of a token are cut into heads, and the heads become a dimension "
                "before that of the tokens.", parts)


def draw_mask():
    words = ["To", "be", ",", "or", "not", "to"]
    size, n = 46, 6
    parts = [text(216, 36, "may the row attend to the column?"),
             text(638, 36, "softmax, if all scores were equal")]
    looks = [["blue"] * (i + 1) + [""] * (n - i - 1) for i in range(n)]
    for x in (78, 500):
        parts.append(grid(x, 84, size, looks))
        for i, word in enumerate(words):
            parts.append(text(x + (i + 0.5) * size, 74, word, "small"))
            parts.append(text(x - 10, 84 + (i + 0.5) * size + 5, word, "small right"))
    for i in range(n):
        for j in range(n):
            x, y = (j + 0.5) * size, 84 + (i + 0.5) * size + 6
            parts.append(text(78 + x, y, "yes" if j <= i else "-∞", "small"))
            weight = f"{1 / (i + 1):.2f}" if j <= i else "0"
            parts.append(text(500 + x, y, weight, "small"))
    parts.append(text(425, 398, "-∞ becomes 0 in the softmax: each row sums to 1, over itself "
                                "and the past", "small"))
    return page(416, "The causal mask",
                "Each of six tokens attends to itself and to the tokens before it.", parts)


# --------------------------------------------------------------------------------------------------
# 3 the data


def draw_dataflow():
    columns, width = [10, 228, 446, 664], 176
    first = [("", "text", "FineWeb-Edu, a file"), ("blue", "fineweb.py", "text to token ids"),
             ("", "shards", "ids, 2 bytes each"),
             ("blue", "DataLoaderLite", "one stream, a position")]
    forward = [("orange", "loss", "cross-entropy"), ("blue", "model", "logits (B, T, V)"),
               ("", "x, y (B, T)", "y is x shifted by one")]
    back = [("orange", "backward", "gradients add up"), ("", "average, clip", "of all processes"),
            ("blue", "AdamW", "at the rate get_lr")]
    last = [("", "validation loss", "always the same text"),
            ("blue", "hellaswag.py", "four endings"), ("", "samples", "text it writes"),
            ("", "log/model_*.pt", "to resume, for play.py")]
    parts = [box(216, 122, 630, 236, "frame"), text(230, 146, "THE STEP", "left red bold"),
             text(330, 146, "up to backward for each micro batch", "left small")]
    for y, x, boxes in ((24, columns, first), (164, columns[1:], forward),
                        (276, columns[1:], back), (452, columns, last)):
        for left, (look, words, below) in zip(x, boxes, strict=True):
            parts.append(labelled(left, y, width, 60, look, words, below))
    for left in columns[:3]:
        parts.append(arrow([(left + width, 54), (left + width + 42, 54)]))
    for left in columns[1:3]:
        parts.append(arrow([(left + 218, 194), (left + width, 194)]))
        parts.append(arrow([(left + width, 306), (left + 218, 306)]))
    parts += [arrow([(752, 84), (752, 164)]), arrow([(316, 224), (316, 276)]),
              arrow([(752, 276), (752, 250), (534, 250), (534, 224)], "blue"),
              text(643, 244, "changes the weights", "small blue"),
              line([(534, 358), (534, 412)], "blue"), line([(98, 412), (752, 412)], "blue"),
              text(522, 390, "raw_model: the same weights, neither compiled nor wrapped",
                   "right small blue")]
    for left in columns:
        parts.append(arrow([(left + 88, 412), (left + 88, 452)], "blue"))
    return page(530, "How data flows through train_gpt2.py",
                "Text becomes shards, shards become batches. In the step a batch goes through the "
                "model to a loss, backward and AdamW change the weights. The same weights, as "
                "raw_model, go to the evals, the samples and the checkpoints.", parts)



def visible(word):
    """How a token is written in a picture"""
    return "⏎" if word == "\n" else word.strip()


def draw_shift():
    B, T, size = 2, 4, 84
    tokenizer = gpt2_tokenizer()
    with open(os.path.join(ROOT, "input.txt"), encoding="utf-8") as f:
        ids = tokenizer.encode(f.read(100))[: B * T + 1]
    words = [visible(tokenizer.decode([i])) for i in ids]
    left = (WIDTH - 9 * size) / 2
    parts = [text(left, 34, "buf: B*T + 1 tokens in a row, here B = 2, T = 4", "left")]
    for i, word in enumerate(words):
        parts.append(labelled(left + i * size, 92, size, 54, "", word, str(ids[i])))
    parts += [
        line([(left + 2, 80), (left + 8 * size - 2, 80)], "thick blue"),
        text(left + 4 * size, 70, "x = buf[:-1]", "blue"),
        line([(left + size + 2, 158), (left + 9 * size - 2, 158)], "thick orange"),
        text(left + 5 * size, 182, "y = buf[1:]", "orange")]
    for look, name, shift, x in (("blue", "x", 0, 40), ("orange", "y", 1, 474)):
        parts.append(text(x, 236, f"{name}.view(B, T)", f"left {look}"))
        for i in range(B * T):
            row, column = divmod(i, T)
            parts.append(labelled(x + column * size, 248 + row * 46, size, 46, look,
                                  words[i + shift]))
    parts.append(text(425, 376, "each y is the token after the x at its place; the last y is "
                                "the first x of the next batch", "small"))
    return page(396, "x shifted to y",
                "Of nine tokens the first eight are x, and the last eight are y.", parts)


def slices(x, y, names, looks):
    """Pieces of the stream, 60 wide, with the process that reads each"""
    drawn = []
    for i, name in enumerate(names):
        drawn.append(labelled(x + 60 * i, y, 60, 42, looks[name], f"p{name}"))
    return drawn


def draw_stream():
    x, looks = 65, ["blue", "orange"]
    steps = []
    for step in range(6):
        steps.append(text(x + 60 + 120 * step, 254, f"step {step}", "small"))
        steps.append(line([(x + 4 + 120 * step, 234), (x + 116 + 120 * step, 234)], "ink"))
    parts = [
        text(x, 34, "the shards of a split are one stream of tokens", "left"),
        labelled(x, 46, 330, 42, "", "shard 1"), labelled(x + 330, 46, 270, 42, "", "shard 2"),
        labelled(x + 600, 46, 120, 42, "", "shard 1 again"),
        text(x, 126, "two processes: each piece is B*T tokens, process r reads at position + B*T*r",
             "left"),
        *slices(x, 138, [0, 1, 0, 1, 0, 1], looks),
        text(x, 222, "the same steps, however the work is split", "left small"), *steps,
        line([(x + 360, 134), (x + 360, 346)], "thick dashed red"),
        text(x + 372, 164, "stopped: the checkpoint holds", "left small"),
        text(x + 372, 184, "position = 6 * B*T, nothing else", "left red small"),
        text(x + 348, 306, "resumed with one process:", "right"),
        text(x + 348, 330, "two micro steps instead", "right small"),
        *slices(x + 360, 286, [0, 0, 0, 0, 0, 0], looks),
        text(x, 372, "nothing is read twice, nothing is left out", "left small")]
    return page(396, "The stream and its position",
                "Two processes take turns in the stream. One that resumes goes on at the position "
                "of the checkpoint, with the same tokens in each step.", parts)


# --------------------------------------------------------------------------------------------------
# 4 the step


def draw_batch():
    looks = ["blue", "orange", "green", ""]
    parts = [text(425, 34, "524,288 tokens a step = 512 rows of 1,024, with B = 64 rows at a time")]
    for i, (processes, micro_steps) in enumerate(((1, 8), (2, 4), (8, 1))):
        x, y, width, height = 50 + 270 * i, 112, 210, 224
        plural = "es" if processes > 1 else ""
        parts.append(text(x + width / 2, 76, f"{processes} process{plural}", "bold"))
        times = "s" if micro_steps > 1 else ""
        parts.append(text(x + width / 2, 98, f"{micro_steps} micro step{times}", "small"))
        w, h = width / processes, height / micro_steps
        for micro_step in range(micro_steps):
            for process in range(processes):
                look = looks[process % 3]
                cell = x + process * w, y + micro_step * h
                parts.append(box(*cell, w, h, look, round=0))
                name = f"p{process}"
                parts.append(text(cell[0] + w / 2, cell[1] + h / 2 + 5, name, "small"))
    parts += [arrow([(30, 112), (30, 336)]),
              text(425, 372, "down: one after another, gradients add up; across: in parallel, "
                             "gradients are averaged", "small"),
              text(425, 396, "the same tokens, the same gradient, the same step", "small")]
    return page(414, "Micro steps times processes",
                "One process takes eight micro steps, two take four each, eight take one: the "
                "batch is the same.", parts)


def lane(y, name):
    """The step of one process on the line of time: three micro steps -> parts"""
    parts = [text(76, y + 27, name, "right")]
    x = 90
    for _ in range(3):
        parts += [labelled(x, y, 74, 42, "blue", "forward"),
                  labelled(x + 74, y, 104, 42, "orange", "backward")]
        x += 184
    return [*parts, labelled(x + 6, y, 46, 42, "", "clip"),
            labelled(x + 58, y, 84, 42, "", "AdamW")]


def draw_step():
    parts = [
        line([(90, 62), (90, 50), (784, 50), (784, 62)], "ink"),
        text(437, 40, "dt: the clock covers only this"),
        *lane(112, "p0"), *lane(220, "p1")]
    for micro_step in range(3):
        parts.append(text(179 + 184 * micro_step, 92, f"micro step {micro_step}", "small"))
    parts += [
        box(548, 160, 88, 54, "green"), text(592, 183, "average", "green"),
        text(592, 203, "gradients", "green"),
        line([(456, 106), (456, 290)], "dashed red thick"),
        text(456, 312, "require_backward_grad_sync = True", "red"),
        text(456, 334, "set before the last forward: after it, it acts "
                       "one micro step too late", "small"),
        text(96, 192, "gradients add up in each process", "left small"),
        text(792, 178, "then the evals", "small right"),
        text(792, 198, "and saving", "small right")]
    return page(352, "The step on a time line",
                "Each process goes forward and backward for each micro step. While the last "
                "backward still computes, gradients are averaged; then clip and update.", parts)


def draw_micro_step():
    measured = read_json(asset("h200.json"))
    micro, tokens = measured["micro_step"], measured["ours"]["B"] * measured["ours"]["T"]
    config = train_gpt2.GPTConfig()
    weights = count_parameters(config) - config.block_size * config.n_embd  # wpe multiplies nothing
    tflop = 6 * weights * tokens / 1e12
    tflops = tflop / micro["products_ms"] * 1000
    gaps = micro["micro_ms"] - micro["kernels_ms"]
    x, y, height, scale = 40, 76, 90, 770 / micro["micro_ms"]
    parts = [text(x, 36, f"a micro-step of {tokens:,} tokens on one {measured['card']}: "
                         f"{micro['micro_ms']:.1f} ms", "left")]
    for look, name, ms in (("blue", "matrix products", micro["products_ms"]),
                           ("orange", "attention", micro["attention_ms"]),
                           ("green", "everything else", micro["other_ms"])):
        parts.append(labelled(x, y, ms * scale, height, look, name, f"{ms:.1f} ms"))
        x += ms * scale
    parts += [
        box(x, y, gaps * scale, height),
        text(40, 196, f"6 operations x {weights / 1e6:.1f}M weights x {tokens:,} tokens = "
                      f"{tflop:.1f} TFLOP", "left small"),
        text(40, 218, f"in {micro['products_ms']} ms: {tflops:.0f} TFLOP/s of {PEAKS['H200']}",
             "left small"),
        text(810, 196, "GELU, norms, softmax, casts", "right small"),
        text(810, 218, f"{gaps:.1f} ms between kernels, or not in the profile", "right small")]
    return page(240, "Where the time of a micro-step goes",
                "More than half of a micro-step on the card are matrix products. Attention takes a "
                "seventh, everything else more than a quarter.", parts)


def plot(x_range, y_range, x_ticks, y_ticks, frame):
    """
    Two axes -> place, parts; place(x, y) says where a point of the data is in the picture. x_ticks:
    values; y_ticks: {value: label}; frame: left, top, width, height
    """
    left, top, width, height = frame

    def place(x, y):
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return left + across * width, top + (1 - up) * height
    bottom = top + height
    parts = [line([(left, top), (left, bottom), (left + width, bottom)], "ink")]
    for value in x_ticks:
        x, y = place(value, y_range[0])
        parts += [line([(x, y), (x, y + 6)], "ink"), text(x, y + 24, f"{value:,}", "small")]
    for value, label in y_ticks.items():
        x, y = place(x_range[0], value)
        parts += [line([(x - 6, y), (x, y)], "ink"), text(x - 11, y + 5, label, "small right")]
    return place, parts


def draw_schedule():
    config = train_gpt2.TrainConfig()
    last = config.max_steps
    rates = {0: "0", config.min_lr: "6e-5", config.max_lr: "6e-4"}
    place, parts = plot((0, last), (0, 7e-4), [0, 5000, 10000, 15000, last], rates,
                        frame=(90, 40, 720, 290))
    steps = [*range(0, config.warmup_steps, 5), *range(config.warmup_steps, last, 100), last]
    curve = [place(step, train_gpt2.get_lr(step, config)) for step in steps]
    peak, end = place(config.warmup_steps, config.max_lr), place(last, config.min_lr)
    parts += [
        line([place(0, config.min_lr), end], "dashed"), line(curve, "thick blue"),
        text(peak[0] + 14, peak[1] - 12, f"warm-up: {config.warmup_steps} steps, a straight line",
             "left"),
        text(place(9600, 0)[0], place(0, 4.2e-4)[1], "half a cosine", "left"),
        text(place(2000, 0)[0], end[1] - 10, "a tenth of the highest rate", "left"),
        text(450, 378, "step", "small")]
    return page(394, "The learning rate",
                "It climbs for 715 steps, then follows half a cosine down to a tenth.", parts)


# --------------------------------------------------------------------------------------------------
# 5 curves


def costs_of_counting(train, val, longest):
    """
    The loss of n-gram models counted on train, in nats per character of val -> list, n = 1, 2 ...
    Where an n-gram is rare, the model backs off to shorter ones (Witten and Bell 1991).
    """
    probs = [1 / len(set(train))] * len(val)
    costs = []
    for length in range(1, longest + 1):
        counts = Counter(train[i : i + length] for i in range(len(train) - length + 1))
        seen, kinds = Counter(), Counter()  # after a piece: characters, and different characters
        for piece, n in counts.items():
            seen[piece[:-1]] += n
            kinds[piece[:-1]] += 1
        for i in range(length - 1, len(val)):
            piece = val[i - length + 1 : i + 1]
            past = piece[:-1]
            if seen[past] > 0:
                trusted = counts[piece] + kinds[past] * probs[i]
                probs[i] = trusted / (seen[past] + kinds[past])
        costs.append(-sum(map(math.log, probs)) / len(val))
    return costs


def draw_laptop():
    curve = [(int(step), *values)
             for step, values in read_json(asset("laptop_curve.json"))["val"].items()]
    tokenizer, train, val = tokenize_file(os.path.join(ROOT, "input.txt"), "char")
    train, val = (tokenizer.decode(part[0].tolist()) for part in (train, val))
    costs = costs_of_counting(train, val, 4)
    last, loss, _ = curve[-1]
    place, parts = plot((0, last), (1.5, 5.2), [0, 1000, 2000, 3000, last],
                        {y: str(y) for y in (2, 3, 4, 5)}, frame=(70, 30, 750, 340))
    names = ["single characters", "bigrams", "trigrams", "four-grams"]
    lines = [("a uniform guess", math.log(128)), *zip(names, costs, strict=True)]
    for name, cost in lines:
        parts.append(line([place(0, cost), place(last, cost)], "dashed"))
        x, y = place(last, cost)
        below = name == "four-grams"
        parts.append(text(x, y + 20 if below else y - 8, f"{name} {cost:.2f}", "right small"))
    band = [place(step, mean + 3 * spread) for step, mean, spread in curve]
    band += [place(step, mean - 3 * spread) for step, mean, spread in reversed(curve)]
    means = [place(step, mean) for step, mean, _ in curve]
    parts += [f'<polygon class="band" points="{written(band)}"/>', line(means, "thick blue"),
              *(f'<circle class="blue" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in means),
              text(place(350, 0)[0], place(0, 2.78)[1], f"the laptop preset ends at {loss:.2f}",
                   "left blue"),
              text(445, 418, "step; loss in nats per character, of ten seeds (band: three times "
                             "their standard deviation)", "small")]
    return page(434, "The laptop's loss and n-gram counts",
                "The validation loss of the laptop preset falls below the losses of single "
                "characters, bigrams and trigrams, and ends just above four-grams.", parts)


def draw_reference():
    columns = read_reference()
    runs = [[(step, loss) for step, loss in zip(columns["step"], columns[name], strict=True)
             if step >= 500] for name in ("val_a", "val_b")]
    last = int(runs[0][-1][0])
    place, parts = plot((0, last), (2.9, 5.4), [0, 5000, 10000, 15000, last],
                        {y: str(y) for y in (3, 3.5, 4, 4.5, 5)}, frame=(70, 30, 750, 340))
    parts += [line([place(*point) for point in runs[0]], "thick blue"),
              line([place(*point) for point in runs[1]], "dashed orange"),
              line([place(0, GPT2_VAL), place(last, GPT2_VAL)], "dashed"),
              text(place(8000, 0)[0], place(0, 3.33)[1], "OpenAI's GPT-2 124M: 3.29", "left small")]
    for step, loss, dx, look, label in (
            (1000, 4.88, 14, "left red", "sync flag set too late: 4.88 at step 1000"),
            (last, 3.1681, -14, "right red", "no warm-up: 3.168")):
        x, y = place(step, loss)
        parts.append(f'<circle class="blue" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(text(x + dx, y + 5, label, look))
    parts += [line([(470, 52), (506, 52)], "thick blue"), text(518, 58, "run A", "left"),
              line([(470, 80), (506, 80)], "dashed orange"), text(518, 86, "run B", "left"),
              text(445, 418, "step; validation loss in nats per token", "small")]
    return page(434, "The validation loss of two public runs",
                "From 5.3 at step 500 to 3.07 at the end. After a third of the run it is below "
                "OpenAI's GPT-2. Two faults lie above the curve.", parts)


def draw_faults():
    faults = read_json(asset("fault_curves.json"))["curves"]
    looks = ["thick ink", "medium orange", "medium blue", "medium red", "medium green"]
    highest = 4.6
    place, parts = plot((0, 500), (2.2, highest), range(0, 501, 100),
                        {y: str(y) for y in (2.5, 3, 3.5, 4)}, frame=(70, 30, 750, 330))
    for i, (name, fault) in enumerate(faults.items()):
        points = [place(step, loss) for step, loss in fault["train"] if loss < highest]
        parts.append(line(points, looks[i]))
        y = 62 + 28 * i
        parts.append(line([(420, y - 6), (456, y - 6)], looks[i]))
        parts.append(text(468, y, f"{name}: {fault['val']:.2f}", "left"))
    parts.append(text(445, 408, "step; train loss of 20 steps, nats per character. Figures: "
                                "validation loss at the end", "small"))
    return page(424, "What the common faults look like",
                "Train losses of five short runs on a laptop: a correct one, and four with one "
                "fault each.", parts)


# --------------------------------------------------------------------------------------------------
# 6 finetuning


def draw_row(y, row):
    """
    Draw a row of one of finetune.py's tasks, in which special tokens are the numbers 0 to 2, and
    texts are names -> boxes, x of their end
    """
    names = ("start", "delimiter", "extract")
    parts, x = [], 104
    for word in row:
        is_special = word in range(len(names))
        width = 86 if is_special else 106
        look, words = ("orange", names[word]) if is_special else ("blue", word)
        parts.append(labelled(x, y, width, 34, look, words))
        x += width + 8
    return parts, x


def draw_inputs():
    inputs = {
        "classify": (["text"], "a label"),
        "entail": (["premise", "hypothesis"], "a label"),
        "compare": (["a", "b"], "added: label or score"),
        "choose": (["context", "ending 1", "ending 2"], "the highest score wins"),
        "embed": (["text"], "a vector, the mean of all"),
    }
    parts, y = [], 24
    for task, (texts, answer) in inputs.items():
        parts.append(text(16, y + 23, task, "left bold"))
        rows = finetune.TASKS[task]().rows([[name] for name in texts], range(4))
        ends = []
        for i, row in enumerate(rows):
            drawn, end = draw_row(y + 42 * i, row)
            parts += drawn
            ends.append(end)
        middle = y + 17 + 21 * (len(rows) - 1)
        for i, end in enumerate(ends):
            parts.append(line([(end - 4, y + 17 + 42 * i), (632, y + 17 + 42 * i), (632, middle)]))
        parts.append(arrow([(632, middle), (650, middle)]))
        parts.append(text(656, middle + 5, answer, "left small"))
        y += 42 * len(rows) + 18
    return page(y + 2, "Five ways to write an input",
                "Start, delimiter and extract are new tokens around the texts. The answer is read "
                "at extract; for embed it is a mean over all tokens.", parts)


# --------------------------------------------------------------------------------------------------
# 7 the command

PICTURES = {"block": draw_block, "heads": draw_heads, "mask": draw_mask,
            "dataflow": draw_dataflow, "shift": draw_shift, "stream": draw_stream,
            "batch": draw_batch, "step": draw_step, "micro_step": draw_micro_step,
            "schedule": draw_schedule, "laptop_curve": draw_laptop,
            "reference": draw_reference, "faults": draw_faults, "inputs": draw_inputs}


def main(argv):
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    for name, draw in PICTURES.items():
        with open(os.path.join(ASSETS, f"{name}.svg"), "w", encoding="utf-8") as f:
            f.write(draw())


if __name__ == "__main__":
    main(sys.argv[1:])
