"""Cross entropy of raw arrays and its gradient: one compiled loop, one launch each.

Scores are (N, C, *), labels (N, *) integers from 0 to C - 1, or `ignored`: such rows do
not count, and have a term and a gradient of 0. `smoothing` moves that share of each
target to all classes alike: target = (1 - smoothing) one_hot(label) + smoothing / C. A
row of scores is read once, by one thread, so results are the same for any number of
threads.
"""

import ctypes
from functools import cache

import numpy

from . import compiler, cuda_cross_entropy
from .cuda_source import empty
from .device import Array, on_gpu
from .dtypes import widened
from .kernel import Kernel
from .threads import get_num_threads
from .vector_math import VECTOR_MATH

SERIAL_SIZE = 1 << 14  # scores below which threads cost more than they give

_SOURCE = (
    "#include <math.h>\n#include <stdint.h>\n#include <string.h>\n"
    + VECTOR_MATH
    + r"""
typedef int64_t I;
// terms = -sum(target log softmax(x)) and p = softmax(x), of n rows
template <class T> static void forward(
    const T* scores, const I* labels, T* terms, T* softmax, I n, I classes, I ignored,
    I threads, double smoothing
) {
    #pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (I i = 0; i < n; ++i) {
        const T* x = scores + i * classes;
        T *p = softmax + i * classes, top = x[0], total = 0;
        for (I j = 1; j < classes; ++j) top = x[j] > top ? x[j] : top;
        #pragma omp simd
        for (I j = 0; j < classes; ++j) p[j] = exp(x[j] - top);
        #pragma omp simd reduction(+: total)
        for (I j = 0; j < classes; ++j) total += p[j];
        #pragma omp simd
        for (I j = 0; j < classes; ++j) p[j] /= total;
        terms[i] = 0;
        if (labels[i] == ignored) continue;
        T target = x[labels[i]] - top;
        if (smoothing) {  // 0 times an infinite rest would be NaN
            T rest = 0;
            #pragma omp simd reduction(+: rest)
            for (I j = 0; j < classes; ++j) rest += x[j] - top;
            target = target * T(1 - smoothing) + rest * T(smoothing / classes);
        }
        terms[i] = log(total) - target;
    }
}

// y = (p - target) g
template <class T> static void deviation(
    const T* g, const I* labels, const T* p, T* y, I n, I classes, I ignored,
    I threads, double smoothing
) {
    const T even = smoothing / classes, own = 1 - smoothing;
    #pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (I i = 0; i < n; ++i) {
        const I row = i * classes;
        const bool counts = labels[i] != ignored;
        const T slope = counts ? g[i] : 0;
        for (I j = row; j < row + classes; ++j) y[j] = (p[j] - even) * slope;
        if (counts) y[row + labels[i]] -= own * slope;
    }
}

#define FOR(T) extern "C" { \
    void forward_##T(const T* x, const I* labels, T* terms, T* p, I n, I classes, \
        I ignored, I threads, double smoothing) { \
        forward<T>(x, labels, terms, p, n, classes, ignored, threads, smoothing); } \
    void deviation_##T(const T* g, const I* labels, const T* p, T* y, I n, \
        I classes, I ignored, I threads, double smoothing) { \
        deviation<T>(g, labels, p, y, n, classes, ignored, threads, smoothing); } }
FOR(float)
FOR(double)
"""
)


examined = Kernel(
    "examined",
    inputs="label",
    outputs="valid share counts",
    scalars="ignored classes nan",
    body="""
    auto taken = ~(label == ignored);
    auto wrong = taken & ((label < 0) | (label >= classes));
    valid = where(taken & ~wrong, label, 0);
    share = where(wrong, nan, where(taken, 1, 0));
    counts = taken;
    """,
    compute="float64",
)


def valid_labels(name: str, labels: Array, classes: int, ignored: int, dtype) -> tuple:
    """(labels, 0 in place of those that do not count; how much each counts, of this
    dtype, or None if all count alike; how many count).

    A label out of range raises IndexError on a CPU and counts NaN on a GPU.
    """
    if on_gpu(labels):
        outs = [empty(labels.shape, t) for t in (labels.dtype, dtype, numpy.bool_)]
        given = {"ignored": ignored, "classes": classes, "nan": float("nan")}
        valid, share, counts = examined(labels, out=tuple(outs), **given)
        return valid, share, counts.sum()
    left_out = _left_out(name, labels, classes, ignored)
    if not left_out.any():
        return labels, None, labels.size
    return numpy.where(left_out, 0, labels), ~left_out, (~left_out).sum()


def count_labels(name: str, labels: Array, classes: int, ignored: int) -> int | None:
    """How many labels count; IndexError where one is out of range.

    None on a GPU, where looking would mean waiting: `counted_mean` counts them.
    """
    if on_gpu(labels):
        return None
    return labels.size - int(_left_out(name, labels, classes, ignored).sum())


def _left_out(name, labels, classes, ignored):
    """Which labels do not count."""
    left_out = labels == ignored
    wrong = ~left_out & ((labels < 0) | (labels >= classes))
    if wrong.any():
        raise IndexError(
            f"{name}: label {labels[wrong][0]} is out of range: expected 0 to "
            f"{classes - 1} for scores of {classes} classes"
        )
    return left_out


def cross_entropy(
    x: Array, labels: Array, smoothing: float = 0.0, ignored: int = -100
) -> tuple[Array, Array]:
    """(-sum(target log softmax(x)), softmax(x)) over dim 1: shapes (N, *), (N, C, *).

    Half precision is computed in float32 and rounded once, at the end. Labels out of
    range have been refused by `count_labels`, or on a GPU have a term of NaN.
    """
    if on_gpu(x):
        return cuda_cross_entropy.cross_entropy(x, labels, smoothing, ignored)
    loop = _loop("forward", x, labels)
    if loop is not None:
        terms, p = numpy.empty(len(x), x.dtype), numpy.empty(x.shape, x.dtype)
        _run(loop, x.shape, ignored, smoothing, x, labels, terms, p)
        return terms, p
    left_out = labels == ignored
    chosen = numpy.expand_dims(numpy.where(left_out, 0, labels), 1)
    wide = widened(x)
    p = wide - wide.max(axis=1, keepdims=True)
    target = numpy.take_along_axis(p, chosen, 1)
    if smoothing:
        even = p.mean(axis=1, keepdims=True)
        target = target * (1 - smoothing) + even * smoothing
    numpy.exp(p, out=p)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    terms = (numpy.log(total) - target).reshape(labels.shape)
    terms[left_out] = 0
    return terms.astype(x.dtype, copy=False), p.astype(x.dtype, copy=False)


def deviation(
    g: Array, p: Array, labels: Array, smoothing: float = 0.0, ignored: int = -100
) -> Array:
    """(p - target) g, the gradient of the scores; g (N, *)."""
    if on_gpu(p):
        return cuda_cross_entropy.deviation(g, p, labels, smoothing, ignored)
    loop = _loop("deviation", p, labels) if g.dtype == p.dtype else None
    if loop is not None:
        y = numpy.empty(p.shape, p.dtype)
        _run(loop, p.shape, ignored, smoothing, g, labels, p, y)
        return y
    left_out = labels == ignored
    labels, g = numpy.where(left_out, 0, labels), numpy.where(left_out, 0, g)
    even = smoothing / max(p.shape[1], 1)
    y = (p - even if even else p) * numpy.expand_dims(g, 1)
    places = list(numpy.ix_(*[numpy.arange(n) for n in labels.shape]))
    places.insert(1, labels)
    y[tuple(places)] -= (1 - smoothing) * g
    return y


def counted_mean(
    terms: Array, labels: Array, ignored: int = -100
) -> tuple[Array, Array, Array]:
    """(total, count, mean) of the terms (N, *) whose labels count: numbers, which stay
    where the terms are. Total and count are of the type to compute in."""
    if on_gpu(terms):
        return cuda_cross_entropy.counted_mean(terms, labels, ignored)
    total = numpy.asarray(widened(terms).sum())
    count = numpy.asarray((labels != ignored).sum(), total.dtype)
    with numpy.errstate(invalid="ignore"):  # no label counts: 0 / 0
        return total, count, numpy.asarray(total / count, terms.dtype)


def _loop(name, x, labels):
    """The compiled function, where it serves these scores and labels, or None."""
    if type(x) is not numpy.ndarray or x.ndim != 2 or not x.size:
        return None
    return _function(name, x.dtype) if labels.dtype == numpy.int64 else None


def _run(function, shape, ignored, smoothing, first, labels, *rest):
    """`first` and the labels in any order of memory; the rest are contiguous."""
    arrays = [numpy.ascontiguousarray(a) for a in (first, labels, *rest)]
    threads = get_num_threads() if shape[0] * shape[1] > SERIAL_SIZE else 1
    function(*map(compiler.pointer, arrays), *shape, ignored, threads, smoothing)


@cache
def _function(name, dtype):
    """The compiled function for scores of this dtype, or None."""
    kind = {"f": "float", "d": "double"}.get(dtype.char)
    library = compiler.load(_SOURCE) if kind and dtype.isnative else None
    if library is None:
        return None
    function = library[f"{name}_{kind}"]
    function.restype = None
    numbers = [ctypes.c_int64] * 4 + [ctypes.c_double]
    function.argtypes = [ctypes.c_void_p] * 4 + numbers
    return function
