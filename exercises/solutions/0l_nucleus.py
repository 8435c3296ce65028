"""
0l, nucleus sampling. The condition looks at the sum before a token, not including it, so the
likeliest token passes for any p above zero. Sorting loses the ids, and the inverse of the sorting
brings them back: scatter writes each probability to the place that it came from. top_k keeps a
fixed number where the model is sure and where it is not; p follows the model.
"""
import torch


def nucleus(probs, p):
    ranked, ids = probs.sort(dim=-1, descending=True)
    mass_before = ranked.cumsum(dim=-1) - ranked  # of the likelier tokens
    ranked = ranked.masked_fill(mass_before >= p, 0.0)
    kept = torch.zeros_like(probs).scatter(-1, ids, ranked)
    return kept / kept.sum(dim=-1, keepdim=True)
