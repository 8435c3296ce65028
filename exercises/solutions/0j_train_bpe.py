"""
0j, learning BPE. A merge changes the counts of its neighbors, so the most frequent pairs of the
start are not the merges: after (l, o) the pair (o, w) has nearly vanished. Words never touch each
other, so a dictionary of words with their counts replaces the whole text, and that makes it fast.
The first merges are of single letters, whole words come a little later, and no merge ever crosses a
space that starts a word.
"""
from collections import Counter


def train_bpe(words, num_merges):
    pieces = {word: list(word) for word in words}  # the bytes are the first tokens
    merges = []
    for i in range(num_merges):
        counts = Counter()
        for word, ids in pieces.items():
            for pair in zip(ids, ids[1:], strict=False):
                counts[pair] += words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word, ids in pieces.items():
            pieces[word] = merge(ids, best, 256 + i)
    return merges


def merge(ids, pair, new):
    merged = []
    for token in ids:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new
        else:
            merged.append(token)
    return merged
