"""Where arrays live: NumPy's memory or a CUDA device; the only file with CuPy."""

import ctypes
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy

from .errors import DeviceError

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

Array = Any  # numpy.ndarray or cupy.ndarray


@cache
def cupy_module() -> ModuleType | None:
    """CuPy, if it is installed; a device is not needed for it."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy


@cache
def nccl_module() -> ModuleType | None:
    """CuPy's binding of NCCL, where CuPy and that library are there."""
    try:
        with catch_warnings():  # CuPy warns where there is no library
            simplefilter("ignore")
            from cupy.cuda import nccl
    except ImportError:
        return None
    return nccl if nccl.available else None


@cache
def gpu_available() -> bool:
    """Whether CuPy is installed and finds a CUDA device."""
    try:
        ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
    except OSError:  # no driver: importing CuPy would cost half a second for nothing
        return False
    return cupy_module() is not None and cupy_module().cuda.is_available()


def array_module(*arrays: Array) -> ModuleType:
    """CuPy if any of the arrays is CuPy's, otherwise NumPy."""
    for array in arrays:
        if type(array) is not numpy.ndarray and on_gpu(array):
            return cupy_module()
    return numpy


def on_gpu(array: Array) -> bool:
    """Whether this is a CuPy array."""
    kind = type(array)
    return kind is not numpy.ndarray and kind.__module__.partition(".")[0] == "cupy"


def is_array(value: Any) -> bool:
    """Whether this is an array of NumPy or CuPy (not a number, not a list)."""
    return isinstance(value, numpy.ndarray) or (
        on_gpu(value) and isinstance(value, cupy_module().ndarray)
    )


def canonical_device(device: str | None = None) -> str:
    """The device's full name: "cpu" or "cuda:N".

    None is "cpu"; "gpu" is another name for "cuda", which is the current CUDA
    device; "auto" is that device where there is one, otherwise "cpu".
    Raises DeviceError for a device that this machine lacks, ValueError for a name
    that means nothing.
    """
    if device in (None, "cpu"):
        return "cpu"
    if device == "auto":
        return canonical_device("cuda") if gpu_available() else "cpu"
    kind, colon, number = str(device).partition(":")
    if kind not in ("cuda", "gpu") or bool(colon) != number.isdecimal():
        raise ValueError(
            f"unknown device {device!r}: expected 'cpu', 'cuda', 'cuda:N', 'gpu' "
            "or 'auto'"
        )
    if not gpu_available():
        raise DeviceError(f"device {device!r} was asked for, but {why_no_gpu()}")
    runtime = cupy_module().cuda.runtime
    index = int(number) if number else runtime.getDevice()
    if index >= runtime.getDeviceCount():
        raise DeviceError(
            f"device {device!r} was asked for, but there are only "
            f"{runtime.getDeviceCount()} CUDA devices, counted from 0"
        )
    return f"cuda:{index}"


def why_no_gpu() -> str:
    """What is missing where `gpu_available` says no, and what to do about it."""
    if cupy_module() is None:
        return (
            "CuPy is not installed: pip install 'minidl[cuda12]' (or cuda13, as the "
            "driver is); or use device 'cpu'"
        )
    return "no CUDA device was found: check nvidia-smi, or use device 'cpu'"


def device_of(array: Array) -> str:
    """The name of the device that holds the array: "cpu" or "cuda:N"."""
    return f"cuda:{array.device.id}" if on_gpu(array) else "cpu"


def check_devices(name: str, *arguments: Any) -> None:
    """Raise DeviceError where not all arrays among the arguments are on one device."""
    places = dict.fromkeys(device_of(x) for x in arguments if is_array(x))
    if len(places) > 1:
        advice = "move some with .to()"
        if "cpu" not in places:
            advice += ", or make the GPU to compute on the current one, as place() does"
        raise DeviceError(
            f"{name} needs its arrays on one device, got them on {' and '.join(places)}"
            f"; {advice}"
        ) from None  # what else has gone wrong has done so for that


def use_device(device: str):
    """A context in which new arrays and kernels go to this device."""
    device = canonical_device(device)
    if device == "cpu":
        return nullcontext()
    return cupy_module().cuda.Device(int(device[5:]))


def take_device(device: str | None) -> str:
    """Make a GPU this thread's current one, on which "cuda" computes; its full name."""
    device = canonical_device(device)
    if device != "cpu":
        cupy_module().cuda.Device(int(device[5:])).use()
    return device


def to_device(array: Array, device: str) -> Array:
    """The array on that device: itself, if it is there already."""
    device = canonical_device(device)
    if device_of(array) == device:
        return array
    if device == "cpu":
        return array.get()
    with use_device(device):
        return cupy_module().asarray(array)


def to_numpy(array: Array) -> numpy.ndarray:
    """The array in NumPy's memory: itself, if it is there already."""
    return array.get() if on_gpu(array) else numpy.asarray(array)


def free_memory(device: str) -> int:
    """The free bytes of a CUDA device, with those that CuPy keeps for later."""
    with use_device(device):
        cupy = cupy_module()
        kept = cupy.get_default_memory_pool().free_bytes()
        return cupy.cuda.runtime.memGetInfo()[0] + kept


def synchronize() -> None:
    """Wait until the current CUDA device has done everything asked of it."""
    if gpu_available():
        cupy_module().cuda.Device().synchronize()
