"""The matrix product of raw arrays: where BLAS is called for everything above."""

import numpy

from . import blas, cublas, cuda_bias
from .bias import add_bias
from .casting import cast
from .device import Array, array_module
from .dtypes import widened
from .rectifier import rectify, rectify_gradient


def matmul(
    a: Array, b: Array, out: Array | None = None, accumulate: bool = False
) -> Array:
    """a @ b for matrices, or stacks of them that broadcast; a and b of one dtype.

    Written to `out` where that is given, or, with `accumulate`, added to what is
    there. Types of 16 bits are summed in float32; `out` may be float32 for them.
    """
    xp = array_module(a)
    if xp is not numpy and cublas.supports(a, b, out):
        return cublas.matmul(a, b, out, accumulate)
    if a.dtype.itemsize == 2 and a.dtype.kind not in "iu":
        # NumPy multiplies narrow types without BLAS
        wide = cast(a, numpy.float32), cast(b, numpy.float32)
        if out is not None and out.dtype == numpy.float32:
            return matmul(*wide, out, accumulate)
        y = matmul(*wide)
        if out is None:
            return cast(y, a.dtype)
        out[...] = out + y if accumulate else y
        return out
    if accumulate:
        out += matmul(a, b)
        return out
    if xp is numpy:
        y = blas.product(a, b, out)
        if y is not None:
            return y
    return a @ b if out is None else xp.matmul(a, b, out=out)


def linear(x: Array, w: Array, b: Array | None = None, relu: bool = False) -> Array:
    """x w^T + b, or max(0, that), for matrices x (n, in) and w (out, in), b (out)."""
    y = blas.product(x, w.T, None, b, relu) if array_module(x) is numpy else None
    if y is not None:
        return y
    y = matmul(x, w.T)
    if b is not None:
        return add_bias(y, b, relu)
    return rectify(out=y) if relu else y


def bias_gradient(
    g: Array, y: Array | None = None, out: Array | None = None
) -> tuple[Array, Array]:
    """(g, 0 where y is given and not above 0; its sum over rows), matrices (n, k).

    The sum is written to `out`, of the type to compute in, where that is given.
    """
    if array_module(g) is not numpy and g.size:
        g, sums = cuda_bias.bias_gradient(g, y, out)
        return g, sums.astype(g.dtype, copy=False) if out is None else out
    both = blas.column_sums(g, y, out) if array_module(g) is numpy else None
    if both is None:
        g = g if y is None else rectify_gradient(g, y)
        sums = widened(g).sum(0, out=out)
        both = g, sums.astype(g.dtype, copy=False) if out is None else out
    return both
