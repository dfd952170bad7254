"""Sliding windows over N spatial dimensions: sizes, taps, im2col and col2im.

Sizes, strides and the like are tuples with one integer a spatial dimension. A
*tap* is one position of the kernel: every window has one element under it.
"""

from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from minidl.array import window_kernels
from minidl.array.device import array_module, on_gpu
from minidl.array.rectifier import rectify

Array = Any
Sizes = tuple[int, ...]


@lru_cache(maxsize=1024)
def output_size(
    size: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool = False,
) -> Sizes:
    """How many windows fit: floor((n + 2p - d(k - 1) - 1) / s) + 1 a dimension.

    With `ceil_mode` the last window may hang over the end as long as it starts
    inside the input or its left padding. ValueError where a number is out of range
    or the window is larger than the padded input.
    """
    for name, values, least in (
        ("kernel size", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(values) != len(size):
            raise ValueError(
                f"{name} {values} has {len(values)} numbers, expected one for each "
                f"of the {len(size)} spatial dimensions"
            )
        if any(value < least for value in values):
            raise ValueError(f"{name} {values} must be at least {least} everywhere")
    padded = tuple(n + 2 * p for n, p in zip(size, padding, strict=True))
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if any(e > n for e, n in zip(extent, padded, strict=True)):
        raise ValueError(
            f"kernel of extent {extent} is larger than the padded input {padded}: "
            "use a smaller kernel or dilation, or more padding"
        )
    free = [n - e for n, e in zip(padded, extent, strict=True)]
    if not ceil_mode:
        return tuple(f // s + 1 for f, s in zip(free, stride, strict=True))
    return tuple(
        min(-(-f // s), (n + p - 1) // s) + 1
        for f, s, n, p in zip(free, stride, size, padding, strict=True)
    )


@lru_cache(maxsize=1024)
def taps(
    size: Sizes,
    out: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> tuple[tuple[Sizes, tuple[slice, ...], tuple[slice, ...]], ...]:
    """For each tap: its position, the windows it serves, the inputs they read.

    Windows whose tap falls into the padding are left out, so
    `y[..., windows] += w[tap] * x[..., inputs]` needs no padded copy of x. Taps
    come in row-major order; those that only meet padding are absent.
    """
    axes = [
        [_reach(tap, *axis) for tap in range(k)]
        for k, *axis in zip(kernel, size, out, stride, padding, dilation, strict=True)
    ]
    return tuple(
        tuple(zip(*position, strict=True))
        for position in product(*axes)
        if all(windows.stop > windows.start for _, windows, _ in position)
    )


def _reach(tap: int, n: int, out: int, s: int, p: int, d: int):
    """One dimension of `taps`: window o has tap t over input o * s + t * d - p."""
    offset = tap * d - p
    first = max(0, -(offset // s))
    stop = max(first, min(out, (n - 1 - offset) // s + 1))
    start = first * s + offset
    return tap, slice(first, stop), slice(start, start + (stop - first) * s, s)


def windows(
    x: Array, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Array:
    """View of x, zero-padded where asked, as (N, C, *kernel, *output)."""
    xp = array_module(x)
    size = x.shape[2:]
    out = output_size(size, kernel, stride, padding, dilation)
    if any(padding):
        padded = [n + 2 * p for n, p in zip(size, padding, strict=True)]
        inner = (slice(p, p + n) for n, p in zip(size, padding, strict=True))
        whole = xp.zeros((*x.shape[:2], *padded), x.dtype)
        whole[(..., *inner)] = x
        x = whole
    steps = x.strides[2:]
    strides = (
        *x.strides[:2],
        *(step * d for step, d in zip(steps, dilation, strict=True)),
        *(step * s for step, s in zip(steps, stride, strict=True)),
    )
    shape = (*x.shape[:2], *kernel, *out)
    return xp.lib.stride_tricks.as_strided(x, shape, strides)


def columns(
    x: Array, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Array:
    """Copy every window into a column: (N, C, *size) -> (C * prod(kernel), N * L).

    L counts the windows of an image in row-major order.
    """
    n, c = x.shape[:2]
    rows = c * prod(kernel)
    if on_gpu(x):
        window = kernel, stride, padding, dilation
        out = output_size(x.shape[2:], *window)
        made = array_module(x).empty((rows, n * prod(out)), x.dtype)
        window_kernels.columns(x, window, out, made, made.shape[1], prod(out))
        return made
    view = windows(x, kernel, stride, padding, dilation)
    return np.moveaxis(view, 0, 1 + len(kernel)).reshape(rows, -1)


def images(
    columns: Array,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    to: Array,
) -> None:
    """Add every column back where `columns` took it from: write to (N, C, *size)."""
    window = kernel, stride, padding, dilation
    n, c, *size = to.shape
    out = output_size(tuple(size), *window)
    if on_gpu(columns):
        image = prod(out)
        window_kernels.images(columns, window, out, to, n * image, image)
    else:
        columns = columns.reshape(c, *kernel, n, *out)
        _added_up(np.moveaxis(columns, 1 + len(kernel), 0), window, to)


def im2col(
    x: Array, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Array:
    """Copy every window into a column: (N, C, *size) -> (N, C * prod(kernel), L).

    L counts the windows in row-major order, the layout of `torch.nn.Unfold`.
    """
    window = kernel, stride, padding, dilation
    n, c, *size = x.shape
    out, rows = output_size(tuple(size), *window), c * prod(kernel)
    if on_gpu(x):
        made = array_module(x).empty((n, rows, prod(out)), x.dtype)
        window_kernels.columns(x, window, out, made, prod(out), rows * prod(out))
        return made
    return windows(x, *window).reshape(n, rows, prod(out))


def col2im(
    columns: Array,
    x_shape: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> Array:
    """Add every column back where `im2col` took it from: its transpose.

    One tap after the other, so the sums are taken in one order everywhere.
    ValueError where the columns do not belong to images of `x_shape`.
    """
    window = kernel, stride, padding, dilation
    n, c, *size = x_shape
    out = output_size(tuple(size), *window)
    expected = (n, c * prod(kernel), prod(out))
    if columns.shape != expected:
        raise ValueError(
            f"columns of shape {columns.shape} do not fit images of shape "
            f"{tuple(x_shape)}, expected {expected}"
        )
    x = array_module(columns).empty(x_shape, columns.dtype)
    if on_gpu(columns):
        window_kernels.images(columns, window, out, x, prod(out), prod(expected[1:]))
    else:
        _added_up(columns.reshape(n, c, *kernel, *out), window, x)
    return x


def _added_up(columns, window, to) -> None:
    """Columns (N, C, *kernel, *out) into images, on a CPU."""
    size, out = to.shape[2:], columns.shape[2 + len(window[0]) :]
    to[...] = 0
    for tap, served, read in taps(size, out, *window):
        to[(..., *read)] += columns[(slice(None), slice(None), *tap, *served)]


def swapped(x: Array, bias: Array | None, to: Array, relu: bool = False) -> None:
    """to (A, B, L) = x (B, A, L) with two dimensions exchanged, + bias (B); or
    max(0, to)."""
    if on_gpu(x):
        window_kernels.swap(x, bias, to, relu)
        return
    x = x.swapaxes(0, 1) if bias is None else x.swapaxes(0, 1) + bias[:, None]
    to[...] = rectify(out=x.copy()) if relu else x
