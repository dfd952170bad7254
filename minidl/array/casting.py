"""Arrays in another number type."""

import numpy

from .device import Array
from .kernel import Kernel

_HALF = numpy.dtype(numpy.float16)
_convert = Kernel("convert", "x", "y", body="y = x;")


def cast(array: Array, dtype) -> Array:
    """`array.astype(dtype)`, a copy, without a warning of what becomes infinite.

    NumPy's own loops for float16 are slow.
    """
    dtype = numpy.dtype(dtype)
    both = array.dtype, dtype
    if type(array) is numpy.ndarray and _HALF in both and numpy.float32 in both:
        return _convert(array, out=numpy.empty(array.shape, dtype))
    with numpy.errstate(all="ignore"):
        return array.astype(dtype)
