"""Normalisation of rows on a GPU: one launch forward, one back for the rows."""

from math import prod
from typing import NamedTuple

import numpy

from .cuda_channels import Channels
from .cuda_norm_source import MOMENTS
from .cuda_norm_source import SOURCE as OVER_CHANNELS
from .cuda_source import aligned, contiguous, empty, types_of
from .cuda_teams import launch
from .device import Array

# Row r and position j have the parameter (r % period) * size + j / span.
_SOURCE = (
    MOMENTS
    + """
#define PARAMETER(p, j) (T)(p)[row % period * size + (span == 1 ? (j) : (j) / span)]
// of the pack at j, read as packs where each position has its own
typedef Vector<P, VECTOR> Own;
#define PARAMETERS(to, p, j)                                            \\
    if (span == 1) {                                                    \\
        const Own own = *(const Own*)(p + row % period * size + j);     \\
        LANES(n) to[n] = (T)own.at[n];                                  \\
    } else LANES(n) to[n] = PARAMETER(p, j + n);
struct Scattered : Moments {
    __device__ Scattered joined(Scattered other) const {
        return {Moments::joined(other)};
    }
    __device__ Scattered from(int lane) const {
        return {{from_lane(count, lane), from_lane(mean, lane),
                 from_lane(squares, lane)}};
    }
};
extern "C" __global__ void standardize_rows(
    const S* x, S* y, I rows, I length, I inner, const P* w, const P* b,
    T* means, T* vars, I period, I size, I span, int centred, double eps
) {
    const I row = ROW, at = row * length, count = row < rows ? length : 0;
    Gathering mine = {};
    Packed xs[AHEAD];
    EACH(AHEAD, u, j, count, load(xs, x + at, first, count)) {
        const Some v = unpacked(xs[u]);
        LANES(k) mine.add((T)v.at[k]);
    }
    const Moments all = team(Scattered{mine.done()});
    const T mean = centred ? all.mean : T(0);
    T var = all.squares / length;
    if (!centred) var += all.mean * all.mean;
    const T root = 1 / sqrt(var + (T)eps);
    if (count && LANE == 0) means[row] = mean, vars[row] = var;
    EACH(AHEAD, u, j, count, load(xs, x + at, first, count)) {
        Some v = unpacked(xs[u]);
        T scale[VECTOR], shift[VECTOR] = {};
        if (w) PARAMETERS(scale, w, j)
        if (b) PARAMETERS(shift, b, j)
        LANES(k) {
            const T factor = w ? root * scale[k] : root;
            v.at[k] = (S)(((T)v.at[k] - mean) * factor + shift[k]);
        }
        store(y + at + j, v);
    }
}

// With gws the parameters are constant along rows: gws = sum(g xhat), gbs = sum(g).
extern "C" __global__ void rows_gradient(
    const S* g, const S* x, S* gx, I rows, I length, I inner, const P* w,
    const T* means, const T* vars, T* gws, T* gbs, I period, I size, I span,
    int centred, double eps
) {
    const I row = ROW, at = row * length, count = row < rows ? length : 0;
    const T mean = count ? means[row] : T(0);
    const T root = count ? 1 / sqrt(vars[row] + (T)eps) : T(0);
    const P* inside = gws ? nullptr : w;
    T along = 0, offset = 0;
    Packed gs[TWO], xs[TWO];
    EACH(TWO, u, j, count, load(gs, g + at, xs, x + at, first, count)) {
        const Some a = unpacked(gs[u]), v = unpacked(xs[u]);
        T scale[VECTOR];
        if (inside) PARAMETERS(scale, inside, j)
        LANES(k) {
            T h = (T)a.at[k];
            if (inside) h *= scale[k];
            offset += h;
            along += h * (((T)v.at[k] - mean) * root);
        }
    }
    along = team_sum(along);
    offset = team_sum(offset);
    if (gws && count && LANE == 0) gws[row] = along, gbs[row] = offset;
    const T last = gws && w && count ? root * PARAMETER(w, 0) : root;
    along /= length;
    offset = centred ? offset / length : T(0);
    EACH(TWO, u, j, count, load(gs, g + at, xs, x + at, first, count)) {
        Some a = unpacked(gs[u]);
        const Some v = unpacked(xs[u]);
        T scale[VECTOR];
        if (inside) PARAMETERS(scale, inside, j)
        LANES(k) {
            T h = (T)a.at[k];
            if (inside) h *= scale[k];
            const T d = ((T)v.at[k] - mean) * root;
            a.at[k] = (S)((h - offset - d * along) * last);
        }
        store(gx + at + j, a);
    }
}
"""
)


class Parameters(NamedTuple):
    """Row r and position j have the parameter (r % period) * size + j / span."""

    period: int
    size: int
    span: int


def parameters_of(p: Array | None, shape, first: int) -> Parameters | None:
    """For a parameter that broadcasts to `shape`, whose rows are the dimensions from
    `first` on; None where it is none of these."""
    if p is None:
        return Parameters(1, 1, prod(shape[first:]))
    whole = (1,) * (len(shape) - p.ndim) + p.shape
    lead, rest = whole[:first], whole[first:]
    period, size = prod(lead), prod(rest)
    suffix = next((k for k in range(first + 1) if prod(shape[k:first]) == period), None)
    if suffix is None or lead != (1,) * suffix + tuple(shape[suffix:first]):
        return None
    prefix = next(k for k in range(len(rest) + 1) if prod(rest[:k]) == size)
    if rest[:prefix] != tuple(shape[first : first + prefix]):
        return None
    return Parameters(period, size, prod(shape[first:]) // size)


def forward(x: Array, w, b, dims, eps: float, centred: bool) -> tuple | None:
    """(y, mean, var), as `standardize` gives them, over the last dims alone."""
    first = x.ndim - len(dims)
    walk = parameters_of(b if w is None else w, x.shape, first)
    same = w is None or b is None or w.shape == b.shape
    if tuple(dims) != tuple(range(first, x.ndim)) or walk is None or not same:
        return None
    x = contiguous(x)
    _, (_, wide), (_, integer) = types_of(x)
    kind = next((p.dtype for p in (w, b) if p is not None), x.dtype)
    w, b = (_parameter(p, kind) for p in (w, b))
    shape = (*x.shape[:first], *[1] * len(dims))
    y = empty(x.shape, x.dtype)
    mean, var = (empty(shape, wide) for _ in range(2))
    rest = (w, b, mean, var, *map(integer.type, walk), numpy.int32(centred), float(eps))
    sizes, types = (mean.size, prod(x.shape[first:]), 1), (("P", kind),)
    launch(_SOURCE, "standardize_rows", *sizes, (x, y), rest, types)
    return y, mean, var


def backward(g: Array, x: Array, w, mean, var, dims, eps: float, centred: bool):
    """The gradients of x, w and b, those of w and b with all dims that they need."""
    first = x.ndim - len(dims)
    walk = parameters_of(w, x.shape, first)
    if tuple(dims) != tuple(range(first, x.ndim)) or walk is None:
        return None
    if walk.span == 1 and walk.period > 1:
        return None
    g, x = contiguous(g, x.dtype), contiguous(x)
    _, (_, wide), (_, integer) = types_of(x)
    kind = x.dtype if w is None else w.dtype
    given, w = w, _parameter(w, kind)
    gx, gw, gb = empty(x.shape, x.dtype), 0, 0
    if walk.size == 1:
        gw, gb = (empty(mean.shape, wide) for _ in range(2))
    numbers = (*map(integer.type, walk), numpy.int32(centred), float(eps))
    rest = (w, mean, var, gw, gb, *numbers)
    sizes, types = (mean.size, prod(x.shape[first:]), 1), (("P", kind),)
    launch(_SOURCE, "rows_gradient", *sizes, (g, x, gx), rest, types)
    if walk.size > 1:
        gw, gb = _parameter_sums(g, x, mean, var, walk, first, given.shape, eps)
    return gx, gw, gb


def _parameter(p: Array | None, kind):
    """An array of that type that can be read as packs; 0 is the null pointer."""
    if p is None:
        return 0
    p = contiguous(p, kind)
    return p if aligned(p) else p.copy()


def _parameter_sums(g, x, mean, var, walk, first, shape, eps) -> list:
    """sum(g xhat) and sum(g) over the elements that share a parameter and a row, or
    over all rows, where a parameter is that of a position."""
    rows, length = mean.size, prod(x.shape[first:])
    if walk.span == 1:
        sizes, group = (rows, length, 1), 0
    else:
        sizes, group = (1, rows * walk.size, walk.span), walk.size
        shape = (*x.shape[:first], *shape[len(shape) - (x.ndim - first) :])
    channels = Channels(*sizes, x.dtype, g, x)
    shares = channels.partial(2)
    group = channels.integer(group)
    channels.launch(OVER_CHANNELS, "sums", (g, x, mean, var, shares), group, float(eps))
    plain, along = shares.sum(axis=0).T
    return [along.reshape(shape), plain.reshape(shape)]
