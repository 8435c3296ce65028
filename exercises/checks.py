"""
Helpers for the checks of the exercises. A check does not only say that an answer is wrong, it names the slip. It has
the right function, with a switch for each usual slip. It compares the output of the learner's function with the output
of each slip alone, then of two and three slips together.
"""
from itertools import combinations

import pytest
import torch


def expect(fact, otherwise):
    """An assert that prints its message alone: a learner needs the fact, not the comparison."""
    if not fact:
        pytest.fail(otherwise, pytrace=False)


def random(*shape, scale=1.0):
    """Normally distributed numbers, the same in every call."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def close(a, b, tolerance=1e-5):
    """Equal to within a hundred thousandth of the largest number."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def same(a, b):
    """True for tensors that are close, for tuples of such tensors, and for equal lists."""
    if isinstance(b, tuple):
        return all(same(*pair) for pair in zip(a, b, strict=True))
    return close(a, b) if isinstance(b, torch.Tensor) else a == b


def expect_shape(name, result, shape):
    expect(result is not None, f"{name} returns nothing yet; it should return a tensor of shape {shape}")
    expect(isinstance(result, torch.Tensor), f"{name} should return a tensor, not {type(result).__name__}")
    expect(tuple(result.shape) == shape, f"{name} should return the shape {shape}, not {tuple(result.shape)}")


def expect_tuple(name, result, names):
    """Check that a function returned a tuple with as many parts as there are names."""
    wanted = f"{', '.join(names[:-1])} and {names[-1]}"
    expect(result is not None, f"{name} returns nothing yet; it should return {wanted}")
    expect(isinstance(result, tuple) and len(result) == len(names),
           f"{name} should return {len(names)} things: {wanted}")


def diagnose(result, compute, slips, otherwise):
    """
    result: what the learner's function returned; compute(**changes): the output of the right function with these slips
    switched on; slips: {explanation: changes}. Passes if the result is right. Otherwise fails, and names the slip that
    explains the result, or the first of two or three slips that explain it together.
    """
    right = compute()
    if same(result, right):
        return
    for n in (1, 2, 3):
        for chosen in combinations(slips, n):
            changes = merge(slips[explanation] for explanation in chosen)
            wrong = right if changes is None else compute(**changes)
            # a slip that does not change this output cannot explain it
            more = "" if n == 1 else f". (There are {n} slips in all: fix this one first)"
            expect(same(wrong, right) or not same(result, wrong), chosen[0] + more)
    pytest.fail(otherwise, pytrace=False)


def merge(several):
    """Merge dicts of changes into one; None if two of them set the same switch."""
    merged = {}
    for changes in several:
        if merged.keys() & changes.keys():
            return None
        merged |= changes
    return merged
