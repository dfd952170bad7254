"""Cross entropy on a GPU: one launch forward, one for the mean, one back."""

import numpy

from .cuda_softmax import STATISTICS
from .cuda_source import blocks, contiguous, empty, types_of
from .cuda_teams import launch, rows_of
from .device import Array
from .dtypes import wide_type

_CROSS_ENTROPY = (
    STATISTICS
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
