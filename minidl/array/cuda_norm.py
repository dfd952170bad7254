"""Normalisation over the channels of (A, K, B) on a GPU: two launches each way.

The first launch sums up shares of every channel, the second joins the shares and
computes the result; where there is nothing to sum up it is the only one. A block has
one channel, or, where B is 1, 32 neighbouring ones.
"""

from math import prod

import numpy

from .cuda_layout import in_memory, like_that, usual
from .cuda_norm_source import SOURCE
from .cuda_source import (
    aligned,
    blocks,
    contiguous,
    empty,
    function,
    types_of,
)
from .device import Array

BLOCK = 256  # threads
BLOCKS = 1024  # enough of them to keep every multiprocessor busy


class Channels:
    """How arrays of shape (A, K, B), equal in memory, are shared out to blocks."""

    def __init__(self, A: int, K: int, B: int, parameter: numpy.dtype, *arrays):
        dtype = arrays[0].dtype
        vector = 16 // dtype.itemsize
        if B % vector or not aligned(*arrays):
            vector = 1
        lanes = 32 if B == 1 else 1
        self.across = blocks(K, lanes)
        most = blocks(A * B, 4 * vector * BLOCK // lanes)
        shares = max(1, min(most, blocks(BLOCKS, self.across)))
        share = blocks(blocks(A * B, shares), vector) * vector
        self.shares, self.channels = blocks(A * B, share), K
        types = types_of(arrays[0])
        self.wide, integer = types[1][1], types[2][1].type
        self.sizes = tuple(map(integer, (A, K, B, share)))
        self.integer = integer
        self.types = (*types, ("P", parameter))
        self.numbers = ("BLOCK", BLOCK), ("LANES", lanes), ("VECTOR", vector)

    def launch(self, name: str, arrays: tuple, *rest) -> None:
        """Run the kernel, which takes the arrays, the sizes and the rest."""
        kernel = function(SOURCE, self.types, self.numbers, name)
        args = (*arrays, *self.sizes, *rest)
        kernel((self.across, self.shares), (BLOCK,), args)

    def partial(self, numbers: int) -> Array:
        """Memory for so many numbers of each channel's shares."""
        return empty((self.shares, self.channels, numbers), self.wide)


def forward(x: Array, w, b, dims, eps: float, given=None) -> tuple | None:
    """(y, mean, var), as `standardize` gives them, over all but dim 1.

    `given` are the mean and variance to take in the place of those of x.
    """
    if not _serves(x, (w, b), dims):
        return None
    x, last = in_memory(x)
    channels = Channels(*_sizes(x, last), _kind(x, w, b), x)
    w, b = (_parameter(p, channels) for p in (w, b))
    y, shares, count = empty(x.shape, x.dtype), 0, numpy.int32(0)
    if given is None:
        mean, var = (empty(_shape(x, last), channels.wide) for _ in range(2))
        shares, count = channels.partial(3), numpy.int32(channels.shares)
        channels.launch("moments", (x, shares))
    else:
        mean, var = (contiguous(s, channels.wide) for s in given)
    channels.launch("standardize", (x, shares, w, b, y, mean, var), count, float(eps))
    return tuple(usual(a, last) for a in (y, mean, var))


def backward(
    g: Array, x: Array, w, mean, var, dims, eps: float, given=False, sums=True
) -> tuple | None:
    """The gradients of x, w and b, those of w and b with an element a channel.

    `given`: the mean and variance are not those of x. Without `sums`, of x alone.
    """
    if not _serves(x, (w,), dims):
        return None
    x, last = in_memory(x)
    g = like_that(g, last, x.dtype)
    channels = Channels(*_sizes(x, last), _kind(x, w, None), g, x)
    w = _parameter(w, channels)
    mean, var = (contiguous(s, channels.wide) for s in (mean, var))
    gx, gw, gb, shares, count = empty(x.shape, x.dtype), 0, 0, 0, 0
    if sums:
        gw, gb = (empty(_shape(x, last), channels.wide) for _ in range(2))
        shares, count = channels.partial(2), channels.shares
        one = channels.integer(1)
        channels.launch("sums", (g, x, mean, var, shares), one, float(eps))
    arrays = (g, x, shares, w, mean, var, gx, gw, gb)
    numbers = numpy.int32(count), float(eps), numpy.int32(given)
    channels.launch("gradient", arrays, *numbers)
    gw, gb = (usual(a, last) if sums else None for a in (gw, gb))
    return usual(gx, last), gw, gb


def _serves(x, parameters, dims) -> bool:
    channels = x.shape[1] if x.ndim > 1 else None
    return (
        tuple(dims) == (0, *range(2, x.ndim))
        and x.size > 0
        and all(
            p is None or p.shape[-x.ndim + 1 :] == (channels, *[1] * (x.ndim - 2))
            for p in parameters
        )
    )


def _sizes(x, last: bool) -> tuple[int, int, int]:
    """(A, K, B)"""
    if last:
        return prod(x.shape[:-1]), x.shape[-1], 1
    return x.shape[0], x.shape[1], prod(x.shape[2:])


def _shape(x, last: bool) -> tuple[int, ...]:
    """That of the statistics."""
    ones = [1] * (x.ndim - 2)
    return (1, *ones, x.shape[-1]) if last else (1, x.shape[1], *ones)


def _kind(x, w, b) -> numpy.dtype:
    """The parameters' type."""
    return next((p.dtype for p in (w, b) if p is not None), x.dtype)


def _parameter(p, channels):
    """An array of that type; 0 is the null pointer."""
    return 0 if p is None else contiguous(p, channels.types[-1][1])
