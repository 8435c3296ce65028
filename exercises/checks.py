"""
What the checks of the exercises share. A check looks for what can go wrong, one slip at a time, and names the slip. It
has the right function with a switch for each slip: whatever comes out of a learner's function is compared with what
comes out of one slip, and then with what comes out of two or three at once.
"""
from itertools import combinations

import pytest
import torch


def expect(fact, otherwise):
    """An assert whose message stands alone: a reader wants to know what is expected, not how it was compared."""
    if not fact:
        pytest.fail(otherwise, pytrace=False)


def random(*shape, scale=1.0):
    """The same normal numbers at each call."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def close(a, b, tolerance=1e-5):
    """Equal to a hundred thousandth of the largest number."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def same(a, b):
    """Tensors that are close, tuples of tensors that are, or equal lists."""
    if isinstance(b, tuple):
        return all(same(*pair) for pair in zip(a, b, strict=True))
    return close(a, b) if isinstance(b, torch.Tensor) else a == b


def expect_shape(name, result, shape):
    expect(result is not None, f"{name} returns nothing yet; it should return a tensor of shape {shape}")
    expect(isinstance(result, torch.Tensor), f"{name} should return a tensor, not {type(result).__name__}")
    expect(tuple(result.shape) == shape, f"{name} should return the shape {shape}, not {tuple(result.shape)}")


def expect_tuple(name, result, names):
    """A function that returns several things."""
    wanted = f"{', '.join(names[:-1])} and {names[-1]}"
    expect(result is not None, f"{name} returns nothing yet; it should return {wanted}")
    expect(isinstance(result, tuple) and len(result) == len(names),
           f"{name} should return {len(names)} things: {wanted}")


def diagnose(result, compute, slips, otherwise):
    """
    result: what the learner's function returned; compute(**changes): what the right function returns, or one with
    changes; slips: {explanation: changes}. Passes if the result is right. Otherwise names the slip that explains it,
    or the first of two or three that do so together.
    """
    right = compute()
    if same(result, right):
        return
    for n in (1, 2, 3):
        for chosen in combinations(slips, n):
            changes = merge(slips[explanation] for explanation in chosen)
            wrong = right if changes is None else compute(**changes)
            # slips that this case cannot show explain nothing
            more = "" if n == 1 else f". (And there is more than one slip, {n} in all: mend this one first)"
            expect(same(wrong, right) or not same(result, wrong), chosen[0] + more)
    pytest.fail(otherwise, pytrace=False)


def merge(several):
    """Several changes as one dict; None if two of them change one thing."""
    merged = {}
    for changes in several:
        if merged.keys() & changes.keys():
            return None
        merged |= changes
    return merged
