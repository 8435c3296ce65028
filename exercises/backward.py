"""
The exercises 0f to 0i: what loss.backward() and optimizer.step() compute. Each is an empty body for
you to write, here in this file, with tensors alone: no autograd, no torch.optim.

    python -m pytest exercises -k 0f    # is it right? A second

All derivations use the chain rule. If the loss depends on x through y, then

    d loss / d x_i  =  sum over j of  d loss / d y_j * d y_j / d x_i

We write dx for d loss / d x, which has the shape of x. A backward function gets dy from the layer
above, and returns dx to the layer below.

Letters in the comments on shapes
    B rows in a batch   T tokens in a row (time)   nh heads   hs channels per head
    V vocabulary size   N positions, N = B * T   C channels
"""
import torch  # noqa: F401 (you will want it)


def cross_entropy_backward(logits, targets):
    """
    0f. logits (N, V), targets (N,) -> dlogits (N, V), where the loss is the mean cross-entropy.

    A position with logits z and target t costs

        loss = -log p_t = log(sum_j exp z_j) - z_t        since p_j = exp z_j / sum_k exp z_k

    The derivative of the first term with respect to z_i is exp z_i / sum_j exp z_j, which is p_i.
    The second term contributes -1 where i = t, and 0 elsewhere:

        dz_i = p_i - (1 if i = t else 0)

    The loss is the mean over N positions, so each position's gradient is divided by N.
    """


def layer_norm_backward(dy, x, weight, bias, eps=1e-5):
    """
    0g. dy, x (N, C); weight, bias (C,) -> dx (N, C). Adds the gradients of weight and bias to
    weight.grad and bias.grad, which already hold the gradients of earlier micro batches.

    Forward, for each row of x, with the mean and the variance over its C channels:

        y = weight * xhat + bias,   xhat = (x - mean) / sigma,   sigma = sqrt(variance + eps)

    All rows share weight and bias, so their gradients are sums over the rows:

        dweight = sum over rows of dy * xhat        dbias = sum over rows of dy

    The gradient of xhat is g = dy * weight. Each xhat_j depends on x_i in three ways:

        d xhat_j / d x_i = 1/sigma (if i = j)  -  1/(C sigma)        -  xhat_i xhat_j / (C sigma)
                           directly               through the mean      through sigma

    (The third term follows from d sigma / d x_i = xhat_i / C.) Multiply by g_j and sum over j:

        dx = (g - mean(g) - xhat * mean(g * xhat)) / sigma

    Both means are over the row's channels. Whatever dy is, each row of dx sums to zero: adding a
    constant to x does not change y, so the gradient has no component in that direction.
    """


def attention_backward(dy, q, k, v):
    """
    0h. dy, q, k, v (B, nh, T, hs) -> dq, dk, dv, each (B, nh, T, hs).

    Forward, causal, as in 0b (all products are matrix products, one for each head):

        S = q k^T / sqrt(hs), and -inf where the key is in the future     (T, T)
        P = softmax(S), over the keys                                     (T, T)
        y = P v                                                           (T, hs)

    The rule for a product: if y = P v, then dP = dy v^T and dv = P^T dy. (y_ic is the sum over j of
    P_ij v_jc, so dP_ij is the sum over c of dy_ic v_jc. The shapes leave no other choice.)

    Softmax, for one row p of P with the scores s: d p_j / d s_i = p_j ((1 if i = j else 0) - p_i).
    Multiply by dp_j and sum over j:

        ds_i = p_i (dp_i - sum_j p_j dp_j)

    A key in the future has p = 0, so its ds is 0 too: backward needs no mask of its own.

    Back through the first product: dq = dS k / sqrt(hs) and dk = dS^T q / sqrt(hs).
    """


def adamw(p, grad, m, v, t, lr, beta1, beta2, eps, weight_decay):
    """
    0i. One step of AdamW for one parameter p -> the new p, m and v. All tensors have the shape of
    p. t is the number of the step: 1 in the first one, where m and v are still zeros.

    Adam keeps two running means: of the gradients, and of their squares.

        m = beta1 m + (1 - beta1) grad
        v = beta2 v + (1 - beta2) grad^2

    They start at zero, so at first they are too small. If all gradients were g, then after t steps
    m = (1 - beta1) (1 + beta1 + ... + beta1^(t-1)) g = (1 - beta1^t) g. Dividing by this factor,
    and by 1 - beta2^t for v, removes the error (bias correction):

        mhat = m / (1 - beta1^t)        vhat = v / (1 - beta2^t)

    Every coordinate moves by about lr, however large its gradients are. eps keeps the division
    finite where all gradients are zero. Weight decay pulls the old p towards zero and bypasses m
    and v (the W in AdamW: decoupled weight decay). If it were added to the gradient, it would be
    divided by sqrt(vhat), and weights with large gradients would hardly decay.

        new p = p - lr mhat / (sqrt(vhat) + eps) - lr weight_decay p
    """
