"""Convolution on a CPU with a compiler, in one call for each of its three operations.

Nothing is lowered to a matrix: an image is copied into a padded buffer, where each
tap is a fixed distance away from its output (`sweep_loops`). What lies where is
worked out in `convolution_plans`, once for a geometry. Every sum is taken in an order
that depends on the shapes alone, so results are the same for any number of threads.

Serves float32 and float64 in one or two dimensions; each function answers None or
False for what it cannot serve, and `convolution_cpu` does the same in NumPy.
"""

import ctypes
from functools import cache
from math import prod

import numpy as np

from minidl.array import (
    blas,
    compiler,
    convolution_tiles,
    gradient_loops,
    memory,
    register_loops,
    sweep_loops,
    winograd_gradient_loops,
    winograd_loops,
)
from minidl.array import convolution_plans as plans
from minidl.array.threads import get_num_threads

_LOOPS = (
    register_loops,
    sweep_loops,
    gradient_loops,
    winograd_loops,
    winograd_gradient_loops,
)

PARTS = 16  # at most, that a weight gradient's sum over the batch is made of
PART_WORK = 1 << 20  # multiplications that are worth a part of their own
TILE_PIXELS = 36  # from which 2 x 2 outputs at a time pay
TILE_PARTS = 8  # each is almost twice as large
_SIGNATURES = {  # how many addresses, how many numbers
    "convolve": (7, 3),
    "weight_gradient": (6, 2),
    "bias_gradient": (4, 4),
    "winograd_convolve": (5, 2),
    "winograd_weight_gradient": (4, 2),
}
DTYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


def forward(x, w, b, shape, *geometry, relu=False):
    """y = w * x + b, or max(0, that), for y of the given shape."""
    function = _function("convolve", x.dtype)
    if function is None or x.ndim > 4 or not prod(shape):
        return None
    y = np.empty(shape, x.dtype)
    if _winograd(x, w.shape, shape, *geometry):
        tiles = plans.tiles_of(x.shape, shape, geometry[1], False)
        _convolve_tiles(tiles, x, w, b, y, relu)
        return y
    plan = plans.forward(x.shape, w.shape, shape[2:], *geometry, True)
    _convolve(function, plan, x, w, b, y, relu)
    return y


def input_gradient(gy, w, x_shape, *geometry):
    """gx, the sweeps of gy that the stride's phases ask for."""
    function = _function("convolve", gy.dtype)
    if function is None or gy.ndim > 4 or not prod(x_shape) or not gy.size:
        return None
    gx = np.empty(x_shape, gy.dtype)
    if _winograd(gy, w.shape, x_shape, *geometry):
        padding = tuple(2 - p for p in geometry[1])
        tiles = plans.tiles_of(gy.shape, tuple(x_shape), padding, True)
        _convolve_tiles(tiles, gy, w, None, gx, False)
        return gx
    plan = plans.backward(gy.shape, w.shape, tuple(x_shape), *geometry)
    _convolve(function, plan, gy, w, None, gx, False)
    return gx


def weight_gradient(gy, x, gw, *geometry) -> bool:
    """Write gw, the sum over the batch of x and gy under each tap."""
    function = _function("weight_gradient", x.dtype)
    if function is None or x.ndim > 4 or not gw.flags.c_contiguous:
        return False
    if not gy.size or not gw.size:
        return False
    if _of_points(gw.shape, *geometry) and _product(gy, x, gw):
        return True
    plan = plans.forward(x.shape, gw.shape, gy.shape[2:], *geometry, False)
    parts = max(1, min(PARTS, len(x), plan.work // PART_WORK))
    x, gy = np.ascontiguousarray(x), np.ascontiguousarray(gy)
    addresses = map(compiler.pointer, (x, gy, gw))
    if _winograd(x, gw.shape, gy.shape, *geometry):
        tiles = plans.tiles_of(x.shape, gy.shape, geometry[1], False)
        function = _function("winograd_weight_gradient", x.dtype)
        function(*addresses, tiles, min(parts, TILE_PARTS), get_num_threads())
        return True
    function(*addresses, plan.images, plan.filters, plan.sweeps, parts, plan.threads())
    return True


def _of_points(w_shape, stride, padding, dilation, groups):
    """Whether each output sees one position, the same as its own."""
    return groups == 1 and set(w_shape[2:]) == set(stride) == {1} and not any(padding)


def _product(gy, x, gw) -> bool:
    """gw = sum over images of gy[n] x[n]^T, matrices (channels, positions)."""
    gy, x = (np.ascontiguousarray(a).reshape(*a.shape[:2], -1) for a in (gy, x))
    gw = gw.reshape(gw.shape[:2])
    return blas.sum_of_products(gy, x.swapaxes(1, 2), gw) is not None


def bias_gradient(gy, y=None):
    """(g, gb): gy (N, K, *out), which is 0 where y is given and not above 0, and the
    sum of that over all but K."""
    function = _function("bias_gradient", gy.dtype)
    if function is None or (y is not None and y.dtype != gy.dtype):
        return None
    n, k, *out = gy.shape
    gy, gb = np.ascontiguousarray(gy), np.empty(k, gy.dtype)
    g = gy if y is None else np.empty_like(gy)
    y = None if y is None else np.ascontiguousarray(y)
    threads = get_num_threads() if gy.size > plans.SERIAL_WORK else 1
    addresses = [None if a is None else compiler.pointer(a) for a in (gy, y, g, gb)]
    function(*addresses, n, k, prod(out), threads)
    return g, gb


def _convolve(function, plan, x, w, b, y, relu):
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    if b is not None:
        b = np.ascontiguousarray(b, x.dtype)
    addresses = [None if a is None else compiler.pointer(a) for a in (x, w, b, y)]
    tables = plan.images, plan.filters, plan.sweeps
    function(*addresses, *tables, plan.number, relu, plan.threads())


def _winograd(x, w_shape, shape, *geometry):
    """Whether tiles of 2 x 2 outputs are worth their transforms, and exact enough."""
    large = prod(shape[2:]) >= TILE_PIXELS
    return large and convolution_tiles.may_serve(x, w_shape, *geometry)


def _convolve_tiles(tiles, x, w, b, y, relu):
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    if b is not None:
        b = np.ascontiguousarray(b, x.dtype)
    addresses = [None if a is None else compiler.pointer(a) for a in (x, w, b, y)]
    function = _function("winograd_convolve", x.dtype)
    function(*addresses, tiles, relu, get_num_threads())


@cache
def _function(name, dtype):
    """The compiled function for arrays of this dtype, or None."""
    if not dtype.isnative or dtype not in DTYPES:
        return None
    source = "".join(loops.SOURCE for loops in _LOOPS)
    library = compiler.load(source, "-ffp-contract=fast")
    if library is None:
        return None
    memory.keep_freed()
    if not name.startswith("winograd"):
        name = f"{name}_{DTYPES[dtype]}"
    function = library[name]
    addresses, numbers = _SIGNATURES[name.removesuffix(f"_{DTYPES[dtype]}")]
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * addresses + [ctypes.c_int64] * numbers
    return function
