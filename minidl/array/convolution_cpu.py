"""Convolution for NumPy: the lowering of `convolution`, kept in cache.

Three things make it fast. Columns are made for a block of images small enough to
stay in cache, never for the whole batch. Where the stride of the first spatial
dimension is 1, only the taps of the other dimensions are copied: k shifts of that
buffer by one row each are views of it, and k products add up to the result. And
the batch is dealt to threads, each with a single-threaded BLAS.

A block of images is a matrix (groups, channels * taps, rows * images * rest): the
images stand behind the first spatial dimension, so that a row shift is a slice.
"""

from math import prod

import numpy as np

from minidl.array import convolution_rows, convolution_tiles, window_loops
from minidl.array.determinism import parts
from minidl.array.memory import keep_freed
from minidl.array.rectifier import positive_part
from minidl.array.threads import claim_blas, parallel
from minidl.array.windows import taps

BLOCK_BYTES = 3 << 19  # of columns and result together, about a core's L2 cache
BATCH_BYTES = 1 << 20  # where several small images make a block
SERIAL_WORK = 1 << 22  # multiplications below which threads cost more than they give
SHIFT_CHANNELS = 48  # rows a product needs so that adding k of them up is cheap


def forward(x, w, b, shape, stride, padding, dilation, groups, relu=False):
    """y = w * x + b, or max(0, that), for y of the given shape."""
    geometry = stride, padding, dilation, groups
    if convolution_rows.serves(x, w.shape):
        if convolution_tiles.serves(x, w.shape, shape, *geometry):
            return convolution_tiles.forward(x, w, b, shape, padding, relu)
        return convolution_rows.forward(x, w, b, shape, *geometry, relu)
    y = np.empty(shape, x.dtype)
    lowering = _Lowering(x, w.shape, shape[2:], stride, padding, dilation, groups)
    weights = lowering.split(w)
    bias = None if b is None else b.reshape(groups, -1, 1)

    def work(task):
        for images, rows, matrices in lowering.blocks(x, *task):
            target = y[images, :, rows]
            direct = len(target) == 1
            whole = (groups, len(w) // groups, matrices[0].shape[2])
            total = target.reshape(whole) if direct else np.empty(whole, x.dtype)
            np.matmul(weights[0], matrices[0], out=total)
            if len(weights) > 1:
                term = np.empty_like(total)
            for weight, matrix in zip(weights[1:], matrices[1:], strict=True):
                total += np.matmul(weight, matrix, out=term)
            if bias is not None:
                total += bias
            if relu:
                positive_part(total, total)
            if not direct:
                target[...] = _from_rows(total, target.shape)

    lowering.run(work, lowering.tasks(by_rows=True))
    return y


def input_gradient(gy, w, x_shape, stride, padding, dilation, groups):
    """gx: the columns W.T @ gy of each block, added where they came from."""
    geometry = stride, padding, dilation, groups
    if convolution_rows.serves(gy, w.shape):
        return convolution_rows.input_gradient(gy, w, x_shape, *geometry)
    gx = np.zeros(x_shape, gy.dtype)
    kernel, out = w.shape[2:], gy.shape[2:]
    lowering = _Lowering(gx, w.shape, out, stride, padding, dilation, groups, False)
    weights = lowering.split(w)[0].swapaxes(1, 2)
    k = len(w) // groups

    def work(task):
        for images, rows in lowering.cut(*task):
            block = _to_rows(gy[images, :, rows], groups, k)
            columns = np.matmul(weights, block)
            high, count = rows.stop - rows.start, images.stop - images.start
            columns = columns.reshape(-1, *kernel, high, count, *out[1:])
            lowering.walker("add", gx[images], columns, rows)(gx[images])

    lowering.run(work, lowering.tasks(by_rows=False))
    return gx


def weight_gradient(gy, x, gw, stride, padding, dilation, groups):
    """gw = gy @ columns(x).T, each thread's sum added up in the order of the batch."""
    geometry = stride, padding, dilation, groups
    if convolution_rows.serves(x, gw.shape, gy):
        if convolution_tiles.serves(x, gw.shape, gy.shape, *geometry):
            return convolution_tiles.weight_gradient(gy, x, gw, padding)
        return convolution_rows.weight_gradient(gy, x, gw, *geometry)
    out, k = gy.shape[2:], len(gw) // groups
    lowering = _Lowering(x, gw.shape, out, stride, padding, dilation, groups)

    def work(task):
        total = np.zeros((lowering.shifts, groups, k, lowering.depth), x.dtype)
        term = np.empty(total.shape[1:], x.dtype)
        for images, rows, matrices in lowering.blocks(x, *task):
            block = _to_rows(gy[images, :, rows], groups, k)
            for sums, matrix in zip(total, matrices, strict=True):
                sums += np.matmul(block, matrix.swapaxes(1, 2), out=term)
        return total

    sums = lowering.run(work, lowering.tasks(by_rows=True))
    lowering.join(gw, sums)


def _to_rows(y, groups, k):
    """(N, K, first, *rest) -> (groups, k, first * N * rest): a view for N = 1."""
    return np.moveaxis(y, 0, 2).reshape(groups, k, -1)


def _from_rows(rows, shape):
    """The inverse of `_to_rows`, as a view of shape (N, K, first, *rest)."""
    n, k, first, *rest = shape
    return np.moveaxis(rows.reshape(k, first, n, *rest), 2, 0)


def _pieces(total, most):
    """Slices of 0 to total, as equal as can be, none longer than `most`."""
    count = -(-total // max(1, most))
    step = -(-total // max(1, count))
    return [slice(at, min(at + step, total)) for at in range(0, total, max(1, step))]


class _Lowering:
    """How the columns of one convolution are cut into blocks and filled."""

    def __init__(
        self, x, w_shape, out, stride, padding, dilation, groups, shifting=True
    ):
        self.n, self.channels, *size = x.shape
        self.size, self.out, self.groups = tuple(size), tuple(out), groups
        self.kernel = tuple(w_shape[2:])
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.dtype, self.filters = x.dtype, w_shape[0]
        self.work = prod(w_shape) * prod(out) * self.n
        first, *rest = self.kernel
        self.shifts, self.depth = 1, prod(w_shape[1:])
        per_row = w_shape[1] * prod(rest)
        if shifting and stride[0] == 1 and first > 1 and per_row >= SHIFT_CHANNELS:
            self.shifts, self.depth = first, per_row
        self.taps = self.kernel if self.shifts == 1 else (1, *rest)
        self.extra = (self.shifts - 1) * dilation[0]  # rows that shifts reach into

    def split(self, w):
        """The weight as (shifts, groups, K / groups, depth), contiguous."""
        shape = (self.shifts, self.groups, len(w) // self.groups, self.depth)
        if self.shifts > 1:
            w = np.moveaxis(w, 2, 0)
        return np.ascontiguousarray(w.reshape(shape))

    def join(self, w, parts):
        """Write the sum of the parts, each laid out as by `split`, into w."""
        if self.shifts > 1:
            w = np.moveaxis(w, 2, 0)
        w[...] = 0
        for part in parts:
            w += part.reshape(w.shape)

    def tasks(self, by_rows):
        """Rectangles (images, output rows), one a thread, the same at every call."""
        count = parts() if self.work > SERIAL_WORK else 1
        batches = min(count, self.n)
        if batches == 0:
            return []
        images = _pieces(self.n, -(-self.n // batches))
        cuts = min(self.out[0], count // batches) if by_rows else 1
        rows = _pieces(self.out[0], -(-self.out[0] // cuts))
        return [(image, row) for image in images for row in rows]

    def run(self, work, tasks):
        """The results of all tasks in their order."""
        keep_freed()
        claim_blas()  # more would fight with our own for the cores
        return parallel(work, tasks)

    def cut(self, images, rows):
        """Blocks (images, rows) of at most BLOCK_BYTES, all of one strip together."""
        high = rows.stop - rows.start
        width = prod(self.out[1:]) * self.dtype.itemsize
        source, result = self.groups * self.depth * width, self.filters * width
        most = (BLOCK_BYTES - source * self.extra) // (source + result)
        for strip in _pieces(high, most):
            here = slice(rows.start + strip.start, rows.start + strip.stop)
            high = strip.stop - strip.start
            most = BATCH_BYTES // (source * (high + self.extra) + result * high)
            for part in _pieces(images.stop - images.start, most):
                yield slice(images.start + part.start, images.start + part.stop), here

    def walker(self, name, x, columns, rows):
        """A function of blocks like x, "pack" or "add": see `window_loops.walker`.

        The strip `rows` is a convolution with less padding, which may be negative.
        """
        padding = (self.padding[0] - rows.start * self.stride[0], *self.padding[1:])
        columns = np.moveaxis(columns, 2 + len(self.taps), 0)  # (N, C, *taps, *out)
        how = (self.stride, padding, self.dilation)
        compiled = window_loops.walker(name, x, columns, *how)
        if compiled is not None:
            return compiled
        out = columns.shape[2 + len(self.taps) :]
        reach = taps(self.size, out, self.taps, *how)

        def walk(x):
            for tap, served, read in reach:
                part = columns[(slice(None), slice(None), *tap, *served)]
                if name == "pack":
                    part[...] = x[(..., *read)]
                else:
                    x[(..., *read)] += part

        return walk

    def blocks(self, x, images, rows):
        """Yield (images, rows, matrices), a matrix (groups, depth, columns) a shift.

        The columns' buffer is used again for blocks of the same shape and strip, so
        that the zeros of the padding are written once.
        """
        last = None
        for part, strip in self.cut(images, rows):
            high, count = strip.stop - strip.start, part.stop - part.start
            if (strip, count) != last:
                shape = (high + self.extra, count, *self.out[1:])
                columns = np.zeros((self.channels, *self.taps, *shape), self.dtype)
                flat = columns.reshape(self.groups, self.depth, shape[0], -1)
                matrices = []
                for shift in range(0, self.extra + 1, self.dilation[0]):
                    view = flat[:, :, shift : shift + high]
                    matrices.append(view.reshape(self.groups, self.depth, -1))
                pack = self.walker("pack", x[part], columns, strip)
                last = (strip, count)
            pack(x[part])
            yield part, strip, matrices
