"""Max and average pooling of raw arrays in any number of spatial dimensions.

x is (N, C, *size); kernel, stride, padding and dilation are tuples with one integer
a spatial dimension. Everything goes tap by tap (`windows.taps`): what all windows
see under one tap is a strided view of x, so nothing is padded, every sum is taken
in the same order each time, and windows that overlap cost nothing extra.
"""

from math import prod

import numpy as np

from minidl.array.device import array_module
from minidl.array.threads import get_num_threads, parallel
from minidl.array.windows import Array, Sizes, output_size, taps

BLOCK_BYTES = 1 << 18  # of the input, a few planes at a time stay in cache
SERIAL_SIZE = 1 << 16  # elements below which threads cost more than they give


def pool_shape(
    x_shape: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool = False,
) -> Sizes:
    """Shape (N, C, *out) of a pooling; ValueError where the numbers do not fit."""
    size = tuple(x_shape[2:])
    out = output_size(size, kernel, stride, padding, dilation, ceil_mode)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if any(2 * p > e for p, e in zip(padding, extent, strict=True)):
        raise ValueError(
            f"padding {padding} must be at most half of the kernel's extent {extent}"
        )
    return (*x_shape[:2], *out)


def max_pool_forward(
    x: Array,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """y[n, c, o] = max of a window, and where: flat positions in the plane (int32).

    The first of equal maxima counts, and a NaN counts as the maximum. Positions are
    those of `torch.nn.functional.max_pool2d(..., return_indices=True)`.
    """
    shape = pool_shape(x.shape, kernel, stride, padding, dilation, ceil_mode)
    xp = array_module(x)
    size, out = tuple(x.shape[2:]), shape[2:]
    reach = taps(size, out, kernel, stride, padding, dilation)
    lowest = -np.inf if x.dtype.kind not in "iu" else np.iinfo(x.dtype).min
    y = xp.empty(shape, x.dtype)
    indices = xp.empty(shape, np.int32)
    plane = _first_positions(xp, size, out, stride, padding, dilation)
    steps = _steps(size)

    def work(part):
        best, where, source = y[part], indices[part], x[part]
        best[...] = lowest
        where[...] = plane
        positions = _corners(xp, out, stride, padding, steps)
        for tap, served, read in reach:
            value, top = source[(..., *read)], best[(..., *served)]
            better = (value > top) | (value != value)
            offset = sum(t * d * s for t, d, s in zip(tap, dilation, steps, strict=True))
            here = (positions + offset)[served]
            xp.copyto(top, value, where=better)
            xp.copyto(where[(..., *served)], here, where=better)

    _over_images(work, x)
    return y, indices


def max_pool_backward(
    gy: Array,
    indices: Array,
    x_shape: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> Array:
    """gx: each gy added at the position its maximum came from.

    Takes the numbers of the forward pooling, so that a tap at a time can be added
    up: no two windows then write to the same place, on any device.
    """
    xp = array_module(gy)
    size, out = tuple(x_shape[2:]), gy.shape[2:]
    reach = taps(size, out, kernel, stride, padding, dilation)
    gx = xp.zeros(x_shape, gy.dtype)
    steps = _steps(size)
    positions = _corners(xp, out, stride, padding, steps)

    def work(part):
        target, where, source = gx[part], indices[part], gy[part]
        for tap, served, read in reach:
            offset = sum(t * d * s for t, d, s in zip(tap, dilation, steps, strict=True))
            hit = where[(..., *served)] == (positions + offset)[served]
            target[(..., *read)] += xp.where(hit, source[(..., *served)], 0)

    _over_images(work, gx)
    return gx


def max_pool_gather(x: Array, indices: Array) -> Array:
    """The elements of x at `indices`, the transpose of `max_pool_backward`."""
    xp = array_module(x)
    n, c = x.shape[:2]
    flat = indices.reshape(n, c, prod(indices.shape[2:])).astype(np.int64)
    values = xp.take_along_axis(x.reshape(n, c, prod(x.shape[2:])), flat, axis=2)
    return values.reshape(indices.shape)
