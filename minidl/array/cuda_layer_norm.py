"""Normalisation of rows on a GPU: one launch forward, one back for the rows."""

from math import prod
from typing import NamedTuple

import numpy

from .cuda_channels import Channels
from .cuda_norm_source import MOMENTS
from .cuda_norm_source import SOURCE as OVER_CHANNELS
from .cuda_source import contiguous, empty, types_of
from .cuda_teams import launch
from .device import Array

# Row r and position j have the parameter (r % period) * size + j / span.
_SOURCE = (
    MOMENTS
    + """
#define PARAMETER(p, j) (T)(p)[row % period * size + (span == 1 ? (j) : (j) / span)]
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
    EACH(j, count) {
        const Some v = load(x + at + j);
        LANES(k) mine.add((T)v.at[k]);
    }
    const Moments all = team(Scattered{mine.done()});
    const T mean = centred ? all.mean : T(0);
    T var = all.squares / length;
    if (!centred) var += all.mean * all.mean;
    const T root = 1 / sqrt(var + (T)eps);
    if (count && LANE == 0) means[row] = mean, vars[row] = var;
    EACH(j, count) {
        Some v = load(x + at + j);
        LANES(k) {
            T scale = root, shift = 0;
            if (w) scale *= PARAMETER(w, j + k);
            if (b) shift = PARAMETER(b, j + k);
            v.at[k] = (S)(((T)v.at[k] - mean) * scale + shift);
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
    EACH(j, count) {
        const Some a = load(g + at + j), v = load(x + at + j);
        LANES(k) {
            T h = (T)a.at[k];
            if (inside) h *= PARAMETER(inside, j + k);
            offset += h;
            along += h * (((T)v.at[k] - mean) * root);
        }
    }
    along = team_sum(along);
    offset = team_sum(offset);
    if (gws && count && LANE == 0) gws[row] = along, gbs[row] = offset;
    const T scale = gws && w && count ? root * PARAMETER(w, 0) : root;
    along /= length;
    offset = centred ? offset / length : T(0);
    EACH(j, count) {
        Some a = load(g + at + j);
        const Some v = load(x + at + j);
        LANES(k) {
            T h = (T)a.at[k];
            if (inside) h *= PARAMETER(inside, j + k);
            const T d = ((T)v.at[k] - mean) * root;
            a.at[k] = (S)((h - offset - d * along) * scale);
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
    w, b = (0 if p is None else contiguous(p, kind) for p in (w, b))
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
    kind, w = (x.dtype, 0) if w is None else (w.dtype, contiguous(w))
    gx, gw, gb = empty(x.shape, x.dtype), 0, 0
    if walk.size == 1:
        gw, gb = (empty(mean.shape, wide) for _ in range(2))
    numbers = (*map(integer.type, walk), numpy.int32(centred), float(eps))
    rest = (w, mean, var, gw, gb, *numbers)
    sizes, types = (mean.size, prod(x.shape[first:]), 1), (("P", kind),)
    launch(_SOURCE, "rows_gradient", *sizes, (g, x, gx), rest, types)
    if walk.size > 1:
        gw, gb = _parameter_sums(g, x, mean, var, walk, first, w.shape, eps)
    return gx, gw, gb


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
