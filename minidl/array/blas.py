"""Products of large matrices in compiled loops, on all threads; small ones in NumPy.

The threads of NumPy's own BLAS spin for milliseconds after each product and so take
the cores from whatever runs next. The policy of this process is therefore: from
minidl's first product or convolution on, that BLAS uses one thread.
"""

import ctypes
from functools import cache

import numpy

from minidl.array import compiler, product_loops, register_loops
from minidl.array.determinism import cut, parts
from minidl.array.loops import PARALLEL_FROM
from minidl.array.memory import keep_freed
from minidl.array.rectifier import positive_part
from minidl.array.threads import claim_blas, get_num_threads, openblas, parallel

SERIAL_WORK = 1 << 20  # multiplications below which threads cost more than they give
PARTED_WORK = 1 << 23  # the same for threads of Python
LONG = 128  # rows or columns, for which a part is worth packing the other matrix


def product(
    a: numpy.ndarray,
    b: numpy.ndarray,
    out: numpy.ndarray | None = None,
    bias: numpy.ndarray | None = None,
    relu: bool = False,
) -> numpy.ndarray | None:
    """a @ b + bias, with `relu` max(0, that), in the process's threads; None where that
    does not pay.

    a is (m, k), b (k, n), bias (n); or both are equal stacks, and there is no more.
    """
    claim_blas()
    keep_freed()
    if a.ndim == b.ndim > 2 and a.shape[:-2] == b.shape[:-2]:
        return _stacks(a, b) if out is bias is None else None
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        return None
    return sum_of_products(a[None], b[None], out, bias, relu)


def sum_of_products(
    a: numpy.ndarray,
    b: numpy.ndarray,
    out: numpy.ndarray | None = None,
    bias: numpy.ndarray | None = None,
    relu: bool = False,
) -> numpy.ndarray | None:
    """The sum of a[i] @ b[i] over i, + bias, as `product`: a (stacks, m, k), b (stacks,
    k, n)."""
    (stacks, m, k), n = a.shape, b.shape[2]
    function = _function("multiply", a.dtype)
    work = stacks * m * n * k
    if function is None and stacks == 1 and work >= PARTED_WORK:
        return _parted(a[0], b[0], out, bias, relu)
    if function is None or work < SERIAL_WORK:
        return None
    if a.dtype != b.dtype or bias is not None and bias.dtype != a.dtype:
        return None
    if any(step % a.itemsize for step in (*a.strides, *b.strides)):
        return None
    if out is None:
        out = numpy.empty((m, n), a.dtype)
    elif not out.flags.c_contiguous or (out.shape, out.dtype) != ((m, n), a.dtype):
        return None
    elif numpy.may_share_memory(out, a) or numpy.may_share_memory(out, b):
        return None
    if bias is not None:
        bias = numpy.ascontiguousarray(bias)
    steps = [step // a.itemsize for step in (*a.strides, *b.strides)]
    sizes = compiler.int64_array((stacks, m, n, k, *steps, relu))
    addresses = [x if x is None else compiler.pointer(x) for x in (a, b, bias, out)]
    function(*addresses, sizes, get_num_threads())
    return out


def _parted(a, b, out, bias, relu):
    """a @ b + bias by NumPy, parts of the longer side dealt to threads."""
    (m, _), n, count = a.shape, b.shape[1], parts()
    if count == 1 or a.dtype != b.dtype or openblas() is None:
        return None
    if max(m, n) >= 2 * count * LONG:
        count *= 2  # whoever is late does fewer
    if out is None:
        out = numpy.empty((m, n), a.dtype)

    def work_on(part):
        rows, columns = (part, slice(n)) if m >= n else (slice(m), part)
        y = numpy.matmul(a[rows], b[:, columns], out=out[rows, columns])
        if bias is not None:
            y += bias[columns]
        if relu:
            positive_part(y, y)

    parallel(work_on, cut(max(m, n), count))
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

    def work_on(part):
        x, y, z = (stack[part] for stack in stacks)
        numpy.matmul(x, y, out=z)

    parallel(work_on, cut(len(stacks[0]), threads))
    return out


def column_sums(
    g: numpy.ndarray, y: numpy.ndarray | None, out: numpy.ndarray | None
) -> tuple[numpy.ndarray, numpy.ndarray] | None:
    """(g, which is 0 where y is given and not above 0; the sum of its rows, in `out` if
    given), of arrays of one type; None where no compiled loop serves them."""
    function = _function("sum_columns", g.dtype)
    if function is None or (y is not None and y.dtype != g.dtype):
        return None
    g = numpy.ascontiguousarray(g)
    sums = numpy.empty(g.shape[1], g.dtype) if out is None else out
    made = g if y is None else numpy.empty_like(g)
    y = None if y is None else numpy.ascontiguousarray(y)
    addresses = [x if x is None else compiler.pointer(x) for x in (g, y, made, sums)]
    function(*addresses, *g.shape, 1 if g.size < PARALLEL_FROM else get_num_threads())
    return made, sums


@cache
def _function(name, dtype):
    """The compiled function for this dtype, or None."""
    kind = {"f": "float", "d": "double"}.get(dtype.char)
    if kind is None or not dtype.isnative:
        return None
    source = register_loops.SOURCE + product_loops.SOURCE
    library = compiler.load(source, "-ffp-contract=fast")
    if library is None:
        return None
    function = library[f"{name}_{kind}"]
    function.restype = None
    addresses, numbers = {"multiply": (5, 1), "sum_columns": (4, 3)}[name]
    function.argtypes = [ctypes.c_void_p] * addresses + [ctypes.c_int64] * numbers
    return function
