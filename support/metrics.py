"""
How good are the answers? Come here to see what a figure means. Shares come with their standard
error: of two runs that differ by less than that, neither is better.
"""
import importlib
import math
import re
from collections import Counter

import numpy as np


def accuracy(right):
    """
    right: is each answer right (list of bool)? -> the share, and its standard error, that of a mean
    of n independent answers
    """
    share = float(np.mean(right))
    return share, math.sqrt(share * (1 - share) / len(right))


def f1(targets, answers):
    """
    For two labels, numbered 0 and 1: the harmonic mean of precision and recall for label 1. Where
    one label is rare, accuracy looks good without finding it once; F1 does not.
    """
    from sklearn.metrics import f1_score
    return float(f1_score(targets, answers, pos_label=1, zero_division=0))


def correlations(targets, scores):
    """
    Spearman's and Pearson's correlation -> two floats: does the order agree, and is the relation a
    straight line? 0 where all scores are the same: they say nothing.
    """
    from scipy.stats import pearsonr, spearmanr
    if len(set(targets)) < 2 or len(set(scores)) < 2:
        return 0.0, 0.0
    return (float(spearmanr(targets, scores).statistic),
            float(pearsonr(targets, scores).statistic))


def own_ranks(similarities, query_keys, passage_keys):
    """
    At which place does each query find its own passage? similarities (n, n): query i to passage j,
    passage i being its own. keys (lists of n numbers): texts that are alike have the same. Another
    passage for the same query, or the same passage once more, is as right as its own, so it does
    not count against it. -> ranks (n,), from 1 on; those with the same similarity share the mean
    """
    similarities = np.asarray(similarities)
    numbers = {}  # of each text: an array of texts would be as wide as the longest
    query_keys = np.array([numbers.setdefault(key, len(numbers)) for key in query_keys])
    passage_keys = np.array([numbers.setdefault(key, len(numbers)) for key in passage_keys])
    own = similarities.diagonal()[:, None]
    same_query = query_keys[:, None] == query_keys[None, :]
    same_passage = passage_keys[:, None] == passage_keys[None, :]
    others = ~(same_query | same_passage)
    better = ((similarities > own) & others).sum(axis=1)
    equal = ((similarities == own) & others).sum(axis=1)
    return 1 + better + equal / 2


def search_quality(ranks):
    """
    Ranks of the right passages -> {"recall@1", "recall@10": how often it is among the first, "mrr":
    the mean of 1 / rank}
    """
    ranks = np.asarray(ranks)
    return {"recall@1": float(np.mean(ranks <= 1)), "recall@10": float(np.mean(ranks <= 10)),
            "mrr": float(np.mean(1 / ranks))}


def words(text):
    """What BM25 counts: words in small letters, without the signs between them."""
    return re.findall(r"\w+", text.lower())


def bm25(queries, passages):
    """
    What a search that counts words says (Robertson and Zaragoza 2009): a rare word that both have
    tells more than a frequent one, a long passage counts less. -> similarities (queries, passages)
    """
    from rank_bm25 import BM25Okapi
    documents = [words(passage) for passage in passages]
    if not any(documents):
        return np.zeros((len(queries), len(passages)))
    index = BM25Okapi(documents)
    return np.stack([index.get_scores(words(query)) for query in queries])


LIBRARIES = {"embed": ["rank_bm25"], "compare": ["scipy.stats", "sklearn.metrics"],
             "classify": ["sklearn.metrics"], "entail": ["sklearn.metrics"], "choose": []}


def import_libraries(task):
    """What the figures of a task need: it should be missing before the training, not after it."""
    for name in LIBRARIES[task.name]:
        importlib.import_module(name)


def measure(task, examples, scores):
    """
    The examples of a task, and the scores that a model gives them: (n, answers), of embed the
    vectors (n, 2, C) of query and passage -> {metric: value}
    """
    scores = np.asarray(scores)
    targets = [example.target for example in examples]
    if task.name == "embed":
        query_keys, passage_keys = zip(*[example.keys for example in examples], strict=True)
        similarities = scores[:, 0] @ scores[:, 1].T
        return search_quality(own_ranks(similarities, query_keys, passage_keys))
    if task.has_scores:
        spearman, pearson = correlations(targets, scores[:, 0].tolist())
        return {"spearman": spearman, "pearson": pearson}
    answers = scores.argmax(axis=1).tolist()
    share, error = accuracy([answer == target for answer, target
                             in zip(answers, targets, strict=True)])
    found = {"accuracy": share, "error": error}
    if len(task.labels) == 2:
        found["f1"] = f1(targets, answers)
    return found


def baseline(task, train, val):
    """What knows nothing reaches on the items of val: the first thing to compare a result with."""
    if task.name == "embed":
        queries, passages = [item.texts[0] for item in val], [item.texts[1] for item in val]
        ranks = own_ranks(bm25(queries, passages), queries, passages)
        text = ", ".join(f"{name} {value:.4f}" for name, value in search_quality(ranks).items())
        return (f"among {len(val)} passages chance finds the right one first with "
                f"{1 / len(val):.4f}, counting words (BM25): {text}")
    if task.has_scores:
        return ("knowing nothing, the mean score for all, has a validation loss near 1 and no "
                "correlation")
    if task.name == "choose":
        chance = np.mean([1 / (len(item.texts) - 1) for item in val])
        return f"knowing nothing, any ending, is right on {100 * chance:.1f}% of val"
    answer, share = majority(train, val)
    return f"knowing nothing, always {answer!r}, is right on {100 * share:.1f}% of val"


def majority(train, val):
    """The most frequent answer in train -> the answer, the share of val for which it is right"""
    answer = Counter(item.answer for item in train).most_common(1)[0][0]
    right = sum(item.answer == answer for item in val)
    return answer, right / len(val)
