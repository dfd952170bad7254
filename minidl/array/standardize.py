"""Standardisation on raw arrays: mean 0 and variance 1 over some dimensions.

Statistics of half precision are float32. The variance is taken around the mean, so
that a large mean costs no digits.
"""

from math import prod

import numpy

from .device import Array, array_module


def standardize(x: Array, w, b, dims, eps: float, centred: bool) -> tuple:
    """(y, mean, var): y = (x - mean) / sqrt(var + eps) w + b, mean and var over dims.

    Not `centred`, the mean is 0 and var is the mean square. mean and var keep the
    dims with size 1; w and b may be None.
    """
    xp, wide = array_module(x), wide_type(x)
    if centred:
        mean = x.mean(axis=dims, keepdims=True, dtype=wide)
        y = xp.subtract(x, mean, dtype=wide)
    else:
        mean, y = xp.zeros((1,) * x.ndim, wide), x.astype(wide)
    var = xp.square(y).mean(axis=dims, keepdims=True)
    scale = 1 / xp.sqrt(var + eps)
    together = w is not None and is_constant_over(w, dims, x.ndim)
    y *= scale * w if together else scale
    if w is not None and not together:
        y *= w
    if b is not None:
        y += b
    return y.astype(x.dtype, copy=False), mean, var


def standardize_gradient(
    g: Array, x: Array, w, mean, var, dims, eps: float, centred: bool
) -> tuple:
    """The gradients of x, w and b, those of w and b not yet summed to their shapes.

    With xhat = (x - mean) / sqrt(var + eps) and h = g w,
    gx = (h - mean(h) - xhat mean(h xhat)) / sqrt(var + eps), gw = g xhat, gb = g.
    """
    xp, wide = array_module(x), wide_type(x)
    count = prod(x.shape[d] for d in dims)
    scale = 1 / xp.sqrt(var + eps)
    xhat = xp.subtract(x, mean, dtype=wide)
    xhat *= scale
    gw = xp.multiply(g, xhat, dtype=wide)
    if w is None or is_constant_over(w, dims, x.ndim):
        # w goes in front of the sums, which are the gradients of w and b
        h, gb = g, g.sum(axis=dims, keepdims=True, dtype=wide)
        gw = gw.sum(axis=dims, keepdims=True)
        along, offset = gw / count, gb / count
        scale = scale if w is None else scale * w
    else:
        h, gb = xp.multiply(g, w, dtype=wide), g
        along = (gw * w).mean(axis=dims, keepdims=True)
        offset = h.mean(axis=dims, keepdims=True)
    xhat *= along
    gx = xp.subtract(h, xhat, out=xhat)
    if centred:
        gx -= offset
    gx *= scale
    return gx, gw, gb


def wide_type(x: Array) -> numpy.dtype:
    """The type to compute in."""
    return numpy.dtype(numpy.float32) if x.dtype.itemsize < 4 else x.dtype


def is_constant_over(w: Array, dims, ndim: int) -> bool:
    """Whether w, broadcast to ndim dimensions, is the same along all of dims."""
    return all(d < ndim - w.ndim or w.shape[d - ndim] == 1 for d in dims)
