"""Softmax on a GPU: one launch forward, one back.

Rows are read twice, the second time from a cache: once for the largest element and the
sum, which grow together (Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018), and once for the results.
"""

import numpy

from .cuda_source import contiguous, empty
from .cuda_teams import launch, rows_of
from .device import Array

STATISTICS = """
#define LOWEST (-(T)__int_as_float(0x7f800000))
INLINE T power(T x, T top) { return top == LOWEST ? T(0) : exp(x - top); }
INLINE T larger(T a, T b) { return a > b || a != a ? a : b; }  // NaN if either is
struct Total {  // the largest x, and the sum of exp(x - top)
    T top, sum;
    __device__ Total joined(Total other) const {
        T most = larger(top, other.top);
        T sums = sum * power(top, most) + other.sum * power(other.top, most);
        return {most, sums};
    }
    __device__ Total from(int lane) const {
        return {from_lane(top, lane), from_lane(sum, lane)};
    }
};
INLINE Total total_of(const S* x, I classes, I inner) {
    Total all = {LOWEST, 0};
    Packed packs[AHEAD];
    EACH(AHEAD, u, j, classes, load(packs, x, first, classes, inner)) {
        const Some v = unpacked(packs[u]);
        T top = all.top;
        LANES(k) top = larger((T)v.at[k], top);
        all.sum *= power(all.top, top);
        LANES(k) all.sum += power((T)v.at[k], top);
        all.top = top;
    }
    return team(all);
}
// Where this row starts; the threads of rows that are not there have no elements.
#define START                                                        \\
    const I row = ROW;                                               \\
    const I at = row / inner * classes * inner + row % inner;        \\
    if (row >= rows) classes = 0;
"""
_SOFTMAX = (
    STATISTICS
    + """
// exp(x - top) / sum, its logarithm, or, `safe`, 0 where all elements are -inf
extern "C" __global__ void softmax(
    const S* x, S* y, I rows, I classes, I inner, int logarithm, int safe
) {
    START
    Total all = total_of(x + at, classes, inner);
    if (safe && all.top == LOWEST) all = {0, 1};
    const T last = logarithm ? log(all.sum) : all.sum;
    Packed packs[AHEAD];
    EACH(AHEAD, u, j, classes, load(packs, x + at, first, classes, inner)) {
        Some v = unpacked(packs[u]);
        LANES(k) {
            const T d = (T)v.at[k] - all.top;
            v.at[k] = (S)(logarithm ? d - last : exp(d) / last);
        }
        store(y + at + j * inner, v);
    }
}

// (g - sum(g y)) y; for the logarithm g - sum(g) exp(y)
extern "C" __global__ void softmax_gradient(
    const S* g, const S* y, S* gx, I rows, I classes, I inner, int logarithm
) {
    START
    T total = 0;
    Packed gs[TWO], ys[TWO];
    EACH(TWO, u, j, classes, load(gs, g + at, ys, y + at, first, classes, inner)) {
        const Some a = unpacked(gs[u]), b = unpacked(ys[u]);
        LANES(k) total += (T)a.at[k] * (logarithm ? T(1) : (T)b.at[k]);
    }
    total = team_sum(total);
    EACH(TWO, u, j, classes, load(gs, g + at, ys, y + at, first, classes, inner)) {
        Some a = unpacked(gs[u]);
        const Some b = unpacked(ys[u]);
        LANES(k) {
            const T d = (T)a.at[k], s = (T)b.at[k];
            a.at[k] = (S)(logarithm ? d - total * exp(s) : (d - total) * s);
        }
        store(gx + at + j * inner, a);
    }
}
"""
)


def softmax(x: Array, dim: int, logarithm: bool, safe: bool) -> Array:
    """Softmax along dim, or its logarithm; `safe`, 0 for rows of nothing but -inf."""
    x = contiguous(x)
    y = empty(x.shape, x.dtype)
    flags = numpy.int32(logarithm), numpy.int32(safe)
    launch(_SOFTMAX, "softmax", *rows_of(x, dim), (x, y), flags)
    return y


def softmax_gradient(g: Array, y: Array, dim: int, logarithm: bool) -> Array:
    """The gradient of x, given y."""
    g, y = contiguous(g, y.dtype), contiguous(y)
    gx = empty(y.shape, y.dtype)
    flags = (numpy.int32(logarithm),)
    launch(_SOFTMAX, "softmax_gradient", *rows_of(y, dim), (g, y, gx), flags)
    return gx
