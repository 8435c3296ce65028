"""
A prompt on a command line becomes token ids, with the tokenizer of the model that reads it. Come
here when a prompt is refused.
"""
import os
import sys

from support.console import UserError
from support.tokenizer import load_tokenizer


def read_tokenizer(saved):
    """
    saved (dict), as load_model returns it -> the tokenizer of this language model. UserError if the
    model is tuned for a task, or if the tokenizer belongs to another model.
    """
    path = saved["path"]
    if "task" in saved:
        raise UserError(f"{path} is tuned for {saved['task']['name']} and writes no text: use "
                        "python finetune.py predict")
    tokenizer = load_tokenizer(saved["tokenizer"])
    vocab_size = saved["config"]["vocab_size"]
    if tokenizer.n_vocab > vocab_size:
        raise UserError(f"{path} knows {vocab_size} tokens, its tokenizer {tokenizer.n_vocab}: "
                        "they do not belong together")
    return tokenizer


def read_prompt(text):
    """
    The text itself, or the contents of a file (@name) or of stdin (-), without the newline that
    editors add at the end. UserError if the file cannot be read.
    """
    if text == "-":
        return sys.stdin.read().removesuffix("\n")
    if not text.startswith("@"):
        return text
    path = os.path.expanduser(text.removeprefix("@"))
    if not path:
        raise UserError("the name of a file is missing after @: write @prompt.txt, for example")
    try:
        with open(path, encoding="utf-8") as f:
            return f.read().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read the prompt from {path}: {e}")


def tokenize(tokenizer, text):
    """A prompt -> its ids (list). An empty one becomes <|endoftext|>, which begins a document."""
    # typed bytes that are not UTF-8 arrive as lone surrogates, which no tokenizer knows
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return tokenizer.encode(text) or [tokenizer.eot]
