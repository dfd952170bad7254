"""A function's launches, recorded once as a CUDA graph and replayed by one call.

While a function is recorded its kernels do not run: what Python does happens once, and
what the device is to do is kept. A replay does all of it again, on the same memory,
in a few microseconds of the host's time.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from traceback import walk_tb
from typing import Any

from .device import cupy_module
from .errors import CaptureError

_under_way: ContextVar["Graph | None"] = ContextVar("graph", default=None)
_rehearsing: ContextVar[bool] = ContextVar("rehearsing", default=False)


@cache
def _stream(device: int):
    """The stream of a device's recordings, the same for all of them."""
    return cupy_module().cuda.Stream(non_blocking=True)


@contextmanager
def rehearsal() -> Iterator[None]:
    """What runs inside runs on the stream of the recordings, in turn with the current.

    A stream has handles of libraries that are made when it first needs them, and a
    kernel is loaded when it is first launched, which cannot be while it records.
    """
    cuda = cupy_module().cuda
    current, stream = cuda.get_current_stream(), _stream(cuda.runtime.getDevice())
    stream.wait_event(current.record())
    before = _rehearsing.set(True)
    try:
        with stream:
            yield
    finally:
        _rehearsing.reset(before)
        current.wait_event(stream.record())


def rehearsing() -> bool:
    """Whether a rehearsal is under way on this thread."""
    return _rehearsing.get()


def recording_graph() -> "Graph | None":
    """The graph that is being recorded on this thread."""
    return _under_way.get()


class Graph:
    """The launches of a function of no arguments, on the current device.

        graph = Graph(step)     # records; nothing has run yet
        graph.replay()          # runs; returns what the function returned

    The function must have run before, the last time as a `rehearsal`, so that its
    kernels are compiled and loaded and its libraries ready, and must neither copy to
    or from the host nor wait for the device. Its result are arrays, or what holds
    them, that every replay writes anew. Numbers of the host are those of the
    recording, but for what a `companion` renews.

    Memory comes from a pool that nobody else takes from, so that the addresses stay
    the graph's own; what the function has freed is there to be used by a replay.

    Raises CaptureError where the function cannot be recorded; nothing has run then.
    """

    def __init__(self, function: Callable[[], Any]):
        self.companions: dict = {}
        self.graph = self.result = None
        self.cuda = cuda = cupy_module().cuda
        self.pool = cuda.MemoryPool(_allocate)
        self.stream = _stream(cuda.runtime.getDevice())
        gc.collect()  # now, and not while recording; and our pool may need the memory
        cupy_module().get_default_memory_pool().free_all_blocks()
        before = _under_way.set(self)
        try:
            with self.stream, cuda.using_allocator(self.pool.malloc):
                self.graph, self.result = _record(function, self.stream)
        except Exception as error:
            raise CaptureError(f"{_place(error)}: {_sentence(error)}") from error
        finally:
            _under_way.reset(before)
            for companion in self.companions.values():
                companion.recorded()
            if self.graph is None:
                self.close()

    def companion(self, key, make: Callable):
        """What renews, before every replay, numbers that the recording has used.

        Made once a key, by make(key). It has `recorded`, called when the recording is
        over, and `before` and `after`, called around every replay. Its memory is not
        of the graph's pool, which gives the same to arrays that come and go: the replay
        would overwrite what `before` has written.
        """
        if key not in self.companions:
            with self.cuda.using_allocator(
                cupy_module().get_default_memory_pool().malloc
            ):
                self.companions[key] = make(key)
        return self.companions[key]

    def replay(self) -> Any:
        """Run what was recorded, on the current stream; never waits for it."""
        for companion in self.companions.values():
            companion.before()
        self.graph.launch()
        for companion in self.companions.values():
            companion.after()
        return self.result

    def close(self) -> None:
        """Give the memory back; there is no replay after that."""
        if self.graph is not None and not recording_graph():
            current = self.cuda.get_current_stream()
            self.stream.wait_event(current.record())  # the memory is of this stream
        self.graph = None  # before the memory that it writes to
        self.result = None
        self.companions.clear()
        self.pool.free_all_blocks()

    def __del__(self):
        if self.graph is not None and not sys.is_finalizing():
            self.close()


def _record(function: Callable, stream) -> tuple:
    """(the graph, what the function returned)"""
    stream.begin_capture()
    try:
        result = function()
    except BaseException:
        with suppress(Exception):  # a broken recording says so once more
            stream.end_capture()
        raise
    return stream.end_capture(), result


def _allocate(size: int):
    """Memory for a pool, which must never free what a recorded launch will use.

    CuPy's own allocator would have the pool do that and try again.
    """
    cuda = cupy_module().cuda
    try:
        return cuda.MemoryPointer(cuda.Memory(size), 0)
    except cuda.runtime.CUDARuntimeError as error:
        raise CaptureError(f"no {size:,} bytes are left for its memory") from error


def _place(error: Exception) -> str:
    """Where it was raised: the innermost forward, backward or step on the way there."""
    places = list(walk_tb(error.__traceback__))
    chosen = [
        place
        for place in places
        if place[0].f_code.co_name in ("forward", "backward", "step")
        and "self" in place[0].f_locals
    ]
    frame, line = (chosen or places)[-1]
    name = frame.f_code.co_name
    if chosen:
        name = f"{type(frame.f_locals['self']).__name__}.{name}"
    return f"{name} ({Path(frame.f_code.co_filename).name}, line {line})"


def _sentence(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
