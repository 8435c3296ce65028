"""
How good are the answers of a fine-tuned model? Come here to see what a figure means. Accuracies
come with their standard error: a difference smaller than that shows nothing.
"""
import importlib
import math
import re
from collections import Counter

import numpy as np


def accuracy(right):
    """
    right: is each answer right (list of bool)? -> the share of right answers, and its standard
    error, sqrt(p (1 - p) / n), which takes the answers as independent
    """
    share = float(np.mean(right))
    return share, math.sqrt(share * (1 - share) / len(right))


def f1(targets, answers):
    """
    For two labels, 0 and 1: the harmonic mean of precision and recall for label 1. If label 1 is
    rare, a model that never finds it has a high accuracy, but an F1 of 0. If label 1 occurs neither
    in targets nor in answers, F1 is nan, not defined.
    """
    from sklearn.metrics import f1_score
    return float(f1_score(targets, answers, pos_label=1, zero_division=math.nan))


def correlations(targets, scores):
    """
    Spearman's correlation (does the order agree?) and Pearson's (is the relation a straight line?)
    -> two floats. Both are nan, not defined, if all targets or all scores are equal.
    """
    from scipy.stats import pearsonr, spearmanr
    if len(set(targets)) < 2 or len(set(scores)) < 2:
        return math.nan, math.nan
    return (float(spearmanr(targets, scores).statistic),
            float(pearsonr(targets, scores).statistic))


def own_ranks(similarities, query_keys, passage_keys):
    """
    The rank of each query's own passage among all passages -> (n,), 1 for the most similar one.
    Passages that are equally similar share the mean of their ranks.
        similarities  (n, n), query i to passage j; passage i is query i's own
        keys          lists of n texts or numbers, equal for equal texts. Another passage for the
                      same query, or another copy of the passage, is right, too: it is left out
    """
    similarities = np.asarray(similarities)
    numbers = {}  # text -> number: in an array of texts, each would be as wide as the longest
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
    Ranks of the right passages -> {"recall@1", "recall@10": share of queries whose passage comes
    first, or among the first ten; "mrr": mean of 1 / rank}
    """
    ranks = np.asarray(ranks)
    return {"recall@1": float(np.mean(ranks <= 1)), "recall@10": float(np.mean(ranks <= 10)),
            "mrr": float(np.mean(1 / ranks))}


def words(text):
    """A text -> its words in lower case, without punctuation (list of str)"""
    return re.findall(r"\w+", text.lower())


def bm25(queries, passages):
    """
    Search by counting shared words (BM25, Robertson and Zaragoza 2009): a rare word weighs more
    than a frequent one, and a word in a short passage more than in a long one
    -> similarities (number of queries, number of passages)
    """
    from rank_bm25 import BM25Okapi
    documents = [words(passage) for passage in passages]
    if not any(documents):
        return np.zeros((len(queries), len(passages)))
    index = BM25Okapi(documents)
    return np.stack([index.get_scores(words(query)) for query in queries])


def import_libraries(names):
    """Import the libraries that a task's metrics use: if one is missing, say so before training."""
    for name in names:
        importlib.import_module(name)


# --- the figures of a task ------------------------------------------------------------------------

def of_labels(targets, answers, labels):
    """Right and predicted labels, as numbers (lists of int) -> {metric: value}"""
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
    similarities (n, n), query i to passage j; text_numbers: (query's number, passage's number) for
    each pair, equal for equal texts -> {metric: value}
    """
    query_numbers, passage_numbers = zip(*text_numbers, strict=True)
    return search_quality(own_ranks(similarities, query_numbers, passage_numbers))


# --- baselines: results without a model -----------------------------------------------------------

def majority_baseline(train, val, labels):
    """Always answer with train's most frequent label. train, val: lists of labels -> a line"""
    answer = Counter(train).most_common(1)[0][0]
    line = f"baseline: always {answer!r} is right for {val.count(answer) / len(val):.1%} of val"
    return line + (f"; f1 is for the label {labels[1]!r}" if len(labels) == 2 else "")


def search_baseline(queries, passages):
    """Guess, or count words (BM25). passages[i] answers queries[i] -> a line"""
    ranks = own_ranks(bm25(queries, passages), queries, passages)
    text = ", ".join(f"{name} {value:.4f}" for name, value in search_quality(ranks).items())
    return (f"baseline: among {len(queries)} passages chance finds the right one first with "
            f"{1 / len(queries):.4f}, counting words (BM25): {text}")
