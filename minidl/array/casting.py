"""Arrays in another number type."""

import numpy

from .device import Array, array_module, bfloat16, on_gpu
from .kernel import Kernel

_REAL = [numpy.dtype(t) for t in ("f2", "f4", "f8", bfloat16) if t is not None]
_HALF = numpy.dtype(numpy.float16)
_convert = Kernel("convert", "x", "y", body="y = x;")


def cast(array: Array, dtype) -> Array:
    """`array.astype(dtype)`, a copy, without a warning of what becomes infinite.

    NumPy's own loops for float16 are slow, and CuPy's move an element at a time.
    """
    dtype = numpy.dtype(dtype)
    both = array.dtype, dtype
    if type(array) is numpy.ndarray and _HALF in both and numpy.float32 in both:
        return _convert(array, out=numpy.empty(array.shape, dtype))
    if on_gpu(array) and all(x in _REAL for x in both):
        with array.device:
            return _convert(array, out=array_module(array).empty_like(array, dtype))
    with numpy.errstate(all="ignore"):
        return array.astype(dtype)
