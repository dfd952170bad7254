"""The check of gradients finds gradients that are wrong or missing."""

import numpy as np
import pytest
from gradients import leaf

from minidl.autograd import Function, GradcheckError, Tensor, gradcheck, gradgradcheck


class Doubtful(Function):
    """x^2 and its gradient times `factor`, which in turn has a constant gradient."""

    @staticmethod
    def forward(ctx, x, factor, detach):
        ctx.save_for_backward(x)
        ctx.options = factor, detach
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,), (factor, detach) = ctx.saved_tensors, ctx.options
        return g * 2 * factor * (x.detach() if detach else x), None, None


def test_gradcheck_finds_a_wrong_gradient():
    x, y = leaf(3), leaf(3, seed=1)

    def function(factor, detach=False):
        return lambda x, y: x * Doubtful.apply(y, factor, detach)

    assert gradcheck(function(1), (x, y)) and gradgradcheck(function(1), (x, y))
    with pytest.raises(GradcheckError, match=r"input 1, of shape \(3,\)"):
        gradcheck(function(1.01), (x, y))
    assert not gradcheck(function(1.01), (x, y), raise_exception=False)
    assert gradcheck(function(1.01), (x, y), rtol=0.1)
    assert gradcheck(function(1, detach=True), (x, y))
    assert not gradgradcheck(function(1, detach=True), (x, y), raise_exception=False)
    assert x.grad is None and y.grad is None


def test_gradcheck_finds_a_gradient_that_is_missing():
    x = leaf(3)
    assert not gradcheck(lambda x: Tensor(x.data * 2), x, raise_exception=False)
    assert gradcheck(lambda x: x.floor(), x)


def test_gradcheck_refuses():
    with pytest.raises(ValueError, match="input 0 is float32"):
        gradcheck(lambda x: x, leaf(3, dtype=np.float32))
    with pytest.raises(ValueError, match="at least one input"):
        gradcheck(lambda x: x, leaf(3).detach())
