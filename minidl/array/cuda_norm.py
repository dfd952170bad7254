"""Normalisation over the channels of (A, K, B) on a GPU: two launches each way.

The first launch sums up shares of every channel, the second joins the shares and
computes the result; where there is nothing to sum up it is the only one.
"""

import numpy

from .cuda_channels import Channels, sizes_of
from .cuda_layout import in_memory, like_that, usual
from .cuda_norm_source import SOURCE
from .cuda_source import contiguous, empty
from .device import Array


def forward(x: Array, w, b, dims, eps: float, given=None) -> tuple | None:
    """(y, mean, var), as `standardize` gives them, over all but dim 1.

    `given` are the mean and variance to take in the place of those of x.
    """
    if not _serves(x, (w, b), dims):
        return None
    x, last = in_memory(x)
    channels = Channels(*sizes_of(x, last), _kind(x, w, b), x)
    w, b = (_parameter(p, channels) for p in (w, b))
    y, shares, count = empty(x.shape, x.dtype), 0, numpy.int32(0)
    if given is None:
        mean, var = (empty(_shape(x, last), channels.wide) for _ in range(2))
        shares, count = channels.partial(3), numpy.int32(channels.shares)
        channels.launch(SOURCE, "moments", (x, shares))
    else:
        mean, var = (contiguous(s, channels.wide) for s in given)
    channels.launch(
        SOURCE, "standardize", (x, shares, w, b, y, mean, var), count, float(eps)
    )
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
    channels = Channels(*sizes_of(x, last), _kind(x, w, None), g, x)
    w = _parameter(w, channels)
    mean, var = (contiguous(s, channels.wide) for s in (mean, var))
    gx, gw, gb, shares, count = empty(x.shape, x.dtype), 0, 0, 0, 0
    if sums:
        gw, gb = (empty(_shape(x, last), channels.wide) for _ in range(2))
        shares, count = channels.partial(2), channels.shares
        one = channels.integer(1)
        channels.launch(SOURCE, "sums", (g, x, mean, var, shares), one, float(eps))
    arrays = (g, x, shares, w, mean, var, gx, gw, gb)
    numbers = numpy.int32(count), float(eps), numpy.int32(given)
    channels.launch(SOURCE, "gradient", arrays, *numbers)
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
