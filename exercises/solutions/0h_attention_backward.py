"""
0h, attention. Forward and backward have the same shape: the two products become four, and P has to
be there again, which is why flash attention computes it a second time instead of keeping (T, T)
numbers. The sum of P * dP over a row equals the sum of y * dy over hs channels, so that it can be
known before any block of P is. The mask needs no line of its own: where P is 0, dS is 0.
"""
import math

import torch


def attention_backward(dy, q, k, v):
    T, hs = q.shape[-2:]
    scores = q @ k.mT / math.sqrt(hs)  # (B, nh, T, T)
    past = torch.ones(T, T, dtype=torch.bool).tril()
    P = scores.masked_fill(~past, float("-inf")).softmax(dim=-1)
    dv = P.mT @ dy
    dP = dy @ v.mT
    dS = P * (dP - (P * dP).sum(dim=-1, keepdim=True))
    dS = dS / math.sqrt(hs)
    return dS @ k, dS.mT @ q, dv
