"""
The exercises 0j to 0l: what happens before the model and after it, each from an empty body. Text
becomes tokens by byte pair encoding, and probabilities become the next token.

    python -m pytest exercises -k 0j    # is it right? Seconds
"""
import torch  # noqa: F401 (0l needs it)


def train_bpe(words, num_merges):
    """
    0j. words {bytes: how often this word occurs} -> list of at most num_merges pairs of token ids.

    The tokens 0 to 255 are the bytes. Each merge i makes one more token, 256 + i:
        1. Count each pair of neighbors within a word, as often as the word occurs.
        2. Take the most frequent pair; if several are, the smallest one ((97, 98) < (98, 97)).
        3. In each word, from left to right, replace this pair by the new token. In "aaa" the pair
           (a, a) is replaced once: its first two letters are used up, and "aa" + "a" is left.
    It ends early when no pair is left.

    Three merges of {b"low": 5, b"lower": 2}: (l, o) and (o, w) both occur 7 times. The first is
    smaller, since l is 108 and o is 111, and becomes token 256. Then (256, w) occurs 7 times and
    becomes 257, "low". Then (257, e) and (e, r) occur twice, and (e, r) is smaller: 101 < 257.
    """


def encode_bpe(word, merges):
    """
    0k. word (bytes), merges (what 0j returned) -> list of token ids.

    Start with the bytes. Of all neighboring pairs that are in merges, take the one that was learned
    first (the lowest index in merges), and replace it, from left to right, wherever it occurs in
    the word. Repeat until no neighboring pair is in merges.

    The order matters. With the merges (b, c), (a, b), the word "abc" becomes a + bc: when "bc" was
    learned there was no "ab" yet, and the model has seen the same in training.
    """


def nucleus(probs, p):
    """
    0l. probs (B, V), each row a distribution in any order; 0 < p <= 1 -> (B, V), for sampling.

    Nucleus sampling, or top-p (Holtzman et al. 2020, section 3.1). Sort a row so that
    q_1 >= q_2 >= ..., and keep the fewest tokens whose sum reaches p:

        n = the smallest n with q_1 + ... + q_n >= p

    All other tokens get zero, and what is left is divided by its sum. So the number of tokens kept
    follows the model: one where it is sure, hundreds where many words may follow. At least one
    token is always kept. A useful form of the condition: a token is kept if the sum of all likelier
    ones is below p.
    """
