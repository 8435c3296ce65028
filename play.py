"""
What you do with a trained model: let it write, chat with it, plot its run, export it.

    python play.py sample MODEL "To be, or" --num_samples=4  # or @prompt.txt; - is stdin
    python play.py chat MODEL                                # it continues what you type
    python play.py look MODEL "To be, or" --out=look.html    # token by token, on a page
    python play.py plot log log2 --out=log.png --reference   # beside two public runs
    python play.py export MODEL DIR                          # for transformers
    python play.py search MODEL passages.jsonl "a question"  # by meaning; see finetune.py
    python play.py info MODEL                                # sizes, loss, settings
    python play.py estimate                                  # what fits on which card

MODEL is a checkpoint (log/model_19073.pt, or one of the original build-nanogpt), a
directory with a GPT-2 in Hugging Face's format, or gpt2, gpt2-medium, gpt2-large,
gpt2-xl. The tokenizer comes with it.

Contents
    1 the model and the prompt      load, check_sampling, read_prompt, tokenize
    2 the cache and generation      KVCache, next_logits, sample_token, stream, generate
    3 writing                       sample, pieces, chat
    4 a picture of a run            plot
    5 exporting                     export
    6 searching                     search
    7 what is in it, what it needs  info, estimate
    8 looking inside                show_look
    9 the command line              COMMANDS, parse_args, main

Each command is a function of args, the parsed flags. It prints what it finds. A mistake
that you can put right is a UserError: one line, and exit code 2.

Letters in the comments on shapes
    B rows in a batch   T tokens in a row (time)   C channels, n_embd   nh heads, hs = C / nh
    V rows of the vocabulary
"""
import argparse
import contextlib
import inspect
import os
import shutil
import sys
import warnings
from itertools import islice
from typing import NamedTuple

import torch
from torch.nn import functional as F

import finetune
import look
import train_gpt2
from support.arithmetic import CARDS, SHAPE, flops_per_token, largest
from support.attention import attention_for_any_shape
from support.console import UserError, printable, run_program
from support.files import MARK, atomic_write
from support.health import read_reference
from support.hellaswag_file import read_examples
from support.hugging_face import save_pretrained
from support.processes import is_out_of_memory
from support.runlog import find_setting, read_log
from support.tasks import check_text, read_items, read_task
from support.tokenizer import load_tokenizer, save_tokenizer

# -------------------------------------------------------------------------------------------------
# 1 the model and the prompt

OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def load(name, device="cpu"):
    """
    MODEL -> the GPT on device, in eval mode; its tokenizer; what the file holds (dict of
    config, step, ...). Raises UserError for anything that is not a language model.
    """
    saved = train_gpt2.load_model(name)
    if "task" in saved:
        raise UserError(f"{name} is tuned for {read_task(saved).name} and writes no text: python "
                        "finetune.py predict")
    model = train_gpt2.GPT(train_gpt2.GPTConfig(**saved["config"]))
    model.load_state_dict(saved["model"])
    tokenizer = load_tokenizer(saved["tokenizer"])
    if tokenizer.n_vocab > model.config.vocab_size:
        raise UserError(f"{name} knows {model.config.vocab_size} tokens, its tokenizer "
                        f"{tokenizer.n_vocab}: they do not belong together")
    return model.eval().to(device), tokenizer, saved


def prepare(args):
    """
    args.model, args.device, args.dtype -> the model on that device, its tokenizer, and
    the Process, with training's autocast.
    """
    config = train_gpt2.TrainConfig(device=args.device, dtype=args.dtype)
    process = train_gpt2.setup_distributed(config)
    model, tokenizer, _ = load(args.model, process.device)
    return model, tokenizer, process


SAMPLING = ("temperature", "top_k", "top_p")  # how the next token is drawn
SETTINGS = (*SAMPLING, "max_new_tokens", "seed")  # what you can change in a chat
LIMITS = {  # smallest and largest value
    "temperature": (0, 1e6),
    "top_k": (1, 1e9),
    "top_p": (1e-9, 1),
    "max_new_tokens": (1, 1e9),
    "num_samples": (1, 1000),  # rows of one batch, each with its own keys and values
    "seed": (0, 2**63 - 1),
}


def check_sampling(settings):
    """UserError for values that cannot work. settings: {name in LIMITS: number}"""
    for name, value in settings.items():
        least, most = LIMITS[name]
        # nan fails too: every comparison with it is false
        if not least <= value <= most:
            raise UserError(f"{name} {value} cannot be used: it must be between "
                            f"{least:g} and {most:g}")


def read_prompt(text):
    """
    The prompt argument -> the prompt: the text itself, or the contents of a file (@name)
    or of stdin (-), without the newline that editors add at the end. Raises UserError if
    there is no such file, or no text in it.
    """
    if text == "-":
        return sys.stdin.read().removesuffix("\n")
    if not text.startswith("@"):
        return text
    path = text.removeprefix("@")
    # not a pipe: without a writer, opening it would block forever
    if not os.path.isfile(path):
        raise UserError(f"cannot read the prompt from {path}: there is no such file")
    try:
        with open(path, encoding="utf-8") as f:
            return f.read().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read the prompt from {path}: {e}")


def tokenize(tokenizer, text):
    """
    A prompt -> its ids (list). An empty prompt is the beginning of a document, which is
    <|endoftext|>; UserError if the tokenizer has no such token.
    """
    # typed bytes that are not UTF-8 arrive as lone surrogates, which no tokenizer knows
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    ids = tokenizer.encode(text)
    if ids:
        return ids
    if tokenizer.eot is None:
        raise UserError("the prompt is empty, and this tokenizer has no <|endoftext|> "
                        "to start from: give a prompt")
    return [tokenizer.eot]


# -------------------------------------------------------------------------------------------------
# 2 the cache and generation


class KVCache:
    """
    Keys and values of the tokens so far: an attend for GPT.hidden. Attention is causal, so
    the keys and values of a token never change, and need to be computed only once.
    """

    def __init__(self, size):
        self.size = size  # number of tokens it has room for
        self.n = 0  # number of tokens cached so far
        self.keys = {}  # attention layer -> (B, nh, size, hs)
        self.values = {}

    def __call__(self, layer, q, k, v):
        """
        Append the keys and values of T new tokens; the new tokens attend to all cached ones.
        q, k, v (B, nh, T, hs) -> (B, nh, T, hs)
        """
        B, nh, T, hs = k.size()
        if layer not in self.keys:
            self.keys[layer] = k.new_empty(B, nh, self.size, hs)
            self.values[layer] = v.new_empty(B, nh, self.size, hs)
        end = self.n + T
        self.keys[layer][:, :, self.n : end] = k
        self.values[layer][:, :, self.n : end] = v
        keys = self.keys[layer][:, :, :end]  # (B, nh, n + T, hs)
        values = self.values[layer][:, :, :end]
        if self.n == 0:
            return F.scaled_dot_product_attention(q, keys, values, is_causal=True)
        if T == 1:  # the newest token sees everything
            return F.scaled_dot_product_attention(q, keys, values)
        # mask[i, j]: may new token i attend to token j? (is_causal would let new token i see
        # tokens 0 to i only)
        mask = torch.ones(T, end, dtype=torch.bool, device=q.device).tril(diagonal=self.n)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    def advance(self, T):
        """T new tokens have gone through all layers. Call it once after each forward."""
        self.n += T


def next_logits(model, idx, cache):
    """
    idx (B, T), the tokens after those in cache (a KVCache, which appends them) -> logits
    (B, V) of the token that follows.
    """
    T = idx.size(1)
    position_ids = torch.arange(cache.n, cache.n + T, device=idx.device)
    with attention_for_any_shape():
        x = model.hidden(idx, position_ids, cache)[:, -1]  # (B, C)
    cache.advance(T)
    # lm_head(x), multiplied in the other order, which is faster for few rows
    return (model.lm_head.weight @ x.mT).mT  # (B, V)


def sample_token(logits, temperature, top_k, top_p, generator):
    """Draw a token for each row: logits (B, V) -> ids (B, 1). The other arguments: stream."""
    if temperature < 1e-6:
        return logits.argmax(dim=-1, keepdim=True)
    values, ids = logits.topk(min(top_k, logits.size(1)))  # (B, top_k), most likely first
    probs = F.softmax(values / temperature, dim=-1)
    mass_before = probs.cumsum(dim=-1) - probs  # total probability of the likelier tokens
    probs = probs.masked_fill(mass_before >= top_p, 0.0)
    choice = torch.multinomial(probs, 1, generator=generator)  # (B, 1), an index into ids
    return ids.gather(1, choice)


@torch.no_grad()
def stream(model, idx, n_vocab=None, temperature=1.0, top_k=50, top_p=1.0, generator=None):
    """
    Continue idx (B, T): yield the next token of each row, (B, 1), forever.
        n_vocab      number of real tokens; ids from there on are padding, never sampled
        temperature  below 1 safer, above 1 wilder, 0: always the most likely token
        top_k        sample from the k most likely tokens only
        top_p        and from the fewest of these whose probabilities add up to top_p
                     (Holtzman et al. 2020)
    """
    size = model.config.block_size
    window = size  # how many of the latest tokens a new cache starts with
    while True:
        cache = KVCache(size)
        new = idx[:, -window:]
        while cache.n < size:
            logits = next_logits(model, new, cache)[:, :n_vocab].float()
            new = sample_token(logits, temperature, top_k, top_p, generator)  # (B, 1)
            idx = torch.cat((idx, new), dim=1)
            yield new
        # the cache is full: drop the older half. The rest moves to other positions, so its
        # keys and values are computed again
        window = size - size // 2


def generate(model, idx, max_new_tokens, n_vocab=None, eot=None, **sampling):
    """
    idx (B, T), continued -> (B, T + max_new_tokens). eot: the id of <|endoftext|>; after the
    first new eot of a row, every token is eot. sampling: more arguments of stream.
    """
    tokens = stream(model, idx, n_vocab, **sampling)
    nothing = idx[:, :0]  # cat needs at least one tensor, even if max_new_tokens is 0
    new = torch.cat([nothing, *islice(tokens, max_new_tokens)], dim=1)
    if eot is not None:
        ended = (new == eot).cumsum(dim=1) > 0
        new = new.masked_fill(ended, eot)
    return torch.cat((idx, new), dim=1)


# -------------------------------------------------------------------------------------------------
# 3 writing

def sample(args):
    """Continue a prompt, once or several times, each time up to <|endoftext|>."""
    check_sampling({name: getattr(args, name) for name in (*SETTINGS, "num_samples")})
    prompt = read_prompt(args.prompt)
    model, tokenizer, process = prepare(args)
    ids = tokenize(tokenizer, prompt)

    # the model sees no more of the prompt than its context
    ids = ids[-model.config.block_size :]
    idx = torch.tensor([ids] * args.num_samples, device=process.device)  # (num_samples, T)
    generator = torch.Generator(process.device).manual_seed(args.seed)
    sampling = {name: getattr(args, name) for name in SAMPLING}
    with process.autocast:
        idx = generate(model, idx, args.max_new_tokens, tokenizer.n_vocab, tokenizer.eot,
                       generator=generator, **sampling)
    new = idx[:, len(ids):]  # (num_samples, max_new_tokens)

    for i, row in enumerate(new.tolist()):
        if args.num_samples > 1:
            print(f"--- sample {i}")
        if tokenizer.eot in row:
            row = row[: row.index(tokenizer.eot)]
        print(prompt + tokenizer.decode(row), flush=True)


def pieces(tokenizer, ids):
    """
    An iterator of ids -> yields their text, piece by piece, as soon as it is certain. A
    token may end in the middle of a character: an emoji, for one, has four bytes. The text
    so far then ends in U+FFFD, which is held back until more tokens have come.
    """
    # decode only the end: decoding the whole text each time would take quadratic time. It
    # needs some ids before it, because some tokenizers drop the space at the start of a text
    before = []
    new = []  # ids since the last complete character
    shown = 0  # number of characters of before + new that were yielded
    for i in ids:
        new.append(i)
        text = tokenizer.decode(before + new)
        certain = len(text.rstrip("\ufffd"))
        if certain > shown:
            yield text[shown:certain]
            shown = certain
        if certain == len(text):  # all characters are complete
            before, new = new, []
            shown = len(tokenizer.decode(before))
    # no more tokens will come: an incomplete last character stays incomplete
    yield tokenizer.decode(before + new)[shown:]


def continue_text(model, tokenizer, context, settings, generator):
    """
    Yield the ids that the model writes after context (a list of ids), and append each to
    context. If the model ends its text, context is emptied: a new text begins.
    """
    idx = torch.tensor([context], device=model.lm_head.weight.device)  # (1, T)
    sampling = {name: settings[name] for name in SAMPLING}
    tokens = stream(model, idx, tokenizer.n_vocab, generator=generator, **sampling)
    for new in islice(tokens, settings["max_new_tokens"]):  # each (1, 1)
        new_id = new.item()
        if new_id == tokenizer.eot:
            context.clear()
            return
        context.append(new_id)
        yield new_id


def answer(model, tokenizer, autocast, context, settings, generator):
    """
    Print what the model writes after context, token by token. Ctrl-C ends the answer; what
    was written so far stays in context.
    """
    ids = continue_text(model, tokenizer, context, settings, generator)
    try:
        with autocast:
            for piece in pieces(tokenizer, ids):
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print(flush=True)


def add_line(tokenizer, line, context):
    """
    Append a line of a chat to context (a list of ids). An empty line adds nothing: the model
    just continues. Raises UserError for characters that the tokenizer does not know.
    """
    if not context:
        context += tokenize(tokenizer, line)
    elif line:
        context += tokenize(tokenizer, "\n" + line)


def change_setting(line, settings, context, generator):
    """
    A line of a chat that begins with /: `/top_k 5` changes one of the settings (dict), `/new`
    empties context, anything else prints what can be changed. Raises UserError for a value
    that cannot work.
    """
    name, _, value = line.removeprefix("/").strip().partition(" ")
    if name == "new":
        context.clear()
        return
    if name not in settings or not value:
        for setting, current in settings.items():
            print(f"/{setting} {current}")
        print("/new forgets the text so far; an empty line lets the model continue")
        return

    number = type(settings[name])  # int or float
    try:
        new = number(value)
    except ValueError:
        raise UserError(f"/{name} {value}: this is not a number, try "
                        f"/{name} {settings[name]}")
    check_sampling({name: new})
    settings[name] = new
    if name == "seed":
        generator.manual_seed(new)


def chat(args):
    """Read a line, let the model continue the text so far, and so on, until stdin ends."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    check_sampling(settings)
    model, tokenizer, process = prepare(args)
    generator = torch.Generator(process.device).manual_seed(args.seed)

    at_terminal = sys.stdin.isatty()
    cursor = ""
    if at_terminal:
        cursor = "> "
        print("It continues what you type. Ctrl-C stops it, Ctrl-D leaves, /help lists "
              "what you can change.")
        with contextlib.suppress(ImportError):
            # with it, input() lets you edit the line and recall older ones
            import readline  # noqa: F401

    context = []  # ids of the text so far
    while True:
        try:
            line = input(cursor)
        except EOFError:
            if at_terminal:
                print()
            return
        except KeyboardInterrupt:
            print()
            continue
        try:
            if line.startswith("/"):
                change_setting(line, settings, context, generator)
            else:
                add_line(tokenizer, line, context)
                answer(model, tokenizer, process.autocast, context, settings, generator)
        except UserError as e:
            # print it and go on: one bad line does not end the conversation
            print(f"error: {e}", file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------------------
# 4 a picture of a run

# Okabe and Ito's colours, which people who see red and green alike can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# what OpenAI's models reach
GPT2_VAL = 3.2924  # nats per token, on the validation split of FineWeb-Edu
GPT2_HELLA = 0.2955  # acc_norm of GPT-2's 124M model
GPT3_HELLA = 0.337  # acc_norm of GPT-3's 125M model
TOKENS_A_STEP = 2**19  # in the original recipe


class Run(NamedTuple):
    """What a picture shows of a run."""
    path: str  # as it was given
    name: str  # of its directory; in a legend
    log: dict  # {stream: {step: value}}
    tokenizer: str  # its name
    tokens_a_step: int


def read_run(path):
    """The log directory of a run, or its log.txt -> Run. Raises UserError."""
    log, settings = read_log(path)
    folder = os.path.abspath(path.removesuffix("log.txt"))
    # the original program wrote no settings.json, and all its runs followed one recipe
    has_settings = os.path.exists(os.path.join(folder, "settings.json"))
    default = "unknown" if has_settings else "gpt2"
    tokenizer = find_setting(settings, "tokenizer", "name", default)
    tokens_a_step = find_setting(settings, "train_config", "total_batch_size", TOKENS_A_STEP)
    if not 0 < tokens_a_step < 2**48:
        tokens_a_step = TOKENS_A_STEP
    return Run(path, os.path.basename(folder), log, tokenizer, tokens_a_step)


def read_runs(paths):
    """
    Log directories -> list of Run, whose names, which stand in the legend, tell them
    apart: where two directories have one name, each is called as it was given.
    """
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    named = []
    for run in runs:
        name = printable(run.name if names.count(run.name) == 1 else run.path)
        if name.startswith("_"):
            name = f" {name}"  # matplotlib leaves out of a legend what begins with _
        named.append(run._replace(name=name))
    return named


def check_comparable(runs):
    """UserError for a run that cannot stand beside the public ones."""
    for run in runs:
        # a loss per character, say, cannot be compared with a loss per token
        if run.tokenizer != "gpt2":
            raise UserError(f"the tokenizer of {run.path} is {run.tokenizer}, not gpt2: leave "
                            "--reference out")


def draw_stream(ax, values, scale, group, fmt, **style):
    """
    Draw one stream of a log, {step: value}, as a line. scale: what a step is worth on
    the x axis; group: how many values become one point, their mean; fmt, style: of
    ax.plot.
    """
    if not values:
        return
    pairs = sorted(values.items())  # step, value
    points = torch.tensor(pairs, dtype=torch.float64)  # (n, 2)
    means = [part.mean(dim=0) for part in points.split(group)]  # each (2,)
    x, y = torch.stack(means, dim=1)  # each (n / group,)
    ax.plot(x * scale, y, fmt, markersize=3, **style)


def draw_run(axes, run, colour, tokens):
    """
    One run: its train loss thin, its validation loss on top of it, and HellaSwag, where
    there are axes for it. tokens: million tokens on the x axis instead of steps.
    """
    scale = run.tokens_a_step / 1e6 if tokens else 1
    train = run.log.get("train", {})
    val = run.log.get("val", {})
    hella = run.log.get("hella", {})
    # a single batch says little: each point is the mean of a two-hundredth of the run
    group = max(1, len(train) // 200)
    thin = dict(color=colour, linewidth=0.8)
    thick = dict(color=colour, linewidth=1.8)
    draw_stream(axes[0], train, scale, group, "-", label=f"{run.name}, train", **thin)
    draw_stream(axes[0], val, scale, 1, "o-", label=f"{run.name}, validation", **thick)
    draw_stream(axes[-1], hella, scale, 1, "o-", label=run.name, **thick)


def draw_public_runs(axes, tokens):
    """
    Two runs of the original recipe that others have published, in black. tokens: as in
    draw_run.
    """
    loss_axes, hella_axes = axes
    scale = TOKENS_A_STEP / 1e6 if tokens else 1
    columns = read_reference()
    x = [step * scale for step in columns["step"]]
    for run, fmt in (("a", "k-"), ("b", "k:")):
        style = dict(linewidth=1, label=f"public run {run}")
        loss_axes.plot(x, columns[f"val_{run}"], fmt, **style)
        hella_axes.plot(x, columns[f"hella_{run}"], fmt, **style)


def draw_openai(axes):
    """OpenAI's models. We know the end of their runs only: it is a horizontal line."""
    loss_axes, hella_axes = axes
    gpt2 = dict(color="gray", linewidth=1, linestyle="--", label="OpenAI's GPT-2 124M")
    gpt3 = dict(color="gray", linewidth=1, linestyle=":", label="OpenAI's GPT-3 125M")
    loss_axes.axhline(GPT2_VAL, **gpt2)
    hella_axes.axhline(GPT2_HELLA, **gpt2)
    hella_axes.axhline(GPT3_HELLA, **gpt3)


def loss_limits(runs, reference):
    """
    The least and the largest loss that the picture shows -> two floats. It leaves the
    first twentieth of a run out: from ln(vocab_size) down, it would flatten the rest.
    """
    losses = []
    for run in runs:
        for stream in ("train", "val"):
            values = run.log.get(stream, {})
            beginning = max(values, default=0) / 20
            losses += [loss for step, loss in values.items() if step >= beginning]
    # no losses: a log may hold nothing but HellaSwag
    if reference or not losses:
        losses += read_reference()["val_a"][4:]  # from step 1000 on
    least, most = min(losses), max(losses)
    room = 0.05 * (most - least) + 0.01
    return least - room, most + room


def import_pyplot():
    """
    matplotlib.pyplot, which draws into files here: without a screen and without TeX,
    whatever the environment or a matplotlibrc says.
    """
    # before the import, which a backend that is not installed would end
    os.environ["MPLBACKEND"] = "Agg"
    import matplotlib  # here and not above: the other commands start sooner without it
    matplotlib.rcParams["text.usetex"] = False
    from matplotlib import pyplot
    return pyplot


def save_picture(fig, path):
    """Write a figure in the format that the name ends in. Raises UserError."""
    extension = os.path.splitext(path)[1]
    try:
        with atomic_write(path) as f, warnings.catch_warnings():
            # a character that the font lacks is drawn as a box, where everybody sees it
            warnings.filterwarnings("ignore", message="Glyph")
            fig.savefig(f, format=extension.removeprefix("."))
    except OSError as e:
        raise UserError(f"cannot write {path} ({e.strerror}): choose another place with "
                        "--out")
    print(f"wrote {path}")


def plot(args):
    """Losses of runs, and HellaSwag where it was measured, as a picture."""
    if os.path.splitext(args.out)[1] not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out={args.out}: the name must end in .png, .svg or .pdf")
    runs = read_runs(args.logs)
    if args.reference:
        check_comparable(runs)
    with_hellaswag = args.reference or any("hella" in run.log for run in runs)
    panels = 2 if with_hellaswag else 1

    pyplot = import_pyplot()
    fig, grid = pyplot.subplots(1, panels, figsize=(8.5, 4), dpi=100, layout="constrained",
                                squeeze=False)
    axes = grid[0]

    for i, run in enumerate(runs):
        draw_run(axes, run, COLOURS[i % len(COLOURS)], args.tokens)
    if args.reference:
        draw_public_runs(axes, args.tokens)
    if with_hellaswag:
        draw_openai(axes)
        axes[1].set_title("HellaSwag (acc_norm)")
    axes[0].set_title("loss (nats per token)")
    axes[0].set_ylim(*loss_limits(runs, args.reference))
    for ax in axes:
        ax.set_xlabel("million tokens" if args.tokens else "step")
        ax.grid(alpha=0.3)
        for text in ax.legend(fontsize=8).get_texts():
            text.set_parse_math(False)  # a $ in a name is a dollar, not the beginning of a formula
    save_picture(fig, args.out)


# -------------------------------------------------------------------------------------------------
# 5 exporting

def is_free(folder):
    """Can we make a directory of this name? An empty one that is there will do."""
    if os.path.isdir(folder):
        return not os.listdir(folder)
    return not os.path.lexists(folder)


def write_for_others(name, folder):
    """The files of a model, a language model or a tuned one, into folder -> what loads them"""
    saved = train_gpt2.load_model(name)
    if "task" in saved:
        model, tokenizer, task = finetune.load_tuned(saved)
        model.save_pretrained(folder, tokenizer, task)
        if task.name == "embed":
            return "sentence-transformers"
        return "transformers' AutoModelForSequenceClassification.from_pretrained"
    model, tokenizer, _ = load(name)
    save_pretrained(model, folder, tokenizer.n_vocab, tokenizer.eot)
    save_tokenizer(tokenizer, folder, model.config.block_size)
    return "transformers' AutoModelForCausalLM.from_pretrained and for python play.py sample"


def export(args):
    """A model as the directory that transformers loads: all of it, or nothing."""
    folder = os.path.abspath(args.dir)
    if not is_free(folder):
        raise UserError(f"{args.dir} is there already and is not empty: name a new "
                        "directory")
    # a directory cannot be written in one step, but renaming it is one step
    temporary = f"{folder}{MARK}{os.getpid()}"
    try:
        os.makedirs(temporary)  # refuses one that is there: it is not ours to fill or to delete
    except OSError as e:
        raise UserError(f"cannot make {temporary} ({e.strerror}), in which {args.dir} is written: "
                        "name another directory")
    try:
        loads_it = write_for_others(args.model, temporary)
        if os.path.isdir(folder):
            os.rmdir(folder)
        os.rename(temporary, folder)
    except OSError as e:
        raise UserError(f"cannot write {args.dir} ({e.strerror}): name another "
                        "directory")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"wrote {args.dir}, for {loads_it}")


# -------------------------------------------------------------------------------------------------
# 6 searching

def search(args):
    """The passages that are nearest to a question, by what they mean, not by their words."""
    if args.top < 1:
        raise UserError(f"--top={args.top}: must be at least 1")
    if problem := check_text(args.question):
        raise UserError(f"the question {problem}")
    items = read_items(args.passages, "embed", with_answers=False)
    model, tokenizer = finetune.load_embedder(args.model)
    config = train_gpt2.TrainConfig(device=args.device, dtype=args.dtype)
    process = train_gpt2.setup_distributed(config)
    model.to(process.device)
    # of a pair, the passage is what one searches for
    passages = [item.texts[-1] for item in items]
    vectors = finetune.embed_texts(model, tokenizer, [args.question, *passages], process)
    similarities = vectors[1:] @ vectors[0]  # (number of passages,), cosines
    best = similarities.topk(min(args.top, len(passages)))
    for similarity, number in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"{similarity:.3f}  {printable(' '.join(passages[number].split()))}")


# -------------------------------------------------------------------------------------------------
# 7 what is in it, what it needs

PARTS = {  # a piece of a parameter's name: what the parameter belongs to
    "wte": "token embedding (and head)",
    "wpe": "position embedding",
    "attn": "attention",
    "mlp": "MLP",
    "ln_": "norms",
}


def parameters_by_part(model):
    """A GPT -> {part: its number of parameters}. The tied head counts once."""
    counts = dict.fromkeys(PARTS.values(), 0)
    for name, p in model.named_parameters():
        for piece, part in PARTS.items():
            if piece in name:
                counts[part] += p.numel()
    return counts


def print_sizes(name, model, tokenizer):
    """What a model is made of, and what a token costs."""
    config = model.config
    print(f"{printable(name)}: {config.n_layer} blocks, {config.n_head} heads, {config.n_embd} "
          f"channels, context of {config.block_size} tokens")
    print(f"tokenizer: {tokenizer.spec['name']}, {tokenizer.n_vocab:,} tokens in "
          f"{config.vocab_size:,} rows")
    counts = parameters_by_part(model)
    counts["all"] = sum(counts.values())
    for part, n in counts.items():
        print(f"{n:15,} parameters: {part}")
    flops = flops_per_token(config, config.block_size)
    print(f"{flops:15.3g} FLOPs a token in training, a third of them in the forward "
          "pass")


def find_val_loss(saved):
    """
    The validation loss of a checkpoint (dict): the one it holds, as those of the original
    program do, or else the one in the log.txt beside it -> float, None if there is none.
    """
    if saved.get("val_loss") is not None:
        return saved["val_loss"]
    with contextlib.suppress(UserError):  # there is no log.txt, or nothing in it
        log, _ = read_log(os.path.join(os.path.dirname(saved["path"]), "log.txt"))
        return log.get("val", {}).get(saved["step"])
    return None


def print_history(saved):
    """What a checkpoint (dict) knows about its run. Models from elsewhere have no step."""
    if saved.get("step"):
        val_loss = find_val_loss(saved)
        if val_loss is not None:
            print(f"validation loss {val_loss:.4f} nats per token")
        # the original program does not save the position
        seen = f", {saved['position']:,} tokens seen" if saved["position"] else ""
        print(f"{saved['step']:,} steps{seen}")
    for key in ("train_config", "versions"):
        if saved.get(key):
            print(f"{key}: " + " ".join(f"{name}={value}" for name, value in saved[key].items()))


def info(args):
    """Print a model's sizes, and what its checkpoint knows about the run."""
    model, tokenizer, saved = load(args.model)
    print_sizes(args.model, model, tokenizer)
    print_history(saved)


def estimate(args):
    """What fits: the largest B for each preset and card, and the flags it needs."""
    print("| preset | GPUs | " + " | ".join(f"{card} GB" for card in CARDS) + " |")
    print("|---" * (2 + len(CARDS)) + "|")
    config = train_gpt2.TrainConfig()
    for preset in OPENAI:
        values = train_gpt2.PRESETS[preset]
        shape = {name: values[name] for name in SHAPE if name in values}
        gpt_config = train_gpt2.GPTConfig(**shape)
        for n in (1, 2, 4, 8):
            cells = [largest(gpt_config, config, n, card) for card in CARDS]
            print(f"| {preset} | {n} | " + " | ".join(cells) + " |")
    print("\nB, and: s --shard, a --activation_checkpointing, o --offload. Computed, "
          "not measured.")


# -------------------------------------------------------------------------------------------------
# 8 looking inside

def read_one_item(path, number):
    """Line `number`, from 1, of a .jsonl file with HellaSwag items -> dict. Or a UserError."""
    if not os.path.isfile(path):
        raise UserError(f"--hellaswag={path}: there is no such file")
    items = list(read_examples(path))
    if not 1 <= number <= len(items):
        raise UserError(f"--item={number}: {path} has items 1 to {len(items)}")
    return items[number - 1]


def check_look_flags(args):
    """
    UserError for values that cannot work -> the names of the models, and the text (None with
    --hellaswag).
    """
    check_sampling({"temperature": args.temperature, "seed": args.seed})
    if args.generate < 0:
        raise UserError(f"--generate={args.generate}: must be at least 0")
    if os.path.splitext(args.out)[1] != ".html":
        raise UserError(f"--out={args.out}: the name must end in .html")
    names, text = args.words, None
    if not args.hellaswag:
        names, text = args.words[:-1], args.words[-1]
    if not 1 <= len(names) <= 2:
        raise UserError("give one model or two, and then a text: python play.py look "
                        'MODEL "To be, or" (or --hellaswag=ITEMS.jsonl instead of the text)')
    return names, text


def write_on(model, tokenizer, ids, args):
    """
    Let the model continue ids (list) by args.generate tokens, sampled as in `sample`, or
    fewer if it ends its text -> list of the new ids
    """
    settings = {"temperature": args.temperature, "top_k": 50, "top_p": 1.0,
                "max_new_tokens": args.generate}
    device = model.lm_head.weight.device
    generator = torch.Generator(device).manual_seed(args.seed)
    new = list(continue_text(model, tokenizer, list(ids), settings, generator))
    if len(new) < args.generate:
        new.append(tokenizer.eot)  # show that the model ended its text here
    return new


def load_pair(names, device):
    """One or two names of models -> pairs (name, GPT), and their tokenizer. Or a UserError."""
    models, tokenizers = [], []
    for name in names:
        model, tokenizer, _ = load(name, device)
        models.append((name, model))
        tokenizers.append(tokenizer)
    if tokenizers[0].spec != tokenizers[-1].spec:
        raise UserError(f"{names[0]} and {names[1]} have different tokenizers: their "
                        "tokens cannot be compared, so look at each by itself")
    return models, tokenizers[0]


def show_look(args):
    """What a model makes of a text, token by token: a page for your browser."""
    names, text = check_look_flags(args)
    # always in float32: the page shows what the model does, without rounding to 16 bits
    config = train_gpt2.TrainConfig(device=args.device, dtype="float32")
    device = train_gpt2.setup_distributed(config).device
    if args.hellaswag:
        example = read_one_item(args.hellaswag, args.item)
        models, tokenizer = load_pair(names, device)
        page = look.make_item_page(models, tokenizer, example)
    else:
        prompt = read_prompt(text)
        models, tokenizer = load_pair(names, device)
        ids = tokenize(tokenizer, prompt)
        new = write_on(models[0][1], tokenizer, ids, args)
        page = look.make_page(models, tokenizer, ids + new, written=len(new))

    try:
        with atomic_write(args.out, "w", encoding="utf-8", newline="\n") as f:
            f.write(page)
    except OSError as e:
        raise UserError(f"cannot write {args.out} ({e.strerror}): choose another place "
                        "with --out")
    print(f"wrote {args.out} ({len(page) / 1e6:.1f} MB): open it in a browser")


# -------------------------------------------------------------------------------------------------
# 9 the command line

COMMANDS = {
    "sample": sample,
    "chat": chat,
    "look": show_look,
    "plot": plot,
    "export": export,
    "search": search,
    "info": info,
    "estimate": estimate,
}
MODEL_HELP = "a checkpoint, a directory, or gpt2 ... gpt2-xl"
# for every parser: --help prints docstrings as they are, and flags are not abbreviated, so
# that a new flag never changes what an old command line means
PARSER = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


def refuse_flags(message):
    """What argparse calls when it does not understand a command line."""
    raise UserError(f"{message} (python play.py --help shows the commands)")


def add_command(subparsers, name):
    """
    Add the command `name` to those of argparse -> the command's own parser. Its --help
    begins with the docstring of its function.
    """
    function = COMMANDS[name]
    about = inspect.getdoc(function) or ""  # python -OO leaves docstrings out
    summary = about.partition("\n")[0]
    parser = subparsers.add_parser(name, help=summary, description=about, **PARSER)
    parser.set_defaults(run=function)
    parser.error = refuse_flags
    return parser


def add_sampling_flags(parser):
    """How the text is written."""
    parser.add_argument("--max_new_tokens", type=int, default=200,
                        help="longest continuation [%(default)s]")
    parser.add_argument("--temperature", type=float, default=1.0,
                        help="below 1 safer, above it wilder, 0 greedy [%(default)s]")
    parser.add_argument("--top_k", type=int, default=50,
                        help="sample from the k likeliest tokens [%(default)s]")
    parser.add_argument("--top_p", type=float, default=1.0,
                        help="and from those that make up this probability [%(default)s]")
    parser.add_argument("--seed", type=int, default=42,
                        help="of the random numbers [%(default)s]")


def add_plot_flags(parser):
    """Which runs, and what stands beside them."""
    parser.add_argument("logs", nargs="+", metavar="log",
                        help="the --log_dir of a run, or a log.txt")
    parser.add_argument("--out", default="log.png",
                        help="the picture: .png, .svg or .pdf [%(default)s]")
    parser.add_argument("--reference", action="store_true",
                        help="with two public runs of the original recipe")
    parser.add_argument("--tokens", action="store_true",
                        help="over tokens instead of steps")


def add_look_flags(parser):
    """Which models, what they read, where the page goes."""
    parser.add_argument("words", nargs="+", metavar="MODEL [MODEL2] TEXT",
                        help=f"{MODEL_HELP}; a second one to compare; and a text, @file, or - "
                             "for stdin")
    parser.add_argument("--out", default="look.html", help="the page [%(default)s]")
    parser.add_argument("--generate", type=int, default=0, metavar="N",
                        help="let the (first) model write N more tokens [%(default)s]")
    parser.add_argument("--temperature", type=float, default=1.0,
                        help="for --generate, as for sample [%(default)s]")
    parser.add_argument("--seed", type=int, default=42, help="for --generate [%(default)s]")
    parser.add_argument("--hellaswag", metavar="ITEMS.jsonl",
                        help="look at an item of this file instead of a text")
    parser.add_argument("--item", type=int, default=1,
                        help="which one, by its line [%(default)s]")
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu")


def add_machine_flags(parser):
    """Where the model computes, and in which numbers. As in training."""
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu")
    parser.add_argument("--dtype", default="auto",
                        choices=("auto", "bfloat16", "float16", "float32"))


def parse_args(argv):
    """
    A command line (list of words) -> its flags, and the command's function as `run`
    (argparse.Namespace). Raises UserError for what it does not understand.
    """
    parser = argparse.ArgumentParser(description=__doc__, **PARSER)
    parser.error = refuse_flags
    names = " | ".join(COMMANDS)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar=names)
    commands = {name: add_command(subparsers, name) for name in COMMANDS}

    for name in ("sample", "chat", "export", "search", "info"):
        commands[name].add_argument("model", metavar="MODEL", help=MODEL_HELP)
    commands["sample"].add_argument("prompt",
                                    help="the text to continue; @file; - for stdin")
    commands["sample"].add_argument("--num_samples", type=int, default=1,
                                    help="continuations of the prompt [%(default)s]")
    for name in ("sample", "chat"):
        add_sampling_flags(commands[name])
    add_look_flags(commands["look"])
    add_plot_flags(commands["plot"])
    commands["search"].add_argument("passages", help="a .jsonl file: {\"passage\": ...} a line")
    commands["search"].add_argument("question", help="what to search for")
    commands["search"].add_argument("--top", type=int, default=5,
                                    help="how many passages to print [%(default)s]")
    commands["export"].add_argument("dir", metavar="DIR", help="a new directory")
    for name in ("sample", "chat", "search"):
        add_machine_flags(commands[name])
    return parser.parse_args(argv)


def main(argv):
    """Run the command that argv (list of words) names."""
    args = parse_args(argv)
    try:
        args.run(args)
    except RuntimeError as e:
        if is_out_of_memory(e):
            raise UserError("out of memory: try fewer --num_samples, or --device=cpu")
        raise


if __name__ == "__main__":
    run_program(main)
