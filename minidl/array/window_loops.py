"""The loops that copy windows into columns, and add them back, compiled.

`walker` answers None where it cannot serve (no compiler, another dtype); its caller
then runs the same thing in NumPy, slower and with the same bits. Up to three spatial
dimensions; fewer are led by dimensions of one element.
"""

import ctypes
from functools import cache

import numpy as np

from minidl.array import compiler

STRUCT = r"""
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
"""
# Arithmetic and order are those of the NumPy code in `convolution_cpu`.
_SOURCE = r"""
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

#define FOR(T) extern "C" { \
    void pack_##T(T* x, T* columns, const Walk* w) { walk<T, false>(x, columns, *w); } \
    void add_##T(T* x, T* columns, const Walk* w) { walk<T, true>(x, columns, *w); } }
FOR(float)
FOR(double)
"""


@cache
def _function(name: str, dtype: np.dtype):
    """The compiled function for arrays of this dtype, or None."""
    kind = {"float32": "float", "float64": "double"}.get(dtype.name)
    library = compiler.load(STRUCT + _SOURCE) if kind else None
    if library is None:
        return None
    function = getattr(library, f"{name}_{kind}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * 3
    return function


def walk_of(n, c, spatial, outer=(0,) * 4, inner=((0,),) * 3):
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
    walk = walk_of(*x.shape[:2], spatial, (*xs[:2], *ws[:2]), inner)

    def run(block):
        function(compiler.pointer(block), compiler.pointer(columns), walk)

    return run
