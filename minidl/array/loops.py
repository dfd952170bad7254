"""A kernel's loop on the CPU: compiled C++ where there is a compiler, or NumPy."""

import ctypes
from collections.abc import Callable

import numpy

from . import compiler
from .body import PREAMBLE, Body
from .compiler import pointer
from .device import bfloat16
from .memory import keep_freed
from .threads import get_num_threads, parallel
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

CHUNK = 1 << 16  # elements; NumPy's passes over one stay in the cache
PARALLEL_FROM = 1 << 17  # elements; below, waking a thread costs more than it saves

_HEADER = """
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
        bits = uint16_t(value != value ? (wide >> 16) | 0x40 : rounded);
    }
};
"""
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
    return f"{_HEADER}{VECTOR_MATH}{PREAMBLE}typedef {C_TYPE[T]} T;{text}"


class CompiledLoop:
    """loop(size, arrays, values) over contiguous arrays, for one choice of types."""

    def __init__(self, function, body, T, dtypes, scalars):
        self.types = (body, T, dtypes, scalars)
        self.by_address = [dtype is not None for dtype in scalars.values()]
        if not any(self.by_address):
            self.by_address = None
        self.function = self._declared(function)
        self.patterns = {}

    def _declared(self, function):
        _, T, dtypes, scalars = self.types
        wide = ctypes.c_double if T.kind == "f" else getattr(ctypes, f"c_{T.name}")
        kinds = [wide if d is None else ctypes.c_void_p for d in scalars.values()]
        whole = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p]
        function.argtypes = [*whole, *[ctypes.c_void_p] * len(dtypes), *kinds]
        function.restype = None
        return function

    def _addresses(self, values):
        return [
            pointer(value) if address else value
            for value, address in zip(values, self.by_address, strict=True)
        ]

    def __call__(self, size, arrays, values):
        threads = 1 if size < PARALLEL_FROM else get_num_threads()
        if self.by_address:
            values = self._addresses(values)
        self.function(size, 1, threads, None, *map(pointer, arrays), *values)

    def strided(self, geometry, arrays, values) -> bool:
        """Run over arrays as they lie; False if the compiler fails at it."""
        steps, size, rows, numbers = geometry
        function = self.patterns.get(steps)
        if function is None:
            library = compiler.load(source(*self.types, steps))
            if library is None:
                return False
            function = self.patterns[steps] = self._declared(library.minidl_kernel)
        threads = 1 if size * rows < PARALLEL_FROM else get_num_threads()
        if self.by_address:
            values = self._addresses(values)
        function(size, rows, threads, numbers, *map(pointer, arrays), *values)
        return True


def make(body: Body, T: numpy.dtype, dtypes: dict, scalars: dict) -> Callable:
    """loop(size, arrays, values) for these types, compiled or in NumPy."""
    keep_freed()
    library = compiler.load(source(body, T, dtypes, scalars))
    if library is None:
        return NumpyLoop(body, T, dtypes)
    return CompiledLoop(library.minidl_kernel, body, T, dtypes, scalars)


class NumpyLoop:
    """The same in NumPy, a chunk at a time: each pass rounds as the C++ does."""

    def __init__(self, body: Body, T: numpy.dtype, dtypes: dict):
        self.function, self.T = body.function(T), T
        self.uses_index = body.uses_index
        self.first = len(dtypes) - len(body.outputs)

    def __call__(self, size, arrays, values):
        T = self.T
        arrays = [array.reshape(-1) for array in arrays]
        values = [T.type(v.item() if hasattr(v, "item") else v) for v in values]

        def run(starts):
            for start in starts:
                part = slice(start, start + CHUNK)
                chunks = [array[part].astype(T, copy=False) for array in arrays]
                index = None
                if self.uses_index:
                    index = numpy.arange(start, start + len(chunks[-1])).astype(T)
                results = self.function(*chunks, *values, index)
                for array, result in zip(arrays[self.first :], results, strict=True):
                    array[part] = result

        starts, threads = range(0, size, CHUNK), get_num_threads()
        with numpy.errstate(all="ignore"):
            parallel(run, [starts[i::threads] for i in range(threads)])

    def strided(self, geometry, arrays, values) -> bool:
        """Cannot: copies are made contiguous for it."""
        return False
