"""What tests of gradients share: the check, in one line, and something to check."""

import numpy as np

import minidl.nn.functional as F
from minidl.autograd import Tensor, gradcheck, gradgradcheck


def check_gradients(function, *arrays, order: int = 2) -> None:
    """Compare with differences in float64, by every floating-point array.

    Arrays are NumPy's, CuPy's or nested lists of numbers; integers and bools are
    passed on as they are, as Tensors; what is None or a Tensor already, untouched.
    """
    inputs = tuple(differentiable(x) for x in arrays)
    assert gradcheck(function, inputs)
    if order > 1:
        assert gradgradcheck(function, inputs)


def differentiable(x):
    if x is None or isinstance(x, Tensor):
        return x
    array = np.asarray(x) if isinstance(x, (list, tuple, int, float)) else x
    if array.dtype.kind in "iub":
        return Tensor(array)
    return Tensor(array.astype(np.float64), requires_grad=True)


def leaf(*shape, seed=0, dtype=np.float64, xp=np):
    values = np.random.default_rng(seed).normal(size=shape)
    return Tensor(xp.asarray(values.astype(dtype)), requires_grad=True)


def ready_in_order(loss, leaves, **options):
    """Run backward; the positions of the leaves in the order of readiness, and the
    gradients that they had then."""
    order, seen = [], []

    def on_grad_ready(t):
        order.append(next(i for i, x in enumerate(leaves) if x is t))
        seen.append(None if t.grad is None else t.grad.numpy().copy())

    loss.backward(on_grad_ready=on_grad_ready, **options)
    return order, seen


def families(x, w, kernel, labels):
    """A loss through one operation of every family."""
    h = F.max_pool2d(F.relu(F.conv2d(x, kernel, padding=1)), 2)
    h = F.avg_pool2d(F.gelu(h), 2) + h[:, :, ::2, ::2].exp().log1p()
    h = h.permute(0, 2, 3, 1).flatten(1)
    h = F.linear(h, w).tanh() / (1 + h.mean(1, keepdim=True) ** 2)
    h = h + F.softmax(h, 1) - h.logsumexp(1, True)
    return F.cross_entropy(h, labels) + F.mse_loss(h, h.detach() * 0)
