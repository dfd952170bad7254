"""Convolution on a CPU with a compiler, in one call for each of its three operations.

Nothing is lowered to a matrix: an image is copied into a padded buffer, where each
tap is a fixed distance away from its output (`sweep_loops`). What lies where is
worked out here, once for a geometry. Every sum is taken in an order that depends on
the shapes alone, so results are the same for any number of threads.

Serves float32 and float64 in one or two dimensions; each function answers None or
False for what it cannot serve, and `convolution_cpu` does the same in NumPy.
"""

import ctypes
from functools import cache, lru_cache
from itertools import product
from math import prod

import numpy as np

from minidl.array import compiler
from minidl.array.sweep_loops import SOURCE
from minidl.array.threads import get_num_threads
from minidl.array.winograd_loops import SOURCE as TILES

PARTS = 16  # at most, that a weight gradient's sum over the batch is made of
PART_WORK = 1 << 20  # multiplications that are worth a part of their own
SERIAL_WORK = 1 << 17  # multiplications below which threads cost more than they give
TILE_CHANNELS, TILE_PIXELS = 16, 128  # from which 2 x 2 outputs at a time pay
TILE_PARTS = 8  # each is almost twice as large
_SIGNATURES = {  # how many addresses, how many numbers
    "convolve": (7, 2),
    "weight_gradient": (6, 2),
    "bias_gradient": (2, 4),
    "winograd_convolve": (5, 1),
    "winograd_weight_gradient": (4, 2),
}
DTYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


def forward(x, w, b, shape, *geometry):
    """y = w * x + b for y of the given shape."""
    function = _function("convolve", x.dtype)
    if function is None or x.ndim > 4 or not prod(shape):
        return None
    y = np.empty(shape, x.dtype)
    if _winograd(x, w.shape, shape, *geometry):
        tiles = _tiles(x.shape, shape, geometry[1], False)
        _convolve_tiles(tiles, x, w, b, y)
        return y
    plan = _forward(x.shape, w.shape, shape[2:], *geometry, True)
    _convolve(function, plan, x, w, b, y)
    return y


def input_gradient(gy, w, x_shape, *geometry):
    """gx, the sweeps of gy that the stride's phases ask for."""
    function = _function("convolve", gy.dtype)
    if function is None or gy.ndim > 4 or not prod(x_shape) or not gy.size:
        return None
    gx = np.empty(x_shape, gy.dtype)
    if _winograd(gy, w.shape, x_shape, *geometry):
        padding = tuple(2 - p for p in geometry[1])
        tiles = _tiles(gy.shape, tuple(x_shape), padding, True)
        _convolve_tiles(tiles, gy, w, None, gx)
        return gx
    plan = _backward(gy.shape, w.shape, tuple(x_shape), *geometry)
    _convolve(function, plan, gy, w, None, gx)
    return gx


def weight_gradient(gy, x, gw, *geometry) -> bool:
    """Write gw, the sum over the batch of x and gy under each tap."""
    function = _function("weight_gradient", x.dtype)
    if function is None or x.ndim > 4 or not gw.flags.c_contiguous:
        return False
    if not gy.size or not gw.size:
        return False
    plan = _forward(x.shape, gw.shape, gy.shape[2:], *geometry, False)
    parts = max(1, min(PARTS, len(x), plan.work // PART_WORK))
    x, gy = np.ascontiguousarray(x), np.ascontiguousarray(gy)
    addresses = map(compiler.pointer, (x, gy, gw))
    if _winograd(x, gw.shape, gy.shape, *geometry):
        tiles = _tiles(x.shape, gy.shape, geometry[1], False)
        function = _function("winograd_weight_gradient", x.dtype)
        function(*addresses, tiles, min(parts, TILE_PARTS), get_num_threads())
        return True
    function(*addresses, plan.images, plan.filters, plan.sweeps, parts, plan.threads())
    return True


def bias_gradient(gy):
    """The sum of gy (N, K, *out) over all but K."""
    function = _function("bias_gradient", gy.dtype)
    if function is None:
        return None
    n, k, *out = gy.shape
    gy, gb = np.ascontiguousarray(gy), np.empty(k, gy.dtype)
    threads = get_num_threads() if gy.size > SERIAL_WORK else 1
    addresses = compiler.pointer(gy), compiler.pointer(gb)
    function(*addresses, n, k, prod(out), threads)
    return gb


def _convolve(function, plan, x, w, b, y):
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    if b is not None:
        b = np.ascontiguousarray(b, x.dtype)
    addresses = [None if a is None else compiler.pointer(a) for a in (x, w, b, y)]
    number = plan.number
    function(*addresses, plan.images, plan.filters, plan.sweeps, number, plan.threads())


def _winograd(x, w_shape, shape, stride, padding, dilation, groups):
    """Whether tiles of 2 x 2 outputs are worth their transforms, and exact enough."""
    return (
        tuple(w_shape[2:]) == (3, 3)
        and x.dtype == np.float32
        and (stride, dilation, groups) == ((1, 1), (1, 1), 1)
        and max(padding) <= 2
        and min(w_shape[:2]) >= TILE_CHANNELS
        and prod(shape[2:]) >= TILE_PIXELS
    )


@lru_cache(maxsize=256)
def _tiles(x_shape, shape, padding, turned):
    """The struct Tiles; the input gradient is a convolution with turned weights."""
    n, c, *size = x_shape
    k, *out = shape[1:]
    strides = (9, 9 * k) if turned else (9 * c, 9)
    tiles = [-(-m // 2) for m in out]
    return compiler.int64_array(
        (n, c, k, *size, *padding, *out, *tiles, *strides, turned)
    )


def _convolve_tiles(tiles, x, w, b, y):
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    if b is not None:
        b = np.ascontiguousarray(b, x.dtype)
    addresses = [None if a is None else compiler.pointer(a) for a in (x, w, b, y)]
    _function("winograd_convolve", x.dtype)(*addresses, tiles, get_num_threads())


@cache
def _function(name, dtype):
    """The compiled function for arrays of this dtype, or None."""
    if not dtype.isnative or dtype not in DTYPES:
        return None
    library = compiler.load(SOURCE + TILES, "-ffp-contract=fast")
    if library is None:
        return None
    if not name.startswith("winograd"):
        name = f"{name}_{DTYPES[dtype]}"
    function = library[name]
    addresses, numbers = _SIGNATURES[name.removesuffix(f"_{DTYPES[dtype]}")]
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * addresses + [ctypes.c_int64] * numbers
    return function


class _Plan:
    """The structs Images, Filters and Sweep of the C++ code, for one geometry."""

    def __init__(self, images, filters, sweeps, work):
        self.images, self.filters = (
            compiler.int64_array(images),
            compiler.int64_array(filters),
        )
        self.work, self.number = work, len(sweeps)
        self.tables = [
            (compiler.int64_array(far), compiler.int64_array(taps))
            for far, taps, _ in sweeps
        ]
        fields = []
        for (far, taps), (_, _, target) in zip(self.tables, sweeps, strict=True):
            fields += [len(far), *target, *map(ctypes.addressof, (far, taps))]
        self.sweeps = compiler.int64_array(fields)

    def threads(self):
        return get_num_threads() if self.work > SERIAL_WORK else 1


@lru_cache(maxsize=256)
def _forward(x_shape, w_shape, out, stride, padding, dilation, groups, joined):
    """One sweep. Padded inputs are dealt to as many phases as the stride is long, so
    that the inputs of neighbouring outputs are neighbours."""
    n, channels, *size = x_shape
    k, c, *kernel = w_shape
    work = prod(w_shape) * prod(out) * n
    size, kernel, out = _two(size, 1), _two(kernel, 1), _two(out, 1)
    stride, padding, dilation = _two(stride, 1), _two(padding, 0), _two(dilation, 1)
    height, width = (
        -(-(m + 2 * p) // s) for m, p, s in zip(size, padding, stride, strict=True)
    )
    line, shared = width, stride[1] == 1 and out[1] <= size[1] + padding[1]
    if shared:  # the padding right of a row is the padding left of the next
        line = size[1] + padding[1]
    phase = height * line + (padding[1] if shared else 0)
    far = [
        (i * dilation[0] % stride[0] * stride[1] + j * dilation[1] % stride[1]) * phase
        + i * dilation[0] // stride[0] * line
        + j * dilation[1] // stride[1]
        for i, j in product(*map(range, kernel))
    ]
    target = (*out, 0, 0, 1, 1, line)
    plane = stride[0] * stride[1] * phase
    if joined and line == out[1]:  # rows without gaps between them are one
        target = (1, prod(out), 0, 0, 1, 1, prod(out))
    in_place = plane == prod(size) == prod(out) and plane % 16 == 0
    images = (
        n,
        channels,
        *size,
        *padding,
        *stride,
        line,
        phase,
        plane * (not in_place),
    )
    taps = prod(kernel)
    filters = (groups, k // groups, c, k // groups * c * taps, c * taps, taps, 1)
    filters += out
    return _Plan(images, filters, [(far, range(taps), target)], work)


@lru_cache(maxsize=256)
def _backward(gy_shape, w_shape, x_shape, stride, padding, dilation, groups):
    """A sweep for each phase of the stride: inputs i = m * stride + r - padding meet
    the taps t with t * dilation = u * stride + r, and gy at m - u."""
    n, filters, *out = gy_shape
    k, c, *kernel = w_shape
    work = prod(w_shape) * prod(out) * n
    size, kernel, out = _two(x_shape[2:], 1), _two(kernel, 1), _two(out, 1)
    stride, padding, dilation = _two(stride, 1), _two(padding, 0), _two(dilation, 1)
    axes = [
        _phases(*axis)
        for axis in zip(size, out, kernel, stride, padding, dilation, strict=True)
    ]
    (top, height, rows), (left, line, columns) = axes
    # the padding right of a row is the padding left of the next
    line = max(line - left, out[1] + left, *(count for _, count, _, _ in columns))
    phase = height * line + left
    sweeps = []
    for (first, m, row, us), (second, o, column, vs) in product(rows, columns):
        if m > 0 and o > 0:
            near = [
                ((top + first - u) * line + left + second - v, i * kernel[1] + j)
                for (i, u), (j, v) in product(us, vs)
            ]
            far, taps = ([pair[i] for pair in near] for i in (0, 1))
            sweeps.append((far, taps, (m, o, row, column, *stride, line)))
    in_place = (
        phase == prod(out) == prod(size)
        and sweeps[0][0] == [0]
        and len(sweeps) == 1
        and phase % 16 == 0
    )
    if in_place:
        far, taps, (m, o, *rest, _) = sweeps[0]
        sweeps = [(far, taps, (1, m * o, *rest, m * o))]
    images = (n, filters, *out, top, left, 1, 1, line, phase, phase * (not in_place))
    taps = prod(kernel)
    shape = (groups, c, k // groups, k // groups * c * taps, taps, c * taps, 1)
    return _Plan(images, (*shape, *size), sweeps, work)


def _phases(size, out, kernel, stride, padding, dilation):
    """One dimension of `_backward`: gy's padding before it, the length of its buffer,
    and for each phase: the first m, how many, the first input, the taps (t, u)."""
    phases = []
    for r in range(stride):
        us = [(t, t * dilation // stride) for t in range(kernel)]
        us = [(t, u) for t, u in us if t * dilation % stride == r]
        first = -(-(padding - r) // stride)
        count = -(-(size + padding - r) // stride) - first
        phases.append((first, count, first * stride + r - padding, us))
    lowest = min([p[0] - u for p in phases for _, u in p[3]] + [0])
    highest = max([p[0] + p[1] for p in phases if p[3]] + [out])
    return -lowest, highest - lowest, phases


def _two(values, fill):
    return (fill,) * (2 - len(values)) + tuple(values)
