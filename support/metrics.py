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


def import_libraries(names):
    """What the figures of a task need: if it is missing, say so before training and not after."""
    for name in names:
        importlib.import_module(name)


# --- the figures of a task ------------------------------------------------------------------------

def of_labels(targets, answers, labels):
    """Numbers of the right labels and of the predicted ones (lists of int) -> {metric: value}"""
    share, error = accuracy([a == b for a, b in zip(targets, answers, strict=True)])
    found = {"accuracy": share, "error": error}
    if len(labels) == 2:
        found["f1"] = f1(targets, answers)
    return found


def of_scores(targets, scores):
    """Right and predicted scores (lists of float) -> {metric: value}"""
    spearman, pearson = correlations(targets, scores)
    return {"spearman": spearman, "pearson": pearson}


def of_search(similarities, text_numbers):
    """
    similarities (n, n), query i to passage j; text_numbers: for each pair one of its query and one
    of its passage, equal for equal texts -> {metric: value}
    """
    query_numbers, passage_numbers = zip(*text_numbers, strict=True)
    return search_quality(own_ranks(similarities, query_numbers, passage_numbers))


# --- baselines: what is reached without a model, to compare each result with ----------------------

def majority_baseline(train, val, labels):
    """Always the most frequent answer of train; train, val: lists of labels -> a line"""
    answer = Counter(train).most_common(1)[0][0]
    line = f"baseline: always {answer!r} is right for {val.count(answer) / len(val):.1%} of val"
    return line + (f"; f1 is that of the label {labels[1]!r}" if len(labels) == 2 else "")


def search_baseline(queries, passages):
    """Chance, and counting words (BM25); passages[i] answers queries[i] -> a line"""
    ranks = own_ranks(bm25(queries, passages), queries, passages)
    text = ", ".join(f"{name} {value:.4f}" for name, value in search_quality(ranks).items())
    return (f"baseline: among {len(queries)} passages chance finds the right one first with "
            f"{1 / len(queries):.4f}, counting words (BM25): {text}")
