"""
0b, attention. The mask acts before the softmax: a score of -inf gets exactly no weight, and the
rest of the row still sums to one. A score of 0 is not "nothing", because exp(0) = 1. The division
by sqrt(hs) keeps the scores near variance 1, so that a fresh softmax looks at all tokens and not at
one.
"""
import math

import torch


def attention(q, k, v):
    T, hs = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(hs)  # (B, nh, T, T)
    past = torch.ones(T, T, dtype=torch.bool).tril()
    scores = scores.masked_fill(~past, float("-inf"))
    weights = scores.softmax(dim=-1)
    return weights @ v  # (B, nh, T, hs)
