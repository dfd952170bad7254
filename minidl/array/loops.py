"""A kernel's loop on the CPU: compiled C++ where there is a compiler, or NumPy."""

import ctypes
from collections.abc import Callable
from math import prod

import numpy

from . import compiler, ufunc
from .body import Body
from .compiler import pointer
from .loop_source import source, ufunc_source
from .memory import keep_freed
from .threads import get_num_threads, parallel

CHUNK = 1 << 17  # elements; passes over fewer let threads of Python meet too often
PARTED_FROM = 1 << 19  # elements from which these threads pay all the same
STANDARD = "-std=c++14"  # for C++17's mathematics a compiler reads twice as long
PARALLEL_FROM = 1 << 17  # elements; below, waking a thread costs more than it saves


class CompiledLoop:
    """loop(size, arrays, values) over contiguous arrays, for one choice of types.

    `ufunc(*inputs, *values)` makes the outputs itself, of arrays of any strides; it is
    None where the body is more than a function of its inputs.
    """

    ufunc = None

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
            library = compiler.load(source(*self.types, steps), STANDARD)
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
    text, inputs = source(body, T, dtypes, scalars), len(dtypes) - len(body.outputs)
    pure = inputs and not (body.reads or body.uses_index)
    if pure and T.kind == "f" and all(dtype is None for dtype in scalars.values()):
        text += ufunc_source(body, T, dtypes, scalars)
    library = compiler.load(text, STANDARD)
    if library is None:
        return NumpyLoop(body, T, dtypes)
    loop = CompiledLoop(library.minidl_kernel, body, T, dtypes, scalars)
    if hasattr(library, "minidl_ufunc"):
        types = list(dtypes.values())
        types[inputs:inputs] = [numpy.dtype("float64")] * len(scalars)
        loop.ufunc = ufunc.make(library.minidl_ufunc, types, inputs + len(scalars))
    return loop


class NumpyLoop:
    """The same in NumPy, a chunk at a time: each pass rounds as the C++ does."""

    ufunc = None

    def __init__(self, body: Body, T: numpy.dtype, dtypes: dict):
        self.function, self.T = body.function(T), T
        self.uses_index = body.uses_index
        self.first = len(dtypes) - len(body.outputs)

    def __call__(self, size, arrays, values):
        self._run(_parts((size,)), [array.reshape(-1) for array in arrays], values)

    def strided(self, geometry, arrays, values) -> bool:
        """Run over arrays of one shape as they lie."""
        self._run(_parts(arrays[-1].shape), arrays, values)
        return True

    def _run(self, parts, arrays, values):
        T = self.T
        values = [T.type(v.item() if hasattr(v, "item") else v) for v in values]

        def run(parts):
            for part in parts:
                chunks = [array[part].astype(T, copy=False) for array in arrays]
                index = None
                if self.uses_index:
                    start = part[0].start
                    index = numpy.arange(start, start + len(chunks[-1])).astype(T)
                results = self.function(*chunks, *values, index)
                for array, result in zip(arrays[self.first :], results, strict=True):
                    array[part] = result

        threads = get_num_threads() if arrays[-1].size >= PARTED_FROM else 1
        with numpy.errstate(all="ignore"):
            parallel(run, [parts[i::threads] for i in range(threads)])


def _parts(shape) -> list:
    """Indices of equal parts of at most CHUNK elements where that can be, as many for
    each thread."""
    if prod(shape) <= CHUNK:
        return [(slice(0, shape[0]),)]
    axis = 0
    while axis < len(shape) - 1 and prod(shape[axis + 1 :]) > CHUNK:
        axis += 1
    row = max(1, prod(shape[axis + 1 :]))
    rounds = -(-shape[axis] * row // (CHUNK * get_num_threads()))
    step = -(-shape[axis] // (rounds * get_num_threads()))
    slices = [slice(start, start + step) for start in range(0, shape[axis], step)]
    return [(*first, part) for first in numpy.ndindex(shape[:axis]) for part in slices]
