"""CUDA C++ of minidl's own: the names of types, and functions compiled when needed."""

from functools import cache

import numpy

from .device import bfloat16, cupy_module

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

FLUSH = ("-ftz=true",)  # as in every cupy.ElementwiseKernel: one result in any layout
VECTOR = """
template <class S, int N>
struct alignas(sizeof(S) * N < 16 ? sizeof(S) * N : 16) Vector { S at[N]; };
"""
"""N neighbours that are moved 16 bytes at a time."""


def headers(*dtypes) -> str:
    """What must be included for these types."""
    short = [d.name for d in dtypes if d.name in ("float16", "bfloat16")]
    return "".join(f"#include <cupy/{name}.cuh>\n" for name in dict.fromkeys(short))


@cache
def module(source: str, types: tuple, numbers: tuple, options: tuple = FLUSH):
    """The compiled source, in which (name, dtype) of `types` are types and (name,
    number) of `numbers` are macros."""
    lines = [headers(*(dtype for _, dtype in types))]
    lines += [f"typedef {C_TYPE[dtype]} {name};\n" for name, dtype in types]
    lines += [f"#define {name} {number}\n" for name, number in numbers]
    code = "".join(lines) + source
    return cupy_module().RawModule(code=code, options=options)


def aligned(*arrays) -> bool:
    """Whether 16 bytes can be moved at a time, from the first element on."""
    return not any(array.data.ptr % 16 for array in arrays)


def wide_type(dtype: numpy.dtype) -> numpy.dtype:
    """The type to compute in."""
    return numpy.dtype(numpy.float32) if dtype.itemsize < 4 else dtype


def blocks(count: int, size: int) -> int:
    """How many blocks of that size hold so many."""
    return -(-count // size)
