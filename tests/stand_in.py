"""A strict stand-in for CuPy on machines without a GPU.

    import stand_in
    stand_in.install()              # minidl now finds a CUDA device
    ...
    stand_in.remove()

or the fixture `stand_in`, or `python tests/stand_in.py -m minidl train ...`.

What the installed CuPy lacks is lacking here, calls are held against its signatures,
kernels run from the CUDA source that CuPy writes, and everything else is NumPy's.
`launches`, `syncs` and `uploads` name what a program did.
"""

import contextlib
import os
import runpy
import sys
import types
import weakref
from types import SimpleNamespace

import cupy as real
import numpy
import stand_in_cuda as cuda
from cuda_on_cpu import ElementwiseKernel as CpuKernel
from cuda_on_cpu import Module, compiled_module
from stand_in_array import (
    arrays_in,
    ndarray,
    operation,
    plain,
    short_sums,
    signature_of,
    touched,
)
from stand_in_cuda import enqueue, launches, stream_of, syncs, uploads
from stand_in_memory import MemoryPointer, MemoryPool, hazards

__all__ = "cupy enqueue install launches remove reset stream_of syncs uploads".split()
AT = ("add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or")


class Ufunc:
    """cupy.ufunc."""

    def __init__(self, name: str):
        self.name = self.__name__ = name
        self.numpy = getattr(numpy, name)

    def __call__(self, *args, out=None, **kwargs):
        wrong = set(kwargs) - {"dtype", "casting", "where"}
        if wrong:
            raise TypeError(f"Wrong arguments {wrong} for {self.name}")
        inputs, outs = args[: self.numpy.nin], args[self.numpy.nin :]
        out = outs[0] if outs else out
        if isinstance(out, tuple):
            (out,) = out
        if out is not None and not isinstance(out, ndarray):
            raise TypeError("Output arguments type must be cupy.ndarray")
        if not arrays_in(inputs):
            inputs = [numpy.asarray(plain(x))[()] for x in inputs]
        return operation(self.name, self.numpy, inputs, kwargs, out)

    def at(self, a, indices, b=None):
        if self.name not in AT:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        args = (a, indices) if b is None else (a, indices, b)
        run = lambda a, *rest, out: self.numpy.at(out, *rest)  # noqa: E731
        operation(f"{self.name}.at", run, args, out=a)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        if self.name not in ("add", "multiply"):
            raise NotImplementedError(f"`{self.name}.reduce` is not supported yet")
        kwargs = {"axis": axis, "dtype": dtype, "keepdims": keepdims}
        return operation(self.name, self.numpy.reduce, (array,), kwargs, out)


def function_of(name: str, original, ours):
    """NumPy's function behind the signature of CuPy's."""
    signature = signature_of(original)

    def function(*args, **kwargs):
        if signature is not None:
            bound = signature.bind(*args, **kwargs)
            args, kwargs = bound.args, bound.kwargs
        out = kwargs.pop("out", None)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("blocking", "device")}
        return operation(name, short_sums(name, ours), args, kwargs, out)

    function.__name__ = name
    return function


# ---- functions that NumPy has not, or has otherwise ------------------------------
def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if arrays_in([obj]):
        kwargs = {"copy": copy or None, "order": order, "ndmin": ndmin}
        made = numpy.array if isinstance(obj, ndarray) else _stacked
        return operation("array", made, (obj,), {"dtype": dtype, **kwargs})
    host = numpy.array(obj, dtype, order=order, ndmin=ndmin)
    made = ndarray(host.shape, host.dtype)
    cuda.refuse_in_capture("a copy from the host")
    if host.size:
        made.set(host)
    return made


def _stacked(obj, **kwargs):
    return numpy.stack([numpy.asarray(x) for x in obj]).astype(kwargs["dtype"] or None)


def asarray(a, dtype=None, order=None, *, blocking=False):
    return array(a, dtype, False, order or "K")


def ascontiguousarray(a, dtype=None):
    return array(a, dtype, False, "C", ndmin=0 if numpy.ndim(getattr(a, "shape", a)) else 1)


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return numpy.asarray(a)


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def get_array_module(*args):
    return cupy if arrays_in(args) else numpy


class ElementwiseKernel:
    """cupy.ElementwiseKernel, run on the CPU."""

    def __init__(self, *args, **kwargs):
        self._kernel = CpuKernel(*args, **kwargs)
        self.name = self._kernel.real.name

    def __call__(self, *args, size=None, stream=None, block_size=128):
        inputs = arrays_in(args)
        known = {id(x._array): x for x in inputs}

        def fresh(shape, dtype):
            new = ndarray(shape, dtype)
            known[id(new._array)] = new
            return new._array

        outs, launch = self._kernel.prepare([plain(x) for x in args], size, fresh)
        outs = [known[id(x)] for x in outs]
        _launch(self.name, launch, inputs, outs, stream)
        return outs[0] if len(outs) == 1 else tuple(outs)


def _launch(name, launch, reads, writes, stream=None) -> None:
    """A kernel's launch, its arrays' guards checked afterwards."""

    memories = [weakref.ref(array._memory) for array in [*reads, *writes]]

    def run():
        launch()
        for memory in memories:
            if memory() is not None:
                memory().check_guards()

    enqueue(name, run, list(map(touched, reads)), list(map(touched, writes)), stream)


class RawKernel:
    """cupy.RawKernel, run on the CPU; counted as if it wrote all of its arrays."""

    def __init__(self, code, name, options=(), backend="nvrtc", **kwargs):
        self.code, self.name = code, name
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise cuda.CUDARuntimeError(1)
        module: Module = compiled_module(self.code)
        found = arrays_in(args)
        bare = [plain(x) for x in args]

        def launch():
            module.launch(self.name, grid, block, bare, shared_mem)

        _launch(self.name, launch, found, found, stream)


class RawModule:
    """cupy.RawModule from source."""

    def __init__(self, *, code=None, options=(), backend="nvrtc", **kwargs):
        self.code = code

    def get_function(self, name):
        return RawKernel(self.code, name)

    def compile(self, log_stream=None):
        compiled_module(self.code)


# ---- the modules -----------------------------------------------------------------
class Namespace(types.ModuleType):
    """A module of CuPy: what is made here, otherwise NumPy's under CuPy's names."""

    def __init__(self, name: str, original, ours=None, **own):
        super().__init__(name)
        self._original, self._ours = original, ours
        vars(self).update(own)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        original = getattr(self._original, name)  # what CuPy lacks is an error
        ours = getattr(self._ours, name, None)
        if isinstance(original, real.ufunc) and isinstance(ours, numpy.ufunc):
            found = Ufunc(name)
        elif isinstance(original, type | int | float) or original is None:
            found = original  # dtypes, errors and constants
        elif callable(original) and callable(ours):
            found = function_of(name, original, ours)
        else:
            raise NotImplementedError(f"the stand-in has no {self.__name__}.{name} yet")
        setattr(self, name, found)
        return found


def _properties(device: int) -> dict:
    return {
        "name": b"stand-in",
        "totalGlobalMem": cuda.TOTAL,
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 132,
        "sharedMemPerBlock": 48 << 10,
        "sharedMemPerBlockOptin": 227 << 10,
        "maxThreadsPerBlock": 1024,
        "warpSize": 32,
        "l2CacheSize": 50 << 20,
        "pciBusID": device,
        "uuid": bytes(15) + bytes([device]),
    }


runtime = Namespace(
    "cupy.cuda.runtime",
    real.cuda.runtime,
    CUDARuntimeError=cuda.CUDARuntimeError,
    getDevice=cuda.current_device,
    setDevice=lambda device: cuda.Device(device).use(),
    getDeviceCount=lambda: cuda.devices,
    memGetInfo=lambda: cuda.Device().mem_info,
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    getDeviceProperties=_properties,
    deviceGetPCIBusId=lambda device: cuda.Device(device).pci_bus_id,
    deviceSynchronize=lambda: cuda.Device().synchronize(),
    streamSynchronize=lambda ptr: stream_of(ptr).synchronize(),
    deviceCanAccessPeer=lambda device, peer: 0,
)


@contextlib.contextmanager
def _range(message=None, color_id=None, argb_color=None, sync=False):
    yield


nvtx = Namespace(
    "cupy.cuda.nvtx",
    real.cuda.nvtx,
    RangePush=lambda message, id_color=-1: None,
    RangePop=lambda: None,
    Mark=lambda message, id_color=-1: None,
)
_cuda_names = """Device Event Graph MemoryPointer MemoryPool PinnedMemoryPointer Stream
alloc get_current_stream get_elapsed_time using_allocator""".split()
cupy_cuda = Namespace(
    "cupy.cuda",
    real.cuda,
    **{name: getattr(cuda, name) for name in _cuda_names},
    alloc_pinned_memory=cuda.PinnedMemoryPointer,
    get_device_id=cuda.current_device,
    is_available=lambda: True,
    nvtx=nvtx,
    nvrtc=real.cuda.nvrtc,
    profiler=SimpleNamespace(start=lambda: None, stop=lambda: None),
    runtime=runtime,
)
cuda.Stream.null = cuda.null_stream(0)
_lib = Namespace("cupy.lib", real.lib)
_lib.stride_tricks = Namespace(
    "cupy.lib.stride_tricks", real.lib.stride_tricks, numpy.lib.stride_tricks
)
cupy = Namespace(
    "cupy",
    real,
    numpy,
    __version__=real.__version__,
    ElementwiseKernel=ElementwiseKernel,
    RawKernel=RawKernel,
    RawModule=RawModule,
    array=array,
    asanyarray=asarray,
    asarray=asarray,
    ascontiguousarray=ascontiguousarray,
    asnumpy=asnumpy,
    cuda=cupy_cuda,
    empty=empty,
    get_array_module=get_array_module,
    get_default_memory_pool=cuda.get_default_memory_pool,
    lib=_lib,
    linalg=Namespace("cupy.linalg", real.linalg, numpy.linalg),
    ndarray=ndarray,
)


def empty_pinned(shape, dtype=float, order="C"):
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = numpy.dtype(dtype).itemsize * int(numpy.prod(shape, dtype=object))
    buffer = cuda.PinnedMemoryPointer(max(size, 1))
    return numpy.ndarray(shape, dtype, buffer, order=order)


import cupyx as _real_cupyx  # noqa: E402

_profiler = Namespace(
    "cupyx.profiler", SimpleNamespace(time_range=_range), time_range=_range
)
cupyx = Namespace(
    "cupyx", _real_cupyx, empty_pinned=empty_pinned, profiler=_profiler
)
MODULES = {
    "cupy": cupy,
    "cupy.cuda": cupy_cuda,
    "cupy.cuda.nvtx": nvtx,
    "cupy.cuda.runtime": runtime,
    "cupyx": cupyx,
    "cupyx.profiler": _profiler,
}


# ---- in and out ------------------------------------------------------------------
_kept: dict = {}


def install(devices: int = 1) -> None:
    """Put the stand-in where minidl looks for CuPy, with so many devices."""
    import minidl
    from minidl.array import device

    assert not _kept, "the stand-in is installed already"
    assert minidl
    _kept["modules"] = {name: sys.modules.get(name) for name in MODULES}
    _kept["available"] = device.gpu_available
    sys.modules.update(MODULES)
    cuda.devices, cuda.local.device = devices, 0
    reset()
    _switch(device.gpu_available, _here)


def remove() -> None:
    """Undo install."""
    for name, module in _kept.pop("modules").items():
        sys.modules.pop(name)
        if module is not None:
            sys.modules[name] = module
    _switch(_here, _kept.pop("available"))


def reset() -> None:
    """Forget what was counted."""
    for log in (launches, syncs, uploads, hazards):
        log.clear()


def _here() -> bool:
    return True


def _switch(available, other) -> None:
    """Another gpu_available everywhere, and nothing kept of the other CuPy."""
    from minidl.array.kernel import Kernel

    for module in list(sys.modules.values()):
        if getattr(module, "gpu_available", None) is available:
            module.gpu_available = other
        if getattr(module, "__name__", "").startswith("minidl."):
            if module.__name__ != "minidl.array.compiler":
                for value in list(vars(module).values()):
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()
    for kernel in Kernel.registry.values():
        kernel.launches.clear()


if __name__ == "__main__":  # python stand_in.py -m module arguments | script arguments
    import stand_in

    stand_in.install(int(os.environ.get("STAND_IN_DEVICES", "1")))
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
