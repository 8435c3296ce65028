"""
0i, AdamW. In the first step mhat is grad and vhat is grad^2, so every coordinate moves by lr,
whatever the size of its gradient: hence the warm-up. Multiplying all gradients by 8 changes nothing
but the weight of eps, so clipping matters to AdamW only when some steps are clipped and others are
not. Decay stands outside of this division, and shrinks every weight by the same share.
"""


def adamw(p, grad, m, v, t, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad ** 2
    mhat = m / (1 - beta1 ** t)
    vhat = v / (1 - beta2 ** t)
    step = lr * mhat / (vhat.sqrt() + eps)
    decay = lr * weight_decay * p
    return p - step - decay, m, v
