"""How many threads a process may use, in compiled loops, in BLAS and in Python."""

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import cache
from itertools import count
from pathlib import Path
from queue import SimpleQueue
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
_pool: SimpleQueue | None = None  # of calls that helpers are wanted for
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
            for _ in range(1, _threads):
                _pool.put(None)
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


class _Call:
    """One call of `parallel`: whoever is free takes the next item, its caller too."""

    def __init__(self, function, items):
        self.function, self.items = function, items
        self.results: list = [None] * len(items)
        self.take = count().__next__
        self.done: SimpleQueue = SimpleQueue()  # a token for each item of a helper

    def work(self) -> int:
        """Do items until none is left; how many it were."""
        before, _inside.worker = getattr(_inside, "worker", False), True
        number, done = self.take(), 0
        while number < len(self.items):
            try:
                self.results[number] = self.function(self.items[number])
            except BaseException as error:
                self.results[number] = _Raised(error)
            number, done = self.take(), done + 1
        _inside.worker = before
        return done

    def help(self, context) -> None:
        for _ in range(context.run(self.work)):
            self.done.put(None)


class _Raised:
    """An exception in place of a result."""

    def __init__(self, error: BaseException):
        self.error = error


def _serve(calls: SimpleQueue) -> None:
    """What a thread of the pool does: help with calls until it gets None."""
    while (call := calls.get()) is not None:
        call[0].help(call[1])
        del call  # and what it has computed


def parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list:
    """[function(item) for item in items], on this thread and the process's pool.

    Pays for functions that release the interpreter's lock for long: copies, ufuncs and
    matrix products of NumPy over large arrays, compiled loops. A thread that waits for
    the lock is woken through the system at each release, which takes as long as a pass
    over 100 K elements. The first exception is raised once every item is done. Inside
    the function, operations use one thread each, and the caller's context variables
    hold, np.errstate among them.
    """
    items = list(items)
    threads = min(len(items), get_num_threads())
    if threads < 2:
        return [function(item) for item in items]
    call, calls = _Call(function, items), _helpers()
    for _ in range(threads - 1):  # a context is entered by one thread at a time
        calls.put((call, copy_context()))
    for _ in range(len(items) - call.work()):
        call.done.get()
    for result in call.results:
        if type(result) is _Raised:
            raise result.error
    return call.results


def _helpers() -> SimpleQueue:
    """Where the threads of the pool, all but the caller, wait for calls."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = SimpleQueue()
            for number in range(1, _threads):
                serving = {"name": f"minidl_{number}", "daemon": True}
                threading.Thread(target=_serve, args=(_pool,), **serving).start()
        return _pool


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
