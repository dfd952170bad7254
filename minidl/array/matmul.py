"""The matrix product of raw arrays: where BLAS is called for everything above."""

import numpy

from .device import Array, array_module


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a @ b for matrices, or stacks of them that broadcast; a and b of one dtype.

    Types of 16 bits are summed in float32.
    """
    xp = array_module(a)
    # NumPy multiplies narrow types without BLAS; CuPy only knows them in 2-D products
    if a.dtype.itemsize == 2 and a.dtype.kind not in "iu":
        if xp is numpy or a.ndim > 2 or b.ndim > 2:
            wide = xp.matmul(a.astype(numpy.float32), b.astype(numpy.float32))
            if out is None:
                return wide.astype(a.dtype)
            out[...] = wide
            return out
    return xp.matmul(a, b, out=out)
