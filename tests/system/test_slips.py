"""
Facts about the exercises 0a to 0e: a right answer passes, an empty body and every usual slip get a line that helps.
(Solutions below: write your own first.)
"""
import math
import os
import runpy
import sys
from types import SimpleNamespace

import pytest
import torch
from small_runs import ROOT

EXERCISES = os.path.join(ROOT, "exercises")


# --- answers, each with the slip as an argument ---------------------------------------------------

def attention(q, k, v, divisor=None, dim=-1, future=False, late=False):
    T, hs = q.shape[-2:]
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    scores = q @ k.mT / (divisor or math.sqrt(hs))
    if not future and not late:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim)
    return (weights * mask if late else weights) @ v


def cross_entropy(logits, targets):
    rows = torch.arange(len(targets))
    return (logits.logsumexp(-1) - logits[rows, targets]).mean()


def quotient(logits, targets):
    e = logits.exp()
    return -(e[torch.arange(len(targets)), targets] / e.sum(-1)).log().mean()


def next_batch(tokens, position, B, T, shift=1, used=0):
    end = position + B * T
    return (tokens[position:end].view(B, T), tokens[position + shift : end + shift].view(B, T), end + used)


def inside(tokens, position, B, T):
    x = tokens[position : position + B * T].view(B, T)
    return x, x.roll(-1, dims=1), position + B * T


def the_step(model, optimizer, micro_batches, lr, grad_clip, zero="before", divide=True, detach=True, clip=True,
             rate=True, update="once"):
    total = 0.0
    if zero == "before":
        optimizer.zero_grad()
    if rate:
        for group in optimizer.param_groups:
            group["lr"] = lr
    for x, y in micro_batches:
        if zero == "each":
            optimizer.zero_grad()
        _, loss = model(x, y)
        if divide:
            loss = loss / len(micro_batches)
        loss.backward()
        total = total + (loss.detach() if detach else loss)
        if update == "each":
            optimizer.step()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip if clip else math.inf)
    if update == "once":
        optimizer.step()
    return total, norm


def slip(function, **changes):
    """The function with a slip in it."""
    return lambda *args: function(*args, **changes)


RIGHT = {"0a": ("causal_mask", lambda T: torch.ones(T, T, dtype=torch.bool).tril()),
         "0b": ("attention", attention), "0c": ("cross_entropy", cross_entropy), "0d": ("next_batch", next_batch),
         "0e": ("the_step", the_step)}
WRONG = [  # exercise, a usual wrong answer, words of the line that it gets
    ("0a", lambda T: torch.ones(T, T).tril(), "true and false, please"),
    ("0a", lambda T: torch.ones(T, T, dtype=torch.bool).tril(-1), "a token may look at itself"),
    ("0a", lambda T: torch.ones(T, T, dtype=torch.bool).triu(), "should see the first"),
    ("0a", lambda T: torch.ones(T, T, dtype=torch.bool).triu(1), "a token may look at itself"),
    ("0a", lambda T: torch.ones(T, T, dtype=torch.bool), "that is the future"),
    ("0a", lambda T: torch.ones(T, dtype=torch.bool), "the shape (1, 1), not (1,)"),
    ("0b", slip(attention, divisor=1), "not divided by anything"),
    ("0b", slip(attention, divisor=5), "a standard deviation of sqrt(hs)"),
    ("0b", slip(attention, future=True), "where is the mask?"),
    ("0b", slip(attention, late=True), "the mask comes after the softmax"),
    ("0b", slip(attention, dim=-2), "for one query the weights of all keys"),
    ("0b", lambda q, k, v: attention(k, q, v), "queries and keys are swapped"),
    ("0b", lambda q, k, v: attention(q, k, v) * math.nan, "some outputs are nan"),
    ("0b", lambda q, k, v: attention(q, k, v) + 1, "look at the first token"),
    ("0c", lambda logits, targets: 8 * cross_entropy(logits, targets), "this is the sum"),
    ("0c", lambda logits, targets: -cross_entropy(logits, targets), "the sign"),
    ("0c", lambda logits, targets: cross_entropy(logits, targets) / math.log(2), "these are bits"),
    ("0c", lambda logits, targets: -logits[torch.arange(len(targets)), targets].mean(), "without the softmax"),
    ("0c", lambda logits, targets: -logits.softmax(0)[torch.arange(len(targets)), targets].log().mean(), "dim=-1"),
    ("0c", quotient, "subtract each row's largest logit first"),
    ("0d", slip(next_batch, shift=0), "y is x: "),
    ("0d", slip(next_batch, shift=-1), "write backwards"),
    ("0d", slip(next_batch, shift=4), "by a whole row"),
    ("0d", slip(next_batch, used=1), "one token is never read as an input"),
    ("0d", inside, "the shift stays inside a row"),
    ("0d", lambda tokens, position, B, T: next_batch(tokens, position, B, T)[:2], "three things"),
    ("0e", slip(the_step, zero="never"), "the gradients of an earlier step"),
    ("0e", slip(the_step, zero="each"), "only the last micro batch counts"),
    ("0e", slip(the_step, divide=False), "divide each loss by their number"),
    ("0e", slip(the_step, update="each"), "an update after every micro batch"),
    ("0e", slip(the_step, update="never"), "is there an optimizer.step()?"),
    ("0e", slip(the_step, clip=False), "the gradient is not clipped"),
    ("0e", slip(the_step, rate=False), "the learning rate is still the one"),
    ("0e", slip(the_step, detach=False), "keeps all activations"),
    ("0e", lambda *args: (the_step(*args)[0], args[-1]), "the one after clipping"),
    ("0e", lambda *args: the_step(*args)[:1], "two things"),
]


@pytest.fixture
def check(monkeypatch):
    """check("0a", function) runs the check of an exercise on an answer -> the line of its failure, "" if it passes."""
    def run(number, function):
        name = RIGHT[number][0]
        monkeypatch.setitem(sys.modules, "by_hand", SimpleNamespace(**{name: function}))
        checks = runpy.run_path(os.path.join(EXERCISES, "test_by_hand.py"))
        [test] = [value for key, value in checks.items() if key.startswith(f"test_{number}_")]
        try:
            test()
        except pytest.fail.Exception as e:
            return " ".join(str(e).split())
        return ""
    return run


@pytest.mark.parametrize("number", RIGHT)
def test_a_right_answer_passes_and_an_empty_body_is_told_what_to_return(number, check):
    """What stands in exercises/by_hand.py is empty, and its check fails with a line that says what is missing."""
    name, right = RIGHT[number]
    assert check(number, right) == ""
    empty = runpy.run_path(os.path.join(EXERCISES, "by_hand.py"))[name]
    assert check(number, empty).startswith(f"{name} returns nothing yet; it should ")


@pytest.mark.parametrize("number, wrong, words", WRONG, ids=[f"{number}-{words}" for number, _, words in WRONG])
def test_a_usual_slip_is_named(number, wrong, words, check):
    """A learner who forgets to divide hears about dividing, not that two numbers differ."""
    assert words.lower() in check(number, wrong).lower()
