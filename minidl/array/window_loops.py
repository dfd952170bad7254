"""The loops over windows that a CPU runs compiled, where there is a compiler.

Each function answers None or False where it cannot serve (no compiler, another
dtype); its caller then runs the same thing in NumPy, slower and with the same bits.
Up to three spatial dimensions; fewer are led by dimensions of one element.
"""

import ctypes
from functools import cache, lru_cache
from math import prod

import numpy as np

from minidl.array import compiler
from minidl.array.threads import get_num_threads

SERIAL_SIZE = 1 << 16  # elements that are pooled before threads pay

# Arithmetic and order are those of the NumPy code in `convolution_cpu` and `pooling`.
_SOURCE = r"""
#include <stdint.h>
#include <string.h>
#include <limits>
#include <vector>
typedef int64_t I;

// Strides count elements; window o reads input o * stride + tap * dilation - padding.
struct Walk {
    I n, c, size[3], out[3], taps[3], stride[3], padding[3], dilation[3];
    I xn, xc, xs[3], wn, wc, wt[3], wo[3];
};

// The windows [first, stop) of dimension d whose tap t is inside the input.
static inline void reach(const Walk& w, int d, I t, I& first, I& stop, I& offset) {
    I s = w.stride[d];
    offset = t * w.dilation[d] - w.padding[d];
    first = offset < 0 ? (s - 1 - offset) / s : 0;
    I last = w.size[d] - 1 - offset;
    stop = last < 0 ? 0 : last / s + 1;
    if (stop > w.out[d]) stop = w.out[d];
}

// columns = windows of x, or x += columns at the windows.
template <class T, bool ADD>
static void walk(T* x, T* columns, const Walk& w) {
    for (I c = 0; c < w.c; ++c)
    for (I i = 0; i < w.taps[0]; ++i)
    for (I j = 0; j < w.taps[1]; ++j)
    for (I k = 0; k < w.taps[2]; ++k) {
        I a0, a1, ax, b0, b1, bx, c0, c1, cx;
        reach(w, 0, i, a0, a1, ax);
        reach(w, 1, j, b0, b1, bx);
        reach(w, 2, k, c0, c1, cx);
        I step = w.stride[2] * w.xs[2], to = w.wo[2];
        T* corner = x + c * w.xc + (c0 * w.stride[2] + cx) * w.xs[2];
        T* plane = columns + c * w.wc + i * w.wt[0] + j * w.wt[1] + k * w.wt[2];
        for (I a = a0; a < a1; ++a)
        for (I n = 0; n < w.n; ++n)
        for (I b = b0; b < b1; ++b) {
            T* in = corner + n * w.xn + (a * w.stride[0] + ax) * w.xs[0]
                  + (b * w.stride[1] + bx) * w.xs[1];
            T* out = plane + n * w.wn + a * w.wo[0] + b * w.wo[1] + c0 * to;
            I m = c1 - c0;
            if (ADD && step == 1 && to == 1)
                for (I o = 0; o < m; ++o) in[o] += out[o];
            else if (ADD)
                for (I o = 0; o < m; ++o) in[o * step] += out[o * to];
            else if (step == 1 && to == 1)
                for (I o = 0; o < m; ++o) out[o] = in[o];
            else
                for (I o = 0; o < m; ++o) out[o * to] = in[o * step];
        }
    }
}

// One row of outputs under one tap: NaN counts as larger, the first of equals stays.
template <class T, int32_t STRIDE>
static inline void larger(
    T* __restrict__ y, int32_t* __restrict__ at, const T* __restrict__ x,
    int32_t m, I stride, int32_t from
) {
    int32_t s = STRIDE ? STRIDE : stride;
    for (int32_t o = 0; o < m; ++o) {
        T v = x[o * s], top = y[o];
        bool better = (v > top) | (v != v);
        int32_t here = from + o * s, there = at[o];
        y[o] = better ? v : top;
        at[o] = better ? here : there;
    }
}

// The first position that window o covers in dimension d.
static inline I start(const Walk& w, int d, I o) {
    I at = o * w.stride[d] - w.padding[d], gap = w.dilation[d];
    return at < 0 ? at + (gap - 1 - at) / gap * gap : at;
}

// One plane; the taps of the last dimension are given by `reach`.
template <class T>
static void max_plane(const T* x, T* y, int32_t* at, const Walk& w, const I* reached) {
    I s = w.stride[2], m = w.out[2];
    for (I a = 0; a < w.out[0]; ++a)
    for (I b = 0; b < w.out[1]; ++b, y += m, at += m) {
        I line = (start(w, 0, a) * w.size[1] + start(w, 1, b)) * w.size[2];
        for (I o = 0; o < m; ++o) y[o] = -std::numeric_limits<T>::infinity();
        for (I o = 0; o < m; ++o) at[o] = int32_t(line + start(w, 2, o));
        for (I i = 0; i < w.taps[0]; ++i)
        for (I j = 0; j < w.taps[1]; ++j) {
            I d = a * w.stride[0] + i * w.dilation[0] - w.padding[0];
            I h = b * w.stride[1] + j * w.dilation[1] - w.padding[1];
            if (d < 0 || d >= w.size[0] || h < 0 || h >= w.size[1]) continue;
            I row = (d * w.size[1] + h) * w.size[2];
            for (const I* k = reached; k < reached + 3 * w.taps[2]; k += 3) {
                I from = row + k[0] * s + k[2], n = k[1] - k[0];
                T* top = y + k[0];
                if (s == 1) larger<T, 1>(top, at + k[0], x + from, n, s, from);
                else if (s == 2) larger<T, 2>(top, at + k[0], x + from, n, s, from);
                else larger<T, 0>(top, at + k[0], x + from, n, s, from);
            }
        }
    }
}

// Windows of 2 x 2 side by side, the usual ones: corners first, then as `larger`. The
// corners of up to 256 windows lie in vectors, since rows may be short.
template <class T>
static void max_squares(const T* x, T* y, int32_t* at, const Walk& w) {
    const int32_t m = w.out[2], width = w.size[2], total = m * w.out[1];
    T corner[4][256];
    int32_t from[256];
    for (int32_t done = 0, o = 0, row = 0; done < total; y += 256, at += 256) {
        const int32_t count = total - done < 256 ? total - done : 256;
        for (int32_t i = 0; i < count;) {
            int32_t here = m - o < count - i ? m - o : count - i;
            int32_t place = 2 * row * width + 2 * o;
            for (int32_t j = 0; j < here; ++j, ++i, place += 2) {
                from[i] = place;
                corner[0][i] = x[place];
                corner[1][i] = x[place + 1];
                corner[2][i] = x[place + width];
                corner[3][i] = x[place + width + 1];
            }
            o += here;
            if (o == m) o = 0, ++row;
        }
        const int32_t step[4] = {0, 1, width, width + 1};
        for (int32_t i = 0; i < count; ++i) {
            T top = corner[0][i];
            int32_t best = 0;
            for (int k = 1; k < 4; ++k) {
                T v = corner[k][i];
                bool better = (v > top) | (v != v);
                top = better ? v : top;
                best = better ? step[k] : best;
            }
            y[i] = top;
            at[i] = from[i] + best;
        }
        done += count;
    }
}

static bool squares(const Walk& w) {
    bool all = w.size[0] == 1 && w.out[0] == 1 && w.taps[0] == 1 && !w.padding[0];
    for (int d = 1; d < 3; ++d)
        all = all && w.taps[d] == 2 && w.stride[d] == 2 && !w.padding[d]
            && w.dilation[d] == 1 && 2 * w.out[d] <= w.size[d];
    return all;
}

// w.n planes; x, y and the positions are contiguous.
template <class T>
static void max_pool(const T* x, T* y, int32_t* at, const Walk& w, I threads) {
    const bool square = squares(w);
    std::vector<I> reached(3 * w.taps[2]);
    for (I k = 0; k < w.taps[2]; ++k) {
        I* to = &reached[3 * k];
        reach(w, 2, k, to[0], to[1], to[2]);
        if (to[1] < to[0]) to[1] = to[0];
    }
    I size = w.size[0] * w.size[1] * w.size[2], out = w.out[0] * w.out[1] * w.out[2];
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (I n = 0; n < w.n; ++n)
        if (square) max_squares(x + n * size, y + n * out, at + n * out, w);
        else max_plane(x + n * size, y + n * out, at + n * out, w, reached.data());
}

// gx = 0, then += gy at the positions, last window first: the order of taps.
template <class T> static void scatter(
    T* gx, const T* gy, const int32_t* at, I planes, I size, I out, I threads
) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (I n = 0; n < planes; ++n) {
        memset(gx + n * size, 0, size * sizeof(T));
        for (I o = out - 1; o >= 0; --o) {
            I here = at[n * out + o];
            if (here >= 0 && here < size) gx[n * size + here] += gy[n * out + o];
        }
    }
}

#define FOR(T) extern "C" { \
    void pack_##T(T* x, T* columns, const Walk* w) { walk<T, false>(x, columns, *w); } \
    void add_##T(T* x, T* columns, const Walk* w) { walk<T, true>(x, columns, *w); } \
    void max_pool_##T(T* x, T* y, int32_t* at, const Walk* w, I threads) { \
        max_pool<T>(x, y, at, *w, threads); } \
    void scatter_##T(T* gx, T* gy, int32_t* at, I planes, I size, I out, I threads) { \
        scatter<T>(gx, gy, at, planes, size, out, threads); } }
FOR(float)
FOR(double)
"""


@cache
def _function(name: str, dtype: np.dtype):
    """The compiled function for arrays of this dtype, or None."""
    kind = {"float32": "float", "float64": "double"}.get(dtype.name)
    library = compiler.load(_SOURCE) if kind else None
    if library is None:
        return None
    function = getattr(library, f"{name}_{kind}")
    function.restype = None
    scatter = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 4
    pool = [ctypes.c_void_p] * 4 + [ctypes.c_int64]
    function.argtypes = {"scatter": scatter, "max_pool": pool}.get(name, pool[:3])
    return function


@lru_cache(maxsize=256)
def _planes(n, *spatial):
    """A struct Walk over n contiguous planes."""
    return _walk(n, 1, spatial)


def _walk(n, c, spatial, outer=(0,) * 4, inner=((0,),) * 3):
    """A struct Walk; `spatial` and `inner` have a tuple over dimensions each."""
    fill = (1, 1, 1, 1, 0, 1)  # of missing dimensions: size, out, taps, ..., dilation
    fields = [n, c]
    for values, one in zip(spatial, fill, strict=True):
        fields += [one] * (3 - len(values)) + list(values)
    xn, xc, wn, wc = outer
    xs, wt, wo = ([0] * (3 - len(values)) + list(values) for values in inner)
    fields += [xn, xc, *xs, wn, wc, *wt, *wo]
    return compiler.int64_array(fields)


def walker(name, x, columns, stride, padding, dilation):
    """A function of blocks like x: "pack" fills columns, "add" adds them to x.

    x is (N, C, *size), columns a view (N, C, *taps, *out) of a buffer. What the
    taps read from the padding is left as it is. None where it cannot serve.
    """
    dims, function = x.ndim - 2, _function(name, x.dtype)
    if function is None or dims > 3 or not x.dtype.isnative:
        return None
    taps, out = columns.shape[2 : 2 + dims], columns.shape[2 + dims :]
    width = x.dtype.itemsize
    if any(step % width for step in x.strides):
        return None
    xs = [step // width for step in x.strides]
    ws = [step // width for step in columns.strides]
    spatial = (x.shape[2:], out, taps, stride, padding, dilation)
    inner = (xs[2:], ws[2 : 2 + dims], ws[2 + dims :])
    walk = _walk(*x.shape[:2], spatial, (*xs[:2], *ws[:2]), inner)

    def run(block):
        function(compiler.pointer(block), compiler.pointer(columns), walk)

    return run


def max_pool(x, y, indices, kernel, stride, padding, dilation) -> bool:
    """Fill y and indices (int32); all arrays contiguous."""
    function = _function("max_pool", x.dtype)
    flags = (array.flags.c_contiguous for array in (x, y, indices))
    if function is None or x.ndim > 5 or not x.dtype.isnative or not all(flags):
        return False
    spatial = (x.shape[2:], y.shape[2:], kernel, stride, padding, dilation)
    walk = _planes(x.shape[0] * x.shape[1], *spatial)
    threads = get_num_threads() if x.size > SERIAL_SIZE else 1
    function(*map(compiler.pointer, (x, y, indices)), walk, threads)
    return True


def scatter(gx, gy, indices) -> bool:
    """gx = 0, gx[plane, indices] += gy, last window first; all contiguous."""
    function = _function("scatter", gx.dtype)
    flags = (array.flags.c_contiguous for array in (gx, gy, indices))
    dtypes = (gy.dtype, indices.dtype)
    if function is None or dtypes != (gx.dtype, np.int32) or not all(flags):
        return False
    if not gx.dtype.isnative:
        return False
    planes = gx.shape[0] * gx.shape[1]
    sizes = (planes, prod(gx.shape[2:]), prod(gy.shape[2:]))
    threads = get_num_threads() if gx.size > SERIAL_SIZE else 1
    function(*map(compiler.pointer, (gx, gy, indices)), *sizes, threads)
    return True
