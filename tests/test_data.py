"""Facts about the data."""
from fineweb import gpt2_tokenizer


def test_gpt2s_tokenizer():
    """50,257 tokens, the last of them <|endoftext|>; the lecture's prompt in its eight tokens."""
    t = gpt2_tokenizer()
    assert (t.n_vocab, t.eot) == (50257, 50256)
    assert t.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert t.decode([50256]) == "<|endoftext|>"
