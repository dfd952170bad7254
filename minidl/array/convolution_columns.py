"""Convolution as the textbooks lower it, which is what a GPU runs.

Every window is copied into a column, and matrices are multiplied: a group and a chunk
of the batch at a time. The functions are those of `convolution_cpu`.
"""

from math import prod

import numpy as np

from minidl.array.device import array_module
from minidl.array.windows import taps, windows

COLUMN_BYTES = 30 << 20  # of one product; a GPU's second-level cache holds it


def forward(x, w, b, shape, stride, padding, dilation, groups):
    """Y = W @ columns(x), all matrices two-dimensional."""
    y, out = array_module(x).empty(shape, x.dtype), shape[2:]
    for part in _chunks(x, w.shape, out):
        for xs, ws, ys in _groups(groups, x[part], w, y[part]):
            columns = _columns(xs, w.shape[2:], stride, padding, dilation)
            rows = ws.reshape(len(ws), -1) @ columns
            ys[...] = rows.reshape(len(ws), len(xs), *out).swapaxes(0, 1)
    if b is not None:
        y += b.reshape(-1, *(1 for _ in out))
    return y


def input_gradient(gy, w, x_shape, stride, padding, dilation, groups):
    """columns(gx) = W.T @ gY, added up where the columns came from."""
    xp = array_module(gy)
    gx = xp.zeros(x_shape, gy.dtype)
    size, out, kernel = tuple(x_shape[2:]), gy.shape[2:], w.shape[2:]
    reach = taps(size, out, kernel, stride, padding, dilation)
    for part in _chunks(gx, w.shape, out):
        for gxs, ws, gys in _groups(groups, gx[part], w, gy[part]):
            columns = ws.reshape(len(ws), -1).T @ _rows(gys)
            columns = columns.reshape(-1, *kernel, len(gxs), *out)
            for tap, served, read in reach:
                here = columns[(slice(None), *tap, slice(None), *served)]
                gxs[(..., *read)] += here.swapaxes(0, 1)
    return gx


def weight_gradient(gy, x, w_shape, stride, padding, dilation, groups):
    """gW = gY @ columns(x).T, summed over the chunks in their order."""
    xp = array_module(x)
    gw = xp.zeros(w_shape, np.float32 if x.dtype.itemsize == 2 else x.dtype)
    for part in _chunks(x, w_shape, gy.shape[2:]):
        for xs, gws, gys in _groups(groups, x[part], gw, gy[part]):
            columns = _columns(xs, w_shape[2:], stride, padding, dilation)
            gws += (_rows(gys) @ columns.T).reshape(gws.shape)
    return gw


def _chunks(x, w_shape, out):
    """Slices of the batch whose columns are at most COLUMN_BYTES."""
    image = prod(w_shape[1:]) * prod(out) * x.dtype.itemsize
    step = max(1, COLUMN_BYTES // max(1, image))
    return [slice(start, start + step) for start in range(0, len(x), step)]


def _groups(groups, x, w, y):
    """The channels of each group: views of x, w and y."""
    k, c = len(w) // groups, w.shape[1]
    for g in range(groups):
        ws = w[g * k : (g + 1) * k]
        yield x[:, g * c : (g + 1) * c], ws, y[:, g * k : (g + 1) * k]


def _columns(x, kernel, stride, padding, dilation):
    """(C * prod(kernel), N * prod(out)): each window of the batch a column."""
    view = windows(x, kernel, stride, padding, dilation)
    view = view.swapaxes(0, 1)  # (C, N, *kernel, *out)
    axes = (0, *range(2, 2 + len(kernel)), 1, *range(2 + len(kernel), view.ndim))
    return view.transpose(axes).reshape(x.shape[1] * prod(kernel), -1)


def _rows(y):
    """(N, K, *out) -> (K, N * prod(out))."""
    return y.swapaxes(0, 1).reshape(y.shape[1], -1)
