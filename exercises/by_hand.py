"""
The exercises 0a to 0e: the core of GPT-2 in five functions. Each is an empty body for you to write,
here in this file, with torch alone. train_gpt2.py stays as it is; it does each of them another way.

    python -m pytest exercises -k 0a    # is it right? A second

A function that you have not written yet returns None, and its check says what it should return.

Letters in the comments on shapes
    B rows in a batch   T tokens in a row (time)   nh heads   hs channels per head
    V vocabulary size   N positions, N = B * T
"""
import torch  # noqa: F401 (you will want it)


def causal_mask(T):
    """
    0a. Which token may attend to which? -> bool (T, T), true where the token of the row may attend
    to the token of the column: itself and all earlier tokens.
    """


def attention(q, k, v):
    """
    0b. q, k, v (B, nh, T, hs) -> (B, nh, T, hs), without F.scaled_dot_product_attention.

    The score of a query and a key is their dot product divided by sqrt(hs). With the future masked,
    softmax turns the scores of each query into weights. The output is the weighted sum of values.
    """


def cross_entropy(logits, targets):
    """
    0c. logits (N, V), targets (N,) -> (), the mean loss in nats, without F.cross_entropy and
    F.log_softmax. A position costs -log of the probability that softmax gives to its target.
    """


def next_batch(tokens, position, B, T):
    """
    0d. tokens (n,), one long row of ids; position, the number of tokens consumed so far
    -> x (B, T), y (B, T) and the next position. For each token in x, y holds the token after it.
    """


def the_step(model, optimizer, micro_batches, lr, grad_clip):
    """
    0e. One update of the weights -> the loss of the whole batch, and the norm of its gradient
    before clipping (two tensors without a graph, or floats).

    model(x, y) -> (None, the mean loss over x and y). micro_batches: a list of equally large pairs
    (x, y), which together are the batch. lr: the learning rate of this step. The gradient that the
    optimizer sees must not be longer than grad_clip. Gradients left over from an earlier step must
    not count.
    """
