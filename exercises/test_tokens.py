"""
Checks for exercises/tokens.py: byte pair encoding, learned and applied, and nucleus sampling. Each fails until its
function is written, and says what it expects.

    python -m pytest exercises -k 0j    # and 0k, 0l

A wrong answer is compared with the usual slips, and the message names the slip: see checks.py. At the end the BPE
answers are compared with Hugging Face's `tokenizers`, on the plays that the laptop preset learns from.
"""
import functools
import json
import os
import re
from collections import Counter

import pytest
import tokens
import torch
from checks import close, diagnose, expect, expect_shape, random
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOW = {b"low": 5, b"lower": 2, b"lowest": 3, b"newer": 6}


# ----------------------------------------------------------------------------------------------------
# the reference, `tokenizers`. A byte b is spelled as the letter chr(0x4E00 + b), so that ids match the exercise's

@functools.cache
def plays():
    """The words of the first 60,000 characters of the plays -> {bytes: how often}. A space belongs to the next word."""
    with open(os.path.join(ROOT, "input.txt"), encoding="utf-8") as f:
        return Counter(word.encode() for word in re.findall(r" ?[A-Za-z]+| ?[^A-Za-z\s]+|\s", f.read(60_000)))


def spell(word):
    return "".join(chr(0x4E00 + b) for b in word)


@functools.cache
def theirs(num_merges):
    """-> a tokenizers.Tokenizer trained on the plays, and its merges as pairs of ids"""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = [chr(0x4E00 + b) for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=256 + num_merges, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator((" ".join([spell(word)] * n) for word, n in plays().items()), trainer)
    model = json.loads(bpe.to_str())["model"]
    return bpe, [(model["vocab"][a], model["vocab"][b]) for a, b in model["merges"]]


# ----------------------------------------------------------------------------------------------------
# 0j learning the merges

def replace(ids, pair, new, once=False):
    """Replace a pair from left to right. once: only its first occurrence"""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair and not (once and new in out):
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def learn(words, num_merges, weigh=True, ties=1, across=False, again=True, once=False, number=1, rare=False,
          ties_by="pair"):
    """BPE training, with a switch for each usual slip."""
    rows = [(list(word), n if weigh else 1) for word, n in words.items()]
    if across:
        rows = [([b for word, n in words.items() for b in list(word) * (n if weigh else 1)], 1)]
    merges, counts = [], None
    for i in range(num_merges):
        if again or counts is None:
            counts = Counter()
            for ids, n in rows:
                for pair in zip(ids, ids[1:], strict=False):
                    counts[pair] += n
        left = [pair for pair in counts if again or pair not in merges]
        if not left:
            break
        if ties_by == "first met":
            best = max(left, key=lambda pair: -counts[pair] if rare else counts[pair])
        else:
            best = min(left, key=lambda pair: (counts[pair] * (1 if rare else -1), ties * pair[0], ties * pair[1]))
        merges.append(best)
        rows = [(replace(ids, best, 256 + i * number, once), n) for ids, n in rows]
    return merges


LEARNING_SLIPS = {
    "each different word is counted once; count its pairs as often as the word occurs": dict(weigh=False),
    "the rarest pair is merged; take the most frequent one": dict(rare=True),
    "of equally frequent pairs the largest is taken; take the smallest, so that everybody gets the same merges":
        dict(ties=-1),
    "of equally frequent pairs the one that is met first is taken; take the smallest": dict(ties_by="first met"),
    "pairs are counted across word ends: the last letter of a word and the first of the next word are no neighbors":
        dict(across=True),
    "the pairs are counted once, at the start. Count again after each merge: merging (l, o) removes pairs (o, w) and "
    "makes new ones": dict(again=False),
    "a pair is replaced only where it is met first in a word; replace it everywhere": dict(once=True),
    "all merges make the same token; merge i should make token 256 + i": dict(number=0),
}


def test_0j_train_bpe():
    """Count, merge the most frequent pair, repeat."""
    merges = tokens.train_bpe(dict(LOW), 1)
    expect(merges is not None, "train_bpe returns nothing yet; it should return a list of pairs of ids")
    expect(isinstance(merges, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in merges),
           f"train_bpe should return a list of pairs (tuples of two ids), not {merges!r:.80}")
    expect(all(isinstance(i, int) for pair in merges for i in pair),
           f"a pair should hold two ids (the byte l is 108), not {merges[:1]}")
    words = {b"abab": 3, b"abcabc": 4, b"ba": 12, b"xyxyxy": 3, b"zz": 1, b"yx": 2, b"aaaa": 4, b"aaaca": 2}

    def compute(**changes):
        return [learn(LOW, 6, **changes), learn(words, 8, **changes)]
    merges = [tokens.train_bpe(dict(LOW), 6), tokens.train_bpe(dict(words), 8)]
    diagnose(merges, compute, LEARNING_SLIPS, f"six merges of {LOW} should be {compute()[0]}, and eight of {words} "
                                              f"{compute()[1]}, not {merges}")
    try:
        few = tokens.train_bpe({b"ab": 1}, 5)
    except ValueError as e:
        pytest.fail(f"when no pair is left it should end early, but it fails: {e}", pytrace=False)
    expect(few == [(97, 98)], f"the word ab has one pair, so there is one merge, (97, 98), not {few}")
    ours, expected = tokens.train_bpe(dict(plays()), 40), theirs(40)[1]
    for i, (pair, other) in enumerate(zip(ours, expected, strict=False)):
        expect(pair == other, f"on the plays, merge {i} should be {other} (as in `tokenizers`), not {pair}")
    expect(len(ours) == 40, f"train_bpe was asked for 40 merges and returned {len(ours)}")


# ----------------------------------------------------------------------------------------------------
# 0k applying them

def apply(word, merges, order=1, once=False, rounds=None, first_met=False, longest=False, start=256):
    """BPE encoding, with a switch for each usual slip."""
    if longest:
        return longest_first(word, merges, start)
    ids, rank = list(word), {pair: i for i, pair in enumerate(merges)}
    while rounds is None or rounds > 0:
        pairs = [pair for pair in zip(ids, ids[1:], strict=False) if pair in rank]
        if not pairs:
            break
        best = pairs[0] if first_met else min(pairs, key=lambda pair: order * rank[pair])
        shorter = replace(ids, best, start + rank[best], once)
        if shorter == ids:
            break
        ids, rounds = shorter, rounds and rounds - 1
    return ids


def longest_first(word, merges, start):
    """At each position, take the longest token that fits."""
    spelled = {bytes([b]): b for b in range(256)}
    bytes_of = {b: bytes([b]) for b in range(256)}
    for i, (a, b) in enumerate(merges):
        bytes_of[256 + i] = bytes_of[a] + bytes_of[b]
        spelled.setdefault(bytes_of[256 + i], start + i)
    ids = []
    while word:
        n = next(n for n in range(len(word), 0, -1) if word[:n] in spelled)
        ids.append(spelled[word[:n]])
        word = word[n:]
    return ids


ENCODING_SLIPS = {
    "the pair that was learned last goes first; the one learned first should": dict(order=-1),
    "the leftmost pair that is in merges goes first; of all pairs in the word, the one learned first should":
        dict(first_met=True),
    "at each position the longest token is taken. That sometimes gives fewer tokens, but not those seen in training":
        dict(longest=True),
    "one merge and no more; repeat until no neighboring pair is in merges": dict(rounds=1),
    "the new token's id is its index in merges; the first 256 ids are the bytes, so add 256": dict(start=0),
}


def test_0k_encode_bpe():
    """Apply the merges in the order in which they were learned."""
    abc = [(98, 99), (97, 98), (256, 256), (257, 256), (97, 256), (120, 97), (261, 98)]
    ids = tokens.encode_bpe(b"abc", list(abc))
    expect(ids is not None, "encode_bpe returns nothing yet; it should return a list of ids")
    expect(isinstance(ids, list), f"encode_bpe should return a list of ids, not {type(ids).__name__}")
    expect(tokens.encode_bpe(b"", list(abc)) == [], "an empty word has no tokens")
    expect(tokens.encode_bpe(b"qqq", list(abc)) == [113] * 3, "no pair of qqq is in merges: three bytes, [113] * 3")
    used = list(abc)
    tokens.encode_bpe(b"abcbc", used)
    expect(used == abc, "merges has changed; leave it as it was, the next word needs it")
    cases = [(word, abc) for word in (b"bcbcbcq", b"abcbcab", b"xababab", b"xabcab")]
    words = [word for word, _ in plays().most_common(100)]
    cases += [(word, theirs(200)[1]) for word in (b" lower", *words)]

    def compute(**changes):
        return [apply(word, merges, **changes) for word, merges in cases]
    result = [tokens.encode_bpe(word, list(merges)) for word, merges in cases]
    wrong = [f"{word} should become {b}, not {a}"
             for (word, _), a, b in zip(cases, result, compute(), strict=True) if a != b]
    diagnose(result, compute, ENCODING_SLIPS, "".join(wrong[:1]))
    bpe, merges = theirs(200)
    for word in plays():
        right = bpe.encode(spell(word)).ids
        found = tokens.encode_bpe(word, merges)
        expect(found == right, f"{word} should become {right} (as in `tokenizers`), not {found}")


# ----------------------------------------------------------------------------------------------------
# 0l the next token

def keep(probs, p, after=False, divide=True, back=True, least=False, logits=False):
    """Nucleus sampling, with a switch for each usual slip."""
    order = probs.argsort(-1, descending=not least)
    ranked = probs.gather(-1, order)
    before = ranked.cumsum(-1) - (0 if after else ranked)
    ranked = ranked.masked_fill(before >= p, 0.0)
    left = torch.zeros_like(probs).scatter(-1, order, ranked) if back else ranked
    if logits:
        return left.softmax(-1)
    return left / left.sum(-1, keepdim=True) if divide else left


NUCLEUS_SLIPS = {
    "the token with which the sum reaches p is dropped. It belongs to the nucleus: keep a token if the sum of all "
    "likelier tokens is below p": dict(after=True),
    "the rest is not divided by its sum; each row should sum to one again": dict(divide=False),
    "the rows come back sorted; column i should be token i again (scatter, or gather with the inverse order)":
        dict(back=False),
    "the least likely tokens are kept; sort in descending order": dict(least=True),
    "these are probabilities, so divide the rest by its sum. A softmax would give the dropped tokens weight again":
        dict(logits=True),
}


def test_0l_nucleus():
    """Keep the fewest of the likeliest tokens whose sum reaches p."""
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.0, 0.125, 0.0625, 0.8125]])
    kept = tokens.nucleus(probs.clone(), 0.6)
    expect_shape("nucleus", kept, (2, 4))
    expect(kept.isfinite().all(), "nan: the second row's likeliest token has 0.81, more than p = 0.6. It is dropped, "
                                  "so nothing is left. The token with which the sum reaches p belongs to the nucleus")
    for given in (probs, torch.softmax(random(50, 300, scale=3.0), -1)):
        for p in (0.6, 0.85, 0.25):
            diagnose(tokens.nucleus(given.clone(), p), lambda given=given, p=p, **changes: keep(given, p, **changes),
                     NUCLEUS_SLIPS, f"of {probs.tolist()} p = 0.6 should leave {keep(probs, 0.6).tolist()}")
    expect(close(tokens.nucleus(probs.clone(), 1.0), probs), "p = 1 should keep everything")
    one = tokens.nucleus(probs.clone(), 1e-9)
    expect(one.isfinite().all() and int((one > 0).sum()) == 2, "a tiny p should keep each row's likeliest token")
