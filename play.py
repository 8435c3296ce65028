"""
What you do with a trained model: let it write, talk with it, look at its run, hand it on.

    python play.py sample MODEL "To be, or" --num_samples=4       # @prompt.txt: the prompt is in a file; -: in stdin
    python play.py chat MODEL                                     # a parrot: it continues what you type
    python play.py plot log log2 --out=log.png --reference        # the losses of runs, beside those of public runs
    python play.py export MODEL DIR                               # for transformers' from_pretrained(DIR), and ours
    python play.py info MODEL                                     # sizes, step, losses, settings
    python play.py estimate                                       # what fits on which card: a table, computed
    python play.py hellaswag --model=MODEL                        # the same as python hellaswag.py --model=MODEL

MODEL is a checkpoint (log/model_19073.pt, or one of the original build-nanogpt's), a directory with
a GPT-2 in Hugging Face's format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl. The tokenizer comes
with it.

Contents
    1 the model and the flags      load, check_sampling, read_prompt
    2 writing                      sample, pieces, chat
    3 a picture of a run           plot
    4 handing it on                export
    5 what is in it, what it needs info, estimate
    6 HellaSwag                    measure_hellaswag
"""
import argparse
import contextlib
import os
import re
import shutil
import sys
import time
from itertools import islice

import torch

import hellaswag
import train_gpt2
from support.console import UserError, is_first_on_node, print0, run_program
from support.files import atomic_write
from support.settings import SHAPE
from support.tokenizer import load_tokenizer, save_tokenizer
from support.arithmetic import flops_per_token
from support.arithmetic import CARDS, largest
from support.checkpoints import load_weights
from support.runlog import read_log
from support.health import read_reference


# ----------------------------------------------------------------------------------------------------
# 1 the model and the flags

def load(name, device="cpu"):
    """
    MODEL -> the GPT, ready for use, its tokenizer, and what else its file says (dict). Or one line,
    exit code 2.
    """
    if not (os.path.isdir(name) or os.path.isfile(name) or re.fullmatch("gpt2(-medium|-large|-xl)?", name)):
        raise UserError(f"there is no model {name}: give a checkpoint like log/model_19073.pt, a "
                        "directory, or gpt2 "
                        f"... gpt2-xl")
    start = train_gpt2.load_model(name)
    try:
        model = train_gpt2.GPT(train_gpt2.GPTConfig(**start["config"]))
        load_weights(model, start["model"], name)
        tokenizer = load_tokenizer(start["tokenizer"])
    except (TypeError, KeyError, ValueError, AttributeError, AssertionError, RuntimeError) as e:
        raise UserError(f"{name} is no model that we know: {type(e).__name__}: {str(e)[:150]}")
    if tokenizer.n_vocab > model.config.vocab_size:
        raise UserError(f"{name} knows {model.config.vocab_size} tokens, its tokenizer "
                        f"{tokenizer.n_vocab}: they are "
                        f"no pair")
    return model.eval().to(device), tokenizer, start


# what one can change while talking
SETTINGS = ("temperature", "top_k", "top_p", "max_new_tokens", "seed")


def check_sampling(settings):
    """
    One line and exit code 2 for values that cannot work. settings: some of the flags of sample and
    chat (dict).
    """
    for name, value in settings.items():
        low, high = {"temperature": (0, 1e6), "top_p": (1e-9, 1), "seed": (0, 2**63 - 1)}.get(name, (1, 1e9))
        if not low <= value <= high:
            raise UserError(f"{name} {value} cannot be: it must be between {low:g} and {high:g}")


def read_prompt(text):
    """
    The prompt as typed, from a file (@name) or from stdin (-), without the line's end that an
    editor adds.
    """
    if text == "-":
        return sys.stdin.read().removesuffix("\n")
    if text.startswith("@"):
        try:
            if not os.path.isfile(text[1:]):
                raise OSError("there is no such file")
            with open(text[1:], encoding="utf-8") as f:
                return f.read().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"cannot read the prompt from {text[1:]}: {e}")
    return text


def tokenize(tokenizer, text):
    """
    The ids of a prompt. An empty one is the beginning of a document: <|endoftext|>, if the
    tokenizer has that.
    """
    # bytes that are no UTF-8 reach us as lone surrogates, which no tokenizer knows
    ids = tokenizer.encode(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
    if not ids and tokenizer.eot is None:
        raise UserError("the prompt is empty, and this tokenizer has no <|endoftext|> to start "
                        "from: give a prompt")
    return ids or [tokenizer.eot]


def prepare(args):
    """
    -> the model on the device that the flags ask for, its tokenizer, and autocast, as in training.
    """
    config = train_gpt2.TrainConfig(device=args.device, dtype=args.dtype)
    process = train_gpt2.setup_distributed(config)
    model, tokenizer, _ = load(args.model, process.device)
    return model, tokenizer, process.autocast


# ----------------------------------------------------------------------------------------------------
# 2 writing

def sample(args):
    """Several continuations of one prompt, each up to <|endoftext|>."""
    check_sampling({name: getattr(args, name) for name in (*SETTINGS, "num_samples")})
    prompt = read_prompt(args.prompt)
    model, tokenizer, autocast = prepare(args)
    device = model.lm_head.weight.device
    # (num_samples, T)
    idx = torch.tensor([tokenize(tokenizer, prompt)] * args.num_samples, device=device)
    generator = torch.Generator(device).manual_seed(args.seed)
    with autocast:
        rows = model.generate(idx, args.max_new_tokens, tokenizer.n_vocab, tokenizer.eot, temperature=args.temperature,
                              top_k=args.top_k, top_p=args.top_p, generator=generator)
    for i, row in enumerate(rows[:, idx.size(1) :].tolist()):
        if args.num_samples > 1:
            print(f"--- sample {i}")
        end = row.index(tokenizer.eot) if tokenizer.eot in row else len(row)
        print(prompt + tokenizer.decode(row[:end]), flush=True)


def pieces(tokenizer, ids):
    """
    Ids, one at a time -> the text, piece by piece, as soon as it is certain. A token can end within
    a character (an emoji has four bytes): then the end of the text decodes to U+FFFD, and is held
    back until more tokens have come.
    """
    seen, shown = [], 0
    for i in ids:
        seen.append(i)
        text = tokenizer.decode(seen)
        certain = len(text.rstrip("\ufffd"))
        if certain > shown:
            yield text[shown:certain]
            shown = certain
    yield tokenizer.decode(seen)[shown:]  # it ended within a character: now that is certain too


def answer(model, tokenizer, autocast, context, settings, generator):
    """
    Print what the model writes after context (list of ids), which grows by it. Ctrl-C ends the
    answer.
    """
    def new_ids():
        idx = torch.tensor([context], device=model.lm_head.weight.device)
        sampling = {name: settings[name] for name in ("temperature", "top_k", "top_p")}
        stream = model.stream(idx, tokenizer.n_vocab, generator=generator, **sampling)
        for new in islice(stream, settings["max_new_tokens"]):
            if new.item() == tokenizer.eot:
                context.clear()  # it has come to the end of its text: the next one begins
                return
            context.append(new.item())
            yield context[-1]
    try:
        with autocast:
            for piece in pieces(tokenizer, new_ids()):
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print(flush=True)


def chat(args):
    """Read a line, continue the text so far, and so on, until stdin ends."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    check_sampling(settings)
    model, tokenizer, autocast = prepare(args)
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(args.seed)
    talking = sys.stdin.isatty()
    with contextlib.suppress(ImportError):
        # with it, input() lets one edit the line and go back to older ones
        import readline  # noqa: F401
    if talking:
        print("It continues what you type. Ctrl-C stops it, Ctrl-D leaves, /help lists what one "
              "can change.")
    context = []
    while True:
        try:
            line = input("> " if talking else "")
        except EOFError:
            return print() if talking else None
        except KeyboardInterrupt:
            print()
            continue
        try:
            if line.startswith("/"):
                change_setting(line, settings, context, generator)
                continue
            if line or not context:  # an empty line lets it go on
                context += tokenize(tokenizer, "\n" + line if context else line)
            answer(model, tokenizer, autocast, context, settings, generator)
        except UserError as e:  # the conversation goes on
            print(f"error: {e}", file=sys.stderr, flush=True)


def change_setting(line, settings, context, generator):
    """A line of a chat that begins with /: `/top_k 5`, `/new`, or help."""
    name, _, value = line[1:].strip().partition(" ")
    if name == "new":
        context.clear()
    elif name in settings and value:
        try:
            new = {name: type(settings[name])(value)}
        except ValueError:
            raise UserError(f"/{name} {value}: that is no number, try /{name} {settings[name]}")
        check_sampling(new)
        settings.update(new)
        if name == "seed":
            generator.manual_seed(settings["seed"])
    else:
        print("\n".join(f"/{name} {value}" for name, value in settings.items()))
        print("/new forgets the text so far; an empty line lets it go on")


# ----------------------------------------------------------------------------------------------------
# 3 a picture of a run

# Okabe and Ito's colours, which people who see red and green alike can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# the published 124M and 125M models
GPT2 = {"val": 3.2924, "hella": 0.2955, "hella of GPT-3": 0.337}


def draw_run(axes, name, log, settings, colour, tokens):
    """
    One run: its train loss thin, its validation loss on top of it, and HellaSwag if there is a
    second axis.
    """
    scale = settings.get("train_config", {}).get("total_batch_size", 524288) / 1e6 if tokens else 1
    # one batch says little: the train loss is drawn as means over a two-hundredth of the run
    for ax, stream, what, n, width in ((axes[0], "train", ", train", len(log.get("train", {})) // 200, 0.8),
                                       (axes[0], "val", ", validation", 1, 1.8), (axes[-1], "hella", "", 1, 1.8)):
        # (number of lines, 2)
        points = torch.tensor(sorted(log.get(stream, {}).items()), dtype=torch.float64)
        if len(points):
            x, y = torch.stack([part.mean(dim=0) for part in points.split(max(1, n))], dim=1)
            dots = "-" if stream == "train" else "o-"
            ax.plot(x * scale, y, dots, color=colour, label=name + what, markersize=3, linewidth=width)


def draw_reference(axes, reference, tokens):
    """
    What others got: OpenAI's models as horizontal lines, and, if asked for, the two public runs.
    """
    for run, style in (("a", "-"), ("b", ":")) if reference else ():
        columns = read_reference()
        x = [step * 524288 / 1e6 if tokens else step for step in columns["step"]]
        for ax, stream in zip(axes, ("val", "hella"), strict=True):
            ax.plot(x, columns[f"{stream}_{run}"], "k" + style, linewidth=1, label=f"public run {run}")
    axes[0].axhline(GPT2["val"], color="gray", linestyle="--", linewidth=1, label="OpenAI's GPT-2 124M")
    axes[1].axhline(GPT2["hella"], color="gray", linestyle="--", linewidth=1, label="OpenAI's GPT-2 124M")
    axes[1].axhline(GPT2["hella of GPT-3"], color="gray", linestyle=":", linewidth=1, label="OpenAI's GPT-3 125M")


def loss_limits(logs, reference):
    """
    What the picture shows of the losses. The first twentieth, from ln(vocab_size) down, would
    flatten the rest.
    """
    losses = [loss for log in logs for stream in {"train", "val"} & log.keys()
              for step, loss in log[stream].items() if step >= max(log[stream]) / 20]
    losses += read_reference()["val_a"][4:] if reference or not losses else []  # from step 1000 on
    room = 0.05 * (max(losses) - min(losses)) + 0.01
    return min(losses) - room, max(losses) + room


def save_picture(fig, path):
    """
    Write a figure in the format that the name ends in. If it cannot be written: one line, exit code
    2.
    """
    try:
        with atomic_write(path) as f:
            fig.savefig(f, format=os.path.splitext(path)[1][1:])
    except OSError as e:
        raise UserError(f"cannot write {path} ({e.strerror}): choose another place with --out")
    print(f"wrote {path}")


def plot(args):
    """
    Losses, and HellaSwag where it was measured, of one or several runs -> a picture (png, svg, pdf)
    """
    if os.path.splitext(args.out)[1] not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out={args.out}: the name must end in .png, .svg or .pdf")
    runs = [read_log(path) for path in args.logs]
    import matplotlib
    matplotlib.use("Agg")  # draws without a screen
    from matplotlib import pyplot as plt
    # a loss per character, or per another tokenizer's token, is no number to compare with GPT-2's
    comparable = [settings.get("tokenizer", {}).get("name", "gpt2") == "gpt2" for _, settings in runs]
    if args.reference and not all(comparable):
        raise UserError(f"{args.logs[comparable.index(False)]} has another tokenizer than "
                        "GPT-2's: leave --reference "
                        f"out")
    panels = 2 if args.reference or any("hella" in log for log, _ in runs) else 1
    fig, [axes] = plt.subplots(1, panels, figsize=(8.5, 4), dpi=100, layout="constrained", squeeze=False)
    for i, (path, (log, settings)) in enumerate(zip(args.logs, runs, strict=True)):
        name = os.path.basename(os.path.abspath(path.removesuffix("log.txt") or "."))
        draw_run(axes, name, log, settings, COLOURS[i % len(COLOURS)], args.tokens)
    if panels == 2:
        draw_reference(axes, args.reference, args.tokens)
    axes[0].set_ylim(*loss_limits([log for log, _ in runs], args.reference))
    for ax, title in zip(axes, ("loss (nats per token)", "HellaSwag (acc_norm)"), strict=False):
        ax.set(title=title, xlabel="million tokens" if args.tokens else "step")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    save_picture(fig, args.out)


# ----------------------------------------------------------------------------------------------------
# 4 handing it on

def export(args):
    """A model as the directory that transformers loads: all of it, or nothing."""
    folder = os.path.abspath(args.dir)
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise UserError(f"{args.dir} is there already, and not empty: name a new directory")
    model, tokenizer, _ = load(args.model)
    temporary = f"{folder}.tmp{os.getpid()}"
    try:
        model.save_pretrained(temporary, tokenizer.n_vocab, tokenizer.eot)
        save_tokenizer(tokenizer, temporary, model.config.block_size)
        if os.path.isdir(folder):
            os.rmdir(folder)
        os.rename(temporary, folder)
    except OSError as e:
        raise UserError(f"cannot write {args.dir} ({e.strerror}): name another directory")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"wrote {args.dir}, for transformers' AutoModelForCausalLM.from_pretrained and for "
          "python play.py sample")


# ----------------------------------------------------------------------------------------------------
# 5 what is in it, what it needs

PARTS = {"wte": "token embedding (and head)", "wpe": "position embedding", "attn": "attention", "mlp": "MLP",
         "ln_": "norms"}


def parameters_by_part(model):
    """{part: its number of parameters}; the head is the embedding, and counts once."""
    counts = dict.fromkeys(PARTS.values(), 0)
    for name, p in model.named_parameters():
        for piece, part in PARTS.items():
            if piece in name:
                counts[part] += p.numel()
                break
    return counts


def info(args):
    """Print what a model's file says of it."""
    model, tokenizer, start = load(args.model)
    c, counts = model.config, parameters_by_part(model)
    print(f"{args.model}: {c.n_layer} blocks, {c.n_head} heads, {c.n_embd} channels, context of "
          f"{c.block_size} tokens")
    print(f"tokenizer: {tokenizer.spec['name']}, {tokenizer.n_vocab:,} tokens in {c.vocab_size:,} "
          "rows")
    for part, n in {**counts, "all": sum(counts.values())}.items():
        print(f"{n:15,} parameters: {part}")
    print(f"{flops_per_token(c, c.block_size):15.3g} FLOPs a token in training, a third of them "
          "in the forward pass")
    if start.get("val_loss") is not None:
        print(f"validation loss {start['val_loss']:.4f} nats per token")
    if start.get("step"):
        seen = f", {start['position']:,} tokens seen" if "position" in start else ""
        print(f"{start['step']:,} steps{seen}")
    for key in ("train_config", "versions"):
        if key in start:
            print(f"{key}: " + " ".join(f"{name}={value}" for name, value in start[key].items()))


def estimate(args):
    """
    What fits: a table of the largest B for each preset, card, number of GPUs, and the flags it
    takes; computed.
    """
    lines = ["| preset | GPUs | " + " | ".join(f"{card} GB" for card in CARDS) + " |", "|---" * (2 + len(CARDS)) + "|"]
    for preset in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        values = train_gpt2.PRESETS[preset]
        gpt_config = train_gpt2.GPTConfig(**{k: v for k, v in values.items() if k in SHAPE})
        for n in (1, 2, 4, 8):
            cells = [largest(gpt_config, train_gpt2.TrainConfig(), n, card) for card in CARDS]
            lines.append(f"| {preset} | {n} | " + " | ".join(cells) + " |")
    lines.append("\nB, and: s --shard, a --activation_checkpointing, o --offload. Computed, not "
                 "measured.")
    print("\n".join(lines))


# ----------------------------------------------------------------------------------------------------
# 6 HellaSwag

def measure_hellaswag(args):
    """HellaSwag's acc and acc_norm of a model, beside those of OpenAI's."""
    for name, value in (("limit", args.limit), ("batch_tokens", args.batch_tokens)):
        if value is not None and value < 1:
            raise UserError(f"--{name}={value}: must be at least 1")
    if args.data and not os.path.isfile(args.data):
        raise UserError(f"--data={args.data}: there is no such file")
    if not args.data and is_first_on_node():
        hellaswag.prepare()
    config = train_gpt2.TrainConfig(device=args.device, dtype=args.dtype)
    process = train_gpt2.setup_distributed(config)
    model, tokenizer, _ = load(args.model, process.device)
    if tokenizer.spec["name"] != "gpt2":
        raise UserError(f"{args.model} has another tokenizer than GPT-2's: its losses per token "
                        "cannot be compared")
    examples = list(hellaswag.read_examples(args.data)) if args.data else hellaswag.load_examples()
    items = [hellaswag.tokenize_example(example) for example in examples[: args.limit]]
    if not items:
        raise UserError("no HellaSwag items: give a file with --data", who="me")
    t0 = time.time()
    right = hellaswag.evaluate(model, items, process.autocast, args.batch_tokens, process.rank, process.num_processes)
    acc, acc_norm = (count / len(items) for count in train_gpt2.all_reduce(*right))
    print0(report(args.model, acc, acc_norm, len(items), len(examples) == 10042))
    print0(f"{time.time() - t0:.1f}s on {process.num_processes} x {process.device.type}, "
           f"{str(process.dtype)[6:]} ({process.reason})")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def report(name, acc, acc_norm, n, whole):
    """
    The lines that hellaswag prints: what was measured, how sure it is, and what OpenAI's models
    reach.
    """
    error = (acc_norm * (1 - acc_norm) / n) ** 0.5  # of a share of n independent items
    lines = [f"{name}: acc {acc:.4f}, acc_norm {acc_norm:.4f} +- {error:.4f} (standard error), n {n}"]
    for published, (a, b) in hellaswag.PUBLISHED.items():
        if whole and n == 10042:
            lines.append(f"published, {published}: acc {a:.4f}, acc_norm {b:.4f}: "
                         f"this model is {(acc_norm - b) / error:+.1f} standard errors from it")
        else:
            lines.append(f"published, {published}: acc {a:.4f}, acc_norm {b:.4f}, on all 10,042 "
                         "items: not these")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------
# the command line

COMMANDS = {"sample": sample, "chat": chat, "plot": plot, "export": export, "info": info,
            "estimate": estimate, "hellaswag": measure_hellaswag}


def refuse_flags(message):
    """What argparse calls when it does not understand a command line."""
    raise UserError(f"{message} (python play.py --help shows the commands)")


def parse_args(argv):
    """The commands and their flags. A wrong one is a UserError."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.error = refuse_flags
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    made = {}
    for name, function in COMMANDS.items():
        about = hellaswag.__doc__ if name == "hellaswag" else function.__doc__
        made[name] = commands.add_parser(name, help=function.__doc__.splitlines()[0], description=about,
                                         formatter_class=raw, allow_abbrev=False)
        made[name].set_defaults(run=function)
        made[name].error = refuse_flags
    for name in ("sample", "chat", "export", "info"):
        made[name].add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_sampling_flags(made["sample"], made["chat"])
    made["plot"].add_argument("logs", nargs="+", metavar="log", help="the --log_dir of a run, or a log.txt")
    made["plot"].add_argument("--out", default="log.png", help="the picture [%(default)s]")
    made["plot"].add_argument("--reference", action="store_true",
                              help="with two public runs of the original recipe")
    made["plot"].add_argument("--tokens", action="store_true", help="over tokens instead of steps")
    made["export"].add_argument("dir", metavar="DIR", help="a new directory")
    made["hellaswag"].add_argument("--model", required=True, help=MODEL_HELP)
    made["hellaswag"].add_argument("--data", help="a .jsonl file with items, instead of the published "
                                                  "validation split")
    made["hellaswag"].add_argument("--limit", type=int, help="only the first so many items")
    made["hellaswag"].add_argument("--batch_tokens", type=int,
                                   help="tokens in a batch [65536 on CUDA, 512 elsewhere]")
    for name in ("sample", "chat", "hellaswag"):
        made[name].add_argument("--device", default="auto", help="cuda, mps or cpu")
        made[name].add_argument("--dtype", default="auto",
                                choices=("auto", "bfloat16", "float16", "float32"))
    return parser.parse_args(argv)


MODEL_HELP = "a checkpoint, a directory, or gpt2 ... gpt2-xl"


def add_sampling_flags(sample, chat):
    """What one can say about the text to be written."""
    sample.add_argument("prompt", help="the text to continue; @file; - for stdin")
    sample.add_argument("--num_samples", type=int, default=1,
                        help="continuations of the prompt [%(default)s]")
    for parser in (sample, chat):
        parser.add_argument("--max_new_tokens", type=int, default=200,
                            help="longest continuation [%(default)s]")
        parser.add_argument("--temperature", type=float, default=1.0,
                            help="below 1 safer, above it wilder, 0 greedy [%(default)s]")
        parser.add_argument("--top_k", type=int, default=50,
                            help="sample from the k likeliest tokens [%(default)s]")
        parser.add_argument("--top_p", type=float, default=1.0,
                            help="and from those that make up this probability [%(default)s]")
        parser.add_argument("--seed", type=int, default=42, help="of the random numbers [%(default)s]")


def main(argv):
    args = parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run_program(main)
