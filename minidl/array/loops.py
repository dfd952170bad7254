"""A kernel's loop on the CPU: compiled C++ where there is a compiler, or NumPy."""

import ctypes
from collections.abc import Callable

import numpy

from . import compiler
from .body import PREAMBLE, Body
from .device import bfloat16
from .threads import get_num_threads

C_TYPE = {
    numpy.dtype(name): c_type
    for name, c_type in {
        "float32": "float",
        "float64": "double",
        "float16": "_Float16",
        "bool": "bool",
    }.items()
}
C_TYPE |= {
    numpy.dtype(f"{sign}int{bits}"): f"{sign}int{bits}_t"
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
if bfloat16 is not None:
    C_TYPE[numpy.dtype(bfloat16)] = "bfloat16"

CHUNK = 1 << 16  # elements; NumPy's passes over one stay in the cache
_PARALLEL_FROM = 1 << 15  # elements; below, starting threads costs more than it saves

_HEADER = """
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
struct bfloat16 {
    uint16_t bits;
    operator float() const {
        uint32_t wide = uint32_t(bits) << 16;
        float value;
        memcpy(&value, &wide, 4);
        return value;
    }
    bfloat16(float value) {  // to the nearest, halves to even
        uint32_t wide;
        memcpy(&wide, &value, 4);
        uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
        bits = uint16_t(value != value ? (wide >> 16) | 0x40 : rounded);
    }
};
"""
_LOOP = """
static inline void run(int64_t begin, int64_t end{parameters}{numbers}) {{
    _Pragma("omp simd")
    for (int64_t i = begin; i < end; ++i) {{
        {loads}
        {body}
        {stores}
    }}
}}
extern "C" void minidl_kernel(int64_t size, int threads{parameters}{scalars}) {{
    {values}
#ifdef _OPENMP
    if (threads > 1 && size >= {parallel_from}) {{
        #pragma omp parallel num_threads(threads)
        {{
            int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
            int64_t step = ((size + parts - 1) / parts + 63) / 64 * 64;
            int64_t begin = part * step, end = begin + step;
            run(begin < size ? begin : size, end < size ? end : size{arguments});
        }}
        return;
    }}
#endif
    run(0, size{arguments});
}}
"""


def source(body: Body, T: numpy.dtype, dtypes: dict, scalars: dict) -> str:
    """The C++ of a loop over contiguous arrays.

    `dtypes` gives each array's type by name, inputs first; `scalars` gives None for
    a number and the type of a one-element array.
    """
    wide = "double" if T.kind == "f" else C_TYPE[T]
    loads = [
        f"T v_{name} = (T)_{name}[i];"
        for name in dtypes
        if name not in body.outputs or name in body.reads
    ]
    loads += [f"T v_{n} = T(0);" for n in body.outputs if n not in body.reads]
    if body.uses_index:
        loads.append("T v_index = (T)i;")
    names = [*dtypes, *scalars]
    return "".join(
        [
            _HEADER,
            PREAMBLE,
            f"typedef {C_TYPE[T]} T;",
            _LOOP.format(
                parameters="".join(
                    f", {'' if n in body.outputs else 'const '}{C_TYPE[d]}* _{n}"
                    for n, d in dtypes.items()
                ),
                numbers="".join(f", const T v_{n}" for n in scalars),
                scalars="".join(
                    f", {wide} _{n}" if d is None else f", const {C_TYPE[d]}* _{n}"
                    for n, d in scalars.items()
                ),
                values="\n    ".join(
                    f"const T v_{n} = (T){'' if d is None else '*'}_{n};"
                    for n, d in scalars.items()
                ),
                arguments="".join(
                    f", {'v' if n in scalars else ''}_{n}" for n in names
                ),
                loads="\n        ".join(loads),
                body="\n        ".join(body.cpp),
                stores="\n        ".join(
                    f"_{n}[i] = ({C_TYPE[dtypes[n]]})v_{n};" for n in body.outputs
                ),
                parallel_from=_PARALLEL_FROM,
            ),
        ]
    )


def make(body: Body, T: numpy.dtype, dtypes: dict, scalars: dict) -> Callable:
    """loop(size, arrays, values) for these types, compiled or in NumPy."""
    library = compiler.load(source(body, T, dtypes, scalars))
    if library is None:
        return _numpy_loop(body, T, list(dtypes))
    function = library.minidl_kernel
    wide = ctypes.c_double
    if T.kind != "f":
        wide = getattr(ctypes, f"c_{T.name}")
    kinds = [wide if d is None else ctypes.c_void_p for d in scalars.values()]
    pointers = [ctypes.c_void_p] * len(dtypes)
    function.argtypes = [ctypes.c_int64, ctypes.c_int, *pointers, *kinds]
    function.restype = None
    pointer = compiler.pointer
    if all(dtype is None for dtype in scalars.values()):

        def loop(size, arrays, values):
            threads = 1 if size < _PARALLEL_FROM else get_num_threads()
            function(size, threads, *map(pointer, arrays), *values)
    else:
        by_address = [dtype is not None for dtype in scalars.values()]

        def loop(size, arrays, values):
            threads = 1 if size < _PARALLEL_FROM else get_num_threads()
            values = [
                pointer(value) if address else value
                for value, address in zip(values, by_address, strict=True)
            ]
            function(size, threads, *map(pointer, arrays), *values)

    return loop


def _numpy_loop(body: Body, T: numpy.dtype, names: list[str]) -> Callable:
    """The same in NumPy, a chunk at a time: each pass rounds as the C++ does."""
    function = body.function(T)
    first = len(names) - len(body.outputs)

    def loop(size, arrays, values):
        arrays = [array.reshape(-1) for array in arrays]
        values = [T.type(v.item() if hasattr(v, "item") else v) for v in values]
        with numpy.errstate(all="ignore"):
            for start in range(0, size, CHUNK):
                part = slice(start, start + CHUNK)
                chunks = [array[part].astype(T, copy=False) for array in arrays]
                index = None
                if body.uses_index:
                    index = numpy.arange(start, start + len(chunks[-1])).astype(T)
                results = function(*chunks, *values, index)
                for array, result in zip(arrays[first:], results, strict=True):
                    array[part] = result

    return loop
