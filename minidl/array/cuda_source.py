"""CUDA C++ of minidl's own: the names of types, and functions compiled when needed."""

from functools import cache

import numpy

from .device import bfloat16, cupy_module
from .dtypes import wide_type

C_TYPE = {
    numpy.dtype(name): c_type
    for name, c_type in {
        "float32": "float",
        "float64": "double",
        "float16": "float16",
        "int8": "signed char",
        "int16": "short",
        "int32": "int",
        "int64": "long long",
        "uint8": "unsigned char",
        "uint16": "unsigned short",
        "uint32": "unsigned int",
        "uint64": "unsigned long long",
        "bool": "bool",
    }.items()
}
if bfloat16 is not None:
    C_TYPE[numpy.dtype(bfloat16)] = "bfloat16"

VECTOR = """
#define INLINE __device__ static inline
#define UNROLLED(n, count) _Pragma("unroll") for (int n = 0; n < (count); ++n)
template <class S, int N>
struct alignas(sizeof(S) * N < 16 ? sizeof(S) * N : 16) Vector { S at[N]; };
"""
"""N neighbours that are moved 16 bytes at a time; and shorter words for CUDA's own."""

PACKS = (
    VECTOR
    + """
typedef Vector<S, VECTOR> Some;
// what lies in registers until it is used, two halves to a register
template <bool words> struct Word { typedef unsigned type; };
template <> struct Word<false> { typedef S type; };
typedef Word<sizeof(Some) % 4 == 0>::type W;
typedef Vector<W, sizeof(Some) / sizeof(W)> Packed;
INLINE Some unpacked(Packed p) { Some s; memcpy(&s, &p, sizeof s); return s; }
INLINE void store(S* to, Some s) {
    Packed p;
    memcpy(&p, &s, sizeof p);
    *(Packed*)to = p;
}
"""
)
"""VECTOR neighbours of type S, read and written together."""


def headers(*dtypes) -> str:
    """What must be included for these types."""
    short = [d.name for d in dtypes if d.name in ("float16", "bfloat16")]
    return "".join(f"#include <cupy/{name}.cuh>\n" for name in dict.fromkeys(short))


def source_of(source: str, types: tuple, numbers: tuple) -> str:
    """The source with (name, dtype) of `types` as types and (name, number) of `numbers`
    as macros."""
    lines = [headers(*(dtype for _, dtype in types))]
    lines += [f"typedef {C_TYPE[dtype]} {name};\n" for name, dtype in types]
    lines += [f"#define {name} {number}\n" for name, number in numbers]
    return "".join(lines) + source


@cache
def function(source: str, types: tuple, numbers: tuple, name: str):
    """The kernel of that name in the source; compiled when launched.

    CuPy flushes denormal numbers to zero in every kernel, in this one too.
    """
    return cupy_module().RawKernel(source_of(source, types, numbers), name)


def refuse_host(arrays) -> None:
    """TypeError for a NumPy array: of one element, CuPy would pass it by value where
    the kernel takes a pointer."""
    if numpy.ndarray in map(type, arrays):
        raise TypeError("a kernel for a GPU takes arrays on it, got one on the CPU")


def aligned(*arrays) -> bool:
    """Whether 16 bytes can be moved at a time, from the first element on."""
    return not any(array.data.ptr % 16 for array in arrays)


def empty(shape, dtype):
    """An array on the current device with whatever the memory holds."""
    return cupy_module().empty(shape, dtype)


def contiguous(array, dtype=None):
    """The array, or a C-contiguous copy of this dtype."""
    if array.flags.c_contiguous and dtype in (None, array.dtype):
        return array
    return array.astype(dtype or array.dtype, order="C")


def blocks(count: int, size: int) -> int:
    """How many blocks of that size hold so many."""
    return -(-count // size)


def types_of(array) -> tuple:
    """The type S of the array, T to compute in, I for its positions."""
    index = numpy.int32 if array.size < 2**30 else numpy.int64
    return ("S", array.dtype), ("T", wide_type(array.dtype)), ("I", numpy.dtype(index))
