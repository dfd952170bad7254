"""Max pooling's loops, compiled; each function answers False where it cannot serve.

`pooling` then runs the same thing in NumPy, slower and with the same bits.
"""

import ctypes
from functools import cache, lru_cache
from math import prod

import numpy as np

from minidl.array import compiler, register_loops
from minidl.array.threads import get_num_threads
from minidl.array.window_loops import STRUCT, walk_of

SERIAL_SIZE = 1 << 16  # elements that are pooled before threads pay

# Arithmetic and order are those of the NumPy code in `pooling`.
_SOURCE = r"""
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
// corners of up to 256 windows lie in vectors, since rows may be short. Nothing is
// read from `end` on.
template <class T>
static void max_squares(const T* x, const T* end, T* y, int32_t* at, const Walk& w) {
    const int32_t m = w.out[2], width = w.size[2], total = m * w.out[1];
    const int32_t size = Vector<T>::size;
    T corner[4][256 + Vector<T>::size];
    int32_t from[256 + Vector<T>::size];
    for (int32_t done = 0, o = 0, row = 0; done < total; y += 256, at += 256) {
        const int32_t count = total - done < 256 ? total - done : 256;
        for (int32_t i = 0; i < count;) {
            int32_t here = m - o < count - i ? m - o : count - i;
            int32_t place = 2 * row * width + 2 * o;
            int32_t j = 0;
            for (; here - j >= size / 2; j += size) {
                const T* square = x + place + 2 * j;
                if (square + width + 2 * size > end) break;
                halves(square, corner[0] + i + j, corner[1] + i + j);
                halves(square + width, corner[2] + i + j, corner[3] + i + j);
                for (int32_t v = j; v < j + size; ++v) from[i + v] = place + 2 * v;
            }
            for (; j < here; ++j) {
                const T* square = x + place + 2 * j;
                from[i + j] = place + 2 * j;
                for (int k = 0; k < 2; ++k) {
                    corner[k][i + j] = square[k];
                    corner[2 + k][i + j] = square[width + k];
                }
            }
            i += here, o += here;
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
        if (square)
            max_squares(x + n * size, x + w.n * size, y + n * out, at + n * out, w);
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
    library = compiler.load(register_loops.SOURCE + STRUCT + _SOURCE) if kind else None
    if library is None:
        return None
    function = getattr(library, f"{name}_{kind}")
    function.restype = None
    addresses, numbers = {"max_pool": (4, 1), "scatter": (3, 4)}[name]
    function.argtypes = [ctypes.c_void_p] * addresses + [ctypes.c_int64] * numbers
    return function


@lru_cache(maxsize=256)
def _planes(n, *spatial):
    """A struct Walk over n contiguous planes."""
    return walk_of(n, 1, spatial)


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
