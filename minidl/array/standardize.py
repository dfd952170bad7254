"""Standardisation on raw arrays: mean 0 and variance 1 over some dimensions.

Statistics of half precision are float32. The variance is taken around the mean, so
that a large mean costs no digits.
"""

from math import prod

from . import cuda_layer_norm, cuda_norm, standardize_blocks, standardize_loops
from .device import Array, array_module, on_gpu
from .dtypes import wide_type
from .kernel import Kernel
from .loops import PARALLEL_FROM

centre = Kernel("centre", "x mean", "d", body="d = x - mean;")
scale_and_shift = Kernel(
    "scale_and_shift", "d scale w b", "y", body="y = d * scale * w + b;"
)
rescaled = Kernel("rescaled", "x scale shift", "y", body="y = x * scale + shift;")
scaled_product = Kernel("scaled_product", "g d scale", "y", body="y = g * d * scale;")
uncentre = Kernel(
    "uncentre",
    "g d w offset along scale",
    "gx",
    body="gx = (g * w - offset - d * along) * scale;",
)


def standardize(x: Array, w, b, dims, eps: float, centred: bool) -> tuple:
    """(y, mean, var): y = (x - mean) / sqrt(var + eps) w + b, mean and var over dims.

    Not `centred`, the mean is 0 and var is the mean square. mean and var keep the
    dims with size 1; w and b may be None.
    """
    served = None
    if on_gpu(x):
        served = cuda_layer_norm.forward(x, w, b, dims, eps, centred)
    if served is None and centred:
        files = cuda_norm if on_gpu(x) else standardize_loops
        served = files.forward(x, w, b, dims, eps)
    if served is not None:
        return served
    if not on_gpu(x):
        return standardize_blocks.forward(x, w, b, dims, eps, centred)
    xp, wide = array_module(x), wide_type(x.dtype)
    count = prod(x.shape[d] for d in dims)
    mean = xp.zeros((1,) * x.ndim, wide)
    if centred:
        mean = summed(x.astype(wide, copy=False), None, dims) / count
    d = deviations(x, mean, wide, centred)
    var = summed(d, d, dims) / count
    one, zero = xp.ones_like(mean), xp.zeros_like(mean)
    y = d if centred and wide == x.dtype else xp.empty(x.shape, x.dtype)
    scale = 1 / xp.sqrt(var + eps)
    scale_and_shift(d, scale, one if w is None else w, zero if b is None else b, out=y)
    return y, mean, var


def deviations(x: Array, mean: Array, wide, centred: bool) -> Array:
    """x - mean in the wide type, a new array; x itself where the mean is taken as 0."""
    if not centred:
        return x.astype(wide, copy=False)
    return centre(x, mean, out=array_module(x).empty(x.shape, wide))


def standardize_gradient(
    g: Array, x: Array, w, mean, var, dims, eps: float, centred: bool
) -> tuple:
    """The gradients of x, w and b, those of w and b not yet summed to their shapes.

    With xhat = (x - mean) / sqrt(var + eps) and h = g w,
    gx = (h - mean(h) - xhat mean(h xhat)) / sqrt(var + eps), gw = g xhat, gb = g.
    """
    served = None
    if on_gpu(x):
        served = cuda_layer_norm.backward(g, x, w, mean, var, dims, eps, centred)
    if served is None and centred:
        files = cuda_norm if on_gpu(x) else standardize_loops
        served = files.backward(g, x, w, mean, var, dims, eps)
    if served is not None:
        return served
    if not on_gpu(x):
        return standardize_blocks.backward(g, x, w, mean, var, dims, eps, centred)
    xp, wide = array_module(x), wide_type(x.dtype)
    count = prod(x.shape[d] for d in dims)
    scale = 1 / xp.sqrt(var + eps)
    g = g.astype(wide, copy=False)
    d = deviations(x, mean, wide, centred)
    if w is None or is_constant_over(w, dims, x.ndim):
        # w goes in front of the sums, which are the gradients of w and b
        gb, gw = summed(g, None, dims), summed(g, d, dims) * scale
        along, offset = gw, gb
        last, w = scale if w is None else scale * w, xp.ones_like(mean)
    else:
        gb, gw = g, scaled_product(g, d, scale)
        stretched = xp.broadcast_to(w, g.shape)
        along, offset = summed(gw, stretched, dims), summed(g, stretched, dims)
        last = scale
    offset = offset / count if centred else xp.zeros_like(mean)
    gx = d if centred else xp.empty(x.shape, wide)
    uncentre(g, d, w, offset, along / count * scale, last, out=gx)
    return gx, gw, gb


def rescale(x: Array, w, b, mean, var, dims, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) w + b, where mean and var are given."""
    served = None
    if on_gpu(x):
        served = cuda_norm.forward(x, w, b, dims, eps, (mean, var))
    if served is not None:
        return served[0]
    scale = 1 / array_module(var).sqrt(var + eps)
    scale = scale if w is None else scale * w
    return stretched(x, scale, -mean * scale if b is None else b - mean * scale)


def rescale_gradient(
    g: Array, x: Array | None, w, mean, var, dims, eps: float
) -> tuple:
    """The gradients of x, w and b, those of w and b over dims; without x, of x alone.

    gx = g w / sqrt(var + eps), gw = sum(g xhat), gb = sum(g).
    """
    served, sums = None, x is not None
    if on_gpu(g):
        there = x if sums else g
        served = cuda_norm.backward(g, there, w, mean, var, dims, eps, True, sums)
    if served is not None:
        return served
    scale, gw, gb = 1 / array_module(var).sqrt(var + eps), None, None
    gx = stretched(g, scale if w is None else scale * w, 0)
    if sums:
        wide = wide_type(g.dtype)
        g, d = g.astype(wide, copy=False), deviations(x, mean, wide, True)
        gw, gb = summed(g, d, dims) * scale, summed(g, None, dims)
    return gx, gw, gb


def stretched(x: Array, scale: Array, shift) -> Array:
    """x scale + shift, of the type of x; NumPy starts sooner than a kernel."""
    if on_gpu(x) or x.size >= PARALLEL_FROM:
        return rescaled(x, scale, array_module(x).asarray(shift, scale.dtype))
    return (x * scale + shift).astype(x.dtype, copy=False)


def summed(a: Array, b, dims) -> Array:
    """sum(a b) over dims, which stay with size 1; sum(a) where b is None."""
    if not on_gpu(a):
        return standardize_blocks.summed(a, b, dims)
    return (a if b is None else a * b).sum(axis=dims, keepdims=True)


def is_constant_over(w: Array, dims, ndim: int) -> bool:
    """Whether w, broadcast to ndim dimensions, is the same along all of dims."""
    return all(d < ndim - w.ndim or w.shape[d - ndim] == 1 for d in dims)
