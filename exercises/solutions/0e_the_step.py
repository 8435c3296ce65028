"""
0e, THE STEP. backward adds to .grad, and everything else follows: zero once per batch, divide each
loss by the number of micro batches, clip after the last of them. Clipping returns the norm from
before, which is the number to log: it jumps before a run diverges. AdamW hides a gradient that is k
times too large, but clipping does not, so a missing division changes the run all the same.
"""
import torch


def the_step(model, optimizer, micro_batches, lr, grad_clip):
    optimizer.zero_grad()
    loss_accum = 0.0
    for x, y in micro_batches:
        _, loss = model(x, y)
        loss = loss / len(micro_batches)
        loss_accum += loss.detach()
        loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return loss_accum, norm
