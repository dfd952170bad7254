"""The C++ of a kernel's loop on the CPU, for ctypes and for NumPy's ufuncs."""

import numpy

from .body import PREAMBLE, Body
from .device import bfloat16
from .vector_math import VECTOR_MATH

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

_HEADER = """
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
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
        // all ones for NaN, which stays one; a choice would not be vectorised
        uint32_t nan = (0x7f800000 - int32_t(wide & 0x7fffffff)) >> 31;
        bits = uint16_t(rounded | (nan & 0x7fff));
    }
};
"""
# GCC would round to 16 bits inside the branches of a choice, and so keep the branches
_NARROW = '#pragma GCC optimize("no-tree-pre")'
_LOOP = """
static inline void run(int64_t first, int64_t begin, int64_t end{pointers}{numbers}) {{
    {once}
    _Pragma("omp simd")
    for (int64_t i = begin; i < end; ++i) {{
        {loads}
        {body}
        {stores}
    }}
}}
// `rows` rows of `size` elements; geometry: two inner numbers of rows, then for each
// array its strides over rows and over elements; null for one row of contiguous ones
extern "C" void minidl_kernel(
    int64_t size, int64_t rows, int threads, const int64_t* geometry{pointers}{scalars}
) {{
    {values}
    const int64_t block = 16384, blocks = (size + block - 1) / block;
    #pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t unit = 0; unit < rows * blocks; ++unit) {{
        const int64_t row = unit / blocks, begin = unit % blocks * block;
        const int64_t end = begin + block < size ? begin + block : size;
        int64_t at[{count}] = {{}};
        if (geometry) {{
            const int64_t n1 = geometry[0], n2 = geometry[1];
            for (int k = 0; k < {count}; ++k) {{
                const int64_t* s = geometry + 2 + 4 * k;
                at[k] = row / n2 / n1 * s[0] + row / n2 % n1 * s[1] + row % n2 * s[2];
            }}
        }}
        run(row * size, begin, end{arguments});
    }}
}}
"""
# For NumPy, which steps in bytes, has one thread, and would warn of an overflow
_UFUNC = """
extern "C" void minidl_ufunc(
    char** at, const intptr_t* size, const intptr_t* step, void*
) {{
    {once}
    if ({dense})
        run(0, 0, *size{whole});
    else
        for (intptr_t i = 0; i < *size; ++i) run(0, 0, 1{element});
    if (fetestexcept(FE_DIVBYZERO | FE_OVERFLOW | FE_UNDERFLOW | FE_INVALID))
        feclearexcept(FE_ALL_EXCEPT);
}}
"""


def source(
    body: Body, T: numpy.dtype, dtypes: dict, scalars: dict, steps: str = ""
) -> str:
    """The C++ of a loop over arrays.

    `dtypes` gives each array's type by name, inputs first; `scalars` gives None for
    a number and the type of a one-element array. `steps` has a letter for each
    array: 1 for neighbouring elements, 0 for the same one throughout a row, s for
    elements at any stride.
    """
    steps = dict(zip(dtypes, steps or "1" * len(dtypes), strict=True))
    wide = "double" if T.kind == "f" else C_TYPE[T]
    item = {name: "[i]" if steps[name] == "1" else f"[i * s_{name}]" for name in dtypes}
    once, loads = [], []
    for k, name in enumerate(dtypes):
        if steps[name] == "s":
            once.append(f"const int64_t s_{name} = geometry[{2 + 4 * k + 3}];")
        if name in body.outputs and name not in body.reads:
            loads.append(f"T v_{name} = T(0);")
        elif steps[name] == "0":
            once.append(f"const T o_{name} = (T)*_{name};")
            loads.append(f"T v_{name} = o_{name};")
        else:
            loads.append(f"T v_{name} = (T)_{name}{item[name]};")
    if body.uses_index:
        loads.append("T v_index = (T)(first + i);")
    pointers = [
        f", {'' if name in body.outputs else 'const '}{C_TYPE[dtype]}* _{name}"
        for name, dtype in dtypes.items()
    ]
    arguments = [f", _{name} + at[{k}]" for k, name in enumerate(dtypes)]
    lines = {
        "once": once,
        "loads": loads,
        "body": body.cpp,
        "stores": [
            f"_{name}{item[name]} = ({C_TYPE[dtypes[name]]})v_{name};"
            for name in body.outputs
        ],
        "values": [
            f"const T v_{name} = (T){'' if dtype is None else '*'}_{name};"
            for name, dtype in scalars.items()
        ],
    }
    text = _LOOP.format(
        **{place: "\n        ".join(lines[place]) for place in lines},
        count=len(dtypes),
        pointers="".join(pointers),
        numbers=", const int64_t* geometry" + "".join(f", T v_{x}" for x in scalars),
        arguments="".join([*arguments, ", geometry", *(f", v_{x}" for x in scalars)]),
        scalars="".join(
            f", {wide if dtype is None else f'const {C_TYPE[dtype]}*'} _{name}"
            for name, dtype in scalars.items()
        ),
    )
    narrow = T.kind == "f" and any(dtype.itemsize == 2 for dtype in dtypes.values())
    head = f"{_NARROW if narrow else ''}{_HEADER}{VECTOR_MATH}{PREAMBLE}"
    return f"{head}typedef {C_TYPE[T]} T;{text}"


def ufunc_source(body: Body, T: numpy.dtype, dtypes: dict, scalars: dict) -> str:
    """The C++ of the same loop as a ufunc's, to stand behind `source`."""
    first = len(dtypes) - len(body.outputs)
    places = {name: k + (k >= first) * len(scalars) for k, name in enumerate(dtypes)}
    kinds = {
        name: f"{'' if name in body.outputs else 'const '}{C_TYPE[dtype]}*"
        for name, dtype in dtypes.items()
    }
    after = ", nullptr" + "".join(f", v_{name}" for name in scalars)
    return _UFUNC.format(
        once="\n    ".join(
            f"const T v_{name} = (T)*(const double*)at[{first + k}];"
            for k, name in enumerate(scalars)
        ),
        dense=" && ".join(
            f"step[{places[name]}] == sizeof({C_TYPE[dtype]})"
            for name, dtype in dtypes.items()
        ),
        whole="".join(f", ({kinds[n]})at[{k}]" for n, k in places.items()) + after,
        element="".join(
            f", ({kinds[n]})(at[{k}] + i * step[{k}])" for n, k in places.items()
        )
        + after,
    )
