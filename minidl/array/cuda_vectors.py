"""A kernel on a GPU whose arrays lie alike in memory: 16 bytes at a time."""

import numpy

from . import layout
from .body import PREAMBLE
from .cuda_source import C_TYPE, VECTOR, aligned, blocks, headers
from .device import cupy_module

BLOCK = 256  # threads

# `part` has N elements from `at` on, the last thread one after the other.
_SOURCE = """{headers}
#define MINIDL_HD __device__ static inline
{preamble}
typedef {T} T;
{vector}
template <int N>
MINIDL_HD void part({parameters}, long long at) {{
    {load}
    {scalars}
    #pragma unroll
    for (int k = 0; k < N; ++k) {{
        {body}
    }}
    {store}
}}
extern "C" __global__ void {name}({parameters}, long long size) {{
    long long at = (blockIdx.x * (long long)blockDim.x + threadIdx.x) * {width};
    if (at + {width} <= size) part<{width}>({arguments}, at);
    else for (; at < size; ++at) part<1>({arguments}, at);
}}
"""


def order(arrays, shape, in_place: bool) -> tuple[int, ...] | None:
    """The order of axes in which all arrays are contiguous, () for the usual one.

    None if there is none, or only another and the kernel needs the elements `in_place`;
    if shapes differ, and if an address is no multiple of 16, unless there is but one
    element, which is no vector.
    """
    if any(array.shape != shape for array in arrays):
        return None
    if arrays[0].size > 1 and not aligned(*arrays):
        return None
    if all(array.flags.c_contiguous for array in arrays):
        return ()
    return None if in_place else layout.common_order(arrays)


def width_of(T: numpy.dtype, dtypes) -> int:
    """Elements a thread: the smallest type's fill 16 bytes, unless those are many."""
    return min(16 // min(dtype.itemsize for dtype in dtypes), 32 // T.itemsize)


def source(kernel, T: numpy.dtype, dtypes: dict, scalars: dict, lines: list) -> str:
    """The CUDA C++ for arrays of these dtypes; `lines` are the body's statements."""
    width = width_of(T, dtypes.values())
    parameters, load, store, first, last = [], [], [], [], []
    for name, dtype in dtypes.items():
        of, written = C_TYPE[dtype], name in kernel.outputs
        read = not written or name in kernel.body.reads
        const = "" if written else "const "
        parameters.append(f"{const}{of}* _{name}")
        start = f" = *(const Vector<{of}, N>*)(_{name} + at)" if read else ""
        load.append(f"Vector<{of}, N> s_{name}{start};")
        first.append(f"T v_{name} = {f'(T)s_{name}.at[k]' if read else 'T(0)'};")
        if written:
            last.append(f"s_{name}.at[k] = ({of})v_{name};")
            store.append(f"*(Vector<{of}, N>*)(_{name} + at) = s_{name};")
    number = "double" if T.kind == "f" else "unsigned long long"
    values = []
    for name, dtype in scalars.items():
        kind = number if dtype is None else f"const {C_TYPE[dtype]}*"
        parameters.append(f"{kind} _{name}")
        values.append(f"const T v_{name} = (T){'' if dtype is None else '*'}_{name};")
    if kernel.body.uses_index:
        first.append("T v_index = (T)(at + k);")
    return _SOURCE.format(
        headers=headers(*dtypes.values(), *filter(None, scalars.values())),
        preamble=PREAMBLE,
        T=C_TYPE[T],
        vector=VECTOR,
        parameters=", ".join(parameters),
        arguments=", ".join(f"_{name}" for name in [*dtypes, *scalars]),
        load="\n    ".join(load),
        scalars="\n    ".join(values),
        body="\n        ".join([*first, *lines, *last]),
        store="\n    ".join(store),
        name=f"minidl_{kernel.name}",
        width=width,
    )


def launcher(kernel, T: numpy.dtype, dtypes: dict, scalars: dict, options):
    """A function of the arrays and the scalars' values: one launch."""
    text = source(kernel, T, dtypes, scalars, kernel.body.cpp)
    name = f"minidl_{kernel.name}"
    compiled = cupy_module().RawKernel(text, name, options)
    share = BLOCK * width_of(T, dtypes.values())
    number = float if T.kind == "f" else _bits
    how = [number if dtype is None else _itself for dtype in scalars.values()]

    def launch(arrays, values):
        size = arrays[0].size
        if size:
            given = [of(value) for of, value in zip(how, values, strict=True)]
            args = (*arrays, *given, size)
            compiled((blocks(size, share),), (BLOCK,), args)

    return launch


def _bits(value) -> numpy.uint64:
    return numpy.uint64(int(value) % 2**64)


def _itself(value):
    return value
