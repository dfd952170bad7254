"""A kernel on a GPU whose arrays lie alike in memory: 16 bytes at a time."""

from math import prod

import numpy

from . import layout
from .body import PREAMBLE
from .cuda_source import C_TYPE, VECTOR, aligned, blocks, headers
from .device import cupy_module

BLOCK = 256  # threads, or as many units of fewer

# A thread has UNITS times N elements, a block apart: they are on their way together.
# The last elements of all, too few for N, have a thread of the last block each.
_SOURCE = """{headers}
#define MINIDL_HD __device__ static inline
{preamble}
typedef {T} T;
{vector}
template <int N, int UNITS>
MINIDL_HD void part({parameters}, long long at, long long size) {{
    {units}
    #pragma unroll
    for (int u = 0; u < UNITS; ++u) {{
        const long long here = at + u * ({block} * N);
        if (here + N > size) continue;
        {load}
    }}
    {scalars}
    #pragma unroll
    for (int u = 0; u < UNITS; ++u) {{
        const long long here = at + u * ({block} * N);
        if (here + N > size) continue;
        #pragma unroll
        for (int k = 0; k < N; ++k) {{
            {body}
        }}
        {store}
    }}
}}
extern "C" __global__ void {name}({parameters}, long long size) {{
    const long long first = blockIdx.x * {share}ll + threadIdx.x * {width};
    part<{width}, {count}>({arguments}, first, size);
    if (blockIdx.x < gridDim.x - 1) return;
    part<1, 1>({arguments}, (size & -{width}ll) + threadIdx.x, size);
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


def shares(T: numpy.dtype, dtypes: dict, read) -> tuple[int, int, int]:
    """Threads of a block, units of each, and elements of a unit.

    The largest type's fill 16 bytes. To keep the memory busy, the multiprocessors of an
    H200 need some 40 KiB on the way each, 2048 threads 20 bytes: hence the units,
    where anything is `read`.
    """
    sizes = [dtype.itemsize for dtype in dtypes.values()]
    width = min(16 // max(sizes), 32 // T.itemsize)
    units = 1
    while read and units < 4 and units * width * sum(sizes) < 48:
        units *= 2
    return BLOCK // units, units, width


def source(kernel, T: numpy.dtype, dtypes: dict, scalars: dict, lines: list) -> str:
    """The CUDA C++ for arrays of these dtypes; `lines` are the body's statements."""
    reads = [*kernel.inputs, *kernel.body.reads]
    block, units, width = shares(T, dtypes, reads)
    parameters, held, load, store, first, last = [], [], [], [], [], []
    for name, dtype in dtypes.items():
        of, written = C_TYPE[dtype], name in kernel.outputs
        const = "" if written else "const "
        parameters.append(f"{const}{of}* _{name}")
        held.append(f"Vector<{of}, N> s_{name}[UNITS];")
        if name in reads:
            load.append(f"s_{name}[u] = *(const Vector<{of}, N>*)(_{name} + here);")
        start = f"(T)s_{name}[u].at[k]" if name in reads else "T(0)"
        first.append(f"T v_{name} = {start};")
        if written:
            last.append(f"s_{name}[u].at[k] = ({of})v_{name};")
            store.append(f"*(Vector<{of}, N>*)(_{name} + here) = s_{name}[u];")
    number = "double" if T.kind == "f" else "unsigned long long"
    values = []
    for name, dtype in scalars.items():
        kind = number if dtype is None else f"const {C_TYPE[dtype]}*"
        parameters.append(f"{kind} _{name}")
        values.append(f"const T v_{name} = (T){'' if dtype is None else '*'}_{name};")
    if kernel.body.uses_index:
        first.append("T v_index = (T)(here | k);")  # here is a multiple of N
    return _SOURCE.format(
        headers=headers(*dtypes.values(), *filter(None, scalars.values())),
        preamble=PREAMBLE,
        T=C_TYPE[T],
        vector=VECTOR,
        parameters=", ".join(parameters),
        arguments=", ".join(f"_{name}" for name in [*dtypes, *scalars]),
        units="\n    ".join(held),
        load="\n        ".join(load),
        scalars="\n    ".join(values),
        body="\n            ".join([*first, *lines, *last]),
        store="\n        ".join(store),
        name=f"minidl_{kernel.name}",
        block=block,
        width=width,
        count=units,
        share=block * units * width,
    )


def launcher(kernel, T: numpy.dtype, dtypes: dict, scalars: dict, options):
    """A function of the arrays and the scalars' values: one launch."""
    text = source(kernel, T, dtypes, scalars, kernel.body.cpp)
    name = f"minidl_{kernel.name}"
    compiled = cupy_module().RawKernel(text, name, options)
    block, *rest = shares(T, dtypes, [*kernel.inputs, *kernel.body.reads])
    share = block * prod(rest)
    number = float if T.kind == "f" else _bits
    how = [number if dtype is None else _itself for dtype in scalars.values()]

    def launch(arrays, values):
        size = arrays[0].size
        if size:
            given = [of(value) for of, value in zip(how, values, strict=True)]
            args = (*arrays, *given, size)
            compiled((blocks(size, share),), (block,), args)

    return launch


def _bits(value) -> numpy.uint64:
    return numpy.uint64(int(value) % 2**64)


def _itself(value):
    return value
