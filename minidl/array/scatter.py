"""Adding rows where an index points, in an order that never changes."""

from functools import cache

import numpy

from .device import Array, array_module, cupy_module


def add_rows(target: Array, rows: Array, values: Array) -> None:
    """target[rows[i]] += values[i], equal rows one after the other in the order of i.

    target (n, d) is contiguous, rows (m) holds integers from 0 to n - 1, values is
    (m, d). Types of 16 bits are summed in float32. On a GPU, which does not look at
    them first, other integers count modulo n.
    """
    if not values.size:
        return
    if target.dtype.itemsize == 2 and target.dtype.kind not in "iu":
        wide = target.astype(numpy.float32)
        add_rows(wide, rows, values.astype(numpy.float32))
        target[...] = wide.astype(target.dtype)
    elif array_module(target) is numpy:
        d = target.shape[1]
        places = rows if d == 1 else rows[:, None] * d + numpy.arange(d)
        # ufunc.at is fast for flat arrays, and for no others
        numpy.add.at(target.reshape(-1), places.reshape(-1), values.reshape(-1))
    else:
        order = rows.argsort(kind="stable")
        d = target.shape[1]
        _segment_sums()(rows[order], order, values, d, target, size=values.size)


@cache
def _segment_sums():
    """A thread for each element of a row that is the first of its equals: it sums
    them all, where atomic additions would come in any order."""
    return cupy_module().ElementwiseKernel(
        "raw I rows, raw J order, raw T values, int64 d",
        "raw T target",
        """
        ptrdiff_t first = i / d, column = i % d;
        I row = rows[first];
        if (first == 0 || rows[first - 1] != row) {
            ptrdiff_t place = row, n = target.size() / d;
            if (place < 0 || place >= n) {  // as CuPy's own indexing
                place = (place % n + n) % n;
            }
            T total = target[place * d + column];
            for (ptrdiff_t k = first; k < _ind.size() / d && rows[k] == row; ++k) {
                total += values[order[k] * d + column];
            }
            target[place * d + column] = total;
        }
        """,
        "minidl_segment_sums",
    )
