"""Convolution as the textbooks lower it, which is what a GPU runs.

Every window is copied into a column, and two matrices are multiplied, for a chunk of
the batch at a time: weights (K, C * taps) and columns (C * taps, n * L). The columns
and the product stay in a GPU's second-level cache; a last pass brings the product from
(K, n * L) into images, adds the bias, takes the ReLU and rounds once. Rows of both
matrices run along the rows of an image, as reads and writes of (N, C, *size) do. The
groups of a convolution are a stack of such products. Half precision is summed in
float32 throughout. The functions are those of `convolution_cpu`.
"""

from math import prod

import numpy as np

from minidl.array.bias import add_bias
from minidl.array.device import array_module
from minidl.array.matmul import matmul
from minidl.array.rectifier import rectify
from minidl.array.windows import columns, images, swapped

COLUMN_BYTES = 30 << 20  # of one product; a GPU's second-level cache holds it


def forward(x, w, b, shape, stride, padding, dilation, groups, relu=False):
    """Y = W @ columns(x) + b, or max(0, Y); a kernel of one pixel needs no columns."""
    xp, window = array_module(x), (stride, padding, dilation)
    y, weights = xp.empty(shape, x.dtype), _by_group(w, groups)
    flat = _flat(y)
    if groups == 1 and _is_pixel(w, stride, padding):
        matmul(weights[0], _flat(x), flat)
        if b is not None:
            return add_bias(y, b, relu)
        return rectify(out=y) if relu else y
    for part in _chunks(x, w.shape, shape[2:]):
        made = columns(x[part], w.shape[2:], *window)
        made = made.reshape(groups, weights.shape[2], -1)
        rows = xp.empty((*weights.shape[:2], made.shape[2]), _wide(x))
        rows = matmul(weights, made, rows).reshape(shape[1], -1, flat.shape[2])
        swapped(rows, b, flat[part], relu)
    return y


def input_gradient(gy, w, x_shape, stride, padding, dilation, groups):
    """columns(gx) = W^T @ gY, added up where the columns came from."""
    xp, window = array_module(gy), (w.shape[2:], stride, padding, dilation)
    gx, weights = xp.empty(x_shape, gy.dtype), _by_group(w, groups).swapaxes(1, 2)
    if groups == 1 and _is_pixel(w, stride, padding):
        matmul(weights[0], _flat(gy), _flat(gx))
        return gx
    for part in _chunks(gx, w.shape, gy.shape[2:]):
        rows = _rows(gy[part]).reshape(groups, weights.shape[2], -1)
        made = xp.empty((*weights.shape[:2], rows.shape[2]), _wide(gy))
        matmul(weights, rows, made)
        images(made.reshape(-1, rows.shape[2]), *window, gx[part])
    return gx


def weight_gradient(gy, x, out, stride, padding, dilation, groups):
    """gW = gY @ columns(x)^T, summed over the chunks in their order, into `out`."""
    xp, window = array_module(x), (out.shape[2:], stride, padding, dilation)
    total = out
    if out.dtype != _wide(x) or not out.flags.c_contiguous:
        total = xp.empty(out.shape, _wide(x))
    gw = _by_group(total, groups)
    parts = _chunks(x, out.shape, gy.shape[2:])
    for number, part in enumerate(parts):
        rows = _rows(gy[part]).reshape(groups, gw.shape[1], -1)
        made = columns(x[part], *window).reshape(groups, gw.shape[2], -1)
        matmul(rows, made.swapaxes(1, 2), gw, accumulate=number > 0)
    if not parts:
        total.fill(0)
    if total is not out:
        out[...] = total


def _chunks(x, w_shape, out):
    """Slices of the batch whose columns are at most COLUMN_BYTES.

    Of eight images or a multiple of that where many fit: rows of the matrices then
    begin at addresses that tensor cores load from at once.
    """
    image = x.shape[1] * prod(w_shape[2:]) * prod(out) * x.dtype.itemsize
    step = max(1, COLUMN_BYTES // max(1, image))
    step -= step % 8 if step > 8 else 0
    return [slice(start, start + step) for start in range(0, len(x), step)]


def _by_group(w, groups):
    """(K, C / groups, *kernel) -> (groups, K / groups, C / groups * taps)."""
    return w.reshape(groups, len(w) // groups, -1)


def _is_pixel(w, stride, padding) -> bool:
    """Whether a window is one pixel, and every pixel a window."""
    return prod(w.shape[2:]) == 1 and not any(padding) and all(s == 1 for s in stride)


def _flat(x):
    """(N, C, *size) -> (N, C, L)"""
    return x.reshape(*x.shape[:2], prod(x.shape[2:]))


def _rows(y):
    """(N, K, *out) -> (K, N, L)"""
    flat = _flat(y)
    rows = array_module(y).empty((flat.shape[1], len(flat), flat.shape[2]), y.dtype)
    swapped(flat, None, rows)
    return rows


def _wide(x):
    """The type that sums are taken in."""
    return np.float32 if x.dtype.itemsize == 2 else x.dtype
