"""Softmax of raw arrays, its logarithm, and their gradients.

Half precision is computed in float32 and rounded once, at the end.
"""

import numpy

from . import cuda_softmax
from .device import Array, on_gpu
from .dtypes import widened
from .kernel import Kernel
from .standardize_blocks import summed

exponential = Kernel("exponential", "x top", "y", body="y = exp(x - top);")
quotient = Kernel("quotient", "x total", "y", body="y = x / total;")
log_quotient = Kernel("log_quotient", "x top bottom", "y", body="y = x - top - bottom;")
scaled_rest = Kernel("scaled_rest", "g total y", "gx", body="gx = (g - total) * y;")
scaled_exponential = Kernel(
    "scaled_exponential", "g total y", "gx", body="gx = g - total * exp(y);"
)


def softmax(x: Array, dim: int, safe: bool = False) -> Array:
    """exp(x) / sum(exp(x)) along dim; -inf everywhere gives NaN, or 0 if `safe`."""
    if on_gpu(x):
        return cuda_softmax.softmax(x, dim, False, safe)
    wide = widened(x)
    top = wide.max(axis=dim, keepdims=True)
    if safe:
        top = numpy.where(top == -numpy.inf, 0, top)
    y = exponential(wide, top)
    total = summed(y, None, (dim,))
    if safe:
        total = numpy.where(total == 0, 1, total)
    return quotient(y, total, out=y).astype(x.dtype, copy=False)


def log_softmax(x: Array, dim: int) -> Array:
    """x - log(sum(exp(x))) along dim."""
    if on_gpu(x):
        return cuda_softmax.softmax(x, dim, True, False)
    wide = widened(x)
    top = wide.max(axis=dim, keepdims=True)
    total = summed(exponential(wide, top), None, (dim,))
    return log_quotient(wide, top, numpy.log(total)).astype(x.dtype, copy=False)


def softmax_gradient(g: Array, y: Array, dim: int) -> Array:
    """(g - sum(g y)) y, the gradient of x, given y = softmax(x)."""
    if on_gpu(y):
        return cuda_softmax.softmax_gradient(g, y, dim, False)
    return scaled_rest(g, summed(widened(g), widened(y), (dim,)), y)


def log_softmax_gradient(g: Array, y: Array, dim: int) -> Array:
    """g - sum(g) exp(y), the gradient of x, given y = log_softmax(x)."""
    if on_gpu(y):
        return cuda_softmax.softmax_gradient(g, y, dim, True)
    return scaled_exponential(g, widened(g).sum(axis=dim, keepdims=True), y)
