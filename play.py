"""
What you do with a trained model: let it write, chat with it, export it, see what is in it.

    python play.py sample MODEL "To be, or" --num_samples=4  # or @prompt.txt; - is stdin
    python play.py chat MODEL                                # it continues what you type
    python play.py export MODEL DIR                          # a directory for transformers
    python play.py info MODEL                                # its size, its loss, its settings

MODEL is a checkpoint (log/model_19073.pt, or one of build-nanogpt or nanoGPT), the directory of a
run (its newest checkpoint), a directory with a GPT-2 in Hugging Face's format, or gpt2,
gpt2-medium, gpt2-large, gpt2-xl. The tokenizer comes with it. export and info also take a model
that finetune.py has tuned.

Contents
    1 the flags           PlayConfig, check
    2 the KV cache        KVCache, next_logits
    3 generation          sample_token, stream, generate
    4 writing             sample, chat
    5 exporting           export
    6 what is in a model  info
    7 the command line    COMMANDS, parse_args, main

Letters in shapes
    B rows in a batch   T tokens in a row (time)   C channels, n_embd   nh heads, hs = C / nh
    V rows of the vocabulary, padding included
"""
import contextlib
import difflib
import os
import sys
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import torch
from torch.nn import functional as F

import finetune
from support.arithmetic import flops_per_token
from support.compiling import attention_for_any_shape
from support.console import UserError, run_program
from support.checkpoints import is_tuned
from support.hugging_face import save_pretrained, save_tuned
from support.processes import orderly_end
from support.prompts import read_prompt, tokenize
from support.runlog import read_log
from support.settings import check_least, check_most, parse
from train_gpt2 import TrainConfig, load_model, setup_distributed

# --------------------------------------------------------------------------------------------------
# 1 the flags. The comment after a field is its text in --help


@dataclass(frozen=True)
class PlayConfig:
    num_samples: int = 1  # sample: number of continuations
    max_new_tokens: int = 200  # sample, chat: longest continuation, in tokens
    temperature: float = 1.0  # below 1 safer, above 1 wilder, 0: always the most likely token
    top_k: int = 50  # sample from the top_k most likely tokens only
    # nucleus sampling (Holtzman et al. 2020)
    top_p: float = 1.0  # of these, only from the fewest whose probabilities add up to top_p
    seed: int = 42  # sample, chat: where the random numbers start
    device: str = "auto"  # cuda, mps or cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # of the matmuls


# what can be changed during a chat
CHAT_SETTINGS = ("temperature", "top_k", "top_p", "max_new_tokens", "seed")


def check(config):
    """UserError for values that cannot work."""
    check_least(config, 0, "temperature", "seed")
    check_least(config, 1, "top_k", "max_new_tokens", "num_samples")
    check_least(config, 1e-9, "top_p")
    check_most(config, 1, "top_p")
    check_most(config, 1000, "num_samples")  # all in one batch, with one cache
    check_most(config, 2**63 - 1, "seed")


# --------------------------------------------------------------------------------------------------
# 2 the KV cache


class KVCache:
    """
    Keys and values of the tokens so far. Attention is causal, so the keys and values of a token
    never change, and need to be computed only once. GPT.hidden takes a cache as its argument
    `attend`, in place of causal_attention.
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
        if T == 1:  # the newest token attends to everything
            return F.scaled_dot_product_attention(q, keys, values)
        # Several tokens after cached ones: not in this file, but where a text is fed in pieces.
        # mask[i, j]: may new token i attend to token j? (With is_causal, new token i would attend
        # to tokens 0 to i only.)
        mask = torch.ones(T, end, dtype=torch.bool, device=q.device).tril(diagonal=self.n)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    def advance(self, T):
        """Count T new tokens. Call it once after each forward, when all layers have them."""
        self.n += T


def next_logits(model, idx, cache):
    """
    idx (B, T), the tokens after those in cache (a KVCache, which appends them) -> logits (B, V) of
    the token that follows.
    """
    T = idx.size(1)
    position_ids = torch.arange(cache.n, cache.n + T, device=idx.device)
    with attention_for_any_shape():  # some kernels prepare each new length, which is slow
        x = model.hidden(idx, position_ids, cache)[:, -1]  # (B, C)
    cache.advance(T)
    # lm_head(x) as (V, C) @ (C, B), which is faster for few rows
    return (model.lm_head.weight @ x.mT).mT  # (B, V)


# --------------------------------------------------------------------------------------------------
# 3 generation


def sample_token(logits, temperature, top_k, top_p, generator):
    """Draw a token for each row: logits (B, V) -> ids (B, 1). temperature ...: see PlayConfig"""
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
        n_vocab      number of real tokens; the ids after them are padding and are never sampled
        generator    torch's random numbers
    temperature, top_k, top_p: see PlayConfig
    """
    size = model.config.block_size
    # Each turn of the outer loop fills a cache. The first starts with the last `size` tokens of
    # idx. When it is full, the older half is dropped: the other half moves to new positions, so its
    # keys and values have to be computed again, in a new cache
    window = size
    while True:
        cache = KVCache(size)
        new = idx[:, -window:]
        while cache.n < size:
            logits = next_logits(model, new, cache)[:, :n_vocab].float()
            new = sample_token(logits, temperature, top_k, top_p, generator)  # (B, 1)
            idx = torch.cat((idx, new), dim=1)
            yield new
        window = size - size // 2


def generate(model, idx, max_new_tokens, n_vocab=None, eot=None, **sampling):
    """
    Continue idx (B, T) -> (B, T + max_new_tokens). eot: the id of <|endoftext|>; after the first
    new eot of a row, every token is eot. sampling: further arguments of stream
    """
    tokens = stream(model, idx, n_vocab, **sampling)
    nothing = idx[:, :0]  # cat needs at least one tensor, even if max_new_tokens is 0
    new = torch.cat([nothing, *islice(tokens, max_new_tokens)], dim=1)
    if eot is not None:
        ended = (new == eot).cumsum(dim=1) > 0
        new = new.masked_fill(ended, eot)
    return torch.cat((idx, new), dim=1)


# --------------------------------------------------------------------------------------------------
# 4 writing


def load(name, config):
    """MODEL -> the model on the device of config, its tokenizer, the Process with its autocast"""
    # one process: this chooses its device and the type of its matmuls, as in training
    process = setup_distributed(TrainConfig(device=config.device, dtype=config.dtype))
    model, tokenizer, _ = load_model(name)
    return model.to(process.device), tokenizer, process


def sample(name, prompt, config):
    """Continue a prompt, once or several times, each time up to <|endoftext|>."""
    prompt = read_prompt(prompt)
    model, tokenizer, process = load(name, config)
    ids = tokenize(tokenizer, prompt)
    ids = ids[-model.config.block_size :]  # stream looks no further back: keep no copies of more
    idx = torch.tensor([ids] * config.num_samples, device=process.device)  # (num_samples, T)
    generator = torch.Generator(process.device).manual_seed(config.seed)
    with process.autocast:
        idx = generate(model, idx, config.max_new_tokens, tokenizer.n_vocab, tokenizer.eot,
                       temperature=config.temperature, top_k=config.top_k, top_p=config.top_p,
                       generator=generator)
    new = idx[:, len(ids) :]  # (num_samples, max_new_tokens)

    for i, row in enumerate(new.tolist()):
        if config.num_samples > 1:
            print(f"--- sample {i}")
        if tokenizer.eot in row:
            row = row[: row.index(tokenizer.eot)]
        print(prompt + tokenizer.decode(row), flush=True)


def pieces(tokenizer, ids):
    """
    An iterator of ids -> yields their text in pieces. A token may end in the middle of a character
    (an emoji has four bytes). Then the decoded text ends in U+FFFD, which is held back until the
    character is complete.
    """
    # decode only the end, since decoding the whole text for each token takes quadratic time. Some
    # tokenizers drop the space at the start of a text, so a few earlier ids are decoded with it
    before = []  # the previous group of ids, already shown
    new = []  # ids since then
    num_shown = 0  # number of characters of before + new that were yielded
    for i in ids:
        new.append(i)
        text = tokenizer.decode(before + new)
        num_complete = len(text.rstrip("\ufffd"))
        if num_complete > num_shown:
            yield text[num_shown:num_complete]
            num_shown = num_complete
        if num_complete == len(text):  # no character is incomplete: a new group begins
            before, new = new, []
            num_shown = len(tokenizer.decode(before))
    # no more tokens will come: an incomplete last character stays incomplete
    yield tokenizer.decode(before + new)[num_shown:]


def continue_text(model, tokenizer, context, config, generator):
    """
    context is the whole text so far (list of ids). Yield the ids that the model adds to it, and
    append each. At <|endoftext|> context is emptied: a new text begins.
    """
    idx = torch.tensor([context], device=model.lm_head.weight.device)  # (1, T)
    tokens = stream(model, idx, tokenizer.n_vocab, config.temperature, config.top_k, config.top_p,
                    generator)
    for new in islice(tokens, config.max_new_tokens):  # each (1, 1)
        new_id = new.item()
        if new_id == tokenizer.eot:
            context.clear()
            return
        context.append(new_id)
        yield new_id


def answer(model, tokenizer, autocast, context, config, generator):
    """Print what the model generates after context. Ctrl-C ends the answer, not the chat."""
    ids = continue_text(model, tokenizer, context, config, generator)
    try:
        with autocast:
            for piece in pieces(tokenizer, ids):
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print(flush=True)


def change_setting(line, config, context, generator):
    """
    A line that begins with / -> the new config. `/top_k 5` changes a setting, `/new` empties
    context, any other line prints what can be changed. UserError for a value that cannot work.
    """
    name, _, value = line.removeprefix("/").strip().partition(" ")
    if name == "new":
        context.clear()
        return config
    if name not in CHAT_SETTINGS or not value:
        for setting in CHAT_SETTINGS:
            print(f"/{setting} {getattr(config, setting)}")
        print("/new forgets the text so far; an empty line lets the model continue; /quit leaves")
        return config

    current = getattr(config, name)
    try:
        number = type(current)(value)  # int or float
    except ValueError:
        raise UserError(f"{value} is not a number: try /{name} {current}")
    config = replace(config, **{name: number})
    check(config)
    if name == "seed":
        generator.manual_seed(number)
    return config


def read_line(at_terminal):
    """The next line of stdin -> str, None at its end. Ctrl-C drops the line that is being typed."""
    while True:
        try:
            return input("> " if at_terminal else "")
        except KeyboardInterrupt:
            print()
        except EOFError:
            if at_terminal:
                print()
            return None


def chat(name, config):
    """Read a line, let the model continue the text so far, and so on, until /quit."""
    model, tokenizer, process = load(name, config)
    generator = torch.Generator(process.device).manual_seed(config.seed)
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        print("The model continues what you type. Ctrl-C stops it, /quit or Ctrl-D leaves, /help "
              "lists what you can change.")
        with contextlib.suppress(ImportError):
            # with readline, input() lets you edit the line and recall older ones
            import readline  # noqa: F401

    context = []
    while (line := read_line(at_terminal)) not in (None, "/quit"):
        try:
            if line.startswith("/"):
                config = change_setting(line, config, context, generator)
                continue
            if not context:
                context += tokenize(tokenizer, line)  # an empty line: <|endoftext|>
            elif line:
                context += tokenize(tokenizer, "\n" + line)
            # otherwise, after an empty line, the model continues its own text
            answer(model, tokenizer, process.autocast, context, config, generator)
        except UserError as e:
            # print it and go on: one bad line does not end the conversation
            print(f"error: {e}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------------
# 5 exporting


def export(name, directory, config):
    """
    Write MODEL, a language model or a tuned one, in the format of other libraries, into a directory
    that is new or empty.
    """
    is_empty = os.path.isdir(directory) and not os.listdir(directory)
    if os.path.lexists(directory) and not is_empty:
        raise UserError(f"{directory} is there already and is not empty: name a new directory")
    if is_tuned(name):
        model, tokenizer, _ = finetune.load_tuned(name)
        save_tuned(model, directory, tokenizer, model.task, finetune.SPECIAL_TOKENS)
        reader = "transformers' AutoModelForSequenceClassification.from_pretrained"
        if model.task.name == "embed":
            reader = "sentence-transformers"
    else:
        model, tokenizer, _ = load_model(name)
        save_pretrained(model, directory, tokenizer)
        reader = "transformers' AutoModelForCausalLM.from_pretrained, or python play.py sample"
    print(f"wrote {directory}, to be read by {reader}; prompt and new tokens together: at most "
          f"{model.config.block_size}")


# --------------------------------------------------------------------------------------------------
# 6 what is in a model

# a piece of a parameter's name -> the part of the model that the parameter belongs to
PARTS = {
    "wte": "token embedding (and head)",
    "wpe": "position embedding",
    "attn": "attention",
    "mlp": "MLP",
    "ln_": "norms",
    "score": "head of the task",  # of a tuned model
}


def parameters_by_part(model):
    """A GPT -> {part: number of its parameters}. The tied head counts once."""
    counts = dict.fromkeys(PARTS.values(), 0)
    for name, p in model.named_parameters():
        for piece, part in PARTS.items():
            if piece in name:
                counts[part] += p.numel()
    return {part: n for part, n in counts.items() if n > 0}


def print_sizes(name, model, tokenizer):
    """Print the shape of a model, its number of parameters, and what a token costs."""
    config = model.config
    print(f"{name}: {config.n_layer} blocks, {config.n_head} heads, {config.n_embd} channels, "
          f"context of {config.block_size} tokens")
    print(f"tokenizer: {tokenizer.spec['name']}, {tokenizer.n_vocab:,} tokens in "
          f"{config.vocab_size:,} rows")
    counts = parameters_by_part(model)
    counts["all"] = sum(counts.values())
    for part, n in counts.items():
        print(f"{n:15,} parameters: {part}")
    flops = flops_per_token(config, config.block_size)
    print(f"{flops:15.3g} FLOPs a token in training, a third of them in the forward pass")


def find_val_loss(saved):
    """The validation loss of a checkpoint (dict) -> float, None if it is unknown"""
    if saved.get("val_loss") is not None:  # the original program's checkpoints have it
        return saved["val_loss"]
    with contextlib.suppress(UserError):  # raised if log.txt is missing or empty
        log, settings = read_log(os.path.join(os.path.dirname(saved["path"]), "log.txt"))
        if settings.get("run") == saved.get("run"):  # not a checkpoint copied in from another run
            return log.get("val", {}).get(saved["step"])
    return None


def print_history(saved):
    """Print what a checkpoint (dict) knows about its run. Models from elsewhere have no step."""
    for_task = "task" in saved
    of_loss = " nats per character" if saved["tokenizer"]["name"] == "char" else " nats per token"
    if saved.get("step"):
        val_loss = find_val_loss(saved)
        if val_loss is not None:
            print(f"validation loss {val_loss:.4f}{'' if for_task else of_loss}")
        # position: number of training tokens, or of a task's items. build-nanogpt does not save it
        unit = "items" if for_task else "tokens"
        seen = f", {saved['position']:,} {unit} seen" if saved["position"] else ""
        print(f"{saved['step']:,} steps{seen}")
    for key in ("train_config", "versions"):
        if saved.get(key):
            print(f"{key}: " + " ".join(f"{name}={value}" for name, value in saved[key].items()))


def info(name, config):
    """Print the size of MODEL, and what its checkpoint knows about the run."""
    model, tokenizer, saved = (finetune.load_tuned if is_tuned(name) else load_model)(name)
    print_sizes(name, model, tokenizer)
    print_history(saved)


# --------------------------------------------------------------------------------------------------
# 7 the command line

# name: its function (called with the words after it and a PlayConfig), these words, its flags
COMMANDS = {
    "sample": (sample, 'MODEL "PROMPT"', {*CHAT_SETTINGS, "num_samples", "device", "dtype"}),
    "chat": (chat, "MODEL", {*CHAT_SETTINGS, "device", "dtype"}),
    "export": (export, "MODEL DIR", set()),
    "info": (info, "MODEL", set()),
}


def parse_args(argv):
    """A command line (list) -> the command's function, the words after it, a PlayConfig"""
    # only what was typed: {flag: value}, and everything that is not a flag under "words"
    typed = parse(argv, __doc__, PlayConfig, words=True)
    if not typed["words"]:
        raise UserError(f"name a command: {', '.join(COMMANDS)} (--help explains them)")
    name, *words = typed.pop("words")
    if name not in COMMANDS:
        similar = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"try {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name}: {hint} (--help explains them)")
    function, expected, flags = COMMANDS[name]
    if len(words) != len(expected.split()):
        raise UserError(f"{name} needs {expected}, not {len(words)} words: python play.py {name} "
                        f"{expected}")
    for i, kind in enumerate(expected.split()):
        if kind in ("MODEL", "DIR"):
            if not words[i]:
                raise UserError(f"{kind} is empty: is a variable of your shell not set?")
            words[i] = os.path.expanduser(words[i])  # a shell leaves a quoted "~/log" as it is
    if unused := typed.keys() - flags:
        raise UserError(f"{name} has no flag --{min(unused)} (--help lists the flags)")
    config = PlayConfig(**typed)
    check(config)
    return function, words, config


def main(argv):
    function, words, config = parse_args(argv)
    with orderly_end(function.__name__, "fewer --num_samples, or --device=cpu"):
        function(*words, config)


if __name__ == "__main__":
    run_program(main)
