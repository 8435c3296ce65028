"""
0c, the loss. Probabilities never appear: log p_t = z_t - log(sum exp z), and the log of the sum is
computed as one thing. Subtracting the row's maximum changes no probability, and makes the largest
exponential exp(0) = 1, so nothing overflows. The mean runs over positions, which makes losses of
different batch sizes comparable.
"""
import torch


def cross_entropy(logits, targets):
    z = logits - logits.max(dim=-1, keepdim=True).values
    log_sum = z.exp().sum(dim=-1).log()  # (N,)
    of_target = z[torch.arange(len(targets)), targets]  # (N,)
    return (log_sum - of_target).mean()
