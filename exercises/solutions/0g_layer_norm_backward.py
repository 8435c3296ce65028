"""
0g, LayerNorm. dx is g with two directions taken out: the constant one and xhat itself, since
neither shifting nor stretching x would change y. The division by sigma means that a row with small
numbers gets a large gradient, and eps is what bounds it. weight and bias serve all rows, so their
gradients are sums over rows, added to .grad like everything that backward finds.
"""


def layer_norm_backward(dy, x, weight, bias, eps=1e-5):
    sigma = (x.var(dim=-1, keepdim=True, unbiased=False) + eps).sqrt()  # (N, 1)
    xhat = (x - x.mean(dim=-1, keepdim=True)) / sigma
    weight.grad += (dy * xhat).sum(dim=0)
    bias.grad += dy.sum(dim=0)
    g = dy * weight  # (N, C)
    g_mean = g.mean(dim=-1, keepdim=True)
    return (g - g_mean - xhat * (g * xhat).mean(dim=-1, keepdim=True)) / sigma
