"""
What a model thinks of a text: as numbers, and as one page that opens in any browser.

    python look.py MODEL "To be, or not to be" --out=look.html  # or @text.txt; - is stdin
    python look.py MODEL "ROMEO:" --generate=50                 # what it would write
    python look.py MODEL MODEL2 "To be"                         # two models, side by side
    python look.py MODEL --hellaswag=items.jsonl --item=1       # an item of HellaSwag

The numbers come from small functions, which serve a notebook as well: see docs/look.md.

Contents
    1 the numbers      residual_stream, surprise, logit_lens, attention, head_facts
    2 tokens as text   spell, count_text
    3 on the page      likeliest, look_at, look_at_endings, make_page, make_item_page
    4 the command      LookConfig, write_on, main
How the page looks, and what it does when you point at something, is in assets/look.html.

Letters in the comments on shapes: T tokens, C channels, nh heads, hs = C / nh, V rows of the
vocabulary. Some of these rows are padding (GPTConfig.vocab_size). They count in a cost, as they do
in the training loss; expected tokens and ranks are about real tokens only.
"""
import base64
import json
import math
import os
import unicodedata
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from support.console import UserError, run_program
from support.files import asset, atomic_write, check_replaceable
from support.hellaswag_file import read_examples
from support.processes import orderly_end
from support.prompts import read_prompt, tokenize
from support.settings import check_least, check_most, parse, refuse_unused
from support.tokenizer import text_bytes, token_bytes
from train_gpt2 import TrainConfig, load_model, setup_distributed

# -------------------------------------------------------------------------------------------------
# 1 the numbers. ids is always a list of at most block_size ids, and the model is in eval mode, or
# dropout would change the numbers each time


@torch.no_grad()
def residual_stream(model, ids):
    """
    Yield the residual stream, (T, C): first the sum of the two embeddings, then the stream after
    each block. n_layer + 1 tensors; the last one goes to ln_f and the head.
    """
    idx = torch.tensor([ids], device=model.lm_head.weight.device)  # (1, T)
    positions = torch.arange(len(ids), device=idx.device)
    x = model.transformer.wte(idx) + model.transformer.wpe(positions)  # (1, T, C)
    yield x[0]
    for block in model.transformer.h:
        x = block(x)
        yield x[0]


@torch.no_grad()
def surprise(model, ids):
    """
    The cost of each token given the tokens before it, -ln p, in nats -> (T-1,), because the first
    token has nothing before it. The mean is the validation loss on this text. ids may have one id
    more than block_size: the last one is only predicted.
    """
    idx = torch.tensor([ids], device=model.lm_head.weight.device)  # (1, T)
    logits, _ = model(idx[:, :-1])  # (1, T-1, V)
    return F.cross_entropy(logits[0].float(), idx[0, 1:], reduction="none")


@torch.no_grad()
def logit_lens(model, ids):
    """
    Yield logits (T, V): what the model would predict if the stream ended here, after the embeddings
    and after each block. n_layer + 1 tensors; the last one is the model's real prediction. (The
    idea is nostalgebraist's, "interpreting GPT: the logit lens", 2020.)
    """
    # the blocks only ever add to the stream, so the head can read its earlier states, more or less
    for x in residual_stream(model, ids):
        yield model.lm_head(model.transformer.ln_f(x))


@torch.no_grad()
def attention(model, ids):
    """
    How the heads of each block spread their attention -> list of n_layer tensors (nh, T, T): token
    i of the second dimension attends to token j of the third, and its weights sum to 1. The largest
    thing here: 0.6 GB for GPT-2 124M and 1,024 tokens.
    """
    recorded = []

    def attend(layer, q, k, v):
        # flash attention never stores these weights, so compute them from q and k, (1, nh, T, hs)
        T, hs = q.size()[2:]
        scores = q @ k.mT / math.sqrt(hs)  # (1, nh, T, T)
        future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(diagonal=1)
        weights = scores.masked_fill(future, -math.inf).softmax(dim=3)
        recorded.append(weights[0])
        return weights @ v

    model.hidden(torch.tensor([ids], device=model.lm_head.weight.device), attend=attend)
    return recorded


def mean_share(weights, places):
    """
    The share of attention (nh, T, T) that goes to some places (T, T), bool: the mean over all
    tokens that have such a place -> (nh,), nan if no token has one.
    """
    rows = places.any(dim=1)
    share = (weights * places).sum(dim=2)  # (nh, T)
    return share[:, rows].mean(dim=1)


def head_facts(weights, ids):
    """
    Four facts about each head of a block, weights (nh, T, T) -> (nh, 4), nan where a text cannot
    show one. Means over all tokens but the first, which can attend only to itself:
        how far back it attends, in tokens
        the share on the first token, where a head attends if it finds nothing
        the share on earlier copies of the same token
        the share on the tokens after those copies: high in an induction head (Olsson et al. 2022),
        which predicts that the text repeats itself
    The last two are means over the tokens that have occurred before.
    """
    positions = torch.arange(len(ids), device=weights.device)
    distance = positions[:, None] - positions[None, :]  # (T, T), above zero in the past
    past = distance > 0
    tokens = torch.tensor(ids, device=weights.device)
    copies = (tokens[:, None] == tokens[None, :]) & past
    # shifted by one place: a column of zeros comes in, the last column drops out
    after_copies = F.pad(copies, (1, 0))[:, :-1] & past
    first = torch.zeros_like(past)
    first[1:, 0] = True
    far = (weights * distance).sum(dim=2)[:, 1:].mean(dim=1)  # (nh,)
    shares = [mean_share(weights, places) for places in (first, copies, after_copies)]
    return torch.stack([far, *shares], dim=1)


# -------------------------------------------------------------------------------------------------
# 2 tokens as text

SIGNS = {" ": "·", "\n": "↵", "\t": "→"}


def find_sign(character):
    """A character -> what is shown in its place, "" if it shows itself."""
    if character in SIGNS:
        return SIGNS[character]
    if "\udc80" <= character <= "\udcff":  # a byte that is no character, see spell
        return f"\\x{ord(character) - 0xdc00:02x}"
    # C: controls, marks that turn the direction of writing; Z: other spaces and line ends
    if unicodedata.category(character)[0] in "CZ":
        return f"U+{ord(character):04X}"
    return ""


def spell(data):
    """
    The bytes of a token -> how it is shown: strings that are text and signs in turn, text first.

        b" be\\n"     -> ["", "·", "be", "↵"]
        b"\\xe4\\xb8"  -> ["", "\\\\xe4\\\\xb8"], two of the three bytes of a Chinese character
    """
    parts = [""]
    # surrogateescape makes one special character of each byte that is no UTF-8
    for character in data.decode("utf-8", "surrogateescape"):
        sign = find_sign(character)
        ends_in_a_sign = len(parts) % 2 == 0
        if (sign != "") != ends_in_a_sign:
            parts.append("")
        parts[-1] += sign if sign else character
    return parts


def count_text(tokenizer, ids):
    """How many characters and UTF-8 bytes of text these ids are -> two ints"""
    # <|endoftext|> stands between texts and is no part of one
    data = text_bytes(tokenizer, [i for i in ids if i != tokenizer.eot])
    # a character counts where its first byte is. Its other bytes are 10xxxxxx
    characters = sum(byte & 0b11000000 != 0b10000000 for byte in data)
    return characters, len(data)


# -------------------------------------------------------------------------------------------------
# 3 on the page

EXPECTED = 10  # how many expected tokens are shown
IN_A_CELL = 5  # and how many that a layer would predict
FULL_ROWS = 256  # in a longer text, a row of attention shows only
LARGEST = 16  # its largest weights


def for_json(values, digits=4):
    """Round a number or nested lists of numbers; nan and infinity, which JSON lacks, become None"""
    if isinstance(values, list):
        return [for_json(value, digits) for value in values]
    return round(values, digits) if math.isfinite(values) else None


def likeliest(logits, n_vocab, k):
    """
    logits (n, V) -> the k likeliest real tokens of each row, the first one first: lists `ids` and
    `probabilities`, n times k
    """
    probabilities = logits.float().softmax(dim=1)[:, :n_vocab]
    values, ids = probabilities.topk(min(k, n_vocab), dim=1)
    return {"ids": ids.tolist(), "probabilities": for_json(values.tolist())}


def ranks(logits, targets, n_vocab):
    """Among the real tokens, 1 the likeliest: logits (n, V), targets, a list of n ids -> list"""
    logits = logits[:, :n_vocab]
    came = logits[torch.arange(len(targets)), targets]  # (n,)
    return (1 + (logits > came[:, None]).sum(dim=1)).tolist()


def totals(costs, characters, size):
    """
    costs (n,) in nats; the number of characters and of bytes in these tokens -> the loss in four
    units, None where there is nothing to divide by
    """
    # tensors, not floats: zero divided by zero is nan, which is what we want
    total = costs.double().sum()
    loss = costs.double().mean()
    return {
        "nats_a_token": for_json(loss.item()),
        "nats_a_character": for_json((total / characters).item()),
        "bits_a_byte": for_json((total / math.log(2) / size).item()),
        "perplexity": for_json(loss.exp().item(), 2),
    }


def in_bytes(values):
    """Weights from 0 to 1 -> bytes, 255 * sqrt(w): the root keeps small weights apart."""
    return (255 * values.sqrt()).round().byte()


def pack(tensor):
    """A tensor of whole numbers -> its bytes as text, base64"""
    return base64.b64encode(tensor.cpu().contiguous().numpy().tobytes()).decode()


def pack_attention(weights):
    """
    The weights of a block, (nh, T, T), for the page; as decimals they would take ten times the
    space. -> `weights`, the lower triangle of each head, row by row. For a long text: the LARGEST
    weights of each row; `at`, their columns, uint16; and `rest`, the sum of the other weights.
    """
    T = weights.size(1)
    if T <= FULL_ROWS:
        rows, columns = torch.tril_indices(T, T)
        return {"weights": pack(in_bytes(weights[:, rows, columns]))}
    values, at = weights.topk(LARGEST, dim=2)  # (nh, T, LARGEST)
    rest = (1 - values.sum(dim=2)).clamp(min=0)  # (nh, T)
    return {"weights": pack(in_bytes(values)), "at": pack(at.to(torch.uint16)),
            "rest": pack(in_bytes(rest))}


def describe(model):
    """A model's size, in one line"""
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    return (f"{parameters / 1e6:.3g}M parameters, {config.n_layer} blocks of {config.n_head} "
            f"heads, {config.n_embd} channels")


def look_at(name, model, tokenizer, ids):
    """
    Let a model read a text -> dict for the page: costs and ranks of all tokens but the first; what
    the model expected after each token; lens, for each layer; leads, the first layer whose first
    choice is the final one; attention and facts of each block
    """
    n_vocab = tokenizer.n_vocab
    costs = surprise(model, ids)  # (T-1,)
    lens = []
    for logits in logit_lens(model, ids):
        lens.append(likeliest(logits, n_vocab, IN_A_CELL))
    # now logits are the last layer's: the model's own

    choices = torch.tensor([layer["ids"] for layer in lens])[:, :, 0]  # (n_layer + 1, T)
    leads = (choices == choices[-1]).int().argmax(dim=0)  # (T,); argmax finds the first

    heads, facts = [], []
    for weights in attention(model, ids):
        heads.append(pack_attention(weights))
        facts.append(for_json(head_facts(weights, ids).tolist()))
    return {
        "name": name, "about": describe(model), "heads": model.config.n_head,
        "costs": for_json(costs.tolist()), "ranks": ranks(logits[:-1], ids[1:], n_vocab),
        "expected": likeliest(logits, n_vocab, EXPECTED),
        "totals": totals(costs, *count_text(tokenizer, ids[1:])),
        "lens": lens, "leads": leads.tolist(), "attention": heads, "facts": facts, "endings": [],
    }


@torch.no_grad()
def look_at_endings(model, tokenizer, context, endings):
    """
    Token by token, the costs of a HellaSwag item's endings (lists of ids) after its context (list
    of ids) -> list of dicts, as look_at. The sums equal those from hellaswag.score.
    """
    looks = []
    for ending in endings:
        ids = context + ending
        costs = surprise(model, ids)[-len(ending):]
        idx = torch.tensor([ids[:-1]], device=costs.device)
        logits = model(idx)[0][0, -len(ending):]  # (n, V): before each token of the ending
        looks.append({
            "ids": ending, "costs": for_json(costs.tolist()),
            "ranks": ranks(logits, ending, tokenizer.n_vocab),
            "expected": likeliest(logits, tokenizer.n_vocab, EXPECTED),
        })
    return looks


def read_item(example, tokenizer, block_size):
    """A line of HellaSwag's file -> context and endings as ids, cut as in hellaswag.pack"""
    # as hellaswag.tokenize_example, but in the tokens of this model
    endings = [tokenizer.encode(" " + ending) for ending in example["endings"]]
    longest = max(map(len, endings))
    room = block_size + 1 - longest  # + 1: the last token is only predicted
    if room < 1:
        raise UserError(f"an ending of this item has {longest} tokens, and the model looks back "
                        f"at {block_size}: try another --item")
    return tokenizer.encode(example["ctx"])[-room:], endings


def spell_all(page, tokenizer):
    """-> {id: its spelling} for every id on the page"""
    expected = []
    for model in page["models"]:
        expected += [model["expected"], *model["lens"]]
        expected += [ending["expected"] for ending in model["endings"]]
    used = {*page["ids"], *page["context"]}
    for ending in page["models"][0]["endings"]:
        used.update(ending["ids"])
    for lists in expected:
        for ids in lists["ids"]:
            used.update(ids)
    return {i: spell(token_bytes(tokenizer, i)) for i in sorted(used)}


def common_context(models):
    """Number of tokens that all models, pairs (name, GPT), can read"""
    return min(model.config.block_size for _, model in models)


def begin_page(models, tokenizer, ids):
    """What every page shows -> dict"""
    shown = ids[-common_context(models):]
    return {
        "ids": shown, "written": 0, "left_out": len(ids) - len(shown),
        "n_vocab": tokenizer.n_vocab, "context": [], "label": None,
        "models": [look_at(name, model, tokenizer, shown) for name, model in models],
    }


def make_page(models, tokenizer, ids, written=0):
    """
    models: one or two pairs (name, GPT) with the same tokenizer. ids: the text to read; the first
    model wrote the last `written` tokens -> the page, as text. A text that is longer than the
    context loses its beginning.
    """
    page = begin_page(models, tokenizer, ids)
    page["written"] = min(written, len(page["ids"]))
    return fill(page, tokenizer)


def make_item_page(models, tokenizer, example):
    """
    A page about a HellaSwag item (dict): the text is the context with the right ending, and one
    more view compares the four endings.
    """
    context, endings = read_item(example, tokenizer, common_context(models))
    page = begin_page(models, tokenizer, context + endings[example["label"]])
    page["context"], page["label"] = context, example["label"]
    for seen, (_, model) in zip(page["models"], models, strict=True):
        seen["endings"] = look_at_endings(model, tokenizer, context, endings)
    return fill(page, tokenizer)


def fill(page, tokenizer):
    """Put what the page shows (dict) into assets/look.html -> the page, as text"""
    page["spelled"] = spell_all(page, tokenizer)
    data = json.dumps(page, separators=(",", ":"), allow_nan=False)
    # JSON is ASCII: everything else is written as \u.... Only <, which begins a tag, is left
    data = data.replace("<", "\\u003c")
    with open(asset("look.html"), encoding="utf-8") as f:
        return f.read().replace("PAGE_DATA", data, 1)


# -------------------------------------------------------------------------------------------------
# 4 the command


MARK = "The page that `python look.py` fills"  # in each page, because we replace no other files


@dataclass(frozen=True)
class LookConfig:
    out: str = "look.html"  # the page
    generate: int = 0  # number of tokens that the (first) model writes after the text
    temperature: float = 1.0  # for --generate: below 1 safer, above 1 wilder, 0 the most likely
    seed: int = 42  # for --generate
    hellaswag: str = ""  # a .jsonl file: look at an item of HellaSwag instead of a text
    item: int = 1  # which item, by its line in that file
    device: str = "auto"  # cuda, mps or cpu


def parse_args(argv):
    """A command line -> the models' names, the text (None with --hellaswag), a LookConfig"""
    typed = parse(argv, __doc__, LookConfig, words=True)
    names = typed.pop("words")
    config = LookConfig(**typed)
    text = names.pop() if names and not config.hellaswag else None
    if not 1 <= len(names) <= 2:
        raise UserError("give one model or two, and then a text: python look.py MODEL "
                        '"To be, or" (or --hellaswag=ITEMS.jsonl instead of the text)')
    check_least(config, 0, "generate", "temperature", "seed")
    check_most(config, 2**63 - 1, "seed")
    if config.hellaswag:
        refuse_unused(typed, "generate", where="with --hellaswag")
    else:
        refuse_unused(typed, "item", where="without --hellaswag")
    if not config.generate:
        refuse_unused(typed, "temperature", "seed", where="without --generate")
    if os.path.splitext(config.out)[1] != ".html":
        raise UserError(f"--out={config.out}: the name must end in .html")
    return names, text, config


def read_example(path, number):
    """Line `number`, from 1, of a .jsonl file with HellaSwag items -> dict. Raises UserError."""
    if not os.path.isfile(path):
        raise UserError(f"--hellaswag={path}: there is no such file")
    examples = list(read_examples(path))
    if not 1 <= number <= len(examples):
        raise UserError(f"--item={number}: {path} has items 1 to {len(examples)}")
    return examples[number - 1]


def load_pair(names, device):
    """One or two names of models -> pairs (name, GPT), and their tokenizer. Raises UserError."""
    models, tokenizers, _ = zip(*map(load_model, names), strict=True)
    if tokenizers[0].spec != tokenizers[-1].spec:
        raise UserError(f"{names[0]} and {names[1]} have different tokenizers: look at each alone")
    models = [model.to(device) for model in models]
    return list(zip(names, models, strict=True)), tokenizers[0]


def write_on(model, tokenizer, ids, config):
    """Let the model continue ids (list) by config.generate tokens, or up to <|endoftext|> -> ids"""
    idx = torch.tensor([ids], device=model.lm_head.weight.device)  # (1, T)
    generator = torch.Generator(idx.device).manual_seed(config.seed)
    greedy = config.temperature < 1e-6
    idx = model.generate(idx, config.generate, tokenizer.n_vocab, top_k=1 if greedy else 50,
                         temperature=1.0 if greedy else config.temperature, generator=generator)
    new = idx[0, len(ids) :].tolist()
    return new[: new.index(tokenizer.eot) + 1] if tokenizer.eot in new else new


def main(argv):
    names, text, config = parse_args(argv)
    with orderly_end("look", "a shorter text, or --device=cpu"):
        # in float32: the page shows what the model does, without rounding to 16 bits
        device = setup_distributed(TrainConfig(device=config.device, dtype="float32")).device
        if config.hellaswag:
            example = read_example(config.hellaswag, config.item)
            page = make_item_page(*load_pair(names, device), example)
        else:
            text = read_prompt(text)
            models, tokenizer = load_pair(names, device)
            ids = tokenize(tokenizer, text)
            new = write_on(models[0][1], tokenizer, ids, config)
            page = make_page(models, tokenizer, ids + new, written=len(new))
    try:
        check_replaceable(config.out, MARK)
        with atomic_write(config.out, "w", encoding="utf-8", newline="\n") as f:
            f.write(page)
    except OSError as e:
        raise UserError(f"cannot write {config.out} ({e.strerror}): try another --out")
    print(f"wrote {config.out} ({len(page) / 1e6:.1f} MB): open it in a browser")


if __name__ == "__main__":
    run_program(main)
