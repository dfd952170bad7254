"""Convolution for NumPy with the batch innermost: a product a row, in one call.

Images lie in memory as (first, C, *rest, N), `first` being the first spatial dimension:
a tensor remains an (N, C, first, *rest) view of that. Taps of the other dimensions are
copied, runs of N numbers and more; the taps of the first dimension, the copied ones and
the channels together are then the rows of a matrix that lies there already,

    rows[s h : s h + kernel] as (kernel * taps * C, rest * N),

and y[h] is the weight times that, in the layout that the next layer reads. The copies
are made a tile of a few rows and columns at a time: the matrix of one product should
stay in a core's cache, as BLAS reads it again and again. All rows of a tile are one
stacked product of NumPy's, which lets go of the interpreter's lock once: threads that
share out the rows hardly meet. Tiles depend on the shapes alone, so only the sums of
weight gradients depend on the number of parts.
"""

from math import prod

import numpy as np

from minidl.array import compiler
from minidl.array.batch_innermost import by_rows, empty, flat, is_innermost
from minidl.array.determinism import cut, parts
from minidl.array.memory import keep_freed
from minidl.array.rectifier import positive_part
from minidl.array.threads import claim_blas, get_num_threads, parallel
from minidl.array.windows import taps

MATRIX_BYTES = 1 << 19  # of one product's columns, about half of a core's L2 cache
TILE_BYTES = 4 << 20  # of the copied taps
SERIAL_WORK = 3 << 23  # multiplications below which threads cost more than they give
SMALL_WORK = 10**6  # multiplications of a product that OpenBLAS calls small
LEAST_COLUMNS = 64  # of one that is worth a call
LEAST_BATCH = 8  # runs shorter than this are copied slowly


def serves(x, w_shape, gy=None) -> bool:
    """Whether this layout pays: there is a batch, reason to change its layout, and no
    compiler, whose loops are made for another. With gy, for a weight gradient, after
    which no layer comes that would read it."""
    worth = prod(w_shape[2:]) > 1 if gy is None else is_innermost(gy)
    worth = worth or is_innermost(x)
    return worth and len(x) >= LEAST_BATCH and not compiler.compiler()


def forward(x, w, b, shape, stride, padding, dilation, groups, relu=False):
    """y = w * x + b, or max(0, that), for y of the given shape."""
    y = empty(shape, x.dtype)
    lowering = _Rows(x, w.shape, shape[2:], stride, padding, dilation, groups)
    weights = lowering.matrices(w)[:, None]
    bias = None if b is None else b.reshape(1, groups, -1, 1)
    target = flat(y, groups)

    def work(rows):
        for tile, matrices in lowering.tiles(*rows):
            out = target[tile]
            _multiply(weights, matrices, out.swapaxes(0, 1))
            if bias is not None:
                out += bias
            if relu:
                positive_part(out, out)

    parallel(work, lowering.shares(get_num_threads()))
    return y


def weight_gradient(gy, x, gw, stride, padding, dilation, groups):
    """gw[...] = the sum over rows of rows[h] @ gy[h].T, one sum a thread."""
    lowering = _Rows(x, gw.shape, gy.shape[2:], stride, padding, dilation, groups)
    source = flat(gy, groups)

    def work(rows):
        total = 0
        for tile, matrices in lowering.tiles(*rows):
            own = source[tile].transpose(1, 0, 3, 2)
            total = total + np.matmul(matrices, own).sum(1)  # (groups, depth, K)
        return total

    sums = parallel(work, lowering.shares(parts()))
    for more in sums[1:]:
        sums[0] += more
    lowering.write(sums[0].swapaxes(1, 2), gw)


def input_gradient(gy, w, x_shape, stride, padding, dilation, groups):
    """gx: the taps w.T @ gy[h] of each row, added where they came from."""
    gx = empty(x_shape, gy.dtype)
    lowering = _Rows(gx, w.shape, gy.shape[2:], stride, padding, dilation, groups)
    source, kernel = flat(gy, groups), w.shape[2:]
    target = lowering.images
    weights = w.reshape(groups, -1, *w.shape[1:])
    weights = np.moveaxis(weights, (1, 2), (-1, -2))  # (groups, *kernel, C, K)
    size, out = gx.shape[2:], gy.shape[2:]

    def work(channels):
        target[:, :, channels] = 0
        own = weights[..., channels, :]
        matrix = np.ascontiguousarray(own).reshape(groups, 1, -1, own.shape[-1])
        step = max(1, TILE_BYTES // (lowering.row * kernel[0]))
        for start in range(0, out[0], step):
            high = min(step, out[0] - start)
            columns = np.matmul(matrix, source[start : start + high].swapaxes(0, 1))
            columns = columns.reshape(
                groups, high, *kernel, own.shape[-2], *out[1:], len(gy)
            )
            first = padding[0] - start * stride[0]
            how = (stride, (first, *padding[1:]), dilation)
            for tap, served, read in taps(size, (high, *out[1:]), kernel, *how):
                part = columns[(slice(None), served[0], *tap, slice(None), *served[1:])]
                into = (read[0], slice(None), channels, *read[1:])
                target[into] += part.swapaxes(0, 1)

    count = target.shape[2]
    parallel(work, cut(count, get_num_threads() if lowering.large else 1))
    return gx


def _multiply(weights, matrices, out):
    """out = weights @ matrices, so many columns at a time that OpenBLAS takes the
    matrices as they lie, without packing them, where so few are worth a product."""
    k, depth = weights.shape[-2:]
    columns = matrices.shape[-1]
    least = -(-columns * k * depth // SMALL_WORK)
    for pieces in range(max(2, least), min(columns // LEAST_COLUMNS, 4 * least) + 1):
        if columns % pieces == 0:
            weights = weights[..., None, :, :]
            matrices, out = (
                a.reshape(*a.shape[:-1], pieces, -1).swapaxes(-2, -3)
                for a in (matrices, out)
            )
            break
    np.matmul(weights, matrices, out=out)


class _Rows:
    """The matrices of one convolution's rows."""

    def __init__(self, x, w_shape, out, stride, padding, dilation, groups):
        keep_freed()
        claim_blas()
        rows = by_rows(x)
        self.n, self.groups, self.out = len(x), groups, tuple(out)
        self.images = rows.reshape(
            len(rows), groups, rows.shape[1] // groups, *rows.shape[2:]
        )
        self.kernel, self.filters = tuple(w_shape[2:]), w_shape[0]
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.large = prod(w_shape) * prod(out) * self.n > SERIAL_WORK
        # rows one apart can be read where they are; others are copied as taps too
        self.shifts = dilation[0] == 1
        pixel = prod(w_shape[3:]) == 1 and not any(padding) and set(stride[1:]) <= {1}
        whole = groups == 1 or w_shape[2] == 1  # a group's rows lie side by side
        self.plain = pixel and self.shifts and whole and rows.flags.c_contiguous
        self.taps = (1, *self.kernel[1:]) if self.shifts else self.kernel
        self.depth = self.images.shape[2] * prod(self.taps)
        self.pixel = prod(self.out[2:]) * self.n  # columns that one step along rest is
        self.width = self.out[1] if self.out[1:] else 1
        self.row = groups * self.depth * self.width * self.pixel * x.itemsize
        reach = self.kernel[0] if self.shifts else 1
        matrix = reach * self.depth * self.pixel * x.itemsize
        self.tile = min(self.width, max(1, MATRIX_BYTES // matrix))

    def matrices(self, w):
        """The weight (K, C / groups, *kernel) as (groups, K / groups, depth)."""
        w = np.moveaxis(w, 1, -1)
        return w.reshape(self.groups, self.filters // self.groups, -1)

    def write(self, matrices, w):
        """Write `matrices`, as the function of that name makes them, into a weight."""
        shape = (self.filters, *self.kernel, w.shape[1])
        w[...] = np.moveaxis(matrices.reshape(shape), -1, 1)

    def shares(self, count):
        """Ranges (start, stop) of output rows, one a thread."""
        cuts = cut(self.out[0], count if self.large else 1)
        return [(cut.start, cut.stop) for cut in cuts]

    def tiles(self, start, stop):
        """Yield (place, matrices): where in `flat` outputs are, (rows, all, all,
        columns), and what each row is the product of, (groups, rows, kernel * taps *
        C / groups, columns)."""
        step, reach = (self.stride[0], self.kernel[0]) if self.shifts else (1, 1)
        row = self.row * self.tile // self.width
        most = max(1, (TILE_BYTES // row - reach) // step + 1)
        buffer = None
        for left in range(0, self.width, self.tile):
            wide = min(self.tile, self.width - left)
            columns = slice(left * self.pixel, (left + wide) * self.pixel)
            for first in range(start, stop, most):
                high = min(most, stop - first)
                count = step * (high - 1) + reach
                if self.plain:
                    rows = self.images.reshape(*self.images.shape[:3], -1)
                    rows = rows[first * step :, :, :, columns].swapaxes(0, 1)
                else:
                    shape = self.groups, count, self.depth, wide * self.pixel
                    if buffer is None:
                        buffer = np.empty(prod(shape), self.images.dtype)
                    rows = buffer[: prod(shape)].reshape(shape)
                    self.fill(rows, first, left, wide)
                strides = rows.strides
                matrices = np.lib.stride_tricks.as_strided(
                    rows,
                    (self.groups, high, reach * self.depth, rows.shape[3]),
                    (strides[0], strides[1] * step, *strides[2:]),
                    writeable=False,
                )
                yield np.s_[first : first + high, :, :, columns], matrices

    def fill(self, rows, first, left, wide):
        """Copy what outputs from row `first` and column `left` on see; zeros where
        that is padding."""
        step = 1 if self.shifts else self.stride[0]
        count, rest = rows.shape[1], self.out[1:]
        padding = [self.padding[0] - first * self.stride[0], *self.padding[1:]]
        if rest:
            rest = (wide, *rest[1:])
            padding[1] -= left * self.stride[1]
        out, channels = (count, *rest), self.images.shape[2]
        part = rows.reshape(self.groups, count, *self.taps, channels, *rest, self.n)
        size = (len(self.images), *self.images.shape[3:-1])
        how = (step, *self.stride[1:]), tuple(padding), self.dilation
        seen = dict.fromkeys(np.ndindex(self.taps))
        for tap, served, read in taps(size, out, self.taps, *how):
            seen[tap] = served, read
        for tap, found in seen.items():
            columns = part[(slice(None), slice(None), *tap)]
            if found is None:
                columns[...] = 0
                continue
            served, read = found
            for axis, (n, inside) in enumerate(zip(out, served, strict=True)):
                place = [slice(None)] * columns.ndim
                for outside in (slice(0, inside.start), slice(inside.stop, n)):
                    if outside.stop > outside.start:
                        place[axis + 2 if axis else 1] = outside
                        columns[tuple(place)] = 0
            source = self.images[(read[0], slice(None), slice(None), *read[1:])]
            into = (slice(None), served[0], slice(None), *served[1:])
            columns[into] = source.swapaxes(0, 1)
