"""
0k, applying BPE. Encoding repeats training in fast motion, on one word: this is why the order of
the merges is the whole tokenizer. The longest token that fits is a different rule and gives
different tokens, which a model would not recognize. A word's tokens depend on the word alone, so
they can be kept in a dictionary and looked up.
"""


def encode_bpe(word, merges):
    rank = {pair: i for i, pair in enumerate(merges)}
    ids = list(word)
    while True:
        known = [pair for pair in zip(ids, ids[1:], strict=False) if pair in rank]
        if not known:
            return ids
        best = min(known, key=rank.get)
        ids = merge(ids, best, 256 + rank[best])


def merge(ids, pair, new):
    merged = []
    for token in ids:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new
        else:
            merged.append(token)
    return merged
