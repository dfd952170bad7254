"""CUDA C++ on a CPU: kernels' real source, compiled by g++ and run on NumPy's memory.

    module = Module(source)
    module.launch("saxpy", (blocks,), (threads,), (x, y, numpy.float32(2), n))

Each thread is a fibre, so barriers and shuffles are real (cuda_fibres.hpp); what runs
wrong is raised: barriers that not all reach, a misaligned address, arguments of the
wrong size. Races within a block mostly show, as every second block runs backwards.
"""

import ctypes
import math
import re
import threading
import warnings
from functools import cache
from pathlib import Path

import cupy
import numpy
from cupy._core import _carray, _kernel, _scalar

from minidl.array.compiler import load

HERE = Path(__file__).parent
FLAGS = (  # the last word wins: quickly compiled, addresses checked
    "-O1",
    "-fsanitize=alignment",
    "-U_FORTIFY_SOURCE",  # which takes a jump to another stack for a mistake
    "-x",
    "c++",
    "-I" + str(Path(cupy.__file__).parent / "_core" / "include"),
)
_ENTRY = """
extern "C" const char* run_{0}(const long long* dims, void** args) {{
  return fibres::call({0}, dims, args);
}}
extern "C" int sizes_{0}(int* out) {{ return fibres::sizes({0}, out); }}
"""
HEADER = "".join(
    (HERE / name).read_text() for name in ("cuda_on_cpu.hpp", "cuda_fibres.hpp")
)
_lock = threading.Lock()  # a library has one set of fibres


class Module:
    """Compiled CUDA source; raises CompileError with the compiler's first error."""

    def __init__(self, source: str):
        # the header stands in for those of CUDA, and for CuPy's short floats
        source = re.sub(r"^\s*#\s*include.*$", "", source, flags=re.M)
        source = re.sub(
            r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w\s]+?)\s*(\w+)\[\]\s*;",
            r"\1* \2 = (\1*)dynamic_shared_memory;",
            source,
        )
        plain = re.sub(r"//.*?$|/\*.*?\*/", "", source, flags=re.M | re.S)
        bounds = r"(?:__launch_bounds__\([^)]*\)\s*)?"
        heads = re.findall(
            rf"__global__\s+{bounds}void\s+{bounds}(\w+)\s*\(([^)]*)\)", plain
        )
        self.names = [name for name, _ in heads]
        # of each kernel, for each parameter: whether it is a pointer to write to
        self.writes = {
            name: ["*" in x and "const " not in x for x in parameters.split(",")]
            for name, parameters in heads
        }
        entries = "".join(_ENTRY.format(name) for name in self.names)
        self.library = _compiled(HEADER + source + entries)

    def launch(self, name, grid, block, args, shared=0, backwards=False) -> None:
        """Run the kernel: one call for cuLaunchKernel."""
        if name not in self.names:
            raise KeyError(f"there is no kernel {name!r}, but {self.names}")
        grid, block = ((*x, 1, 1)[:3] for x in (grid, block))
        _check_launch(name, grid, block)
        packed = [pack(arg) for arg in args]
        sizes = (ctypes.c_int * 64)()
        count = getattr(self.library, f"sizes_{name}")(sizes)
        given = [ctypes.sizeof(x) for x in packed]
        if given != sizes[:count]:
            raise TypeError(
                f"kernel {name!r} takes arguments of {sizes[:count]} bytes, got {given}"
            )
        addresses = (ctypes.c_void_p * max(count, 1))(*map(ctypes.addressof, packed))
        dims = (ctypes.c_longlong * 8)(*grid, *block, shared, backwards)
        run = getattr(self.library, f"run_{name}")
        run.restype = ctypes.c_char_p
        with _lock:
            problem = run(dims, addresses)
        if problem:
            raise RuntimeError(f"kernel {name!r}: {problem.decode()}")


class CompileError(RuntimeError):
    """The source is not C++ as CUDA has it."""


@cache
def _compiled(source: str) -> ctypes.CDLL:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return load(source, *FLAGS)
        except RuntimeWarning as problem:
            raise CompileError(str(problem)) from None


def _check_launch(name, grid, block) -> None:
    """The limits of every GPU since 2012."""
    if not 1 <= math.prod(block) <= 1024 or block[2] > 64 or min(block) < 1:
        raise ValueError(f"kernel {name!r} cannot have blocks of {block} threads")
    if min(grid) < 1 or max(grid[1:]) > 65535 or grid[0] >= 2**31:
        raise ValueError(f"kernel {name!r} cannot have a grid of {grid} blocks")


def pack(arg):
    """The argument's bytes, as CuPy passes them: Python numbers have 8 bytes."""
    if isinstance(arg, numpy.ndarray):
        return ctypes.c_void_p(arg.ctypes.data)
    if isinstance(arg, ctypes.Array):
        return arg
    if isinstance(arg, bool):
        return ctypes.c_bool(arg)
    if isinstance(arg, int):
        return ctypes.c_longlong(arg)
    if isinstance(arg, float):
        return ctypes.c_double(arg)
    if isinstance(arg, numpy.generic):
        return (ctypes.c_char * arg.itemsize)(*arg.tobytes())
    raise TypeError(f"a kernel cannot take {type(arg).__name__}")


class ElementwiseKernel:
    """cupy.ElementwiseKernel: its source by CuPy itself, run on NumPy's arrays."""

    def __init__(self, *args, **kwargs):
        self.real = cupy.ElementwiseKernel(*args, **kwargs)

    def prepare(self, args, size=None, empty=numpy.empty):
        """The outputs, made by `empty` where not given, and the launch to be called."""
        real = self.real
        if len(args) not in (real.nin, real.nargs):
            raise TypeError(f"Wrong number of arguments for {real.name!r}: {len(args)}")
        ins, outs = args[: real.nin], args[real.nin :]
        types = [x.dtype if isinstance(x, numpy.ndarray) else None for x in args]
        in_types, out_types, types = real._decide_params_type(
            tuple(types[: real.nin]), tuple(types[real.nin :])
        )
        walked = [
            x.shape
            for x, param in zip(args, real.params, strict=False)
            if isinstance(x, numpy.ndarray) and not param.raw
        ]
        shape = numpy.broadcast_shapes(*walked) if walked else (size,)
        if (size is not None) == bool(walked):
            raise ValueError("give a size where all arrays are raw, and only there")
        if not outs:
            if any(param.raw for param in real.out_params):
                raise ValueError("Output array size is Undecided")
            outs = [empty(shape, dtype) for dtype in out_types]
        for out, param in zip(outs, real.out_params, strict=True):
            if not param.raw and out.shape != shape:
                raise ValueError(f"Out shape is mismatched: {out.shape}, not {shape}")
        return outs, self._launch([*ins, *outs], [*in_types, *out_types], shape, types)

    def _launch(self, args, dtypes, shape, types):
        params = self.real.params[: self.real.nargs]  # the last one is the indexer
        walked = [
            isinstance(arg, numpy.ndarray) and not param.raw
            for arg, param in zip(args, params, strict=True)
        ]
        args = [
            numpy.broadcast_to(arg, shape) if walk else arg
            for arg, walk in zip(args, walked, strict=True)
        ]
        pairs = list(zip(args, walked, strict=True))
        flat = all(arg.flags.c_contiguous for arg, walk in pairs if walk) and shape
        size = math.prod(shape)
        infos, packed = [], []
        for (arg, walk), dtype in zip(pairs, dtypes, strict=True):
            if not isinstance(arg, numpy.ndarray):
                infos.append(_info(3, _scalar.CScalar, dtype, 0, True))
                packed.append(numpy.dtype(dtype).type(arg))
                continue
            dims, strides = arg.shape, arg.strides
            if walk and flat:
                dims, strides = (size,), (arg.itemsize,)
            if arg.dtype != dtype:
                raise TypeError(f"{self.real.name!r} takes {dtype}, got {arg.dtype}")
            whole = arg.flags.c_contiguous
            infos.append(_info(1, cupy.ndarray, arg.dtype, len(dims), whole))
            packed.append(_words(arg.ctypes.data, arg.size, *dims, *strides))
        dims = (size,) if flat else shape
        infos.append(_info(2, _carray.Indexer, None, len(dims), bool(flat)))
        packed.append(_words(size, *dims, *[0] * len(dims)))
        real = self.real
        text = _kernel._get_elementwise_kernel_code(
            tuple(infos),
            types,
            real.params,
            real.operation,
            real.name,
            real.preamble,
            **{k: v for k, v in real.kwargs.items() if k != "options"},
        )
        module = compiled_module(text)
        block = 128 if "__sync" in text or "_sync(" in text else 1
        grid = -(-size // block) if block > 1 else 1
        keep = args  # their memory must live until the launch

        def launch():
            if size:
                module.launch(real.name, (grid,), (block,), packed)
            return keep

        return launch

    def __call__(self, *args, size=None):
        outs, launch = self.prepare(args, size)
        launch()
        return outs[0] if len(outs) == 1 else tuple(outs)


@cache
def compiled_module(source: str) -> Module:
    """One module for each source."""
    return Module(source)


def _info(kind, of, dtype, ndim, whole):
    return _kernel._ArgInfo(kind, of, dtype and numpy.dtype(dtype), ndim, whole, False)


def _words(*numbers):
    return (ctypes.c_longlong * len(numbers))(*numbers)
