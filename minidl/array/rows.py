"""Rows of a table added up by their number, in an order that is always the same."""

import ctypes
from functools import cache

import numpy

from . import compiler
from .device import Array, array_module, cupy_module

_SOURCE = """
#include <stdint.h>
template <class T> static void add_rows(
    int64_t count, int64_t width, const int64_t* index, const T* rows, T* out) {
    for (int64_t i = 0; i < count; ++i) {
        T* to = out + index[i] * width;
        const T* from = rows + i * width;
        for (int64_t k = 0; k < width; ++k) to[k] += from[k];
    }
}
#define FOR(T) extern "C" void add_rows_##T(int64_t count, int64_t width, \
    const int64_t* index, const T* rows, T* out) { \
    add_rows<T>(count, width, index, rows, out); }
FOR(float)
FOR(double)
"""


def add_rows(out: Array, index: Array, rows: Array) -> None:
    """out[index[i]] = the sum of rows[i] over all i that name it, 0 where none does.

    out (n, width), index (m) of integers from 0 to n - 1, rows (m, width). The rows of
    one number are added in their order, on every device: equal inputs, equal bits.
    """
    if array_module(out) is not numpy:
        _add_on_gpu(out, index, rows)
        return
    out[...] = 0
    function = _compiled(out.dtype) if out.flags.c_contiguous else None
    if function is None:
        numpy.add.at(out, index, rows)
        return
    index = numpy.ascontiguousarray(index, numpy.int64)
    rows = numpy.ascontiguousarray(rows, out.dtype)
    pointers = (compiler.pointer(array) for array in (index, rows, out))
    function(len(index), out.shape[1], *pointers)


@cache
def _compiled(dtype: numpy.dtype):
    """The compiled loop for this dtype, or None."""
    kind = {"float32": "float", "float64": "double"}.get(dtype.name)
    library = compiler.load(_SOURCE) if kind else None
    if library is None:
        return None
    function = getattr(library, f"add_rows_{kind}")
    function.restype = None
    function.argtypes = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * 3
    return function


def _add_on_gpu(out: Array, index: Array, rows: Array) -> None:
    xp = array_module(out)
    order = xp.argsort(index, kind="stable")
    starts = xp.searchsorted(index[order], xp.arange(len(out) + 1))
    rows = xp.ascontiguousarray(rows)
    wide = "double" if out.dtype == numpy.float64 else "float"
    _gather_rows(wide)(rows, order, starts, out.shape[1], out, size=out.size)


@cache
def _gather_rows(wide: str):
    """One thread an element of the table, which adds up its column of its rows."""
    return cupy_module().ElementwiseKernel(
        "raw T rows, raw int64 order, raw int64 starts, int64 width",
        "T out",
        f"""
        long long row = i / width, column = i % width;
        {wide} sum = 0;
        for (long long k = starts[row]; k < starts[row + 1]; ++k)
            sum += ({wide})rows[order[k] * width + column];
        out = (T)sum;
        """,
        f"minidl_add_rows_{wide}",
    )
