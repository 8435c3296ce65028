"""
Checks for exercises/backward.py: the backward passes of the loss, LayerNorm and attention, and AdamW. Each fails until
its function is written, and says what it expects.

    python -m pytest exercises -k 0f    # and 0g, 0h, 0i

A wrong answer is compared with the usual slips, and the message names the slip: see checks.py. At the end each answer
is compared with autograd or torch.optim.
"""
import backward
import torch
from checks import close, diagnose, expect, expect_shape, expect_tuple, random
from torch.nn import functional as F

# ----------------------------------------------------------------------------------------------------
# 0f the gradient of the loss


def dlogits(logits, targets, sign=1, one_hot=1, probs="softmax", divisor=None):
    """The gradient of the mean cross-entropy, with a switch for each usual slip."""
    p = {"softmax": logits.softmax(-1), "over positions": logits.softmax(0), "none": logits,
         "zero": torch.zeros_like(logits)}[probs]
    wanted = one_hot * F.one_hot(targets, logits.size(1)) if one_hot != "all" else 1
    return sign * (p - wanted) / (divisor or len(logits))


def test_0f_cross_entropy_backward():
    """(softmax - one-hot) / N: a step lowers every wrong token's probability and raises the target's."""
    logits, targets = random(6, 9, scale=2.0), torch.tensor([0, 3, 3, 8, 1, 5])
    given = logits.clone()
    grad = backward.cross_entropy_backward(given, targets.clone())
    expect_shape("cross_entropy_backward", grad, (6, 9))
    expect(given.equal(logits), "the logits have changed: an in-place operation, such as -=, wrote into them. Others "
                                "may still need the logits, so work on a new tensor")
    slips = {
        "the gradient is not divided by N: the loss is the mean over the positions": dict(divisor=1),
        "divided by N * V: the mean is over the N positions, each with a single loss for its V logits":
            dict(divisor=54),
        "the sign is wrong: a step goes against the gradient, so the target's gradient is negative, p - 1":
            dict(sign=-1),
        "these are the probabilities: the -1 at each target is missing": dict(one_hot=0),
        "the target's gradient should be p - 1, but here it is p + 1": dict(one_hot=-1),
        "1 is subtracted from all logits of a position; subtract it at the target only": dict(one_hot="all"),
        "this is the -1 at each target alone: softmax(z), the derivative of log(sum exp z), is missing":
            dict(probs="zero"),
        "the logits stand where their softmax should be": dict(probs="none"),
        "the softmax runs over the positions; it should run over the vocabulary, dim=-1": dict(probs="over positions"),
    }
    diagnose(grad, lambda **changes: dlogits(logits, targets, **changes), slips,
             "this is not (softmax(logits) - one_hot(targets)) / N. A check without the formula: each row should sum "
             f"to zero; your first row sums to {grad[0].sum():.4f}")
    large = backward.cross_entropy_backward(torch.tensor([[1000.0, 0.0]]), torch.tensor([1]))
    expect(large.isfinite().all(), "logits of 1000 and 0 give nan: exp(1000) is too large for a float. Subtract each "
                                   "row's largest logit first, or use torch.softmax")
    leaf = logits.clone().requires_grad_()
    F.cross_entropy(leaf, targets).backward()
    expect(close(grad, leaf.grad), "autograd gives another result, and this check cannot say why: please report it")


# ----------------------------------------------------------------------------------------------------
# 0g LayerNorm

def norm_backward(dy, x, weight, eps=1e-5, unbiased=False, weigh=True, mean=True, sigma=True, power=1, dim=-1):
    """dx, with a switch for each usual slip."""
    std = (x.var(-1, keepdim=True, unbiased=unbiased) + eps).sqrt()
    xhat = (x - x.mean(-1, keepdim=True)) / std
    g = dy * weight if weigh else dy
    dx = g
    if mean:
        dx = dx - g.mean(dim, keepdim=True)
    if sigma:
        dx = dx - xhat * (g * xhat).mean(dim, keepdim=True)
    return dx / std ** power


NORM_SLIPS = {
    "eps is forgotten: sigma is sqrt(variance + eps). It matters for rows that hardly vary": dict(eps=0.0),
    "the variance is divided by C - 1, torch's default; LayerNorm divides by C (unbiased=False)":
        dict(unbiased=True),
    "the gradient of xhat is g = dy * weight; here it gets dy": dict(weigh=False),
    "the mean depends on x as well: - mean(g) is missing": dict(mean=False),
    "sigma depends on x as well: - xhat * mean(g * xhat) is missing": dict(sigma=False),
    "the division by sigma is missing at the end": dict(power=0),
    "divided by the variance; sigma is its root": dict(power=2),
    "the means run over the rows. Each row is normalized by itself, over its channels: dim=-1, keepdim=True":
        dict(dim=0),
}


def weight_grads(dy, x, before, add=True, mean=False, raw=False):
    """What weight.grad and bias.grad should hold afterwards, with a switch for each usual slip."""
    xhat = x if raw else F.layer_norm(x, x.shape[-1:])
    found = [(dy * xhat), dy]
    found = [part.mean(0) if mean else part.sum(0) for part in found]
    return tuple(old + new if add else new for old, new in zip(before, found, strict=True))


def test_0g_layer_norm_backward():
    """(g - mean(g) - xhat mean(g xhat)) / sigma; the gradients of weight and bias are added to .grad."""
    everything = random(4, 6, 8)
    dy, (weight, bias, *before) = everything[0], everything[1, :4]
    x = everything[2] * torch.tensor([1.0, 3.0, 1.0, 0.01, 0.02, 2.0])[:, None] + 0.5  # two rows that hardly vary
    weight.grad, bias.grad = (old.clone() for old in before)
    dx = backward.layer_norm_backward(dy.clone(), x.clone(), weight, bias)
    expect_shape("layer_norm_backward", dx, (6, 8))
    diagnose(dx, lambda **changes: norm_backward(dy, x, weight, **changes), NORM_SLIPS,
             "dx is not (g - mean(g) - xhat * mean(g * xhat)) / sigma with g = dy * weight. A check without the "
             f"formula: each row of dx should sum to zero; your first row sums to {dx[0].sum():.4f}")
    grads = [parameter.grad for parameter in (weight, bias)]
    for name, grad, old in zip(("weight", "bias"), grads, before, strict=True):
        expect(grad is not None and grad.shape == (8,), f"{name}.grad should have the shape (8,): the sum over rows")
        expect(not grad.equal(old), f"{name}.grad is as it was: add the gradient of {name} to it")
    diagnose(tuple(grads), lambda **changes: weight_grads(dy, x, before, **changes), {
        "weight.grad and bias.grad are replaced (.grad = instead of +=): what earlier micro batches added is lost":
            dict(add=False),
        "the gradients of weight and bias are means over the rows. Every row uses the same weight, and the gradients "
        "of several uses add up: take the sum": dict(mean=True),
        "the gradient of weight is the sum of dy * xhat, not of dy * x": dict(raw=True),
    }, "dx is right; weight.grad should grow by the sum over rows of dy * xhat, bias.grad by the sum of dy. "
       f"{'Only the first' if close(grads[1], before[1] + dy.sum(0)) else 'The second'} is wrong")
    leaf = x.clone().requires_grad_()
    F.layer_norm(leaf, (8,), weight, bias).backward(dy)
    expect(close(dx, leaf.grad, 1e-4), "autograd gives another result, and this check cannot say why: please report it")


# ----------------------------------------------------------------------------------------------------
# 0h attention

def mix_backward(dy, q, k, v, mask="before", scale=None, late=True, row_sum=-1, transpose_p=True, transpose_s=True):
    """dq, dk, dv, with a switch for each usual slip."""
    T, hs = q.shape[-2:]
    scale = hs ** -0.5 if scale is None else scale
    past = torch.ones(T, T, dtype=torch.bool).tril()
    scores = q @ k.mT * scale
    if mask == "product":
        scores = scores * past
    if mask == "before":
        scores = scores.masked_fill(~past, float("-inf"))
    p = scores.softmax(-1)
    if mask == "after":
        p = p * past
    dp = dy @ v.mT
    ds = p * (dp - ((p * dp).sum(row_sum, keepdim=True) if row_sum else 0))
    if late:
        ds = ds * scale
    return ds @ k, (ds.mT if transpose_s else ds) @ q, (p.mT if transpose_p else p) @ dy


ATTENTION_SLIPS = {
    "each token attends to the whole row, the future too: P has no mask": dict(mask="none"),
    "the mask comes after the softmax: the rows of P no longer sum to one. Set the scores of the future to -inf "
    "before the softmax": dict(mask="after"),
    "scores * mask makes the scores of the future 0, and exp(0) is 1: they still get weight. Set them to -inf":
        dict(mask="product"),
    "the scores are not divided by sqrt(hs)": dict(scale=1.0),
    "S was divided by sqrt(hs), so dS must be divided by it too before it goes to q and k: dq and dk are too large":
        dict(late=False),
    "the softmax's backward lacks its second term: the weights of a row sum to one, so ds = p * (dp - sum(p * dp))":
        dict(row_sum=0),
    "in the softmax's backward the sum runs over the queries; each query has its own softmax, over the keys":
        dict(row_sum=-2),
    "dv is P^T dy: a value collects from all queries that attended to it. Here P is not transposed":
        dict(transpose_p=False),
    "dk is dS^T q: a key collects from all queries that attended to it. Here dS is not transposed":
        dict(transpose_s=False),
}


def test_0h_attention_backward():
    """Backward through two products and a softmax. The mask is already in P: where P is 0, dS is 0."""
    q, k, v, dy = random(4, 2, 3, 6, 5, scale=1.5)  # B 2, nh 3, T 6, hs 5
    parts = backward.attention_backward(dy.clone(), q.clone(), k.clone(), v.clone())
    expect_tuple("attention_backward", parts, ("dq", "dk", "dv"))
    for name, part in zip(("dq", "dk", "dv"), parts, strict=True):
        expect_shape(f"for {name} attention_backward", part, (2, 3, 6, 5))
        expect(part.isfinite().all(), f"{name} has nan: -inf * 0 is nan. Put -inf into the scores before the softmax, "
                                      "and use only P after it")

    def compute(**changes):
        return mix_backward(dy, q, k, v, **changes)
    right = [name for name, ours, theirs in zip(("dq", "dk", "dv"), compute(), parts, strict=True)
             if close(theirs, ours)]
    diagnose(parts, compute, ATTENTION_SLIPS,
             f"right so far: {', '.join(right) or 'none of the three'}. Follow the formulas one at a time: P, then dv, "
             "then dP, then dS (check its softmax), then dq and dk")
    leaves = [part.clone().requires_grad_() for part in (q, k, v)]
    F.scaled_dot_product_attention(*leaves, is_causal=True).backward(dy)
    expect(all(close(part, leaf.grad, 1e-4) for part, leaf in zip(parts, leaves, strict=True)),
           "autograd gives another result, and this check cannot say why: please report it")


# ----------------------------------------------------------------------------------------------------
# 0i AdamW

LR, BETA1, BETA2, EPS, DECAY = 0.1, 0.9, 0.95, 1e-3, 0.2  # large enough for each to show


def a_step_of_adamw(p, grad, m, v, t, lr, beta1, beta2, eps, weight_decay, correct_m=True, correct_v=True,
                    eps_inside=False, decay="apart", square=True, root=True, sign=1, late=False, keep="raw"):
    """AdamW, with a switch for each usual slip. decay: where weight decay goes"""
    if decay == "gradient":
        grad = grad + weight_decay * p
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * (grad ** 2 if square else grad.abs())
    n = t + 1 if late else t
    mhat = m / (1 - beta1 ** n) if correct_m else m
    vhat = v / (1 - beta2 ** n) if correct_v else v
    size = (vhat + eps).sqrt() if eps_inside else (vhat.sqrt() if root else vhat) + eps
    step = sign * lr * mhat / size
    pulls = {"apart": lr * weight_decay * p, "gradient": 0, "none": 0, "no lr": weight_decay * p,
             "afterwards": lr * weight_decay * (p - step)}
    return p - step - pulls[decay], *((m, v) if keep == "raw" else (mhat, vhat))


def steps_of(function, grads, eps=EPS, betas=(BETA1, BETA2), **changes):
    """Twenty steps -> p, m and v after the last one."""
    p, m, v = random(5), torch.zeros(5), torch.zeros(5)
    for t, grad in enumerate(grads, start=1):
        p, m, v = function(p, grad, m, v, t, LR, *betas, eps, DECAY, **changes)
    return p, m, v


ADAMW_SLIPS = {
    "bias correction is missing: m and v start at zero, so at first they are too small. Divide by 1 - beta^t":
        dict(correct_m=False, correct_v=False),
    "m has no bias correction: divide it by 1 - beta1^t": dict(correct_m=False),
    "v has no bias correction: divide it by 1 - beta2^t": dict(correct_v=False),
    "bias correction is one step ahead: t is already 1 in the first step, so the exponent is t": dict(late=True),
    "weight decay goes into the gradient (this is Adam with L2, not AdamW): it passes through m and v, and is divided "
    "by sqrt(vhat). Subtract lr * weight_decay * p from p instead": dict(decay="gradient"),
    "weight decay is missing: - lr * weight_decay * p": dict(decay="none"),
    "weight decay lacks lr: with weight_decay = 0.1, one step would remove a tenth of each weight":
        dict(decay="no lr"),
    "weight decay pulls the new p; it should pull the p from before the step": dict(decay="afterwards"),
    "eps is forgotten: it matters where all gradients are small": dict(eps=0.0),
    "eps is inside the root: it should be sqrt(vhat) + eps, not sqrt(vhat + eps)": dict(eps_inside=True),
    "v should be the mean of the squared gradients; here they are not squared": dict(square=False),
    "the root is missing: divide by sqrt(vhat) + eps, so that the size of the gradients cancels": dict(root=False),
    "the sign is wrong: this goes uphill": dict(sign=-1),
    "beta1 and beta2 are swapped: beta1 belongs to m, beta2 to v": dict(betas=(BETA2, BETA1)),
    "the m and v returned are the corrected ones, so the next step would correct them again: return m and v, and use "
    "mhat and vhat for this step only": dict(keep="corrected"),
}


def test_0i_adamw():
    """Two running means, each corrected for its start at zero; weight decay bypasses both; as torch.optim.AdamW."""
    grads = random(20, 5) * torch.tensor([1.0, 3.0, 0.1, 1e-3, 1.0]) + torch.tensor([0.0, 1.0, 0.0, 0.0, -0.5])
    result = backward.adamw(random(5), grads[0].clone(), *torch.zeros(2, 5), 1, LR, BETA1, BETA2, EPS, DECAY)
    expect_tuple("adamw", result, ("the new p", "m", "v"))
    for name, part in zip(("p", "m", "v"), result, strict=True):
        expect_shape(f"for {name} adamw", part, (5,))
    still = backward.adamw(torch.ones(1), *torch.zeros(3, 1), 1, LR, BETA1, BETA2, EPS, DECAY)[0]
    expect(still.isfinite().all(), "a parameter whose gradient has always been 0 becomes nan, from 0 / 0. This is what "
                                   "eps is for: divide by sqrt(vhat) + eps")
    result = steps_of(backward.adamw, grads.clone())
    p, m, v = steps_of(a_step_of_adamw, grads)
    parts = [name for name, ours, theirs in zip("pmv", (p, m, v), result, strict=True) if close(theirs, ours)]
    diagnose(result, lambda **changes: steps_of(a_step_of_adamw, grads, **changes), ADAMW_SLIPS,
             f"right after 20 steps: {', '.join(parts) or 'none of p, m and v'}. m is beta1 m + (1 - beta1) grad; "
             "v likewise with beta2 and grad^2; then mhat, vhat, p")
    parameter = torch.nn.Parameter(random(5))
    optimizer = torch.optim.AdamW([parameter], LR, (BETA1, BETA2), EPS, DECAY)
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    expect(close(result[0], parameter.detach(), 1e-4),
           "torch.optim.AdamW gives another result, and this check cannot say why: please report it")
