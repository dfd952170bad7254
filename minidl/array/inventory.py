"""What this process has to compute with: versions, compiler, BLAS, memory, a GPU."""

import os
import platform
import subprocess
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy

from minidl.array import cache, compiler, cudnn
from minidl.array.device import cupy_module, nccl_module, use_device
from minidl.array.errors import DeviceError
from minidl.array.threads import openblas

TRIAL = 'extern "C" int minidl_trial() { return 1; }'


def package_version(name: str) -> str | None:
    """Of an installed package, which is not imported; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def dotted(number: int, *units: int) -> str:
    """12090 is "12.9" in units of 1000 and 10; 22809 "2.28.9" in 10000, 100 and 1."""
    parts = []
    for unit in units:
        parts.append(str(number // unit))
        number %= unit
    return ".".join(parts)


def asked(ask: Callable[[], int], *units: int) -> str | None:
    """The version that a library of CUDA's tells; None where it is missing."""
    try:
        number = ask()
    except (AttributeError, ImportError, OSError, RuntimeError):
        return None
    return dotted(number, *units) if number else None


def versions() -> dict[str, str | None]:
    """Of what results and messages between ranks depend on; None for what is missing.

    Asks CuPy's libraries, and needs no device.
    """
    found = {
        "Python": platform.python_version(),
        "NumPy": numpy.__version__,
        "CuPy": None,
        "CUDA runtime": None,
        "CUDA driver": None,
        "NCCL": None,
        "cuDNN": cudnn.version(),
    }
    with warnings.catch_warnings():  # CuPy's, on libraries that it does not find
        warnings.simplefilter("ignore")
        cupy = cupy_module()
        if cupy is not None:
            cuda = cupy.cuda
            found["CuPy"] = cupy.__version__
            found["CUDA runtime"] = asked(cuda.runtime.runtimeGetVersion, 1000, 10)
            found["CUDA driver"] = asked(cuda.runtime.driverGetVersion, 1000, 10)
            found["NCCL"] = asked(lambda: nccl_module().get_version(), 10000, 100, 1)
    return found


def device_facts(device: str) -> dict:
    """The device's model, address and bytes of memory; of "cpu", the host's memory.

    `identity` is the same for two ranks of a host exactly where they share a GPU.
    Raises DeviceError for a GPU on which CuPy cannot run kernels.
    """
    if device == "cpu":
        free, total = host_memory()
        return {"name": "cpu", "model": processor(), "free": free, "total": total}
    runtime, index = cupy_module().cuda.runtime, int(device[5:])
    properties = runtime.getDeviceProperties(index)
    address = runtime.deviceGetPCIBusId(index)
    with use_device(device):
        check_kernels()
        free, total = runtime.memGetInfo()
    return {
        "name": device,
        "model": properties["name"].decode(errors="replace"),
        "address": address,
        "identity": f"{address} {properties.get('uuid', b'').hex()}",  # MIG has parts
        "free": int(free),
        "total": int(total),
    }


def check_kernels() -> None:
    """Raise DeviceError where CuPy cannot compile and run kernels on the current GPU:
    most often CUDA's headers are missing, or of another CUDA than its compiler."""
    cupy = cupy_module()
    try:
        for dtype in ("float32", "float16"):
            (cupy.arange(3, dtype=dtype) * 2).get()
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise DeviceError(f"CuPy cannot run a kernel here: {said[:600]}") from error


def host_memory() -> tuple[int | None, int | None]:
    """(bytes that are free or can be freed, bytes in all), where Linux tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None, None
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if ":" in line}
    return tuple(
        int(sizes[name]) << 10 if name in sizes else None
        for name in ("MemAvailable", "MemTotal")
    )


def processor() -> str:
    """The processor's name, or its architecture where Linux does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    return next(names, "") or platform.machine()


def cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def compiler_facts() -> tuple[str, str | None]:
    """(the C++ compiler, why kernels run in NumPy or None): a trial is compiled."""
    command = compiler.compiler()
    if command is None:
        return "none", compiler.why_no_compiler()
    try:
        asked = [command[0], "--version"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
        name = (done.stdout.splitlines() or [""])[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        name = ""
    described = f"{' '.join(command)} ({name})" if name else " ".join(command)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        works = compiler.load(TRIAL) is not None
    return described, None if works else f"{command[0]} cannot compile for this machine"


def blas() -> str:
    """The BLAS that NumPy was built with, and whether its threads can be set."""
    try:
        found = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
        name = f"{found.get('name')} {found.get('version', '')}".strip()
    except (KeyError, TypeError):  # another NumPy's
        name = "unknown"
    return name if openblas() else f"{name} (its threads cannot be set by minidl)"


def cache_facts() -> tuple[str, str | None]:
    """(the directory for compiled kernels, why it cannot be used or None)."""
    path = cache.cache_path()
    return str(path), cache.cache_problem(path)
