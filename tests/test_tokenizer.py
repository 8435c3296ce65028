"""Facts about tokenizers: text becomes tokens and the same text again, here and in Hugging Face's libraries."""
import functools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import ROOT, refusal

from support import files, tokenizer
from support.hugging_face import hugging_face_tokenizer
from support.shards import Data
from support.tokenizer import (BPETokenizer, CharTokenizer, count_bytes, gpt2_tokenizer, load_tokenizer,
                               make_tokenizer, text_bytes, token_bytes, tokenize_file, train_bpe)


def test_gpt2s_tokenizer():
    """50,257 tokens, the last of them <|endoftext|>; the lecture's prompt in its eight tokens."""
    t = gpt2_tokenizer()
    assert (t.n_vocab, t.eot) == (50257, 50256)
    assert t.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert t.decode([50256]) == "<|endoftext|>"


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_text_to_tokens_to_text_is_the_identity(text):
    """For any text, also one that spells <|endoftext|>: a document cannot inject the token that separates documents."""
    text += "<|endoftext|>"
    for t in (gpt2_tokenizer(), make_tokenizer("char", text)):
        ids = t.encode(text)
        assert t.decode(ids) == text and t.eot not in ids and max(ids) < t.n_vocab
        assert load_tokenizer(t.spec).encode(text) == ids, "the spec in a checkpoint makes the same tokenizer"


def test_a_damaged_vocabulary_is_refused(tmp_path, monkeypatch):
    """With the first half of the ranks everything would work, and every text have other tokens."""
    with open(os.path.join(files.ASSETS, "gpt2.tiktoken"), "rb") as f:
        data = f.read()
    monkeypatch.setattr(files, "ASSETS", str(tmp_path))
    for damaged in (data[: len(data) // 2], data[: data.rindex(b"\n", 0, -1) + 1], b"", data.replace(b"IQ==", b"IQ=?")):
        (tmp_path / "gpt2.tiktoken").write_bytes(damaged)
        assert "git checkout assets/gpt2.tiktoken" in refusal(tokenizer.GPT2Tokenizer)
    (tmp_path / "gpt2.tiktoken").write_bytes(data.replace(b"\n", b"\r\n"))  # as git writes it on Windows
    assert tokenizer.GPT2Tokenizer().n_vocab == 50257


@functools.lru_cache
def llama_like():
    """Like Llama's: spaces are \u2581, a text starts with one, and what has no token is written byte by byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    letters = ["</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", *"abcdefghij", "\u2581a", "ab", "\u2581ab"]
    bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)},
                               [("\u2581", "a"), ("a", "b"), ("\u2581a", "b")], byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bpe.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    bpe.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return BPETokenizer(bpe.to_str())


@functools.lru_cache
def byte_level():
    return BPETokenizer(train_bpe(["to be or not to be"], 270))


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_a_token_is_bytes(text):
    """A character may be several tokens: only their bytes together are the text, one of them decodes to U+FFFD."""
    for t in (gpt2_tokenizer(), make_tokenizer("char", text), byte_level(), llama_like()):
        if t is llama_like() and "\u2581" in text:
            continue  # for this tokenizer it is a space
        ids = t.encode(text)
        assert text_bytes(t, ids) == text.encode() and b"".join(token_bytes(t, i) for i in ids).endswith(text.encode())


@given(st.lists(st.text(), min_size=1))
@settings(max_examples=50, deadline=None)
def test_bytes_of_documents_are_counted_exactly(texts):
    """Bits per byte divide by them: <|endoftext|> counts nothing, nor does a space that a tokenizer adds to a text."""
    texts = [text.replace("\u2581", "") for text in texts]
    for t in (make_tokenizer("char", texts), byte_level(), llama_like()):
        ids = [i for text in texts for i in (t.eot, *t.encode(text))]
        assert count_bytes(t, ids) == sum(len(text.encode()) for text in texts)


def test_the_first_text_counts_like_the_others():
    """Its targets begin after its <|endoftext|>, and without one after its first token."""
    t = llama_like()
    ids = np.array([t.eot, *t.encode("ab a"), t.eot, *t.encode("a b")], dtype=np.uint32)
    data = Data(t, [], [ids[:3], ids[3:]])
    assert data.val_bytes_per_token(len(ids) - 1) * (len(ids) - 1) == len("ab a") + len("a b")
    chars = make_tokenizer("char", ["abc"])
    data = Data(chars, [], [np.array(chars.encode("abcabc"))])
    assert data.val_bytes_per_token(5) == 1


def test_a_character_in_three_tokens():
    """Bits per byte are counted with these: 8 bytes, not the 18 letters of <0xE4> and the like."""
    assert [token_bytes(gpt2_tokenizer(), i) for i in gpt2_tokenizer().encode("漢")] == [b"\xe6", b"\xbc", b"\xa2"]
    ids = llama_like().encode("a 人 é")
    assert text_bytes(llama_like(), ids) == "a 人 é".encode() and len(text_bytes(llama_like(), ids)) == 8
    assert token_bytes(llama_like(), ids[1]) == b" "


def test_a_byte_order_mark_is_no_character_of_a_text(tmp_path):
    """Editors on Windows write one at the start of a file."""
    (tmp_path / "a.txt").write_text("to be or not to be", encoding="utf-8-sig")
    t, train, _ = tokenize_file(str(tmp_path / "a.txt"), "char")
    assert t.chars == ["<|endoftext|>", *" benort"] and t.decode(train[0]) == "to be or not to "


def test_a_character_tokenizer_names_what_it_does_not_know():
    assert "'x'" in refusal(CharTokenizer("abc").encode, "abx")


@functools.lru_cache
def exported_gpt2_tokenizer():
    return hugging_face_tokenizer(gpt2_tokenizer())


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_gpt2s_tokenizer_as_tokenizer_json(text):
    """The merges are nowhere in assets/gpt2.tiktoken, and yet in it: a token's rank tells which two it is made from."""
    pytest.importorskip("tokenizers")
    hf = exported_gpt2_tokenizer()
    text = text.replace("<|endoftext|>", "")  # which theirs reads as the token, ours as 13 characters
    assert hf.encode(text).ids == gpt2_tokenizer().encode(text)
    assert hf.get_vocab_size() == 50257 and hf.token_to_id("<|endoftext|>") == 50256


@pytest.mark.parametrize("name, said", [
    ("bpe:256", "bpe:257 (a token for each byte"), ("bpe:9" + 20 * "9", "to bpe:1000000"),
    ("gpt", "neither gpt2, char, bpe:8000"), ("shards/tokenizer.json", "neither gpt2, char, bpe:8000"),
    (os.path.join(ROOT, "assets", "run.png"), "not a usable tokenizer.json")])
def test_a_tokenizer_that_is_none(name, said):
    """The line says what may stand there."""
    assert said in refusal(make_tokenizer, name)


@pytest.mark.parametrize("data, byte", [
    ("It is a café.".encode("latin-1"), 11), ("It is".encode("utf-16"), 0), ("It is".encode("utf-16-le"), 1),
    (b"a" * 5000 + b"\0" * 100, 5000)],
    ids=["Latin-1", "UTF-16", "UTF-16 without a mark", "a hole in a damaged file"])
def test_a_text_is_utf8(data, byte, tmp_path):
    """Anything else would become other tokens without a word."""
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    line = refusal(tokenize_file, str(path), "gpt2")
    assert line == f"{path} is not text in UTF-8 (byte {byte:,}): convert it, as with iconv"
