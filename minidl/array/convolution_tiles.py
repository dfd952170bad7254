"""Convolution by 3 x 3 for NumPy in tiles of 2 x 2 outputs, the batch innermost.

A tile of 4 x 4 inputs d, a filter g and a tile of 2 x 2 outputs are related by

    Y = A^T [(G g G^T) * (B^T d B)] A,

where the product in the middle is element by element, and so, summed over channels, 16
products of matrices: 16 multiplications instead of 36. What comes before and after are
sums of whole rows of images, (C, tiles, N), which NumPy does at the speed of the cache.
The gradient of the filter is the transpose of the same.

Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", 2016.
"""

import numpy as np

from minidl.array.batch_innermost import by_rows, empty
from minidl.array.convolution_rows import SERIAL_WORK
from minidl.array.determinism import (
    are_deterministic_algorithms_enabled,
    cut,
    parts,
)
from minidl.array.memory import keep_freed
from minidl.array.rectifier import positive_part
from minidl.array.threads import claim_blas, get_num_threads, parallel

CHANNELS = 16  # from which tiles pay
SUMS = 1 << 14  # numbers of a row of tiles that are worth their sums in NumPy
BATCH = 48  # runs that strided sums should have, and columns enough for a product
CHUNK_BYTES = 3 << 20  # of both transforms of a row of tiles
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def serves(x, w_shape, shape, *geometry) -> bool:
    """Whether tiles can be, and are worth their sums in NumPy."""
    return (
        may_serve(x, w_shape, *geometry)
        and len(x) >= BATCH
        and min(shape[2:]) >= 4
        and -(-shape[3] // 2) * len(x) * min(w_shape[:2]) >= SUMS
    )


def may_serve(x, w_shape, stride, padding, dilation, groups) -> bool:
    """Whether a convolution can be computed in tiles, here or in compiled loops, with
    channels enough to be worth it, and exact enough."""
    return (
        tuple(w_shape[2:]) == (3, 3)
        and x.dtype == np.float32
        and (stride, dilation, groups) == ((1, 1), (1, 1), 1)
        and max(padding) <= 2
        and min(w_shape[:2]) >= CHANNELS
        and not are_deterministic_algorithms_enabled()
    )


def forward(x, w, b, shape, padding, relu=False):
    """y = w * x + b, or max(0, that), for y of the given shape."""
    keep_freed()
    claim_blas()
    y = empty(shape, x.dtype)
    images, target = by_rows(x), by_rows(y)
    filters = np.moveaxis(G @ w @ G.T, (2, 3), (0, 1))  # (4, 4, K, C)
    filters = np.ascontiguousarray(filters)

    def work(rows):
        made = None
        for row, columns, tiles in _tiles(images, padding, rows, _cuts(shape, w.shape)):
            if made is None or made.shape[3] != tiles.shape[3]:
                made = np.empty((*filters.shape[:3], *tiles.shape[3:]), y.dtype)
            _multiply(filters, tiles, made)
            if b is not None:
                made[1, 1] += b[:, None, None]  # a term of all four outputs
            into = target[2 * row : 2 * row + 2, :, 2 * columns.start :]
            into = into[:, :, : 2 * (columns.stop - columns.start)]
            _to_outputs(made, into, relu)

    parallel(work, _shares(shape, w.shape, get_num_threads()))
    return y


def weight_gradient(gy, x, gw, padding):
    """gw[...] = G^T (the sum over tiles of (A gy A^T) * (B^T d B)) G."""
    keep_freed()
    claim_blas()
    images, source = by_rows(x), by_rows(gy)
    k, c = gw.shape[:2]

    def work(rows):
        total, outputs = np.zeros((4, 4, k, c), x.dtype), None
        for row, columns, tiles in _tiles(
            images, padding, rows, _cuts(gy.shape, gw.shape)
        ):
            if outputs is None or outputs.shape[3] != tiles.shape[3]:
                outputs = np.empty((4, 4, k, *tiles.shape[3:]), x.dtype)
            _from_outputs(source, row, columns, outputs)
            tiles = tiles.reshape(4, 4, c, -1).swapaxes(2, 3)
            total += np.matmul(outputs.reshape(4, 4, k, -1), tiles)
        return total

    total, *others = parallel(work, _shares(gy.shape, gw.shape, parts()))
    for more in others:
        total += more
    total[3] *= -1  # signs that `_from_outputs` has left out
    total[:, 3] *= -1
    gw[...] = G.T @ np.moveaxis(total, (0, 1), (2, 3)) @ G


def _multiply(filters, tiles, out):
    """out = (4, 4, K, C) times (4, 4, C, columns, N), over C."""
    if tiles.shape[4] >= BATCH:  # OpenBLAS takes small matrices without packing
        tiles, out = (a.transpose(0, 1, 3, 2, 4) for a in (tiles, out))
        np.matmul(filters[:, :, None], tiles, out=out)
    else:
        tiles, out = (a.reshape(*a.shape[:3], -1) for a in (tiles, out))
        np.matmul(filters, tiles, out=out)


def _shares(shape, w_shape, count):
    """Ranges of rows of tiles, one a thread."""
    large = np.prod(shape, dtype=float) * 9 * w_shape[1] > SERIAL_WORK
    return cut(-(-shape[2] // 2), count if large else 1)


def _cuts(shape, w_shape):
    """Slices of the tiles of a row, of which both transforms stay in cache."""
    tiles = -(-shape[3] // 2)
    one = 16 * (w_shape[0] + w_shape[1]) * shape[0] * 4
    return cut(tiles, -(-tiles * one // CHUNK_BYTES))


def _tiles(images, padding, rows, cuts):
    """Yield (row, columns, B^T d B as (4, 4, C, columns, N)) for tiles of images
    (H, C, W, N); the array is used again for the next ones."""
    for columns in cuts:
        wide = columns.stop - columns.start
        shape = (4, images.shape[1], wide, images.shape[3])
        made, lines = np.empty((2, 4, *shape), images.dtype)
        done = 2 * rows.start - padding[0]
        for row in range(rows.start, rows.stop):
            top = 2 * row - padding[0]
            for at in range(done, top + 4):
                _line(images, at, columns, padding, lines[at % 4])
            done = top + 4
            _combine(*(lines[at % 4] for at in range(top, top + 4)), made)
            yield row, columns, made


def _line(images, row, columns, padding, out):
    """out = the tiles' transform along one row, (4, C, columns, N)."""
    if not 0 <= row < len(images):
        out[...] = 0
        return
    line, width = images[row], images.shape[2]
    low, high = (2 * at - padding[1] for at in (columns.start, columns.stop + 1))
    seen = line[:, max(low, 0) : min(high, width)]
    if low < 0 or high > width:
        padded = np.zeros((len(line), high - low, line.shape[2]), line.dtype)
        padded[:, max(-low, 0) :][:, : seen.shape[1]] = seen
        seen = padded
    _combine(seen[:, :-2:2], seen[:, 1:-2:2], seen[:, 2::2], seen[:, 3::2], out)


def _combine(a, b, c, d, out):
    """B^T of Winograd's."""
    np.subtract(a, c, out=out[0])
    np.add(b, c, out=out[1])
    np.subtract(c, b, out=out[2])
    np.subtract(b, d, out=out[3])


def _to_outputs(made, into, relu):
    """into (2, K, 2 columns, N) = A^T made A, or as much as there is of it; with relu
    its positive part."""
    made[0] += made[1]
    made[0] += made[2]
    made[1] -= made[2]
    made[1] -= made[3]
    a, b, c, d = np.moveaxis(made[: len(into)], 1, 0)
    a += b
    b -= c
    even, odd = into[:, :, ::2], into[:, :, 1::2]
    b, d = b[:, :, : odd.shape[2]], d[:, :, : odd.shape[2]]
    if relu:
        a += c
        b -= d
        positive_part(a, even)
        positive_part(b, odd)
    else:
        np.add(a, c, out=even)
        np.subtract(b, d, out=odd)


def _from_outputs(source, row, columns, made):
    """made = A gy A^T, (4, 4, K, columns, N), but for signs: each of the first two
    indices that is 3 reverses it."""
    wide = columns.stop - columns.start
    for place, at in ((0, 2 * row), (3, 2 * row + 1)):
        if at == len(source):
            made[place] = 0
            continue
        line = source[at, :, 2 * columns.start :]
        a, b = made[place, 0], made[place, 3]
        a[...] = line[:, : 2 * wide : 2]
        odd = line[:, 1 : 2 * wide : 2]
        b[:, : odd.shape[1]] = odd
        b[:, odd.shape[1] :] = 0
        np.add(a, b, out=made[place, 1])
        np.subtract(a, b, out=made[place, 2])
    np.add(made[0], made[3], out=made[1])
    np.subtract(made[0], made[3], out=made[2])
