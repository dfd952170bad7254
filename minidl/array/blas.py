"""NumPy's own BLAS, called from compiled threads: products of two large matrices.

The library's threads spin for milliseconds after each product and so take the cores
from whatever runs next. The policy of this process is therefore: from minidl's first
product or convolution on, BLAS uses one thread, and a large product is cut into
equal parts for threads of ours.
"""

import ctypes
from functools import cache
from itertools import pairwise

import numpy

from minidl.array import compiler
from minidl.array.determinism import parts
from minidl.array.threads import claim_blas, get_num_threads, openblas, parallel

SERIAL_WORK = 1 << 20  # multiplications below which threads cost more than they give

_SOURCE = r"""
#include <stdint.h>
typedef int64_t I;

// c = a b in parts of 16 rows or columns each and more; `at` is cblas_?gemm
template <class T, class INT> static void product(
    void* at, const T* a, const T* b, T* c, I m, I n, I k, I lda, I ldb, I turned_a,
    I turned_b, I parts, I threads
) {
    typedef void (*Gemm)(int, int, int, INT, INT, INT, T, const T*, INT, const T*, INT,
                         T, T*, INT);
    const I length = m < n ? n : m, units = (length + 15) / 16;
    #pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (I part = 0; part < parts; ++part) {
        I from = units * part / parts * 16, to = units * (part + 1) / parts * 16;
        I count = (to < length ? to : length) - from;
        bool rows = m >= n;
        if (count > 0) ((Gemm)at)(
            101, 111 + turned_a, 111 + turned_b, rows ? count : m, rows ? n : count, k,
            1,
            a + (rows ? from * (turned_a ? 1 : lda) : 0), lda,
            b + (rows ? 0 : from * (turned_b ? ldb : 1)), ldb, 0,
            c + from * (rows ? n : 1), n);
    }
}
#define FOR(NAME, T, INT) extern "C" void NAME( \
    void* at, const T* a, const T* b, T* c, I m, I n, I k, I lda, I ldb, I ta, I tb, \
    I parts, I threads) { \
    product<T, INT>(at, a, b, c, m, n, k, lda, ldb, ta, tb, parts, threads); }
FOR(float_32, float, int32_t)
FOR(float_64, float, int64_t)
FOR(double_32, double, int32_t)
FOR(double_64, double, int64_t)
"""


def product(a: numpy.ndarray, b: numpy.ndarray, out: numpy.ndarray | None):
    """a @ b in the process's threads, or None where that cannot be or does not pay."""
    claim_blas()
    if a.ndim == b.ndim > 2 and a.shape[:-2] == b.shape[:-2] and out is None:
        return _stacks(a, b)
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype or a.shape[1] != b.shape[0]:
        return None
    (m, k), n, count = a.shape, b.shape[1], parts()
    if count == 1 or m * n * k < SERIAL_WORK:
        return None
    found, left, right = _function(a.dtype), _lies(a), _lies(b)
    if found is None or left is None or right is None:
        return None
    if out is None:
        out = numpy.empty((m, n), a.dtype)
    elif not out.flags.c_contiguous or (out.shape, out.dtype) != ((m, n), a.dtype):
        return None
    elif numpy.may_share_memory(out, a) or numpy.may_share_memory(out, b):
        return None
    function, address = found
    arrays = map(compiler.pointer, (a, b, out))
    sizes = (m, n, k, left[0], right[0], left[1], right[1])
    function(address, *arrays, *sizes, count, get_num_threads())
    return out


def _stacks(a, b):
    """The matrices of two equal stacks dealt to threads, or None."""
    threads, work = get_num_threads(), a.size * b.shape[-1]
    if threads == 1 or work < SERIAL_WORK or openblas() is None:
        return None
    if a.dtype != b.dtype or a.shape[-1] != b.shape[-2]:
        return None
    out = numpy.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
    stacks = [x.reshape(-1, *x.shape[-2:]) for x in (a, b, out)]
    count = len(stacks[0])
    cuts = [count * part // threads for part in range(threads + 1)]

    def work_on(part):
        x, y, z = (stack[slice(*part)] for stack in stacks)
        numpy.matmul(x, y, out=z)

    parallel(work_on, pairwise(cuts))
    return out


def _lies(array):
    """(elements from one line to the next, whether lines are columns), or None."""
    width = array.itemsize
    rows, columns = array.strides
    if columns == width and rows >= width * array.shape[1] and rows % width == 0:
        return rows // width, 0
    if rows == width and columns >= width * array.shape[0] and columns % width == 0:
        return columns // width, 1
    return None


@cache
def _function(dtype):
    """The compiled function for this dtype and the address of its CBLAS routine."""
    kind, letter = {"f": ("float", "s"), "d": ("double", "d")}.get(dtype.char, ("", ""))
    if not kind or not dtype.isnative or openblas() is None:
        return None
    library, prefix, suffix = openblas()
    name = f"{prefix.removesuffix('openblas')}cblas_{letter}gemm{suffix}"
    routine, compiled = getattr(library, name, None), compiler.load(_SOURCE)
    if routine is None or compiled is None:
        return None
    function = compiled[f"{kind}_{64 if '64' in suffix else 32}"]
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 9
    return function, ctypes.cast(routine, ctypes.c_void_p).value
