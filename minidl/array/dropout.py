"""Dropout of raw arrays: one launch forward on a GPU, one back."""

import numpy

from . import random
from .body import PREAMBLE
from .cuda_source import VECTOR, aligned, blocks, contiguous, empty, function
from .device import Array, device_of, on_gpu
from .dtypes import wide_type
from .kernel import Kernel
from .philox import random_mask

kept = Kernel("dropout", "x mask", "y", "scale", body="y = x * mask * scale;")

BLOCK = 256  # threads
# The bodies of the two kernels that a CPU runs one after the other. A thread has two
# times WIDTH elements, a block apart, whose loads are on their way together; the last
# ones have a thread each. at | k is at + k, and shows that four share their words.
_SOURCE = f"""
#define MINIDL_HD __device__ static inline
{PREAMBLE}{VECTOR}
typedef unsigned long long U;
MINIDL_HD bool chosen(U v_index, U v_seed, U v_draw, U v_start, U v_threshold) {{
    typedef U T;
    T v_mask = 0;
    {" ".join(random_mask.body.cpp)}
    return v_mask;
}}
template <int N, int UNITS> MINIDL_HD void part(
    const S* x, S* y, bool* mask, U first, U size,
    U seed, U draw, U start, U threshold, T v_scale
) {{
    Vector<S, N> s[UNITS];
    #pragma unroll
    for (int u = 0; u < UNITS; ++u) {{
        const U at = first + u * (BLOCK * N);
        if (at + N <= size) s[u] = *(const Vector<S, N>*)(x + at);
    }}
    #pragma unroll
    for (int u = 0; u < UNITS; ++u) {{
        const U at = first + u * (BLOCK * N);
        if (at + N > size) continue;
        Vector<bool, N> m;
        #pragma unroll
        for (int k = 0; k < N; ++k) {{
            m.at[k] = chosen(at | k, seed, draw, start, threshold);
            const T v_x = (T)s[u].at[k], v_mask = (T)m.at[k];
            T v_y = 0;
            {" ".join(kept.body.cpp)}
            s[u].at[k] = (S)v_y;
        }}
        *(Vector<S, N>*)(y + at) = s[u];
        *(Vector<bool, N>*)(mask + at) = m;
    }}
}}
extern "C" __global__ void dropout(
    const S* x, S* y, bool* mask, const NUMBER seed, const NUMBER draw, U start,
    U threshold, double scale, U size
) {{
    const U s = VALUE seed, d = VALUE draw;
    const U first = (blockIdx.x * (U)(BLOCK * 2) + threadIdx.x) * WIDTH;
    part<WIDTH, 2>(x, y, mask, first, size, s, d, start, threshold, scale);
    if (blockIdx.x < gridDim.x - 1) return;
    const U last = size / WIDTH * WIDTH + threadIdx.x;
    part<1, 1>(x, y, mask, last, size, s, d, start, threshold, scale);
}}
"""
_NUMBER = (("NUMBER", "unsigned long long"), ("VALUE", ""))
_ON_DEVICE = (("NUMBER", "unsigned long long*"), ("VALUE", "*"))


def dropout(x: Array, p: float) -> tuple[Array, Array]:
    """(x mask / (1 - p), mask): mask is one with probability 1 - p, the same bits on
    every device."""
    scale = 1 / (1 - float(p)) if p < 1 else 0.0
    if not on_gpu(x):
        mask = random.bernoulli(x.shape, 1 - p, device=device_of(x))
        return kept(x, mask, scale=scale), mask
    numbers = random.default_generator().next(device_of(x))
    threshold = round((1 - p) * 2**32)
    drawn = [numbers["seed"], numbers["draw"]]
    on_device = on_gpu(drawn[0])  # while a CUDA graph is recorded or rehearsed
    if not on_device:
        drawn = [numpy.uint64(number) for number in drawn]
    with x.device:
        x = contiguous(x)
        y, mask = empty(x.shape, x.dtype), empty(x.shape, numpy.bool_)
        width = 16 // x.dtype.itemsize if aligned(x) else 1
        types = ("S", x.dtype), ("T", wide_type(x.dtype))
        how = _ON_DEVICE if on_device else _NUMBER
        sizes = ("WIDTH", width), ("BLOCK", BLOCK)
        kernel = function(_SOURCE, types, (*sizes, *how), "dropout")
        rest = (numpy.uint64(numbers["start"]), numpy.uint64(threshold), scale, x.size)
        grid = (blocks(x.size, BLOCK * 2 * width),)
        kernel(grid, (BLOCK,), (x, y, mask, *drawn, *rest))
    return y, mask
