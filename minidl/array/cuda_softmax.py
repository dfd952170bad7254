"""Softmax and cross entropy on a GPU: one launch each, forward and backward.

Rows are read twice, the second time from a cache: once for the largest element and the
sum, which grow together (Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018), and once for the results.
"""

import numpy

from .cuda_source import blocks, contiguous, empty, types_of
from .cuda_teams import launch, rows_of
from .device import Array
from .dtypes import wide_type

_STATISTICS = """
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
    _STATISTICS
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
_CROSS_ENTROPY = (
    _STATISTICS
    + """
// 1 for a label that counts, 0 for one that is ignored, NaN for one out of range
INLINE T weight(long long label, long long ignored, I classes) {
    if (label == ignored) return 0;
    return label < 0 || label >= classes ? (T)__int_as_float(0x7fffffff) : T(1);
}

extern "C" __global__ void cross_entropy(
    const S* x, S* p, I rows, I classes, I inner, const L* labels, long long ignored,
    double own, double even, S* terms
) {
    START
    const Total all = total_of(x + at, classes, inner);
    T rest = 0;
    Packed packs[AHEAD];
    EACH(AHEAD, u, j, classes, load(packs, x + at, first, classes, inner)) {
        Some v = unpacked(packs[u]);
        LANES(k) {
            const T d = (T)v.at[k] - all.top;
            rest += d;
            v.at[k] = (S)(exp(d) / all.sum);
        }
        store(p + at + j * inner, v);
    }
    // of all threads or none; 0 times an infinite rest would be NaN
    rest = even ? (T)even * team_sum(rest) : T(0);
    if (classes && LANE == 0) {
        const long long label = labels[row];
        T term = weight(label, ignored, classes);
        if (term == 1) {
            const T d = (T)x[at + (I)label * inner] - all.top;
            term = log(all.sum) - ((T)own * d + rest);
        }
        terms[row] = (S)term;
    }
}

extern "C" __global__ void deviation(
    const S* p, S* y, I rows, I classes, I inner, const L* labels, long long ignored,
    double own, double even, const S* g, long long step
) {
    START
    const long long label = classes ? (long long)labels[row] : 0;
    T slope = classes ? weight(label, ignored, classes) : T(0);
    if (slope == 1) slope = (T)g[row * step];
    Packed packs[AHEAD];
    EACH(AHEAD, u, j, classes, load(packs, p + at, first, classes, inner)) {
        Some v = unpacked(packs[u]);
        LANES(k) {
            const T product = ((T)v.at[k] - (T)even) * slope;
            v.at[k] = (S)(j + k == label ? product - (T)own * slope : product);
        }
        store(y + at + j * inner, v);
    }
}
"""
)
_COUNTED = """
struct Both {
    T total;
    long long count;
    __device__ Both joined(Both other) const {
        return {total + other.total, count + other.count};
    }
    __device__ Both from(int lane) const {
        return {from_lane(total, lane), from_lane(count, lane)};
    }
};
// The terms, `size` of them, of each team, and how many have a label that counts; where
// there is one team, the mean.
extern "C" __global__ void counted_mean(
    const S* terms, I teams, I share, I inner, const L* labels, long long ignored,
    I size, T* totals, T* counts, S* mean
) {
    const I team_number = ROW, end = min((team_number + 1) * share, size);
    Both all = {0, 0};
    for (I n = team_number * share + LANE; n < end; n += TEAM)
        all = all.joined({(T)terms[n], (long long)labels[n] != ignored});
    all = team(all);
    if (team_number >= teams || LANE) return;
    totals[team_number] = all.total, counts[team_number] = (T)all.count;
    if (teams == 1) *mean = (S)(all.total / (T)all.count);
}
"""
SHARE = 1 << 14  # terms that one team adds up


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


def cross_entropy(
    x: Array, labels: Array, smoothing: float, ignored: int
) -> tuple[Array, Array]:
    """(-sum(target log softmax(x)) over dim 1, softmax(x))"""
    x = contiguous(x)
    p, terms = empty(x.shape, x.dtype), empty(labels.shape, x.dtype)
    _with_labels("cross_entropy", x, p, labels, smoothing, ignored, terms)
    return terms, p


def deviation(
    g: Array, p: Array, labels: Array, smoothing: float, ignored: int
) -> Array:
    """(p - target) g"""
    p = contiguous(p)
    step = numpy.int64(1)
    if g.dtype == p.dtype and not any(g.strides):  # one number, spread out
        step = numpy.int64(0)
    else:
        g = contiguous(g, p.dtype)
    y = empty(p.shape, p.dtype)
    _with_labels("deviation", p, y, labels, smoothing, ignored, g, step)
    return y


def _with_labels(name, x, y, labels, smoothing, ignored, *rest):
    """Launch a kernel from x to y; target = own one_hot(label) + even."""
    target = 1.0 - smoothing, smoothing / max(x.shape[1], 1)
    rest = contiguous(labels), numpy.int64(ignored), *target, *rest
    types = (("L", labels.dtype),)
    launch(_CROSS_ENTROPY, name, *rows_of(x, 1), (x, y), rest, types)


def counted_mean(
    terms: Array, labels: Array, ignored: int
) -> tuple[Array, Array, Array]:
    """(total, count, mean) of the terms whose labels count; one launch for a batch."""
    terms, types = contiguous(terms), (("L", labels.dtype),)
    teams = max(1, blocks(terms.size, SHARE))
    share = blocks(terms.size, teams)
    wide = wide_type(terms.dtype)
    totals, counts = empty(teams, wide), empty(teams, wide)
    mean = empty((), terms.dtype)
    size = types_of(terms)[2][1].type(terms.size)
    rest = contiguous(labels), numpy.int64(ignored), size, totals, counts, mean
    launch(_COUNTED, "counted_mean", teams, share, 1, (terms,), rest, types)
    if teams == 1:
        return totals.reshape(()), counts.reshape(()), mean
    total, count = totals.sum(), counts.sum()
    return total, count, (total / count).astype(terms.dtype, copy=False)
