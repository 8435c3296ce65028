"""
0a, the causal mask. Row i holds what token i may see, so each row is one entry longer than the row
above it. The diagonal is true, because a token may look at itself, and the first one has nobody
else. One comparison of positions makes the whole mask, and the same comparison still works when
positions are not 0 to T - 1, as with a cache.
"""
import torch


def causal_mask(T):
    position = torch.arange(T)
    return position[:, None] >= position  # (T, 1) against (T,) -> (T, T)
