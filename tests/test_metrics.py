"""Facts about support/metrics.py: what the figures of a task mean."""
import math

import numpy as np
import pytest

from support.metrics import accuracy, bm25, correlations, f1, own_ranks, search_quality


def test_a_share_has_a_standard_error():
    """Of 872 sentences, 80% right: +- 1.35%. That of a fifth of them is more than twice as large."""
    share, error = accuracy([True] * 698 + [False] * 174)
    assert share == pytest.approx(698 / 872) and error == pytest.approx(0.01353, abs=1e-5)
    assert accuracy([True] * 140 + [False] * 34)[1] > 2 * error


def test_f1_sees_what_accuracy_hides():
    """
    Never to say 1 where one of ten is 1: 90% accuracy, F1 0. Two of three found, one false alarm: 2/3. With no 1
    anywhere it is not defined.
    """
    assert f1([0] * 9 + [1], [0] * 10) == 0 and math.isnan(f1([0] * 10, [0] * 10))
    assert f1([1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == pytest.approx(2 / 3)


def test_two_correlations():
    """Spearman asks for the order alone, Pearson for a line; with equal scores neither is defined."""
    assert correlations([1, 2, 3, 4], [1, 10, 100, 1000]) == (pytest.approx(1), pytest.approx(0.824, abs=1e-3))
    assert np.isnan([*correlations([1, 2, 3], [5, 5, 5]), *correlations([5, 5, 5], [1, 2, 3])]).all()


def test_ranks_of_the_right_passages():
    """The second best is rank 2; equals share; what is as right as a query's own passage does not count."""
    similarities = [[0.5, 0.9, 0.1], [0.2, 0.2, 0.2], [0.7, 0.1, 0.6]]
    assert own_ranks(similarities, [0, 1, 2], [0, 1, 2]).tolist() == [2, 2, 2]
    assert own_ranks(similarities, [0, 0, 2], [0, 1, 2]).tolist() == [1, 1.5, 2]
    assert own_ranks(similarities, [0, 1, 2], [0, 1, 0]).tolist() == [2, 2, 1]
    assert search_quality([1, 2, 20]) == {
        "recall@1": pytest.approx(1 / 3), "recall@10": pytest.approx(2 / 3), "mrr": pytest.approx(1.55 / 3)}


def test_bm25_finds_by_words_and_only_by_words():
    """A rare word is found, whatever its case; a synonym is not."""
    passages = ["The cat sat on the mat.", "A dog barked.", "Stocks fell on Monday.", "Nothing at all."]
    scores = bm25(["cat", "DOG?", "kitten"], passages)
    assert not bm25(["cat"], ["???"]).any()  # no words at all
    assert scores.shape == (3, 4) and scores[:2].argmax(axis=1).tolist() == [0, 1] and not np.any(scores[2])
