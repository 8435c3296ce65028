"""
Text <-> ids. Come here when a text becomes other tokens than you expect, or to add a tokenizer.

A tokenizer here is an object with encode(text) -> list of ids, decode(ids) -> text,
encode_batch(texts) -> list of lists or arrays of ids, n_vocab (the highest id + 1), eot (the id of
<|endoftext|>) and spec (a dict of plain strings from which load_tokenizer makes it again: that is
what a checkpoint keeps).

    tokenizer = make_tokenizer("gpt2")          # BPE, 50,257 tokens, assets/gpt2.tiktoken
    tokenizer = make_tokenizer("char", [text])  # every character of the texts is a token
    tokenizer.decode(tokenizer.encode("to be")) == "to be"
"""
import base64
import codecs
import functools
import hashlib
import itertools
import json
import os
import re
import shlex

import numpy as np

from support.console import UserError, one_line, print0
from support.files import asset, atomic_write, read_json


class GPT2Tokenizer:
    """
    GPT-2's byte-level BPE (Radford et al. 2019, section 2.2) by tiktoken, from the ranks in
    assets/: no download.
    """
    # how text is cut before BPE: contractions, then letters, digits and other signs, each with one
    # space before it
    PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"

    def __init__(self):
        import tiktoken
        path = asset("gpt2.tiktoken")
        with open(path, "rb") as f:
            data = f.read().replace(b"\r\n", b"\n")  # git on Windows may have changed its lines
        if hashlib.sha256(data).hexdigest() != self.SHA256:
            # with a part of the ranks everything would work, with other tokens
            raise UserError(f"{path} is damaged ({len(data):,} bytes, and it should have 835,554): "
                            "git checkout assets/gpt2.tiktoken", who="node")
        pairs = [line.split() for line in data.splitlines()]
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        self.eot = len(ranks)  # 50256, the one token that no text can contain
        self.n_vocab = self.eot + 1
        self.spec = {"name": "gpt2"}
        self.bpe = tiktoken.Encoding("gpt2", pat_str=self.PATTERN, mergeable_ranks=ranks,
                                     special_tokens={"<|endoftext|>": self.eot})

    def encode(self, text):
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts):
        # no allowed specials: "<|endoftext|>" in a text is 13 characters, not the token
        encode = functools.partial(
            self.bpe.encode_to_numpy, allowed_special=set(), disallowed_special=())
        try:
            return [encode(text) for text in texts]
        except ValueError:
            # a million spaces in a row are too much for tiktoken's regex: cut where they are
            cut = [re.split(r"(\s{100000})", text) for text in texts]
            return [np.concatenate([encode(part) for part in parts]) for parts in cut]

    def decode(self, ids):
        return self.bpe.decode(list(ids), errors="replace")


class CharTokenizer:
    """
    A token per character: id 0 is <|endoftext|>, then the characters in sorted order. Small enough
    for a laptop.
    """

    def __init__(self, chars):
        self.chars = ["<|endoftext|>", *chars]
        # of every character in Unicode; 0: not in this vocabulary
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
                                "knows the "
                                f"{self.n_vocab - 1} characters it was made from", who="me")
        return arrays

    def decode(self, ids):
        return "".join(self.chars[i] for i in ids)


class BPETokenizer:
    """
    What a tokenizer.json of Hugging Face's tokenizers says. `text`: its contents, which are also
    the spec.
    """
    # whoever trained it chose one of these
    EOT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")

    def __init__(self, text):
        from tokenizers import Tokenizer
        self.spec = {"name": "bpe", "json": text}
        try:
            self.bpe = Tokenizer.from_str(text)
            # "<|endoftext|>" in a text is 13 characters here too
            self.bpe.encode_special_tokens = True
            self.bpe.no_truncation()
            self.bpe.no_padding()
            vocab = self.bpe.get_vocab(with_added_tokens=True)
        except Exception as e:  # the library raises a bare Exception for what is no tokenizer.json
            raise UserError(f"not a usable tokenizer.json: {one_line(e)}")
        name = next((t for t in self.EOT if t in vocab), None)
        if name is None or vocab[name] in self.encode(name):  # not special: a text could spell it
            raise UserError(f"this tokenizer.json has none of {', '.join(self.EOT)} as a special "
                            "token: documents need "
                            "one")
        self.eot = vocab[name]
        self.n_vocab = max(vocab.values()) + 1

    def encode(self, text):
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        try:
            return [e.ids for e in self.bpe.encode_batch_fast(texts, add_special_tokens=False)]
        except BaseException as e:
            # what goes wrong in Rust is called PanicException, and is no Exception
            if type(e).__name__ != "PanicException":
                raise
            raise UserError(f"this tokenizer.json cannot cut a text into words ({one_line(e)}): "
                            "its regular expression takes too long", who="me")

    def decode(self, ids):
        return self.bpe.decode(list(ids), skip_special_tokens=False)


@functools.lru_cache(maxsize=1)
def gpt2_tokenizer():
    """The GPT-2 tokenizer, made once a process: building it from 50,256 ranks takes a moment."""
    return GPT2Tokenizer()


def train_bpe(texts, n_vocab):
    """
    Byte-level BPE (Sennrich et al. 2016; on bytes, as in GPT-2) of n_vocab tokens, learned from the
    first 100M characters of the texts -> tokenizer.json, as text. The same texts give the same
    tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def beginning(left=100_000_000):
        for text in texts:
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # cuts text as GPT-2 does
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes: no text is without tokens
    bpe.train_from_iterator(beginning(), trainers.BpeTrainer(
        vocab_size=n_vocab, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet,
        show_progress=False))
    return bpe.to_str()


def fetch_tokenizer(name):
    """A tokenizer.json, a directory with one, or the name of a model on the hub -> its contents."""
    path = os.path.join(name, "tokenizer.json") if os.path.isdir(name) else name
    if not os.path.isfile(path) and ("/" not in name or name.endswith(".json")):
        raise UserError(f"--tokenizer={name}: neither gpt2, char, bpe:8000, a tokenizer.json nor "
                        "a hub name such as "
                        "Qwen/Qwen2-1.5B")
    try:
        if not os.path.isfile(path):
            from huggingface_hub import hf_hub_download
            path = hf_hub_download(name, "tokenizer.json")
        with open(path, encoding="utf-8") as f:
            return f.read()
    except ModuleNotFoundError:
        raise
    except Exception as e:
        # no network, no such model, no such file in it: each has an exception of its own
        raise UserError(f"cannot load the tokenizer {name}: {one_line(e)}")


def make_tokenizer(name, texts=()):
    """
    The tokenizer called `name` (see --tokenizer) for an iterable of texts, which only char and
    bpe:N look at.
    """
    if name == "gpt2":
        return gpt2_tokenizer()
    if name == "char":
        return CharTokenizer(sorted(set(itertools.chain.from_iterable(texts))))
    m = re.fullmatch(r"bpe:(\d+)", name)
    if m and not (len(m[1]) < 9 and int(m[1]) >= 257):
        raise UserError(f"--tokenizer={name[:50]}: at least bpe:257, a token for each byte and "
                        "<|endoftext|>, and at most bpe:99999999")
    return BPETokenizer(train_bpe(texts, int(m[1])) if m else fetch_tokenizer(name))


def load_tokenizer(spec):
    """The inverse of tokenizer.spec. UserError for a spec, from a file, that is none."""
    name = spec.get("name") if isinstance(spec, dict) else None
    if name == "gpt2":
        return gpt2_tokenizer()
    if name == "char" and isinstance(spec.get("chars"), str):
        return CharTokenizer(spec["chars"])
    if name == "bpe" and isinstance(spec.get("json"), str):
        return BPETokenizer(spec["json"])
    raise UserError(f"{str(spec)[:50]} describes no tokenizer: neither gpt2, char nor bpe")


# --- text files -----------------------------------------------------------------------------------

# how files start that are no text: what they are, and what to do
NO_TEXT = {
    b"\x1f\x8b": ("a gzip file", "gunzip it first"),
    b"PAR1\x15": ("a parquet file", "python fineweb.py --files='*.parquet' makes shards of it"),
    b"PK\x03\x04": ("a zip file, perhaps a checkpoint", "a checkpoint is for --init_from"),
    b"\x93NUMPY": ("a numpy array, perhaps a shard", "give the directory of the shards"),
}
# how texts start that are in another encoding. UTF-32 comes first: its mark starts with UTF-16's
BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32 LE", b"\0\0\xfe\xff": "UTF-32 BE",
    b"\xff\xfe": "UTF-16 LE", b"\xfe\xff": "UTF-16 BE",
}


def find_encoding(start):
    """The name of the encoding that the first bytes of a text give away, UTF-16 say, or None."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    # without a mark: one of the two bytes of each Latin letter is zero
    first, second = start[0::2].count(0), start[1::2].count(0)
    if first == 0 and 4 * second > len(start):
        return "UTF-16LE"
    if second == 0 and 4 * first > len(start):
        return "UTF-16BE"
    return None


def convert_command(path, encoding):
    """What to type to have a text in UTF-8: for a.txt, it will be in a.utf8.txt."""
    stem, suffix = os.path.splitext(path.removesuffix(".gz"))
    target = shlex.quote(f"{stem}.utf8{suffix}")
    source = shlex.quote(path)
    if path.endswith(".gz"):
        return f"gunzip -c {source} | iconv -f {encoding} -t UTF-8 > {target}"
    return f"iconv -f {encoding} -t UTF-8 {source} > {target}"


def check_start(start, path):
    """UserError where the bytes with which a file starts tell that it is no text in UTF-8."""
    for magic, (what, advice) in NO_TEXT.items():
        if start.startswith(magic):
            raise UserError(f"{path} is not a text but seems to be {what}: {advice}", who="node")
    encoding = find_encoding(start)
    if encoding:
        # iconv finds the order of the bytes itself where there is a mark, and drops the mark
        command = convert_command(path, encoding.split()[0])
        raise UserError(f"{path} is in {encoding}, not in UTF-8: {command}", who="node")


def count_bad_bytes(data):
    """How many of these bytes are no UTF-8?"""
    return len(data) - len(data.decode(errors="ignore").encode())


def read_text(path):
    """
    A text file -> its bytes, which are UTF-8, without a byte order mark. One in a thousand may be
    anything: whoever decodes them gets U+FFFD. A file in which there are more is refused: it is in
    another encoding, or no text at all, and a model would learn to write U+FFFD. So is one with a
    zero in it, which is valid UTF-8, but is found in databases, archives and holes of a file.
    """
    with open(path, "rb") as f:
        data = f.read()
    check_start(data[:1000], path)
    bad = count_bad_bytes(data)
    if 1000 * bad > len(data):
        command = convert_command(path, "GB18030")
        raise UserError(f"{path} is not in UTF-8: {bad:,} of its {len(data):,} bytes cannot be "
                        "read. If it is a text, convert it from its encoding, which may be "
                        f"GB18030 or ISO-8859-1: {command}", who="node")
    hole = data.find(b"\0")
    if hole >= 0:
        raise UserError(f"{path} is not a text: byte {hole:,} of {len(data):,} is zero (a hole, or "
                        "a database or an archive): give the text itself", who="node")
    return data.removeprefix(codecs.BOM_UTF8)


def tokenize_file(path, tokenizer_name):
    """
    A text file -> its tokenizer, [train tokens], [validation tokens], the last tenth of it, as
    uint32 arrays.
    """
    data = read_text(path)
    bad = count_bad_bytes(data)
    if bad:
        print0(f"{path}: what is no UTF-8 becomes U+FFFD ({bad:,} of {len(data):,} bytes)")
    text = data.decode(errors="replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # a line ends with \n everywhere
    if not text:
        raise UserError(f"{path} is empty (0 characters): give a text to train on", who="node")
    tokenizer = make_tokenizer(tokenizer_name, [text])
    cut = int(0.9 * len(text))
    train = np.array(tokenizer.encode(text[:cut]), dtype=np.uint32)
    val = np.array(tokenizer.encode(text[cut:]), dtype=np.uint32)
    if min(len(train), len(val)) < 2:  # no B and no T are small enough
        raise UserError(f"{path} is too short ({len(text)} characters): it has {len(train)} "
                        f"tokens to train on and {len(val)} for validation, and a batch needs "
                        "B * T + 1, at least 2", who="node")
    return tokenizer, [train], [val]


# --- as Hugging Face's files ----------------------------------------------------------------------

def saved_spec(folder):
    """
    The spec of the tokenizer that `play.py export` wrote into folder. A GPT-2 from elsewhere has
    GPT-2's.
    """
    path = os.path.join(folder, "tokenizer_spec.json")
    if not os.path.isfile(path):
        return {"name": "gpt2"}
    try:
        spec = read_json(path)
        load_tokenizer(spec)
    except (OSError, ValueError, UserError) as e:
        raise UserError(f"{path} describes no tokenizer ({one_line(e)}): was it written by "
                        "python play.py export?")
    return spec


def last_merge(token, ranks):
    """
    The two tokens (bytes) that BPE joins into this one: it merges, lowest rank first, until two are
    left.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def byte_letters():
    """
    How bytes are written in a tokenizer.json of byte-level BPE, and in GPT-2's own files, which
    are text -> {byte: letter}
    """
    # a byte that prints is its own letter, the others are those from U+0100 on
    letters = {b: chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
    letters |= {b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - letters.keys()))}
    return letters


def token_bytes(tokenizer, i):
    """
    What one token stands for, in bytes and not as text: it may be a part of a character, and then
    decode([i]) is only U+FFFD.
    """
    name = tokenizer.spec["name"]
    if name == "gpt2":
        return tokenizer.bpe.decode_single_token_bytes(i)
    if name == "char":
        return tokenizer.chars[i].encode("utf-8", "surrogatepass")
    from tokenizers import decoders
    token = tokenizer.bpe.id_to_token(i)
    if token is None:  # a tokenizer.json may leave out ids
        return b""
    bytes_of = {letter: b for b, letter in byte_letters().items()}
    is_byte_level = isinstance(tokenizer.bpe.decoder, decoders.ByteLevel)
    if is_byte_level and bytes_of.keys() >= set(token):
        return bytes(bytes_of[letter] for letter in token)
    return tokenizer.decode([i]).encode()


def hugging_face_tokenizer(tokenizer):
    """
    One of our tokenizers -> the same as a tokenizers.Tokenizer, whose to_str() is a tokenizer.json
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    spec = tokenizer.spec
    if spec["name"] == "char":
        ids = {c: i for i, c in enumerate(tokenizer.chars)}
        hf = Tokenizer(models.WordLevel(ids, unk_token="no such character"))
        # every character is a word
        hf.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        hf.decoder = decoders.Fuse()  # and nothing comes between them
    elif spec["name"] == "gpt2":
        tokens = [tokenizer.bpe.decode_single_token_bytes(i) for i in range(tokenizer.eot)]
        ranks = {token: i for i, token in enumerate(tokens)}
        letters = byte_letters()

        def spell(token):
            return "".join(letters[b] for b in token)
        merges = [tuple(map(spell, last_merge(token, ranks))) for token in tokens if len(token) > 1]
        hf = Tokenizer(models.BPE({spell(token): i for token, i in ranks.items()}, merges))
        # GPT-2's way to cut a text is its default
        hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        hf.decoder = decoders.ByteLevel()
    else:
        return Tokenizer.from_str(spec["json"])
    hf.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    return hf


def add_marks(hf, marks, n_vocab, written):
    """
    Give a tokenizers.Tokenizer further tokens, with the ids from n_vocab on: those that begin a
    text, stand between two, and end it, and padding. written: does it put the first three there?
    """
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing
    hf.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    ids = {mark: hf.token_to_id(mark) for mark in marks}
    if list(ids.values()) != list(range(n_vocab, n_vocab + len(marks))):
        raise UserError("this model's tokenizer has gaps between its ids, or the marks already: it "
                        "cannot be exported")
    # in place of what the tokenizer itself may write around a text: ours never writes that
    single, pair = "$A", "$A $B"
    start, delimiter, extract, _ = marks
    if written:
        single, pair = f"{start} $A {extract}", f"{start} $A {delimiter} $B {extract}"
    hf.post_processor = TemplateProcessing(
        single=single, pair=pair, special_tokens=[(mark, ids[mark]) for mark in marks[:3]])


def save_tokenizer(tokenizer, folder, block_size, marks=(), written=False):
    """
    The files that transformers' AutoTokenizer reads, and tokenizer_spec.json, which ours reads.
    marks, written: of a tuned model, see add_marks
    """
    hf = hugging_face_tokenizer(tokenizer)
    if marks:
        add_marks(hf, marks, tokenizer.n_vocab, written)
    named = {"pad_token": marks[-1]} if marks else {}
    if tokenizer.eot is not None:
        named |= dict.fromkeys(("bos_token", "eos_token"), hf.id_to_token(tokenizer.eot))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size,
              "clean_up_tokenization_spaces": False, **named}
    texts = {"tokenizer.json": hf.to_str(), "tokenizer_config.json": json.dumps(config),
             "special_tokens_map.json": json.dumps(named),
             "tokenizer_spec.json": json.dumps(tokenizer.spec)}
    for name, text in texts.items():
        with atomic_write(os.path.join(folder, name), "w", encoding="utf-8", newline="\n") as f:
            f.write(text)
