"""C++ source in, loaded library out; compiled once for a machine, then cached."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy

from .cache import cache_directory, warn_once
from .turns import alone

FLAGS = (
    "-std=c++17 -O3 -march=native -shared -fPIC -w -fwrapv "
    # the same bits as NumPy, NaN and infinity kept; neither flag gives up either
    "-ffp-contract=off -fno-math-errno -fno-trapping-math"
).split()
OPENMP = ("-fopenmp", "-fopenmp-simd")  # the second where the runtime is missing
PATIENCE = 60.0  # seconds, with a process that compiles the same
SPINS = "4000"  # of an idle thread before it sleeps: about 0.1 ms
_DIGEST = 32  # bytes of SHA-256 at the end of a cached library


@cache
def load(source: str, *flags: str) -> ctypes.CDLL | None:
    """The compiled source, or None where there is no compiler that can do it.

    `flags` stand behind FLAGS and overrule them, as for code that is not held to
    NumPy's bits.
    The compiler is $MINIDL_COMPILER ("none" for none), else $CXX, else the first
    of c++, g++ and clang++. The library is kept in $MINIDL_CACHE_DIR, by default
    ~/.cache/minidl, under a name made of the source, the flags, the compiler and
    the processor. Says once, as a warning, why there is none.
    """
    command = compiler()
    if command is None:
        warn_once(f"{why_no_compiler()}, so kernels run in NumPy, which is slower")
        return None
    text = "\0".join(
        [source, *command, _identity(command[0]), *FLAGS, *flags, _processor()]
    )
    folder = cache_directory()
    path = folder / (hashlib.sha256(text.encode()).hexdigest()[:32] + ".so")
    try:
        return _cached(path) or _compile_once(source, (*command, *FLAGS, *flags), path)
    except OSError as error:  # a full disk, for one
        warn_once(f"{folder} cannot be written, so kernels run in NumPy: {error}")
        return None


@cache
def compiler() -> tuple[str, ...] | None:
    """The compiler's command, its path made whole."""
    named = os.environ.get("MINIDL_COMPILER")
    if named == "none":
        return None
    for name in [named] if named else [os.environ.get("CXX"), "c++", "g++", "clang++"]:
        first, *rest = shlex.split(name or "") or [""]
        path = shutil.which(first) if first else None
        if path:
            return (os.path.realpath(path), *rest)
    return None


def why_no_compiler() -> str:
    """What is missing, and what to do about it."""
    named = os.environ.get("MINIDL_COMPILER")
    if named == "none":
        return "MINIDL_COMPILER=none asks for no C++ compiler"
    if named:
        return (
            f"MINIDL_COMPILER={named} names a compiler that is not there (give another "
            "one, or leave the variable out)"
        )
    return (
        "no C++ compiler was found (install g++, or name a compiler in MINIDL_COMPILER)"
    )


def _identity(path: str) -> str:
    """Changes when another compiler is installed; cheaper than asking it."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


@cache
def _processor() -> str:
    """The processor's model and features, since the code is made for them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return " ".join(platform.uname())
    wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return platform.machine() + "".join(x for x in lines if x.startswith(wanted))


def _cached(path: Path) -> ctypes.CDLL | None:
    """The library at this path, if it is there, whole and loadable.

    A library cut short can kill the process that maps it, so it ends with its
    own digest.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]:
            return _loaded(path)
    except OSError:
        pass
    return None


def _loaded(path: Path) -> ctypes.CDLL:
    """The library, its OpenMP told for how long an idle thread may spin.

    Long, it would take the cores from Python's threads and from other processes;
    never, each kernel would wait for a sleeping thread, longer than many take.
    OpenMP asks as it is loaded.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return ctypes.CDLL(str(path))
    wanted = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": SPINS}
    os.environ.update(wanted)
    try:
        return ctypes.CDLL(str(path))
    finally:
        for name in wanted:
            del os.environ[name]


def _compile_once(source: str, command, path: Path) -> ctypes.CDLL | None:
    """Of many ranks that start at once one compiles, the others load what it made."""
    lock = path.with_suffix(".lock")
    with alone(lock, PATIENCE):
        try:
            return _cached(path) or _compile(source, command, path)
        finally:
            lock.unlink(missing_ok=True)


def _compile(source: str, command, path: Path) -> ctypes.CDLL | None:
    """Compile beside the cache, then rename: another may be doing the same."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as build:
        text, library = Path(build, "kernel.cpp"), Path(build, "kernel.so")
        text.write_text(source)
        for openmp in OPENMP:
            line = [*command, openmp, str(text), "-o", str(library)]
            problem = _run(line)
            if problem is None:
                content = library.read_bytes()
                digest = hashlib.sha256(content).digest()
                library.write_bytes(content + digest)
                os.replace(library, path)
                loaded = _cached(path)
                if loaded is not None:
                    return loaded
                problem = "the compiled library cannot be loaded"
    warn_once(f"{command[0]} failed, so kernels run in NumPy, slower: {problem}")
    return None


def _run(line: list[str]) -> str | None:
    """None if the compiler succeeded, otherwise the first error it wrote."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
    return next((x for x in lines if "error" in x), lines[0])


# `array.ctypes.data` takes a microsecond. In CPython an array object holds the
# address of its data right behind its header, as NumPy's C interface lays down.
_HEADER = object.__basicsize__
_address_at = ctypes.c_void_p.from_address


def _header_holds_address() -> bool:
    if sys.implementation.name != "cpython":
        return False
    probe = numpy.zeros(3)[1:]
    return _address_at(id(probe) + _HEADER).value == probe.ctypes.data


@cache
def _int64_array(length: int) -> type:
    """Made once: each new array type of ctypes is a cycle, left to the collector."""
    return ctypes.c_int64 * length


def int64_array(numbers) -> ctypes.Array:
    """The numbers as a C array."""
    return _int64_array(len(numbers))(*numbers)


if _header_holds_address():

    def pointer(array: numpy.ndarray) -> int:
        """The address of the array's first element."""
        return _address_at(id(array) + _HEADER).value

else:

    def pointer(array: numpy.ndarray) -> int:
        """The address of the array's first element."""
        return array.ctypes.data
