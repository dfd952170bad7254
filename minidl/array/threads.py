"""How many threads a process may use, in compiled loops, in BLAS and in Python."""

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from pathlib import Path
from typing import Any

import numpy

_RANKS_HERE = (  # set by the launchers: how many ranks run on this host
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
)
_RANK = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
_inside = threading.local()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_claimed = False


def _default() -> tuple[int, str]:
    """OMP_NUM_THREADS, or this rank's share of the cores the process may use; and
    which of them it was."""
    wanted = re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", ""))
    if wanted:
        return max(1, int(wanted[0])), "as OMP_NUM_THREADS says"
    own = together = total = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        own, together = len(os.sched_getaffinity(0)), _cores_of_launcher()
    why = f"{own} of {total} cores may be used"
    for name in _RANKS_HERE:
        ranks = re.match(r"\d+", os.environ.get(name, ""))  # Slurm writes "4(x2)"
        if ranks:
            here = max(1, int(ranks[0]))
            share = max(1, together // here)
            if own <= share and own < together:  # what it has is divided already
                return own, f"{why}, to which this rank is bound"
            return min(own, share), f"{why}, by {here} ranks on this host"
    return own, why


def launcher() -> int:
    """The process that has started the ranks of this host.

    It is the nearest above this one that is no rank itself, as a script around
    Python is.
    """
    rank = next((f"\0{name}=".encode() for name in _RANK if name in os.environ), None)
    process = os.getppid()
    try:
        while rank and rank in b"\0" + Path(f"/proc/{process}/environ").read_bytes():
            stat = Path(f"/proc/{process}/stat").read_text()
            process = int(stat.rpartition(")")[2].split()[1])
    except OSError:
        pass  # of another user, so no rank of this one
    return process


def _cores_of_launcher() -> int:
    """How many cores the launcher may use."""
    try:
        return len(os.sched_getaffinity(launcher()))
    except OSError:
        return len(os.sched_getaffinity(0))


_threads, _why = _default()


def why_threads() -> str:
    """Why `get_num_threads` is what it is, in a few words."""
    return _why


def get_num_threads() -> int:
    """Threads that one operation may use; 1 inside a function run by `parallel`."""
    return 1 if getattr(_inside, "worker", False) else _threads


def set_num_threads(number: int) -> None:
    """Set how many threads one operation may use, as torch.set_num_threads does."""
    global _threads, _why, _pool
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"the number of threads must be at least 1, got {number!r}")
    with _lock:
        if number != _threads and _pool is not None:
            _pool.shutdown(wait=False)
            _pool = None
        _threads, _why = number, "set by set_num_threads"
        if not _claimed:
            blas_threads(number)


def _after_fork() -> None:
    """A forked child has none of its parent's threads, and must start none."""
    global _threads, _pool, _lock
    _threads, _pool, _lock = 1, None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list:
    """[function(item) for item in items], on the process's pool of threads.

    Pays for functions that release the interpreter's lock: copies, ufuncs and
    matrix products of NumPy, compiled loops. The first exception is raised once
    every item is done. Inside the function, operations use one thread each, and the
    caller's context variables hold, np.errstate among them.
    """
    items = list(items)
    if len(items) < 2 or get_num_threads() == 1:
        return [function(item) for item in items]

    def work(item):
        _inside.worker = True  # only ever set on the pool's own threads
        return function(item)

    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_threads, thread_name_prefix="minidl")
        # a context is entered by one thread at a time: a copy each
        futures = [_pool.submit(copy_context().run, work, item) for item in items]
    results = [future.exception() or future for future in futures]
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result.result() for result in results]


def blas_threads(number: int) -> bool:
    """Set the threads of NumPy's own BLAS; False where that cannot be done.

    OpenBLAS's idle workers spin for milliseconds after a product, and so take the
    cores from whatever runs next.
    """
    if openblas() is None:
        return False
    _blas_setter()(number)
    return True


@cache
def _blas_setter() -> Callable[[int], None]:
    library, prefix, suffix = openblas()
    setter = library[f"{prefix}_set_num_threads{suffix}"]
    setter.argtypes, setter.restype = [ctypes.c_int], None
    return setter


def claim_blas() -> None:
    """From now on BLAS uses one thread: the cores are shared out by us."""
    global _claimed
    if not _claimed:
        _claimed = True
        blas_threads(1)


@cache
def openblas() -> tuple[ctypes.CDLL, str, str] | None:
    """The OpenBLAS that NumPy uses, and what its names begin and end with.

    It is in the wheel, or, where NumPy was built otherwise, already in memory.
    """
    package = Path(numpy.__file__).parent
    files = []
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        files += sorted(folder.glob("*openblas*"))
    maps = Path("/proc/self/maps")
    if not files and maps.exists():
        mapped = (line.split()[-1] for line in maps.read_text().splitlines())
        files = sorted({file for file in mapped if "openblas" in Path(file).name})
    for file in files:
        try:
            library = ctypes.CDLL(str(file))  # NumPy has loaded it: the same one
        except OSError:
            continue
        for suffix in ("64_", "", "_64"):
            for prefix in ("scipy_openblas", "openblas"):
                if hasattr(library, f"{prefix}_set_num_threads{suffix}"):
                    return library, prefix, suffix
    return None


if any(name in os.environ for name in _RANKS_HERE):
    blas_threads(_threads)  # or each rank's BLAS would take all cores
