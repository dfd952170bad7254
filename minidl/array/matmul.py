"""The matrix product of raw arrays: where BLAS is called for everything above."""

import numpy

from . import blas
from .device import Array, array_module


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a @ b for matrices, or stacks of them that broadcast; a and b of one dtype.

    Types of 16 bits are summed in float32.
    """
    if a.dtype.itemsize == 2 and a.dtype.kind not in "iu":
        # NumPy multiplies narrow types without BLAS, CuPy stacks of them not at all
        if array_module(a) is numpy or a.ndim > 2 or b.ndim > 2:
            y = matmul(a.astype(numpy.float32), b.astype(numpy.float32))
            if out is None:
                return y.astype(a.dtype)
            out[...] = y
            return out
    if array_module(a) is numpy:
        y = blas.product(a, b, out)
        if y is not None:
            return y
    return a @ b if out is None else array_module(a).matmul(a, b, out=out)
