"""Batch norm's loops, compiled: a channel's values stay in cache from sum to result.

Each function answers None where it cannot serve; `standardize` then does the same in
passes over whole arrays. A channel is summed by one thread in a fixed order, so
results are the same for any number of threads.
"""

import ctypes
from functools import cache
from math import prod

import numpy as np

from minidl.array import compiler, register_loops
from minidl.array.threads import get_num_threads

SERIAL_SIZE = 1 << 15  # elements below which threads cost more than they give
SHORTEST = 8  # elements of a row; shorter ones are walked along another dimension

_SOURCE = r"""
#include <math.h>
struct Shape { I n, channels, row; };  // x is (n, channels, row)

// sum(x), and sum(y (x - mean)); y may be x - mean itself
template <class T> struct Sums { double plain, product; };
template <class T, bool SQUARES>
static Sums<T> sums(const T* x, const T* y, T mean, I channel, const Shape& s) {
    typedef typename Vector<T>::type V;
    const I size = Vector<T>::size;
    const I next = s.channels * s.row;  // the same place in the next image
    Sums<T> total = {};
    for (I i = 0, from = 0; i < s.n; i += from == 0) {
        const I at = (i * s.channels + channel) * s.row + from;
        const I here = std::min(s.row - from, I(4096));  // at most, summed as T
        from = from + here < s.row ? from + here : 0;
        V plain[2] = {}, product[2] = {};
        T rest = 0, other = 0;
        I j = 0;
        for (; j + 2 * size <= here; j += 2 * size)
            for (int v = 0; v < 2; ++v) {
                __builtin_prefetch(x + at + j + v * size + next);
                if (!SQUARES) __builtin_prefetch(y + at + j + v * size + next);
                const V d = *(const V*)(x + at + j + v * size) - mean;
                const V g = SQUARES ? d : *(const V*)(y + at + j + v * size);
                plain[v] += g;
                product[v] += g * d;
            }
        for (; j < here; ++j) {
            const T d = x[at + j] - mean, g = SQUARES ? d : y[at + j];
            rest += g;
            other += g * d;
        }
        plain[0] += plain[1], product[0] += product[1];
        for (int v = 0; v < size; ++v) rest += plain[0][v], other += product[0][v];
        total.plain += rest, total.product += other;
    }
    return total;
}

template <class T> static void forward(
    const T* x, const T* w, const T* b, T* y, T* mean, T* var, const Shape& s,
    double eps, I threads
) {
    const double count = s.n * s.row;
    #pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (I k = 0; k < s.channels; ++k) {
        mean[k] = sums<T, true>(x, x, 0, k, s).plain / count;
        var[k] = sums<T, true>(x, x, mean[k], k, s).product / count;
        const T m = mean[k], shift = b ? b[k] : 0;
        const T scale = (w ? w[k] : 1) / (T)sqrt(var[k] + eps);
        for (I i = 0; i < s.n; ++i) {
            const I at = (i * s.channels + k) * s.row;
            for (I j = at; j < at + s.row; ++j) y[j] = (x[j] - m) * scale + shift;
        }
    }
}

template <class T> static void backward(
    const T* g, const T* x, const T* w, const T* mean, const T* var, T* gx, T* gw,
    T* gb, const Shape& s, double eps, I threads
) {
    const double count = s.n * s.row;
    #pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (I k = 0; k < s.channels; ++k) {
        const Sums<T> total = sums<T, false>(x, g, mean[k], k, s);
        const double root = 1 / sqrt(var[k] + eps);
        gb[k] = total.plain;
        gw[k] = total.product * root;
        const T m = mean[k], offset = total.plain / count;
        const T along = total.product * root * root / count;
        const T scale = (w ? w[k] : 1) * root;
        for (I i = 0; i < s.n; ++i) {
            const I at = (i * s.channels + k) * s.row;
            for (I j = at; j < at + s.row; ++j)
                gx[j] = (g[j] - offset - (x[j] - m) * along) * scale;
        }
    }
}

#define FOR(T) extern "C" { \
    void forward_##T(const T* x, const T* w, const T* b, T* y, T* mean, T* var, I n, \
        I channels, I row, I threads, double eps) { \
        forward<T>(x, w, b, y, mean, var, {n, channels, row}, eps, threads); } \
    void backward_##T(const T* g, const T* x, const T* w, const T* mean, const T* var, \
        T* gx, T* gw, T* gb, I n, I channels, I row, I threads, double eps) { \
        backward<T>(g, x, w, mean, var, gx, gw, gb, {n, channels, row}, eps, \
                    threads); } }
FOR(float)
FOR(double)
"""


@cache
def _function(name: str, dtype: np.dtype):
    """The compiled function for arrays of this dtype, or None."""
    kind = {"float32": "float", "float64": "double"}.get(dtype.name)
    library = None
    if kind and dtype.isnative:
        library = compiler.load(register_loops.SOURCE + _SOURCE, "-ffp-contract=fast")
    if library is None:
        return None
    function = library[f"{name}_{kind}"]
    function.restype = None
    addresses = {"forward": 6, "backward": 8}[name]
    numbers = [ctypes.c_int64] * 4 + [ctypes.c_double]
    function.argtypes = [ctypes.c_void_p] * addresses + numbers
    return function


def forward(x, w, b, dims, eps):
    """(y, mean, var) as `standardize` gives them, the means taken over all but dim 1;
    w and b have an element a channel."""
    function = _served("forward", x, (w, b), dims)
    if function is None:
        return None
    x = np.ascontiguousarray(x)
    w, b = (p if p is None else np.ascontiguousarray(p) for p in (w, b))
    y, shape = np.empty(x.shape, x.dtype), (1, x.shape[1], *[1] * (x.ndim - 2))
    mean, var = np.empty(shape, x.dtype), np.empty(shape, x.dtype)
    _call(function, x, (x, w, b, y, mean, var), eps)
    return y, mean, var


def backward(g, x, w, mean, var, dims, eps):
    """(gx, gw, gb), each with the shape that it keeps."""
    function = _served("backward", x, (w, mean, var), dims)
    if function is None or g.dtype != x.dtype:
        return None
    g, x, mean, var = map(np.ascontiguousarray, (g, x, mean, var))
    w = w if w is None else np.ascontiguousarray(w)
    gx, gw, gb = np.empty_like(x), np.empty_like(mean), np.empty_like(mean)
    _call(function, x, (g, x, w, mean, var, gx, gw, gb), eps)
    return gx, gw, gb


def _served(name, x, parameters, dims):
    """The function, if these arrays are those of a batch norm."""
    if not isinstance(x, np.ndarray) or x.ndim < 3 or not x.size:
        return None
    if tuple(dims) != (0, *range(2, x.ndim)) or prod(x.shape[2:]) < SHORTEST:
        return None
    shape = x.shape[1], *[1] * (x.ndim - 2)
    for p in parameters:
        if p is not None and (p.dtype != x.dtype or p.shape[-x.ndim + 1 :] != shape):
            return None
    return _function(name, x.dtype)


def _call(function, x, arrays, eps):
    addresses = [None if a is None else compiler.pointer(a) for a in arrays]
    threads = get_num_threads() if x.size > SERIAL_SIZE else 1
    function(*addresses, *x.shape[:2], prod(x.shape[2:]), threads, eps)
