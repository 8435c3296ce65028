"""
The exercises 0j to 0l: what happens before and after the model. Byte pair encoding turns text into
tokens; sampling turns probabilities into the next token. Each is an empty body for you to write.

    python -m pytest exercises -k 0j    # is it right? Seconds
"""
import torch  # noqa: F401 (0l needs it)


def train_bpe(words, num_merges):
    """
    0j. words {bytes: how often this word occurs} -> list of at most num_merges pairs of token ids.

    Tokens 0 to 255 are the bytes. Merge number i adds one token, 256 + i:
        1. Count each pair of neighbors within a word, as often as the word occurs.
        2. Take the most frequent pair; in a tie, the smallest ((97, 98) < (98, 97)).
        3. In each word, from left to right, replace this pair by the new token. In "aaa" the pair
           (a, a) is replaced once: that uses up the first two letters, and leaves "aa" + "a".
    Stop early when no pair is left.

    Three merges of {b"low": 5, b"lower": 2}: (l, o) and (o, w) both occur 7 times. (l, o) is
    smaller, since l is 108 and o is 111, and becomes token 256. Then (256, w) occurs 7 times and
    becomes 257, "low". Then (257, e) and (e, r) occur twice, and (e, r) is smaller: 101 < 257.
    """


def encode_bpe(word, merges):
    """
    0k. word (bytes), merges (what 0j returned) -> list of token ids.

    Start with the bytes. Of all neighboring pairs that are in merges, take the one learned first
    (the lowest index in merges), and replace it wherever it occurs in the word, from left to right.
    Repeat until no neighboring pair is in merges.

    The order matters. With the merges (b, c), (a, b), the word "abc" becomes a + bc: (b, c) was
    learned first, so the model saw a + bc in training.
    """


def nucleus(probs, p):
    """
    0l. probs (B, V), each row a distribution, not sorted; 0 < p <= 1 -> (B, V), to sample from.

    Nucleus sampling, or top-p (Holtzman et al. 2020, section 3.1). Sort a row so that
    q_1 >= q_2 >= ..., and keep the fewest tokens whose sum reaches p:

        n = the smallest n with q_1 + ... + q_n >= p

    All other tokens get zero, and the rest is divided by its sum. So the number of tokens kept
    adapts to the model: one where it is sure, hundreds where many words may follow. At least one
    token is always kept. A useful form of the condition: keep a token if the sum of all likelier
    tokens is below p.
    """
