"""Facts about the data."""
import torch

from fineweb import gpt2_tokenizer
from train_gpt2 import DataLoaderLite


def test_gpt2s_tokenizer():
    """50,257 tokens, the last of them <|endoftext|>; the lecture's prompt in its eight tokens."""
    t = gpt2_tokenizer()
    assert (t.n_vocab, t.eot) == (50257, 50256)
    assert t.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert t.decode([50256]) == "<|endoftext|>"


def test_y_is_x_moved_by_one():
    """The target of a token is the token after it; a row's last target is the next row's first token."""
    x, y = DataLoaderLite(torch.arange(100), B=2, T=8).next_batch()
    assert x.dtype == y.dtype == torch.int64
    assert x.tolist() == [list(range(8)), list(range(8, 16))]
    assert y.tolist() == [list(range(1, 9)), list(range(9, 17))]
