"""
The exercises 0a to 0e: the five places where GPT-2 is understood, each from an empty body. You
write them here, with torch alone; train_gpt2.py stays as it is, and has another way to each.

    python -m pytest exercises -k 0a    # is it right? A second

A function that is not written yet returns None, and its check says what it should return.

Letters in the comments on shapes
    B rows of a batch   T tokens of a row (time)   nh heads   hs channels of a head
    V the vocabulary's size   N positions, B * T of them
"""
import torch  # noqa: F401 (you will want it)


def causal_mask(T):
    """
    0a. Who may look at whom? -> bool (T, T), true where the token of the row may look at the token
    of the column. A token may look at itself and at the past.
    """


def attention(q, k, v):
    """
    0b. q, k, v (B, nh, T, hs) -> (B, nh, T, hs), without F.scaled_dot_product_attention.

    Every query meets every key in a dot product. Divided by sqrt(hs), with the future masked, a
    softmax makes weights of these scores, and the weights mix the values.
    """


def cross_entropy(logits, targets):
    """
    0c. logits (N, V), targets (N,) -> (), the mean cost in nats, without F.cross_entropy and
    F.log_softmax. A position costs -log of the probability that softmax gives to its target.
    """


def next_batch(tokens, position, B, T):
    """
    0d. tokens (n,), one long row of ids; position, how many are consumed -> x (B, T), y (B, T) and
    the next position. y holds, for each place of x, the token that comes after it.
    """


def the_step(model, optimizer, micro_batches, lr, grad_clip):
    """
    0e. One update of the weights -> the loss of the whole batch, and the norm of its gradient as it
    was before clipping (two tensors without a graph, or floats).

    model(x, y) -> (None, the mean loss of x and y). micro_batches: a list of equally large (x, y),
    which together are the batch. lr: the learning rate of this step. No gradient may be longer than
    grad_clip when the optimizer sees it. What an earlier step left behind does not count.
    """
