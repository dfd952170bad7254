"""A strict stand-in for CuPy on machines without a GPU.

    import stand_in
    stand_in.install()              # minidl now finds a CUDA device
    ...
    stand_in.remove()

or the fixture `stand_in`, or `python tests/stand_in.py -m minidl train ...`.

What the installed CuPy lacks is lacking here, calls are held against its signatures,
kernels run from the CUDA source that CuPy writes, and everything else is NumPy's.
`launches`, `syncs` and `uploads` name what a program did.

A library that is called by addresses is given `add_module("cupy.cuda.nccl", mine)`, or
is patched; it finds memory by `memory_at(address, bytes)` and does its work by
`enqueue(name, run, reads, writes, stream_of(address))`, reads and writes being what
memory_at found.
"""

import contextlib
import os
import runpy
import sys
import types
from types import SimpleNamespace

import cublas_stand_in
import cupy as real
import cupyx as real_cupyx
import numpy
import stand_in_cuda as cuda
import stand_in_functions as functions
import stand_in_memory as memory
import stand_in_methods  # noqa: F401
from stand_in_array import ndarray
from stand_in_cuda import enqueue, launches, stream_of, syncs, uploads
from stand_in_memory import memory_at

__all__ = [
    "add_module",
    "cupy",
    "enqueue",
    "install",
    "launches",
    "memory_at",
    "remove",
    "reset",
    "stream_of",
    "syncs",
    "uploads",
]


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
            found = functions.Ufunc(name)
        elif isinstance(original, type | int | float) or original is None:
            found = original  # dtypes, errors and constants
        elif callable(original) and callable(ours):
            found = functions.function_of(name, original, ours)
        else:
            raise NotImplementedError(f"the stand-in has no {self.__name__}.{name} yet")
        setattr(self, name, found)
        return found


def _properties(device: int) -> dict:
    return {
        "name": b"stand-in",
        "totalGlobalMem": memory.TOTAL,
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
    getDevice=lambda: memory.local.device,
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
_cuda_names = "Device Event Graph Stream get_current_stream get_elapsed_time".split()
_memory_names = (
    "MemoryPointer MemoryPool PinnedMemoryPointer alloc using_allocator".split()
)
cupy_cuda = Namespace(
    "cupy.cuda",
    real.cuda,
    **{name: getattr(cuda, name) for name in _cuda_names},
    **{name: getattr(memory, name) for name in _memory_names},
    alloc_pinned_memory=memory.PinnedMemoryPointer,
    get_device_id=lambda: memory.local.device,
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
_function_names = """ElementwiseKernel RawKernel RawModule array asarray
ascontiguousarray asnumpy empty from_dlpack get_array_module""".split()
cupy = Namespace(
    "cupy",
    real,
    numpy,
    __version__=real.__version__,
    **{name: getattr(functions, name) for name in _function_names},
    asanyarray=functions.asarray,
    cuda=cupy_cuda,
    get_default_memory_pool=lambda: memory.default_pool,
    lib=_lib,
    linalg=Namespace("cupy.linalg", real.linalg, numpy.linalg),
    ndarray=ndarray,
)


def empty_pinned(shape, dtype=float, order="C"):
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = numpy.dtype(dtype).itemsize * int(numpy.prod(shape, dtype=object))
    buffer = memory.PinnedMemoryPointer(max(size, 1))
    return numpy.ndarray(shape, dtype, buffer, order=order)


_profiler = Namespace(
    "cupyx.profiler", SimpleNamespace(time_range=_range), time_range=_range
)
cupyx = Namespace("cupyx", real_cupyx, empty_pinned=empty_pinned, profiler=_profiler)
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
    cuda.devices, memory.local.device = devices, 0
    reset()
    _switch(device.gpu_available, _here)
    cublas_stand_in.install()


def add_module(name: str, module) -> None:
    """A stand-in for one more of CuPy's modules, from now on; before install."""
    assert not _kept, "add modules before the stand-in is installed"
    parent, _, child = name.rpartition(".")
    setattr(MODULES[parent], child, module)
    MODULES[name] = module


def remove() -> None:
    """Undo install."""
    cublas_stand_in.remove()
    for name, module in _kept.pop("modules").items():
        sys.modules.pop(name)
        if module is not None:
            sys.modules[name] = module
    _switch(_here, _kept.pop("available"))
    memory.default_pool.free_all_blocks()


def reset() -> None:
    """Forget what was counted."""
    for log in (launches, syncs, uploads, memory.hazards):
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
        kernel.again.clear()


if __name__ == "__main__":  # python stand_in.py -m module arguments | script arguments
    import stand_in

    stand_in.install(int(os.environ.get("STAND_IN_DEVICES", "1")))
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
