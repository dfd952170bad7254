"""Pooling on a GPU: one launch forward, one back.

A thread has some neighbours of the result, in a row or, where channels are last in
memory, of one pixel. Going back, it looks up the windows that they were in: nothing is
written twice, and sums have the order of `pooling`, the last window first.
"""

from math import gcd, prod

import numpy

from .cuda_layout import in_memory, like_that, made, usual
from .cuda_pool_source import SOURCE
from .cuda_source import aligned, blocks, function, types_of
from .device import Array, on_gpu

BLOCK = 256  # threads


def serves(x: Array) -> bool:
    """Whether the kernels take such arrays: real numbers in at most 3 dimensions."""
    return on_gpu(x) and x.dtype.kind not in "biu" and x.ndim <= 5


def max_forward(x: Array, shape, window) -> tuple[Array, Array]:
    """y of this shape, and where in its plane each maximum was."""
    x, last = in_memory(x)
    y, where = made(shape, x.dtype, last), made(shape, numpy.int32, last)
    _launch("max_forward", (x, y, where), y, (x, y), last, window)
    return usual(y, last), usual(where, last)


def max_backward(gy: Array, where: Array, x_shape, window) -> Array:
    """Each gy added at the place that its maximum came from."""
    where, last = in_memory(where)
    gy, gx = like_that(gy, last), made(x_shape, gy.dtype, last)
    _launch("max_backward", (gy, where, gx), gx, (gx, gy), last, window)
    return usual(gx, last)


def average_forward(x: Array, shape, window, counted: bool, given: int | None) -> Array:
    """The sum of each window over `given`, or over the number of its elements."""
    x, last = in_memory(x)
    y = made(shape, x.dtype, last)
    _launch("average_forward", (x, y), y, (x, y), last, window, counted, given or 0)
    return usual(y, last)


def average_backward(gy: Array, x_shape, window, counted, given: int | None) -> Array:
    """Each gy spread evenly over its window."""
    gy, last = in_memory(gy)
    gx = made(x_shape, gy.dtype, last)
    _launch(
        "average_backward", (gy, gx), gx, (gx, gy), last, window, counted, given or 0
    )
    return usual(gx, last)


def _launch(name, arrays, result, sides, last: bool, window, *average) -> None:
    """A thread for some elements of the result; `sides` have the shapes of x and y."""
    if not result.size:
        return
    types = types_of(max(sides, key=lambda array: array.size))
    sizes = [side.shape[1:-1] if last else side.shape[2:] for side in sides]
    counted, divisor = average or (True, 1)
    if not divisor and _all_whole(*sizes, *window[:3], counted):
        divisor = prod(window[0])
    pack = gcd(result.shape[-1], 16 // result.itemsize) if aligned(*arrays) else 1
    row = 1
    if name.endswith("forward") and not last:  # windows apart have a thread each
        row = _row(pack, 64 // result.itemsize, *(of[-1] for of in (*sizes, *window)))
        pack = pack if row > 1 else 1
    numbers = tuple(
        (name, ", ".join(map(str, (*[usual] * (3 - len(values)), *values))))
        for name, values, usual in zip(
            ("TAPS", "STRIDES", "PADDINGS", "DILATIONS", "SIZE_OF_X", "SIZE_OF_Y"),
            (*window, *sizes),
            (1, 1, 0, 1, 1, 1),
            strict=True,
        )
    )
    numbers += (
        ("CHANNELS", result.shape[-1] if last else 1),
        ("ALONG", 1 if last else pack),
        ("DEEP", pack if last else 1),
        ("ROW", row),
        ("COUNTED", int(counted)),
        ("DIVISOR", divisor),
    )
    function(SOURCE, types, numbers, name)(
        (blocks(result.size, BLOCK * pack),),
        (BLOCK,),
        (*arrays, types[2][1].type(result.size)),
    )


def _row(windows, most, x, y, taps, stride, padding, dilation) -> int:
    """The elements of so many windows of a row of x, if they lie side by side and can
    be loaded at once; otherwise 1."""
    dense = taps == stride and padding == 0 and dilation == 1 and x == y * stride
    even = taps & (taps - 1) == 0  # so that vectors are aligned
    return windows * taps if dense and even and windows * taps <= most else 1


def _all_whole(x, y, taps, strides, paddings, counted: bool) -> bool:
    """Whether all windows of averages have the same number of elements."""
    return all(
        (counted or p == 0) and (o - 1) * s + k <= n + 2 * p
        for n, o, k, s, p in zip(x, y, taps, strides, paddings, strict=True)
    )
