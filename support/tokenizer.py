"""
Text <-> token ids: GPT-2's tokenizer, a tokenizer of characters, and byte pair encoding that you
train yourself. Like arithmetic.py, this file is part of the lecture. Come here, too, when a text
becomes other tokens than you expect.

A model works with a fixed vocabulary. If its tokens are characters, texts become long; if they are
words, some word is always missing. Byte pair encoding lies between the two (BPE; Sennrich et al.
2016; on bytes: GPT-2's paper, section 2.2):

    training    Start with a token for each of the 256 bytes: they can write any text. Count the
                pairs of neighboring tokens, merge the most frequent pair into a new token, and
                repeat until the vocabulary is full. Tokens are numbered as they are made: the
                number of a token is its rank.
    encoding    Split a text into words, and each word into bytes. In each word, merge the pair
                whose token has the lowest rank, and repeat until no pair is a token.

With GPT-2's ranks (er is 263, ow 322, ower 789, lower 21037):

    l o w e r   ->   l o w er   ->   l ow er   ->   l ower   ->   lower

So a frequent word becomes one token, and a rare word becomes several. GPT-2 has 256 bytes +
50,000 merges + <|endoftext|> = 50,257 tokens.

    tokenizer = make_tokenizer("gpt2")          # BPE, from assets/gpt2.tiktoken
    tokenizer = make_tokenizer("char", [text])  # each character of the texts is a token
    tokenizer.decode(tokenizer.encode("to be")) == "to be"

Each tokenizer is an object with
    encode(text)          -> list of ids
    encode_batch(texts)   -> list of lists (or arrays) of ids
    decode(ids)           -> text
    n_vocab               the highest id + 1
    eot                   the id of <|endoftext|>, which separates documents
    spec                  a dict of strings for checkpoints: load_tokenizer(spec) is the same
                          tokenizer

Contents
    1 tokenizers            GPT2Tokenizer, CharTokenizer, BPETokenizer; token_bytes, text_bytes
    2 training BPE          train_bpe
    3 which tokenizer       make_tokenizer, load_tokenizer, identify
    4 reading a text        read_text, tokenize_file
"""
import base64
import functools
import hashlib
import itertools
import json
import os
import re

import numpy as np

from support.console import UserError, one_line
from support.files import asset
from support.hub import download, failures_explained

# --------------------------------------------------------------------------------------------------
# 1 tokenizers

class GPT2Tokenizer:
    """GPT-2's byte-level BPE. assets/gpt2.tiktoken has the tokens and ranks; tiktoken merges."""
    # A text is split into words: contractions ('ll), then letters, digits or other signs, each
    # after at most one space, and white space. No token crosses the border of a word. Otherwise
    # "dog", "dog." and "dog!" would each take a place in the vocabulary.
    PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"

    def __init__(self):
        import tiktoken
        path = asset("gpt2.tiktoken")
        with open(path, "rb") as f:
            data = f.read().replace(b"\r\n", b"\n")  # git on Windows may change line ends
        if hashlib.sha256(data).hexdigest() != self.SHA256:
            # with half of the ranks everything would run, and every text have other tokens
            raise UserError(f"{path} is damaged ({len(data):,} bytes, and it should have 835,554): "
                            "git checkout assets/gpt2.tiktoken", who="node")
        pairs = [line.split() for line in data.splitlines()]
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}  # rank = id
        self.eot = len(ranks)  # 50256; no text can contain this token
        self.n_vocab = self.eot + 1
        self.spec = {"name": "gpt2"}
        self.bpe = tiktoken.Encoding("gpt2", pat_str=self.PATTERN, mergeable_ranks=ranks,
                                     special_tokens={"<|endoftext|>": self.eot})

    def encode(self, text):
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts):
        # no special tokens: "<|endoftext|>" in a text is 13 characters like any others
        encode = functools.partial(
            self.bpe.encode_to_numpy, allowed_special=set(), disallowed_special=())
        try:
            return [encode(text) for text in texts]
        except ValueError:
            # tiktoken's regex fails on a million spaces in a row: cut there, encode the pieces
            cut = [re.split(r"(\s{100000})", text) for text in texts]
            return [np.concatenate([encode(part) for part in parts]) for parts in cut]

    def decode(self, ids):
        return self.bpe.decode(list(ids), errors="replace")


@functools.lru_cache(maxsize=1)
def gpt2_tokenizer():
    """The GPT2Tokenizer of this process: reading 50,256 ranks takes a moment, so do it once."""
    return GPT2Tokenizer()


class CharTokenizer:
    """
    One token per character: id 0 is <|endoftext|>, the characters follow. The vocabulary is so
    small that a laptop can train a model with it. chars: the characters, in the order of their ids
    """

    def __init__(self, chars):
        self.chars = ["<|endoftext|>", *chars]
        # Unicode code point -> id, or 0 if the character is not in the vocabulary
        self.ids = np.zeros(0x110000, dtype=np.uint32)
        self.ids[[ord(c) for c in chars]] = range(1, len(self.chars))
        self.eot = 0
        self.n_vocab = len(self.chars)
        self.spec = {"name": "char", "chars": "".join(chars)}

    def encode(self, text):
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts):
        codes = [text.encode("utf-32-le", "surrogatepass") for text in texts]
        arrays = [self.ids[np.frombuffer(code, dtype="<u4")] for code in codes]
        for text, ids in zip(texts, arrays, strict=True):
            if not ids.all():
                raise UserError(f"this character tokenizer has no {text[int(ids.argmin())]!r}: it "
                                f"knows the {self.n_vocab - 1} characters that it was made from",
                                who="me")
        return arrays

    def decode(self, ids):
        return "".join(self.chars[i] for i in ids)


class BPETokenizer:
    """
    A tokenizer of Hugging Face's library `tokenizers`, trained here (train_bpe) or elsewhere. text:
    the contents of its tokenizer.json
    """
    # what <|endoftext|> is called in other families of models
    EOT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")

    def __init__(self, text):
        from tokenizers import Tokenizer
        self.spec = {"name": "bpe", "json": text}
        try:
            self.bpe = Tokenizer.from_str(text)
        except Exception as e:  # tokenizers raises a bare Exception for any other file
            raise UserError(f"not a usable tokenizer.json: {one_line(e)}")
        self.bpe.encode_special_tokens = True  # "<|endoftext|>" in a text is 13 characters
        self.bpe.no_truncation()
        self.bpe.no_padding()
        vocab = self.bpe.get_vocab(with_added_tokens=True)
        name = next((t for t in self.EOT if t in vocab), None)
        # if it is not special, a document that spells it would contain the token
        if name is None or vocab[name] in self.encode(name):
            raise UserError(f"this tokenizer.json has none of {', '.join(self.EOT)} as a special "
                            "token: documents need one")
        self.eot = vocab[name]
        self.n_vocab = max(vocab.values()) + 1
        decoder = json.dumps(json.loads(text)["decoder"])
        # how bytes are spelled in the vocabulary, see token_bytes
        self.is_byte_level = '"ByteLevel"' in decoder
        self.has_byte_fallback = '"ByteFallback"' in decoder

    def encode(self, text):
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        return [e.ids for e in self.bpe.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids):
        return self.bpe.decode(list(ids), skip_special_tokens=False)


def byte_letters():
    """
    A tokenizer.json is a text, and so is GPT-2's vocabulary file, but tokens are bytes: each byte
    is written as a letter -> {byte: letter}
    """
    # a printable byte is its own letter, the others get the letters from U+0100 on
    letters = {b: chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
    letters |= {b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - letters.keys()))}
    return letters


BYTES = {letter: b for b, letter in byte_letters().items()}


def token_bytes(tokenizer, i):
    """
    The bytes that the token with id i adds to a text. They may be only a part of a character, which
    decode([i]) shows as U+FFFD.
    """
    name = tokenizer.spec["name"]
    if name == "gpt2":
        return tokenizer.bpe.decode_single_token_bytes(i)
    if name == "char":
        return tokenizer.chars[i].encode("utf-8", "surrogatepass")
    token = tokenizer.bpe.id_to_token(i)
    if token is None:  # a vocabulary may leave out ids
        return b""
    if tokenizer.is_byte_level and set(token) <= BYTES.keys():
        return bytes(BYTES[letter] for letter in token)
    if tokenizer.has_byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])  # <0xE4>, in tokenizers like Llama's
    # decode it after another token, because some tokenizers drop a space at the start of a text
    before = tokenizer.encode("a")
    return tokenizer.decode([*before, i]).removeprefix(tokenizer.decode(before)).encode()


def text_bytes(tokenizer, ids):
    """Token ids of a whole text (list) -> its bytes; the last character may be incomplete"""
    data = b"".join(token_bytes(tokenizer, i) for i in ids)
    # tokenizers like Llama's drop the first token's space
    starts_with_space = tokenizer.decode(ids[:1]).startswith(" ")
    return data if starts_with_space else data.removeprefix(b" ")


def count_bytes(tokenizer, ids):
    """
    Token ids (array, 1-D) -> the number of bytes of their text. <|endoftext|> stands between texts
    and is no part of one.
    """
    ids = np.asarray(ids)
    data = [token_bytes(tokenizer, i) for i in range(tokenizer.n_vocab)]
    lengths = np.array([len(part) for part in data])
    lengths[tokenizer.eot] = 0
    # the first token of a text may add a space that is not in the text, see text_bytes
    first = ids[1:][ids[:-1] == tokenizer.eot]
    added = [data[i].startswith(b" ") and not tokenizer.decode([i]).startswith(" ") for i in first]
    return int(lengths[ids].sum()) - sum(added)


# --------------------------------------------------------------------------------------------------
# 2 training BPE

def train_bpe(texts, n_vocab):
    """
    Learn a byte-level BPE with n_vocab tokens from the first 100M characters of the texts
    (iterable) -> the contents of a tokenizer.json. The result depends on the texts alone.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    # splits a text into words, with GPT-2's pattern, and words into bytes
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=["<|endoftext|>"],
        # all 256 bytes, whether or not they occur in the texts
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False)
    bpe.train_from_iterator(first_characters(texts, 100_000_000), trainer)
    return bpe.to_str()


def first_characters(texts, n):
    """Yield texts until they add up to n characters; the last one is cut."""
    for text in texts:
        yield text[:n]
        n -= len(text)
        if n <= 0:
            return


# --------------------------------------------------------------------------------------------------
# 3 which tokenizer

def make_tokenizer(name, texts=()):
    """
    The value of --tokenizer (gpt2, char, bpe:8000, a tokenizer.json or the name of a model on
    Hugging Face's hub) -> tokenizer. char and bpe:N are made from the texts (iterable).
    """
    if name == "gpt2":
        return gpt2_tokenizer()
    if name == "char":
        return CharTokenizer(sorted(set(itertools.chain.from_iterable(texts))))
    m = re.fullmatch(r"bpe:(\d+)", name)
    if m is None:
        return BPETokenizer(fetch_tokenizer(name))
    if not 257 <= int(m[1]) <= 1_000_000:
        raise UserError(f"--tokenizer={name}: bpe:257 (a token for each byte and <|endoftext|>) "
                        "to bpe:1000000")
    return BPETokenizer(train_bpe(texts, int(m[1])))


def fetch_tokenizer(name):
    """A tokenizer.json, a directory with one, or the name of a model on the hub -> its contents"""
    path = os.path.join(name, "tokenizer.json") if os.path.isdir(name) else name
    if not os.path.isfile(path) and ("/" not in name or name.endswith(".json")):
        raise UserError(f"--tokenizer={name}: neither gpt2, char, bpe:8000, a tokenizer.json nor "
                        "a hub name such as Qwen/Qwen2-1.5B")
    if not os.path.isfile(path):
        by_hand = "copy its tokenizer.json to this directory, then --tokenizer=tokenizer.json"
        with failures_explained(f"the tokenizer {name}", by_hand):
            path = os.path.join(download(name, ["tokenizer.json"]), "tokenizer.json")
    with open(path, encoding="utf-8", errors="replace") as f:  # BPETokenizer checks what it is
        return f.read()


def load_tokenizer(spec):
    """spec (dict), from a checkpoint or meta.json -> the tokenizer that it describes"""
    if spec["name"] == "gpt2":
        return gpt2_tokenizer()
    if spec["name"] == "char":
        return CharTokenizer(spec["chars"])
    return BPETokenizer(spec["json"])


def identify(text):
    """
    The contents of a tokenizer.json -> the spec of the tokenizer. GPT-2's tokenizer and our
    tokenizers of characters are recognized, so a model that was exported to Hugging Face's format
    comes back with the tokenizer that it had. (HellaSwag, for one, needs GPT-2's.)
    """
    model = json.loads(text)["model"]
    if model["type"] == "WordLevel":
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        if tokens[0] == "<|endoftext|>" and all(len(token) == 1 for token in tokens[1:]):
            return {"name": "char", "chars": "".join(tokens[1:])}
    letters = byte_letters()
    gpt2 = gpt2_tokenizer()
    vocab = {"".join(letters[b] for b in token_bytes(gpt2, i)): i for i in range(gpt2.eot)}
    # no need to compare the merges: they follow from the vocabulary, in the order of the ids
    theirs = {token: i for token, i in model["vocab"].items() if token != "<|endoftext|>"}
    return {"name": "gpt2"} if theirs == vocab else {"name": "bpe", "json": text}


# --------------------------------------------------------------------------------------------------
# 4 reading a text

def read_text(path):
    """A text file in UTF-8 -> str, without a byte order mark. UserError for other encodings"""
    with open(path, "rb") as f:
        data = f.read()
    try:
        text = data.decode()
        bad = data.find(b"\0")  # valid in UTF-8, but no text: UTF-16, or a damaged file
    except UnicodeDecodeError as e:
        bad = e.start
    if bad >= 0:
        raise UserError(f"{path} is not text in UTF-8 (byte {bad:,}): convert it, as with iconv",
                        who="node")
    return text.removeprefix("\ufeff")


def tokenize_file(path, tokenizer_name):
    """
    A text file -> tokenizer, [train tokens], [validation tokens]. The last tenth of the text is for
    validation. Each list holds one array of uint32, like a directory with a single shard.
    """
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    tokenizer = make_tokenizer(tokenizer_name, [text])
    cut = int(0.9 * len(text))
    train = np.array(tokenizer.encode(text[:cut]), dtype=np.uint32)
    val = np.array(tokenizer.encode(text[cut:]), dtype=np.uint32)
    if min(len(train), len(val)) < 2:
        raise UserError(f"{path} is too short ({len(text)} characters): it has {len(train)} "
                        f"tokens to train on and {len(val)} for validation, and a batch needs "
                        "B * T + 1, at least 2", who="node")
    return tokenizer, [train], [val]
