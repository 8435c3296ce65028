"""
Checks for exercises/by_hand.py: the mask, attention, the loss, the shift of the data and THE STEP. Each fails until
its function is written, and says what it expects.

    python -m pytest exercises -k 0a    # and 0b, 0c, 0d, 0e

A wrong answer is compared with the usual slips, and the message names the slip: see checks.py.
"""
import math

import by_hand
import torch
from checks import close, diagnose, expect, expect_shape, expect_tuple, random

# ----------------------------------------------------------------------------------------------------
# 0a which token may attend to which

def test_0a_causal_mask():
    """Token i (the row) attends to token j (the column): true for j <= i."""
    for T in (1, 2, 7):
        mask = by_hand.causal_mask(T)
        expect_shape("causal_mask", mask, (T, T))
        expect(mask.dtype == torch.bool, f"true and false, please: the mask is {mask.dtype}, not torch.bool")
        for i in range(T):
            expect(mask[i, i], "a token may look at itself: the diagonal should be true. (Otherwise the first token "
                               "has nothing to look at, and a softmax over nothing is nan)")
        if T == 2:
            expect(mask[1, 0], "the second token (row 1) should see the first (column 0); is the mask inverted, "
                               "true where a token may not look? Or are rows and columns swapped?")
            expect(not mask[0, 1], "the first token (row 0) sees the second (column 1): that is the future, the very "
                                   "token that it has to predict")
        for i in range(T):
            for j in range(T):
                expect(mask[i, j] == (j <= i), f"T = {T}: may token {i} look at token {j}? It should be {j <= i}")


# ----------------------------------------------------------------------------------------------------
# 0b attention

def mix(q, k, v, divisor=None, dim=-1, mask="before", swap=False):
    """Attention, with a switch for each usual slip."""
    T, hs = q.shape[-2:]
    if swap:
        q, k = k, q
    scores = q @ k.transpose(-2, -1) / (divisor or math.sqrt(hs))
    past = torch.ones(T, T, dtype=torch.bool).tril()
    if mask == "product":
        scores = scores * past
    if mask == "before":
        scores = scores.masked_fill(~past, float("-inf"))
    weights = torch.softmax(scores, dim=dim)
    if mask == "after":
        weights = weights * past
    return weights @ v


MIX_SLIPS = {
    "the scores are not divided by anything: they grow with hs, until softmax puts all weight on the largest one. "
    "Divide by sqrt(hs)": dict(divisor=1),
    "the scores are divided by hs; a sum of hs products has a standard deviation of sqrt(hs), so divide by that":
        dict(divisor=5),
    "each token looks at the whole row, the future too: where is the mask?": dict(mask="none"),
    "scores * mask makes the scores of the future 0, and exp(0) is 1, so the future still gets weight. Set them to "
    "-inf: masked_fill": dict(mask="product"),
    "the mask comes after the softmax: the weights of the past no longer sum to one. Set the scores of the future "
    "to -inf before it": dict(mask="after"),
    "the softmax runs over the queries. For one query the weights of all keys should sum to one: use dim=-1":
        dict(dim=-2),
    "queries and keys are swapped: row i of the scores belongs to query i, so it is q @ k^T": dict(swap=True),
}


def test_0b_attention():
    """softmax(q k^T / sqrt(hs)) v, where each token attends to itself and the past."""
    q, k, v = random(3, 2, 4, 6, 5, scale=2.0)  # B 2, nh 4, T 6, hs 5
    y = by_hand.attention(q.clone(), k.clone(), v.clone())
    expect_shape("attention", y, (2, 4, 6, 5))
    expect(y.isfinite().all(), "some outputs are nan. A softmax over scores that are all -inf is nan, and so is "
                               "-inf * 0. Which tokens may the first one look at? Does every row of your mask have a "
                               "true?")
    diagnose(y, lambda **changes: mix(q, k, v, **changes), MIX_SLIPS,
             "this is not softmax(q k^T / sqrt(hs)) v with the future masked. Look at the first token: it sees only "
             "itself, so its output should be its own value, v[:, :, 0]")


# ----------------------------------------------------------------------------------------------------
# 0c what a prediction costs

def cost(logits, targets, sign=-1, base=math.e, mean="last", log=True, softmax=-1):
    """Cross-entropy, with a switch for each usual slip. softmax: the dimension it runs over; None: no softmax"""
    rows = torch.arange(len(targets))
    p = (logits.exp() if softmax is None else logits.softmax(dim=softmax))[rows, targets]
    if mean == "first":
        p = p.mean()
    costs = sign * (p.log() / math.log(base) if log else p)
    return costs.sum() if mean == "none" else costs.mean()


COST_SLIPS = {
    "this is the sum over the positions; take the mean, which does not depend on how many positions there are":
        dict(mean="none"),
    "the sign is wrong: the log of a probability is negative, and the loss should be positive": dict(sign=1),
    "these are bits; for nats, take the natural logarithm": dict(base=2),
    "the mean comes before the log: take the log of each position's probability, then the mean": dict(mean="first"),
    "this is the mean of the probabilities themselves: a log and a minus are missing": dict(log=False, sign=1),
    "these are the logits of the targets without the softmax: subtract the log of the sum of exp(logits)":
        dict(softmax=None),
    "the softmax runs over the positions; it should run over the vocabulary, dim=-1": dict(softmax=0),
}


def test_0c_cross_entropy():
    """The mean of -log p, where p is the probability of the right token."""
    logits, targets = random(8, 11, scale=2.0), torch.arange(8)
    loss = by_hand.cross_entropy(logits.clone(), targets.clone())
    expect_shape("cross_entropy", loss, ())
    diagnose(loss, lambda **changes: cost(logits, targets, **changes), COST_SLIPS,
             f"these logits and targets cost {cost(logits, targets):.4f} nats, not {loss:.4f}")
    fresh = by_hand.cross_entropy(torch.zeros(4, 50257), torch.arange(4))
    expect(close(fresh, torch.tensor(math.log(50257))), "equal logits are a uniform guess: ln(50257) = 10.8249")
    large = by_hand.cross_entropy(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    expect(large.isfinite(), f"logits of 0 and 1000 give {large}: exp(1000) is too large for a float, and exp(-1000) "
                             "is rounded to zero. Subtract each row's largest logit first, which changes no "
                             "probability, and take the log of the sum, not of a quotient")
    expect(close(large, torch.tensor(500.0)), f"logits (1000, 0) and (0, 1000) with target 0 cost (0 + 1000) / 2, "
                                              f"not {large:.2f}")


# ----------------------------------------------------------------------------------------------------
# 0d what comes next

def test_0d_next_batch():
    """y is x shifted by one token in the long row; the next x starts B*T tokens later."""
    tokens = torch.randint(0, 1000, (100,), generator=torch.Generator().manual_seed(0))
    B, T, position = 3, 4, 20
    result = by_hand.next_batch(tokens.clone(), position, B, T)
    expect(result is not None, "next_batch returns nothing yet; it should return x, y and the next position")
    expect(isinstance(result, tuple) and len(result) == 3, "next_batch should return three things: x, y, position")
    x, y, after = result
    expect_shape("the x of next_batch", x, (B, T))
    expect_shape("the y of next_batch", y, (B, T))
    start = tokens[position : position + B * T].view(B, T)
    expect(x.equal(start), "x should be the B*T tokens from position on, in rows of T: "
                           f"{start.tolist()}, not {x.tolist()}")
    slips = {
        "y is x: a model that can see the token it has to predict learns to copy it": start,
        "y holds the token before each token of x: the model would learn to write backwards":
            tokens[position - 1 : position + B * T - 1].view(B, T),
        "y adds one to the ids; shift the position by one, not the id": start + 1,
        "the last target of each row is that row's first token: the shift stays inside a row. Shift in the long row of "
        "tokens first, then cut it into rows": start.roll(-1, dims=1),
        "the last target of the batch is its own first token: the batch has B*T tokens, but its targets end one later. "
        "Take B*T + 1": start.flatten().roll(-1).view(B, T),
        "y is shifted by a whole row; shift it by one token": tokens[position + T : position + T + B * T].view(B, T),
    }
    right = tokens[position + 1 : position + B * T + 1].view(B, T)
    for explanation, wrong in slips.items():
        expect(not y.equal(wrong), explanation)
    expect(y.equal(right), f"y should be {right.tolist()}, the token after each token of x, not {y.tolist()}")
    expect(after != position + B * T + 1, "the position advances by B*T + 1, so one token is never read as an input. "
                                          "The last target of this batch is the first input of the next")
    expect(after == position + B * T, f"the next position should be {position} + B*T = {position + B * T}, not {after}")
    last = by_hand.next_batch(tokens[: position + B * T + 1], position, B, T)
    expect(last[1].equal(right), "B*T + 1 tokens from position on are enough for a batch, but next_batch needs more")


# ----------------------------------------------------------------------------------------------------
# 0e THE STEP

class Line(torch.nn.Module):
    """A model small enough to follow with a pencil: y = w x + b, and the mean squared error."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.b = torch.nn.Parameter(torch.tensor([0.5]))

    def forward(self, x, y):
        return None, (x @ self.w + self.b - y).square().mean()


class Watched(torch.optim.SGD):
    """w -= lr * gradient. It records the learning rate and the gradient of each update."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=123.0)  # shows at once if the_step does not set lr
        self.rates, self.gradients = [], []

    def step(self, closure=None):
        [group] = self.param_groups
        self.rates.append(group["lr"])
        self.gradients.append(gradient(group["params"]))
        super().step(closure)


def gradient(parameters):
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]).clone()


def watch(micro_batches, grad_clip=1e9, leftover=False):
    """by_hand.the_step on a fresh model -> its optimizer, and what the_step returned."""
    model = Line()
    optimizer = Watched(model)
    if leftover:
        model(*micro_batches[-1])[1].backward()
    returned = by_hand.the_step(model, optimizer, micro_batches, 0.1, grad_clip)
    return optimizer, returned


def accumulate(micro_batches, divide=True, zero=False, clip="at the end", grad_clip=1e9):
    """The gradient that the optimizer should get, with a switch for each usual slip."""
    model, k = Line(), len(micro_batches)
    for x, y in micro_batches:
        if zero:
            model.zero_grad()
        (model(x, y)[1] / (k if divide else 1)).backward()
        if clip == "each":
            torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    if clip == "at the end":
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    return gradient(model.parameters())


def test_0e_the_step():
    """Zero the gradients; forward and backward for each micro batch; clip; set the learning rate; update."""
    data = random(4, 8, 3)
    micro_batches = [(part[:, :2], 3 * part[:, 2]) for part in data]  # k 4, of 8 rows each
    optimizer, returned = watch(micro_batches)
    expect(returned is not None or optimizer.rates, "the_step returns nothing yet; it should change the weights once, "
                                                    "and return the loss of the batch and the norm of its gradient")
    check_the_update(optimizer, micro_batches)
    check_the_gradient(micro_batches)
    expect_tuple("the_step", returned, ("the loss", "the norm"))
    for grad_clip in (1e9, 0.5):
        returned = watch(micro_batches, grad_clip, leftover=True)[1]
        check_what_is_returned(returned, accumulate(micro_batches).norm(), micro_batches, grad_clip)


def check_the_update(optimizer, micro_batches):
    """Exactly one update, with the given learning rate."""
    expect(optimizer.rates, "no weight changes: is there an optimizer.step()?")
    expect(len(optimizer.rates) == 1, f"{len(optimizer.rates)} updates for one batch of {len(micro_batches)} micro "
           "batches: an update after every micro batch? One batch gets one update: optimizer.step() comes after the "
           "loop")
    expect(optimizer.rates[0] != 123.0, "the learning rate is still the one that the optimizer was created with: set "
           "group['lr'] in each group of optimizer.param_groups before optimizer.step()")
    expect(optimizer.rates[0] == 0.1, f"the learning rate should be lr, 0.1, but it is {optimizer.rates[0]}")


def check_the_gradient(micro_batches):
    """The gradient that the optimizer gets: first of a single micro batch; then zeroing, the sum, and clipping."""
    one = micro_batches[:1]
    diagnose(watch(one)[0].gradients[0], lambda: accumulate(one), {},
             "for a single micro batch, without clipping, the optimizer should get the gradient of its loss, "
             f"{accumulate(one).tolist()}, not {watch(one)[0].gradients[0].tolist()}: is there a loss.backward(), "
             "after zero_grad and before optimizer.step()?")
    expect(close(watch(one, leftover=True)[0].gradients[0], accumulate(one)),
           "the gradients of an earlier step are still there, and backward adds to them: zero_grad first")
    diagnose(watch(micro_batches)[0].gradients[0], lambda **changes: accumulate(micro_batches, **changes), {
        "backward adds to the gradients, so the sum over k micro batches is k times the mean: divide each loss by "
        "their number before its backward. (AdamW would hide this, since it divides by the gradient's size, but the "
        "norm shows it)": dict(divide=False),
        "only the last micro batch counts: zero_grad belongs before the loop over the micro batches, not inside it":
            dict(zero=True),
    }, "divide each loss by the number of micro batches, and call backward on each: then the gradient is that of the "
       f"batch's mean loss, {accumulate(micro_batches).tolist()}")
    for grad_clip in (0.5, 0.1):
        found = watch(micro_batches, grad_clip)[0].gradients[0]
        diagnose(found, lambda grad_clip=grad_clip, **changes: accumulate(
            micro_batches, grad_clip=grad_clip, **changes), {
            "the gradient is not clipped when the optimizer uses it: call clip_grad_norm_ after the last backward, "
            "before optimizer.step()": dict(clip="never"),
            "clipped after each micro batch: what counts is the norm of the whole batch's gradient. Call "
            "clip_grad_norm_ once, after the loop": dict(clip="each"),
        }, f"the gradient that the optimizer gets should have norm {grad_clip} and the direction of the whole "
           f"batch's gradient; its norm is {found.norm():.4f}")


def check_what_is_returned(returned, norm, micro_batches, grad_clip):
    for value in returned:
        expect(not getattr(value, "requires_grad", False), "the returned loss or norm still has its graph, which keeps "
               "all activations of the step in memory: add up loss.detach()")
    got_loss, got_norm = (torch.as_tensor(value, dtype=torch.float32) for value in returned)
    losses = [Line()(*part)[1].detach() for part in micro_batches]
    loss = sum(losses) / 4
    diagnose(got_loss, lambda found=loss: found, {
        "the loss returned is only the last micro batch's: add up the divided losses": dict(found=losses[-1]),
        "the loss returned is a quarter of the last micro batch's: add up the divided losses":
            dict(found=losses[-1] / 4),
        "the losses of the micro batches are added up undivided: the batch's loss is their mean": dict(found=4 * loss),
    }, f"the loss of the batch is {loss:.4f}, not {got_loss:.4f}")
    diagnose(got_norm, lambda found=norm: found, {
        "the norm returned is the one after clipping: clip_grad_norm_ returns the one before":
            dict(found=torch.tensor(grad_clip)),
    }, f"the gradient of the batch has the norm {norm:.4f}, not {got_norm:.4f}")
