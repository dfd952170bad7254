"""Pooling on a GPU: one launch forward, one back, a thread an element of the result.

Going back, an element of x looks up the windows that it was in: nothing is written
twice, and sums have the order of `pooling`, the last window first.
"""

import numpy

from .cuda_layout import in_memory, like_that, made, usual
from .cuda_source import blocks, function, types_of
from .device import Array, on_gpu

BLOCK = 256  # threads

# Every geometry has three dimensions, the first ones of size 1 where there are fewer.
_SOURCE = """
#define INLINE __device__ static inline
#define LOWEST (-(T)__int_as_float(0x7f800000))
#define PICK(d, ...) PICK_(d, __VA_ARGS__)
#define PICK_(d, a, b, c) ((d) == 0 ? (a) : (d) == 1 ? (b) : (c))
#define TAP(d) PICK(d, TAPS)
#define STRIDE(d) PICK(d, STRIDES)
#define PADDING(d) PICK(d, PADDINGS)
#define GAP(d) PICK(d, DILATIONS)
struct Sizes { I x[3], y[3]; };  // of a plane of x and of y
#define SIZE(s) (s[0] * s[1] * s[2])

// Element n of planes that lie one after another, or, `channels` > 1, side by side.
struct Place {
    I at[3], flat, plane, channel, channels;
    __device__ Place(I n, const I* size, I channels) : channels(channels) {
        channel = n % channels;
        flat = n / channels % SIZE(size);
        plane = n / channels / SIZE(size);
        at[2] = flat % size[2];
        at[1] = flat / size[2] % size[1];
        at[0] = flat / size[2] / size[1];
    }
    // where element `position` of the same plane lies in an array of that size
    __device__ I in(const I* size, I position) const {
        return (plane * SIZE(size) + position) * channels + channel;
    }
};
INLINE I first_of(int d, I o) { return o * STRIDE(d) - PADDING(d); }
// the first position in x of window o, which is in the padding if there is none
INLINE I inside(int d, I o) {
    const I at = first_of(d, o), skip = (GAP(d) - 1 - min(at, (I)0)) / GAP(d);
    return at + min(skip, (I)(TAP(d) - 1)) * GAP(d);
}
// windows of dimension d that may hold position p: from low, up to high
INLINE I low(int d, I p) {
    const I reach = p + PADDING(d) - GAP(d) * (TAP(d) - 1);
    return reach <= 0 ? 0 : (reach + STRIDE(d) - 1) / STRIDE(d);
}
INLINE I high(int d, I p, I out) {
    return min((p + PADDING(d)) / STRIDE(d), out - 1);
}
// what each kernel begins with: this thread's element n of the result, at `place` there
#define BEGIN(place, result)                                 \\
    const Sizes sizes = {{x0, x1, x2}, {y0, y1, y2}};        \\
    const I n = blockIdx.x * (I)blockDim.x + threadIdx.x;    \\
    if (n >= count) return;                                  \\
    const Place place(n, sizes.result, channels);
#define EACH_TAP(d, k, p, o) \\
    for (int k = 0; k < TAP(d); ++k) \\
        if (const I p = first_of(d, o) + k * GAP(d); p >= 0 && p < sizes.x[d])
#define EACH_WINDOW(d, o, p) \\
    for (I o = high(d, p, sizes.y[d]), end##d = low(d, p); o >= end##d; --o)

extern "C" __global__ void max_forward(
    const S* x, S* y, int* where, I count, I channels,
    I x0, I x1, I x2, I y0, I y1, I y2
) {
    BEGIN(o, y)
    T best = LOWEST;
    I found = (inside(0, o.at[0]) * x1 + inside(1, o.at[1])) * x2 + inside(2, o.at[2]);
    EACH_TAP(0, i, a, o.at[0]) EACH_TAP(1, j, b, o.at[1]) EACH_TAP(2, k, c, o.at[2]) {
        const I here = (a * x1 + b) * x2 + c;
        const T v = (T)x[o.in(sizes.x, here)];
        if (v > best || v != v) best = v, found = here;
    }
    y[n] = (S)best;
    where[n] = (int)found;
}

extern "C" __global__ void max_backward(
    const S* gy, const int* where, S* gx, I count, I channels,
    I x0, I x1, I x2, I y0, I y1, I y2
) {
    BEGIN(p, x)
    T total = 0;
    EACH_WINDOW(0, a, p.at[0]) EACH_WINDOW(1, b, p.at[1]) EACH_WINDOW(2, c, p.at[2]) {
        const I here = p.in(sizes.y, (a * y1 + b) * y2 + c);
        if (where[here] == p.flat) total += (T)gy[here];
    }
    gx[n] = (S)total;
}

// what a window's sum is divided by
INLINE T divisor(const Sizes& sizes, I a, I b, I c, int counted, int given) {
    if (given) return (T)given;
    const I o[] = {a, b, c};
    I all = 1;
    for (int d = 0; d < 3; ++d) {
        I from = first_of(d, o[d]), to = min(from + TAP(d), sizes.x[d] + PADDING(d));
        if (!counted) from = max(from, (I)0), to = min(to, sizes.x[d]);
        all *= to - from;
    }
    return (T)all;
}

extern "C" __global__ void average_forward(
    const S* x, S* y, I count, I channels,
    I x0, I x1, I x2, I y0, I y1, I y2, int counted, int given
) {
    BEGIN(o, y)
    T total = 0;
    EACH_TAP(0, i, a, o.at[0]) EACH_TAP(1, j, b, o.at[1]) EACH_TAP(2, k, c, o.at[2])
        total += (T)x[o.in(sizes.x, (a * x1 + b) * x2 + c)];
    y[n] = (S)(total / divisor(sizes, o.at[0], o.at[1], o.at[2], counted, given));
}

extern "C" __global__ void average_backward(
    const S* gy, S* gx, I count, I channels,
    I x0, I x1, I x2, I y0, I y1, I y2, int counted, int given
) {
    BEGIN(p, x)
    T total = 0;
    EACH_WINDOW(0, a, p.at[0]) EACH_WINDOW(1, b, p.at[1]) EACH_WINDOW(2, c, p.at[2])
        total += (T)gy[p.in(sizes.y, (a * y1 + b) * y2 + c)]
            / divisor(sizes, a, b, c, counted, given);
    gx[n] = (S)total;
}
"""


def serves(x: Array) -> bool:
    """Whether the kernels take such arrays: real numbers in at most 3 dimensions."""
    return on_gpu(x) and x.dtype.kind not in "biu" and x.ndim <= 5


def max_forward(x: Array, shape, window) -> tuple[Array, Array]:
    """y of this shape, and where in its plane each maximum was."""
    x, last = in_memory(x)
    y, where = made(shape, x.dtype, last), made(shape, numpy.int32, last)
    _launch("max_forward", (x, y, where), y, (x, y), last, window)
    return usual(y, last), usual(where, last)


def max_backward(gy: Array, where: Array, x_shape, window) -> Array:
    """Each gy added at the place that its maximum came from."""
    where, last = in_memory(where)
    gy, gx = like_that(gy, last), made(x_shape, gy.dtype, last)
    _launch("max_backward", (gy, where, gx), gx, (gx, gy), last, window)
    return usual(gx, last)


def average_forward(x: Array, shape, window, counted: bool, given: int | None) -> Array:
    """The sum of each window over `given`, or over the number of its elements."""
    x, last = in_memory(x)
    y = made(shape, x.dtype, last)
    _launch("average_forward", (x, y), y, (x, y), last, window, counted, given or 0)
    return usual(y, last)


def average_backward(gy: Array, x_shape, window, counted, given: int | None) -> Array:
    """Each gy spread evenly over its window."""
    gy, last = in_memory(gy)
    gx = made(x_shape, gy.dtype, last)
    _launch(
        "average_backward", (gy, gx), gx, (gx, gy), last, window, counted, given or 0
    )
    return usual(gx, last)


def _launch(name, arrays, result, sides, last: bool, window, *rest) -> None:
    """A thread for each element of the result; `sides` have the shapes of x and y."""
    if not result.size:
        return
    types = types_of(max(sides, key=lambda array: array.size))
    integer = types[2][1].type
    numbers = tuple(
        (name, ", ".join(map(str, (*[usual] * (3 - len(values)), *values))))
        for name, values, usual in zip(
            ("TAPS", "STRIDES", "PADDINGS", "DILATIONS"),
            window,
            (1, 1, 0, 1),
            strict=True,
        )
    )
    sizes = []
    for side in sides:
        size = side.shape[1:-1] if last else side.shape[2:]
        sizes += [1] * (3 - len(size)) + list(size)
    channels = result.shape[-1] if last else 1
    args = map(integer, (result.size, channels, *sizes))
    function(_SOURCE, types, numbers, name)(
        (blocks(result.size, BLOCK),),
        (BLOCK,),
        (*arrays, *args, *map(numpy.int32, rest)),
    )
