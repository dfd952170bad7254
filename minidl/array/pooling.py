"""Max and average pooling of raw arrays in any number of spatial dimensions.

x is (N, C, *size); kernel, stride, padding and dilation are tuples with one integer
a spatial dimension. Everything goes tap by tap (`windows.taps`): what all windows
see under one tap is a strided view of x, so nothing is padded, every sum is taken
in the same order each time, and windows that overlap cost nothing extra.
"""

from math import prod
from operator import mul

import numpy as np

from minidl.array import compiler, cuda_pool, pool_axes, pool_loops
from minidl.array.choice import kept
from minidl.array.device import array_module
from minidl.array.pool_windows import check_divisor, divisor_of, positions, tap_number
from minidl.array.threads import parallel
from minidl.array.windows import Array, Sizes, output_size, taps

BLOCK_BYTES = 1 << 22  # of the input: a few planes at a time stay in cache
SERIAL_BYTES = 1 << 18  # of the input below which threads cost more than they give


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
    if cuda_pool.serves(x):
        return cuda_pool.max_forward(x, shape, (kernel, stride, padding, dilation))
    window = (kernel, stride, padding, dilation)
    if compiler.compiler() and array_module(x) is np:
        x = np.ascontiguousarray(x)
    y, indices = _like(x, shape, x.dtype), _like(x, shape, np.int32)
    if array_module(x) is np and pool_loops.max_pool(x, y, indices, *window):
        return y, indices

    def work(part):
        pool_axes.max_pool(x[part], y[part], indices[part], *window)

    parallel(work, _parts(x))
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

    Takes the numbers of the forward pooling, so that one tap at a time can be added
    up: no two windows then write to the same place, on any device. ValueError where
    gy and indices differ in shape.
    """
    if gy.shape != indices.shape:
        raise ValueError(
            f"gradient of shape {gy.shape} and indices of shape {indices.shape} "
            "must have the same shape"
        )
    if cuda_pool.serves(gy):
        window = (kernel, stride, padding, dilation)
        return cuda_pool.max_backward(gy, indices, x_shape, window)
    xp = array_module(gy)
    if xp is np and compiler.compiler():
        gx = np.empty(x_shape, gy.dtype)
        if pool_loops.scatter(gx, *map(np.ascontiguousarray, (gy, indices))):
            return gx
    gx = _like(indices, x_shape, gy.dtype)
    size, out = tuple(x_shape[2:]), gy.shape[2:]
    reach = taps(size, out, kernel, stride, padding, dilation)
    corners, offsets = positions(xp, size, out, kernel, stride, padding, dilation)
    tiles = xp is np and kernel == stride and size == tuple(map(mul, out, kernel))
    tiles = tiles and not any(padding) and set(dilation) == {1}

    def work(part):
        target, source = gx[part], gy[part]
        relative = indices[part] - corners
        if not tiles:
            target[...] = 0
        for tap, served, read in reach:
            hit = relative[(..., *served)] == offsets[tap_number(tap, kernel)]
            if xp is not np:
                target[(..., *read)] += xp.where(hit, source[(..., *served)], 0)
            elif tiles:
                kept(hit, source[(..., *served)], target[(..., *read)])
            else:
                target[(..., *read)] += kept(hit, source[(..., *served)])

    parallel(work, _parts(gx))
    return gx


def max_pool_gather(x: Array, indices: Array) -> Array:
    """The elements of x at `indices`, the transpose of `max_pool_backward`."""
    xp = array_module(x)
    n, c = x.shape[:2]
    flat = indices.reshape(n, c, prod(indices.shape[2:])).astype(np.int64)
    values = xp.take_along_axis(x.reshape(n, c, prod(x.shape[2:])), flat, axis=2)
    return values.reshape(indices.shape)


def avg_pool_forward(
    x: Array,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """y[n, c, o] = sum of a window / its number of elements.

    Elements of the padding are zeros, counted if `count_include_pad`; what hangs
    over the padding under `ceil_mode` never counts. `divisor_override` replaces the
    number altogether.
    """
    ones = (1,) * len(kernel)
    shape = pool_shape(x.shape, kernel, stride, padding, ones, ceil_mode)
    check_divisor(divisor_override)
    window, how = (kernel, stride, padding, ones), (count_include_pad, divisor_override)
    if cuda_pool.serves(x):
        return cuda_pool.average_forward(x, shape, window, *how)
    xp = array_module(x)
    wide, reach, divisor = _averages(x, x.shape[2:], shape[2:], window, how)
    y = _like(x, shape, x.dtype)

    def work(part):
        total = xp.zeros(y[part].shape, wide)
        for _, served, read in reach:
            total[(..., *served)] += x[part][(..., *read)]
        y[part] = total / divisor

    parallel(work, _parts(x))
    return y


def avg_pool_backward(
    gy: Array,
    x_shape: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """gx: each gy spread evenly over its window, the transpose of the forward."""
    ones = (1,) * len(kernel)
    check_divisor(divisor_override)
    window, how = (kernel, stride, padding, ones), (count_include_pad, divisor_override)
    if cuda_pool.serves(gy):
        return cuda_pool.average_backward(gy, x_shape, window, *how)
    xp = array_module(gy)
    wide, reach, divisor = _averages(gy, x_shape[2:], gy.shape[2:], window, how)
    gx = xp.empty(x_shape, gy.dtype)

    def work(part):
        total, share = xp.zeros(gx[part].shape, wide), gy[part] / divisor
        for _, served, read in reach:
            total[(..., *read)] += share[(..., *served)]
        gx[part] = total

    parallel(work, _parts(gx))
    return gx


def _averages(array: Array, size: Sizes, out: Sizes, window, how) -> tuple:
    """(the type to sum in, the taps, what each window's sum is divided by)"""
    wide, size = np.promote_types(array.dtype, np.float32), tuple(size)
    divisor = divisor_of(array_module(array), size, out, *window[:3], *how)
    return wide, taps(size, out, *window), divisor.astype(wide)


def _like(x, shape, dtype):
    """An array whose dimensions lie in memory in the same order as those of x."""
    if array_module(x) is np:
        return np.empty_like(x, dtype, shape=shape)
    return array_module(x).empty(shape, dtype)


def _parts(x):
    """Index the planes of x in blocks that stay in cache, all at once on a GPU."""
    n, c = x.shape[:2]
    plane = max(1, prod(x.shape[2:]) * x.dtype.itemsize)
    if array_module(x) is not np or n * c * plane <= SERIAL_BYTES:
        return [(slice(n), slice(c))]
    if abs(x.strides[0]) < abs(x.strides[1]):  # images side by side
        channels, images = max(1, BLOCK_BYTES // (plane * n)), n
    else:
        channels = min(c, max(1, BLOCK_BYTES // plane))
        images = max(1, BLOCK_BYTES // (plane * c))
    return [
        (slice(i, i + images), slice(j, j + channels))
        for i in range(0, n, images)
        for j in range(0, c, channels)
    ]
