"""
Checks of exercises/by_hand.py: the mask, attention, the loss, the shift of the data and THE STEP, from empty bodies.
Each fails until its function is written, and says what it expects.

    python -m pytest exercises -k 0a    # and 0b, 0c, 0d, 0e

A wrong answer is compared with the usual slips first: whoever made one of them is told which.
"""
import math

import by_hand
import pytest
import torch


def expect(fact, otherwise):
    """An assert whose message stands alone: a reader wants to know what is expected, not how it was compared."""
    if not fact:
        pytest.fail(otherwise, pytrace=False)


def random(*shape, scale=1.0):
    """The same normal numbers at each call."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def close(a, b):
    """Equal to a hundred thousandth of the largest number."""
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


def expect_shape(name, result, shape):
    expect(result is not None, f"{name} returns nothing yet; it should return a tensor of shape {shape}")
    expect(isinstance(result, torch.Tensor), f"{name} should return a tensor, not {type(result).__name__}")
    expect(tuple(result.shape) == shape, f"{name} should return the shape {shape}, not {tuple(result.shape)}")


def answer(result, right, slips, otherwise):
    """The result is right, or it is one of the usual slips (explanation -> what comes out then), or neither."""
    if close(result, right):
        return
    for explanation, wrong in slips.items():
        expect(not (result.isfinite().all() and close(result, wrong)), explanation)
    pytest.fail(otherwise, pytrace=False)


# ----------------------------------------------------------------------------------------------------
# 0a who may look at whom

def test_0a_causal_mask():
    """Row i is the token that looks, column j the one it looks at: true for j <= i."""
    for T in (1, 2, 7):
        mask = by_hand.causal_mask(T)
        expect_shape("causal_mask", mask, (T, T))
        expect(mask.dtype == torch.bool, f"true and false, please: the mask is {mask.dtype}, not torch.bool")
        for i in range(T):
            expect(mask[i, i], "a token may look at itself: the diagonal should be true. (Without it the first token "
                               "could look at nothing, and a softmax over nothing is nan)")
        if T == 2:
            expect(mask[1, 0], "the second token (row 1) should see the first (column 0); is the mask upside down, "
                               "true where one may not look? or are rows and columns swapped?")
            expect(not mask[0, 1], "the first token (row 0) sees the second (column 1): that is the future, and the "
                                   "answer to what it has to predict")
        for i in range(T):
            for j in range(T):
                expect(mask[i, j] == (j <= i), f"T = {T}: may token {i} look at token {j}? It should be {j <= i}")


# ----------------------------------------------------------------------------------------------------
# 0b attention

def mix(q, k, v, scale=None, dim=-1, masked=True, late=False):
    """Attention, and what the usual slips make of it."""
    T, hs = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) * (hs ** -0.5 if scale is None else scale)
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    if masked and not late:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=dim)
    if late:
        weights = weights * mask
    return weights @ v


def test_0b_attention():
    """softmax(q k^T / sqrt(hs)) v, each token looking at itself and the past."""
    q, k, v = random(3, 2, 4, 6, 5, scale=2.0)  # B 2, nh 4, T 6, hs 5
    y = by_hand.attention(q.clone(), k.clone(), v.clone())
    expect_shape("attention", y, (2, 4, 6, 5))
    expect(y.isfinite().all(), "some outputs are nan: a softmax whose scores are all -inf has nothing to choose from. "
                               "Which tokens may the first one look at? Does every row of your mask have a true?")
    slips = {
        "the scores are not divided by anything: with longer heads they grow, and softmax sees the largest one only. "
        "Divide by sqrt(hs)": mix(q, k, v, scale=1.0),
        "the scores are divided by hs; a sum of hs products has a standard deviation of sqrt(hs), so divide by that":
            mix(q, k, v, scale=1 / 5),
        "each token looks at the whole row, the future too: where is the mask?": mix(q, k, v, masked=False),
        "the mask comes after the softmax: the weights of the past no longer sum to one. Set the scores of the future "
        "to -inf before it": mix(q, k, v, late=True),
        "the softmax runs over the queries. For one query the weights of all keys should sum to one: dim=-1":
            mix(q, k, v, dim=-2),
        "queries and keys are swapped: row i of the scores belongs to query i, so it is q @ k^T": mix(k, q, v),
    }
    answer(y, mix(q, k, v), slips, "the numbers are not those of softmax(q k^T / sqrt(hs)) v with the future masked. "
           "Look at the first token: it sees itself alone, so its output should be its own value, v[:, :, 0]")


# ----------------------------------------------------------------------------------------------------
# 0c what a prediction costs

def test_0c_cross_entropy():
    """-log of the probability of the token that came, and the mean of that."""
    logits, targets = random(8, 11, scale=2.0), torch.arange(8)
    loss = by_hand.cross_entropy(logits.clone(), targets.clone())
    expect_shape("cross_entropy", loss, ())
    costs = -torch.softmax(logits, dim=-1)[torch.arange(8), targets].log()
    slips = {
        "this is the sum over the positions; the mean does not depend on how many there are": costs.sum(),
        "the sign: the log of a probability is negative, a cost is positive": -costs.mean(),
        "these are bits: take the natural logarithm for nats": costs.mean() / math.log(2),
        "the mean comes before the log: take the log of each position's probability, then the mean": -(
            (-costs).exp().mean().log()),
        "this is the mean of the probabilities themselves: a log and a minus are missing": (-costs).exp().mean(),
        "these are the logits of the targets without the softmax: subtract the log of the sum of all exp(logits)": -(
            logits[torch.arange(8), targets].mean()),
        "the softmax runs over the positions; it should run over the vocabulary, dim=-1": -(
            torch.softmax(logits, dim=0)[torch.arange(8), targets].log().mean()),
    }
    answer(loss, costs.mean(), slips, f"these logits and targets cost {costs.mean():.4f} nats, not {loss:.4f}")
    fresh = by_hand.cross_entropy(torch.zeros(4, 50257), torch.arange(4))
    expect(close(fresh, torch.tensor(math.log(50257))), "equal logits mean knowing nothing: ln(50257) = 10.8249")
    large = by_hand.cross_entropy(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    expect(large.isfinite(), f"logits of 0 and 1000 give {large}: exp(1000) is too large for a float, and the log of "
                             "exp(-1000) is that of zero. Subtract each row's largest logit first, which changes no "
                             "probability, and take the log of the sum, not of a quotient")
    expect(close(large, torch.tensor(500.0)), f"logits (1000, 0) and (0, 1000) with target 0 cost (0 + 1000) / 2, "
                                              f"not {large:.2f}")


# ----------------------------------------------------------------------------------------------------
# 0d what comes next

def test_0d_next_batch():
    """y is x moved on by one, in the long row of tokens; x moves on by B*T."""
    tokens = torch.randint(0, 1000, (100,), generator=torch.Generator().manual_seed(0))
    B, T, position = 3, 4, 20
    result = by_hand.next_batch(tokens.clone(), position, B, T)
    expect(result is not None, "next_batch returns nothing yet; it should return x, y and the next position")
    expect(isinstance(result, tuple) and len(result) == 3, "next_batch should return three things: x, y, position")
    x, y, after = result
    expect_shape("the x of next_batch", x, (B, T))
    expect_shape("the y of next_batch", y, (B, T))
    start = tokens[position : position + B * T].view(B, T)
    expect(x.equal(start), "x should be the B*T tokens from position on, T in a row: "
                           f"{start.tolist()}, not {x.tolist()}")
    slips = {
        "y is x: a model that may look at the token it predicts learns to copy it": start,
        "y holds the tokens before those of x: it would learn to write backwards":
            tokens[position - 1 : position + B * T - 1].view(B, T),
        "y adds one to the ids; it is the place that moves on by one, not the number": start + 1,
        "the last target of each row is that row's first token: the shift stays inside a row. Shift in the long row of "
        "tokens, and cut into rows after that": start.roll(-1, dims=1),
        "the last target of the batch is its own first token: the batch has B*T tokens, but its targets end one later. "
        "Take B*T + 1": start.flatten().roll(-1).view(B, T),
        "y is moved on by a whole row; one token is enough": tokens[position + T : position + T + B * T].view(B, T),
    }
    right = tokens[position + 1 : position + B * T + 1].view(B, T)
    for explanation, wrong in slips.items():
        expect(not y.equal(wrong), explanation)
    expect(y.equal(right), f"y should be {right.tolist()}, the token after each one of x, not {y.tolist()}")
    expect(after != position + B * T + 1, "the position moves on by B*T + 1: one token is never read as an input. The "
                                          "last target of this batch is the first input of the next")
    expect(after == position + B * T, f"the next position should be {position} + B*T = {position + B * T}, not {after}")
    last = by_hand.next_batch(tokens[: position + B * T + 1], position, B, T)
    expect(last[1].equal(right), "B*T + 1 tokens from position on are enough for a batch, and here it needs more")


# ----------------------------------------------------------------------------------------------------
# 0e THE STEP

class Line(torch.nn.Module):
    """A model whose step can be followed with a pencil: y = w x, and the mean of the squared errors."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.b = torch.nn.Parameter(torch.tensor([0.5]))

    def forward(self, x, y):
        return None, (x @ self.w + self.b - y).square().mean()


def a_step(step, micro_batches, lr, grad_clip, leftover):
    """A step of a fresh model -> its three weights after it, and what the step returns. SGD: w -= lr * gradient"""
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=123.0)  # a step that leaves the rate as it is shows at once
    if leftover:
        model(*micro_batches[0])[1].backward()
    returned = step(model, optimizer, micro_batches, lr, grad_clip)
    return torch.cat((model.w, model.b)).detach(), returned


def slipping(zero="before", divide=True, clip="before", rate=True, update="once"):
    """THE STEP, or one with a slip -> a function like the_step."""
    def step(model, optimizer, micro_batches, lr, grad_clip):
        k, total, norm = len(micro_batches), 0.0, None
        for group in optimizer.param_groups:
            group["lr"] = lr if rate else group["lr"]
        if zero == "before":
            optimizer.zero_grad()
        for x, y in micro_batches:
            if zero == "each":
                optimizer.zero_grad()
            loss = model(x, y)[1] / (k if divide else 1)
            loss.backward()
            total += loss.detach()
            if update == "each":
                optimizer.step()
        if clip == "after":
            optimizer.step()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf if clip == "never" else grad_clip)
        if clip != "after" and update == "once":
            optimizer.step()
        return total, norm
    return step


SLIPS = {
    "no weight changes: is there an optimizer.step()?": None,
    "the gradients of an earlier step are still there and are added to: zero_grad first": slipping(zero="never"),
    "only the last micro batch counts: zero_grad belongs before the loop over the micro batches, not into it":
        slipping(zero="each"),
    "backward adds to the gradients, so the sum over k micro batches is k times the mean: divide each loss by their "
    "number before its backward. (AdamW would hide this: it divides by the gradient's size. The norm would tell)":
        slipping(divide=False),
    "an update after every micro batch: the batch is one, and so is its update. optimizer.step() comes after the loop":
        slipping(update="each"),
    "the gradient is not clipped when the optimizer uses it: clip_grad_norm_ after the last backward, before "
    "optimizer.step()": slipping(clip="never"),
    "the learning rate is still the one that the optimizer was made with: set group['lr'] in each of "
    "optimizer.param_groups, before its step": slipping(rate=False),
}


def test_0e_the_step():
    """Zero, then for each micro batch forward and backward, then clip, set the rate, update."""
    data = random(4, 8, 3)
    micro_batches = [(part[:, :2], 3 * part[:, 2]) for part in data]  # k 4, of 8 rows each
    for grad_clip, leftover in ((1e9, False), (1e9, True), (0.5, True)):
        case = (micro_batches, 0.1, grad_clip, leftover)
        right, (loss, norm) = a_step(slipping(), *case)
        weights, returned = a_step(by_hand.the_step, *case)
        expect(returned is not None, "the_step returns nothing yet; it should change the weights once, and return the "
                                     "batch's loss and the norm of its gradient")
        slips = {}
        for explanation, step in SLIPS.items():
            wrong = torch.tensor([1.0, -2.0, 0.5]) if step is None else a_step(step, *case)[0]
            if not close(wrong, right):  # a slip that this case cannot show is no explanation for it
                slips[explanation] = wrong
        answer(weights, right, slips, f"after the step the weights should be {right.tolist()}, not {weights.tolist()}")
        expect(isinstance(returned, tuple) and len(returned) == 2, "the_step should return two things: loss and norm")
        check_what_is_returned(returned, loss, norm, micro_batches, grad_clip)


def check_what_is_returned(returned, loss, norm, micro_batches, grad_clip):
    for value in returned:
        expect(not getattr(value, "requires_grad", False), "what is returned still has its graph, and keeps all "
               "activations of the step in memory: add up loss.detach()")
    got_loss, got_norm = (torch.as_tensor(value, dtype=torch.float32) for value in returned)
    last = Line()(*micro_batches[-1])[1].detach()
    answer(got_loss, loss, {
        "the loss returned is that of the last micro batch alone: add up the divided losses": last,
        "the loss returned is a quarter of the last micro batch's: add up the divided losses": last / 4,
        "the losses of the micro batches are added up undivided: the batch's loss is their mean": 4 * loss,
    }, f"the loss of the batch is {loss:.4f}, not {got_loss:.4f}")
    answer(got_norm, norm, {
        "the norm returned is the one after clipping: clip_grad_norm_ returns the one before": torch.tensor(grad_clip),
        "the norm returned is four times too large: were the losses divided by the number of micro batches?": 4 * norm,
    }, f"the gradient of the batch has the norm {norm:.4f}, not {got_norm:.4f}")
