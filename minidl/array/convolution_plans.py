"""What lies where in a convolution that writes no columns; see `sweep_loops`."""

import ctypes
from functools import lru_cache
from itertools import product
from math import prod

from minidl.array import compiler
from minidl.array.threads import get_num_threads

SERIAL_WORK = 1 << 20  # multiplications below which threads cost more than they give


class Plan:
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

    def threads(self) -> int:
        return get_num_threads() if self.work > SERIAL_WORK else 1


@lru_cache(maxsize=256)
def forward(x_shape, w_shape, out, stride, padding, dilation, groups, joined):
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
    return Plan(images, filters, [(far, range(taps), target)], work)


@lru_cache(maxsize=256)
def backward(gy_shape, w_shape, x_shape, stride, padding, dilation, groups):
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
    return Plan(images, (*shape, *size), sweeps, work)


def _phases(size, out, kernel, stride, padding, dilation):
    """One dimension of `backward`: gy's padding before it, the length of its buffer,
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


@lru_cache(maxsize=256)
def tiles_of(x_shape, shape, padding, turned):
    """The struct Tiles; the input gradient is a convolution with turned weights."""
    n, c, *size = x_shape
    k, *out = shape[1:]
    strides = (9, 9 * k) if turned else (9 * c, 9)
    tiles = [-(-m // 2) for m in out]
    return compiler.int64_array(
        (n, c, k, *size, *padding, *out, *tiles, *strides, turned)
    )
