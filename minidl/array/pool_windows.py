"""Where the windows of a pooling are, and how many elements they have."""

from math import prod

import numpy as np


def tap_number(tap, kernel):
    """The place of a tap in row-major order."""
    return int(np.ravel_multi_index(tap, kernel))


def positions(xp, size, out, kernel, stride, padding, dilation):
    """What flat positions are made of: corner of a window + offset of a tap.

    Returns each window's corner, of shape `out`, negative in the padding, and the
    offsets of all taps.
    """
    step = prod(size)
    corners, offsets = (xp.zeros((), np.int32) for _ in range(2))
    for n, o, k, s, p, d in zip(
        size, out, kernel, stride, padding, dilation, strict=True
    ):
        step = step // max(1, n)
        starts = xp.arange(o, dtype=np.int32) * s - p
        corners = corners[..., None] + starts * step
        offsets = offsets[..., None] + xp.arange(k, dtype=np.int32) * (d * step)
    return corners, offsets.ravel()


def check_divisor(override: int | None) -> None:
    if override == 0:
        raise ValueError("divisor_override must not be zero")


def divisor_of(xp, size, out, kernel, stride, padding, count_include_pad, override):
    """The number that each window's sum is divided by, of shape `out` or ()."""
    if override is not None:
        return xp.full((), override)
    divisor = xp.ones((), np.int64)
    for n, o, k, s, p in zip(size, out, kernel, stride, padding, strict=True):
        start = xp.arange(o) * s - p
        stop = xp.minimum(start + k, n + p)
        if not count_include_pad:
            start, stop = xp.maximum(start, 0), xp.minimum(stop, n)
        divisor = divisor[..., None] * (stop - start)
    return divisor
