"""Images with the batch innermost in memory: (first, C, *rest, N), `first` being the
first spatial dimension, of which a tensor is an (N, C, first, *rest) view.
"""

from math import prod

import numpy as np

from minidl.array.determinism import cut
from minidl.array.threads import get_num_threads, parallel

PARTED_FROM = 1 << 18  # elements


def is_innermost(x) -> bool:
    """Whether the images of a batch lie side by side, pixel by pixel."""
    return x.strides[0] == x.itemsize and x.shape[0] > 1


def empty(shape, dtype):
    """An array (N, C, first, *rest) with the batch innermost."""
    n, c, first, *rest = shape
    made = np.empty((first, c, *rest, n), dtype)
    return made.transpose(len(shape) - 1, 1, 0, *range(2, len(shape) - 1))


def by_rows(x):
    """(N, C, first, *rest) -> (first, C, *rest, N), with the batch innermost."""
    n, channels, *size = x.shape
    turned = x.transpose(2, 1, *range(3, x.ndim), 0)
    if turned.strides[-1] == x.itemsize:
        return turned
    made = np.empty(turned.shape, x.dtype)

    def work(part):
        # what is a power of two apart falls into few places of a cache: not in here
        apart = np.empty((n, prod(size) + 16), x.dtype)
        images = apart[:, : prod(size)].reshape(n, *size)
        for channel in range(part.start, part.stop):
            images[...] = x[:, channel]
            made[:, channel] = np.moveaxis(images, 0, -1)

    parallel(work, cut(channels, get_num_threads() if x.size > PARTED_FROM else 1))
    return made


def flat(y, groups):
    """(N, K, first, *rest) -> (first, groups, K / groups, rest * N), a view of y where
    that can be."""
    rows = by_rows(y)
    return rows.reshape(len(rows), groups, rows.shape[1] // groups, -1)
