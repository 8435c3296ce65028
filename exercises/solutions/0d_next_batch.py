"""
0d, the shift. B * T + 1 tokens make B * T questions with their answers: x and y are two views of
one piece, a token apart. The shift happens in the long row, before it is cut, so the last target of
a row is the first input of the next row. The position moves by B * T, because the extra token has
only been an answer so far.
"""


def next_batch(tokens, position, B, T):
    piece = tokens[position : position + B * T + 1]
    x = piece[:-1].view(B, T)
    y = piece[1:].view(B, T)
    return x, y, position + B * T
