"""Standardisation in NumPy: all passes over a block of channels or rows, then the next.

A block holds all of what its means are taken over, and is small enough to stay in
cache; blocks are dealt to threads. Arrays are walked in the order of their memory.
"""

from math import prod

import numpy

from .dtypes import wide_type
from .layout import inverse, memory_order
from .threads import parallel

BLOCK = 1 << 18  # elements


def forward(x, w, b, dims, eps: float, centred: bool) -> tuple:
    """(y, mean, var), as `standardize` has them."""
    (x, w, b), dims, back = _in_memory_order(dims, x, w, b)
    count, wide = prod(x.shape[d] for d in dims), wide_type(x.dtype)
    y, small = numpy.empty(x.shape, x.dtype), _small(x.shape, dims)
    mean, var = numpy.zeros(small, wide), numpy.empty(small, wide)

    def work(part):
        d = x[part].astype(wide)
        if centred:
            mean[part] = summed(d, None, dims) / count
            d -= mean[part]
        var[part] = summed(d, d, dims) / count
        d *= 1 / numpy.sqrt(var[part] + eps)
        if w is not None:
            d *= _of(w, part)
        if b is not None:
            d += _of(b, part)
        y[part] = d

    parallel(work, _blocks(x.shape, dims))
    return tuple(array.transpose(back) for array in (y, mean, var))


def backward(g, x, w, mean, var, dims, eps: float, centred: bool) -> tuple:
    """(gx, gw, gb), as `standardize_gradient` has them."""
    (x, g, w, mean, var), dims, back = _in_memory_order(dims, x, g, w, mean, var)
    count, wide = prod(x.shape[d] for d in dims), wide_type(x.dtype)
    small = _small(x.shape, dims)
    apart = w is not None and any(w.shape[d] > 1 for d in dims)
    gx = numpy.empty(x.shape, wide)
    gw, gb = (numpy.empty(x.shape if apart else small, wide) for _ in range(2))

    def work(part):
        h, d = g[part].astype(wide, copy=False), x[part].astype(wide)
        if centred:
            d -= _of(mean, part)
        last = 1 / numpy.sqrt(_of(var, part) + eps)
        if apart:
            gb[part] = h
            gw[part] = h * d * last
            h = h * _of(w, part)
        along = summed(h, d, dims) * last
        offset = summed(h, None, dims) if centred else 0
        if not apart:
            gb[part] = offset if centred else summed(h, None, dims)
            gw[part] = along
        d *= along / count * last
        numpy.subtract(h, d, out=d)
        if centred:
            d -= offset / count
        d *= last if w is None or apart else last * _of(w, part)
        gx[part] = d

    parallel(work, _blocks(x.shape, dims))
    return tuple(array.transpose(back) for array in (gx, gw, gb))


def _in_memory_order(dims, x, *others):
    """The arrays with the axes of x in the order of its memory, the dims there, and
    the way back."""
    order = memory_order(x)
    turned = []
    for array in (x, *others):
        if array is not None:
            shape = (1,) * (x.ndim - array.ndim) + array.shape
            array = array.reshape(shape).transpose(order)
        turned.append(array)
    dims = tuple(sorted(order.index(d % x.ndim) for d in dims))
    return turned, dims, inverse(order)


def _blocks(shape, dims):
    """Indices of parts of about BLOCK elements, cut along the longest of the others
    than dims."""
    kept = [axis for axis in range(len(shape)) if axis not in dims]
    if prod(shape) <= BLOCK or not kept:
        return [(slice(None),) * len(shape)]
    axis = max(kept, key=shape.__getitem__)
    step = max(1, BLOCK * shape[axis] // prod(shape))
    before, after = (slice(None),) * axis, (slice(None),) * (len(shape) - axis - 1)
    starts = range(0, shape[axis], step)
    return [(*before, slice(start, start + step), *after) for start in starts]


def _of(array, part):
    """The part of an array that broadcasts to the whole."""
    pairs = zip(part, array.shape, strict=True)
    return array[tuple([cut if n > 1 else slice(None) for cut, n in pairs])]


def _small(shape, dims):
    return tuple([1 if d in dims else n for d, n in enumerate(shape)])


def summed(a, b, dims):
    """sum(a b) over dims, which stay with size 1; sum(a) where b is None.

    The last of the dims are summed as products of rows, without a copy of a b: several
    times the speed of NumPy's sum.
    """
    inner = a.ndim
    while inner - 1 in dims:
        inner -= 1
    length = prod(a.shape[inner:])
    if length == 1:
        return (a if b is None else a * b).sum(axis=dims, keepdims=True)
    rows = a.reshape(*a.shape[:inner], length)
    if b is None:
        totals = rows @ numpy.ones(length, a.dtype)
    else:
        totals = numpy.einsum("...i,...i->...", rows, b.reshape(rows.shape))
    totals = totals.reshape(*a.shape[:inner], *[1] * (a.ndim - inner))
    outer = tuple(d for d in dims if d < inner)
    return totals.sum(axis=outer, keepdims=True) if outer else totals
