"""A compiled loop as a ufunc of NumPy's: a call takes a tenth of what ctypes needs.

NumPy gives out the table of its functions for ufuncs, for other compiled modules; the
places in it are part of its binary interface, the same since NumPy 1.0.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import numpy

from .compiler import pointer

_FROM_FUNCTION = 1  # where PyUFunc_FromFuncAndData stands in the table
_NO_IDENTITY = -1  # PyUFunc_None
_NAME = b"minidl"
# A ufunc reads its tables as long as it lives; a function of ctypes that is dropped
# would be left to the collector
_kept: list = []


@cache
def _maker() -> Callable | None:
    """PyUFunc_FromFuncAndData, or None where Python or NumPy does not give it out."""
    try:
        from numpy._core._multiarray_umath import _UFUNC_API as capsule

        table_of = ctypes.pythonapi["PyCapsule_GetPointer"]
    except (ImportError, AttributeError):
        return None
    address, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    _kept.append(table_of)
    table_of.restype, table_of.argtypes = address, [ctypes.py_object, text]
    place = table_of(capsule, None) + _FROM_FUNCTION * ctypes.sizeof(address)
    kinds = [address, address, address, *[number] * 4, text, address, number]
    function = ctypes.PYFUNCTYPE(ctypes.py_object, *kinds)
    return function(address.from_address(place).value)


def make(function, dtypes: list[numpy.dtype], inputs: int) -> numpy.ufunc | None:
    """The ufunc with one loop: `function(pointers, sizes, strides, data)`, of ctypes.

    `dtypes` are those of the inputs, then of the outputs. None for a type that is not
    NumPy's own, or where no ufunc can be made.
    """
    if _maker() is None or not all(dtype.isbuiltin == 1 for dtype in dtypes):
        return None
    address = ctypes.c_void_p.from_address(ctypes.addressof(function)).value
    loops = numpy.array([address], numpy.uintp)
    data = numpy.zeros(1, numpy.uintp)
    types = numpy.array([dtype.num for dtype in dtypes], numpy.int8)
    tables = [loops, data, types]
    _kept.extend(tables)
    counts = 1, inputs, len(dtypes) - inputs
    return _maker()(*map(pointer, tables), *counts, _NO_IDENTITY, _NAME, None, 0)
