"""The stand-in's cupy.cuda: devices, streams, events, graphs, pinned memory.

Work runs as it is enqueued, or is recorded while its stream captures; copies to the
host arrive when the host has waited for them. `launches`, `syncs` and `uploads` name
what was done.
"""

import itertools
import threading
import time
import weakref
from contextlib import contextmanager

import cupy
import numpy
from stand_in_memory import (
    TOTAL,
    MemoryPointer,
    MemoryPool,
    check_access,
    hazards,
)

CUDARuntimeError = cupy.cuda.runtime.CUDARuntimeError
INVALID_DEVICE, INVALID_HANDLE, NOT_READY = 101, 400, 600
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_UNJOINED = 900, 901, 904

launches: list[str] = []  # kernels, copies on the device, fills, graphs
syncs: list[str] = []  # where the host waited
uploads: list[str] = []  # copies from the host
devices = 1


class Local(threading.local):
    """What CuPy keeps for each thread."""

    def __init__(self):
        self.device, self.streams, self.allocators = 0, [], []


local = Local()
_default_pool = MemoryPool()


# ---- devices -------------------------------------------------------------------
def current_device() -> int:
    return local.device


class Device:
    """cupy.cuda.Device."""

    def __init__(self, device=None):
        self.id = local.device if device is None else int(device)
        if not 0 <= self.id < devices:
            raise CUDARuntimeError(INVALID_DEVICE)
        self._before = []

    def use(self) -> None:
        local.device = self.id

    def __enter__(self):
        self._before.append(local.device)
        self.use()
        return self

    def __exit__(self, *_):
        local.device = self._before.pop()

    def synchronize(self) -> None:
        refuse_in_capture("device.synchronize", every=True)
        syncs.append("device.synchronize")
        for stream in [null_stream(self.id), *Stream.alive]:
            if stream.device_id == self.id:
                stream.arrive()

    @property
    def mem_info(self):
        return TOTAL - _default_pool.total_bytes(), TOTAL

    @property
    def compute_capability(self) -> str:
        return "90"

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{self.id:02X}:00.0"

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __int__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"


# ---- streams -------------------------------------------------------------------
class Stream:
    """cupy.cuda.Stream; `clock` says how much of each stream lies before its end."""

    alive: weakref.WeakSet = weakref.WeakSet()
    host: dict[int, int] = {}  # how much of each stream the host has waited for
    _pointers = itertools.count(0x1000, 0x10)

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr = 0 if null else next(self._pointers)
        self.device_id, self.is_non_blocking = local.device, non_blocking
        self.priority = priority or 0
        self.clock, self.arrivals = {self.ptr: 0}, []
        self.capture = None
        if not null:
            Stream.alive.add(self)

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return hash(self.ptr)

    def __enter__(self):
        local.streams.append(self)
        return self

    def __exit__(self, *_):
        local.streams.pop()

    def use(self):
        local.streams[-1:] = [self]
        return self

    def follow(self, clock: dict[int, int]) -> None:
        """What the clock counts now lies before what this stream does next."""
        for ptr, tick in clock.items():
            self.clock[ptr] = max(self.clock.get(ptr, 0), tick)

    def arrive(self) -> None:
        """The host has waited: copies to it arrive."""
        deliver(self.arrivals, self.clock)
        self.arrivals = []

    def synchronize(self) -> None:
        self._refuse()
        syncs.append("stream.synchronize")
        self.arrive()

    @property
    def done(self) -> bool:
        self._refuse()
        self.arrive()
        return True

    def _refuse(self):
        if self.capture is not None:
            self.capture.valid = False
            raise CUDARuntimeError(CAPTURE_UNSUPPORTED)

    def record(self, event=None) -> "Event":
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        if event.capture is not None:  # joins the capture, or comes back to it
            if self.capture is None:
                self.capture = event.capture
                self.capture.joined[self] = 0
            event.capture.joined.pop(event.stream, None)
            if self is not event.capture.origin:
                event.capture.joined.setdefault(self, 0)
        self.follow(event.clock)
        self.arrivals = self.arrivals + event.arrivals

    def launch_host_func(self, callback, arg) -> None:
        enqueue("host function", lambda: callback(arg), stream=self)

    def begin_capture(self, mode=None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.capture is not None:
            raise CUDARuntimeError(CAPTURE_UNSUPPORTED)
        self.capture = Capture(self)

    def end_capture(self) -> "Graph":
        capture, self.capture = self.capture, None
        if capture is None or capture.origin is not self:
            raise CUDARuntimeError(INVALID_HANDLE)
        loose = [stream for stream in capture.joined if stream is not self]
        for stream in Stream.alive:
            if stream.capture is capture:
                stream.capture = None
        if not capture.valid:
            raise CUDARuntimeError(CAPTURE_INVALIDATED)
        if loose:
            raise CUDARuntimeError(CAPTURE_UNJOINED)
        return Graph(capture.work, _made=True)

    def is_capturing(self) -> bool:
        return self.capture is not None


_null: dict[int, Stream] = {}


def null_stream(device: int) -> Stream:
    if device not in _null:
        _null[device] = Stream(null=True)
        _null[device].device_id = device
    return _null[device]


def get_current_stream(device_id=None) -> Stream:
    return local.streams[-1] if local.streams else null_stream(local.device)


def stream_of(ptr: int) -> Stream:
    """The stream that a C function is given."""
    if ptr == 0:
        return null_stream(local.device)
    return next(stream for stream in Stream.alive if stream.ptr == ptr)


class Arrival:
    """A copy to or from the host's memory that is under way."""

    def __init__(self, finish):
        self.finish = finish


def deliver(arrivals, clock) -> None:
    for ptr, tick in clock.items():
        Stream.host[ptr] = max(Stream.host.get(ptr, 0), tick)
    for arrival in arrivals:
        finish, arrival.finish = arrival.finish, None
        if finish is not None:
            finish()


class Event:
    """cupy.cuda.Event."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.timing, self.capture, self.stream = not disable_timing, None, None
        self.clock, self.arrivals, self.time, self.ptr = {}, [], None, id(self)

    def record(self, stream=None) -> None:
        stream = get_current_stream() if stream is None else stream
        self.stream, self.capture = stream, stream.capture
        self.clock, self.arrivals = dict(stream.clock), list(stream.arrivals)
        self.time, self.waited = time.perf_counter(), False

    def synchronize(self) -> None:
        self._refuse()
        syncs.append("event.synchronize")
        deliver(self.arrivals, self.clock)
        self.waited = True

    @property
    def done(self) -> bool:
        self._refuse()
        deliver(self.arrivals, self.clock)
        self.waited = True
        return True

    def _refuse(self):
        if self.capture is not None and self.capture.origin.capture is self.capture:
            self.capture.valid = False
            raise CUDARuntimeError(CAPTURE_UNSUPPORTED)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    for event in (start_event, end_event):
        if event.time is None or not event.timing:
            raise CUDARuntimeError(INVALID_HANDLE)
        behind = event.clock.items()
        if any(Stream.host.get(ptr, 0) < tick for ptr, tick in behind):
            raise CUDARuntimeError(NOT_READY)
    return 1e3 * (end_event.time - start_event.time)


# ---- work ------------------------------------------------------------------------
class Capture:
    """What is recorded between begin_capture and end_capture."""

    def __init__(self, origin: Stream):
        self.origin, self.work, self.valid = origin, [], True
        self.joined: dict[Stream, int] = {}  # other streams, not yet waited for


class Work:
    """A recorded operation and what it touches: pairs of memory and array."""

    def __init__(self, name, run, reads, writes):
        self.name, self.run = name, run
        self.reads, self.writes = (
            [(weakref.ref(memory), memory.pool, array) for memory, array in touched]
            for touched in (reads, writes)
        )
        pools = [memory.pool and memory.pool() for memory, _ in [*reads, *writes]]
        self.pools = [(weakref.ref(p), p.flushes) for p in pools if p is not None]


class Graph:
    """cupy.cuda.Graph: recorded work, run again on the same memory."""

    def __init__(self, work=None, _made=False):
        if not _made:
            raise NotImplementedError("a graph must be created via stream capture")
        self._work = work

    def upload(self, stream=None) -> None:
        pass

    def launch(self, stream=None) -> None:
        stream = get_current_stream() if stream is None else stream
        if stream.capture is not None:
            raise NotImplementedError("the stand-in has no graphs within graphs")
        launches.append("graph")
        _order(stream)
        for work in self._work:
            reads, writes = (_alive(x, work) for x in (work.reads, work.writes))
            check_access(reads, stream, False)
            check_access(writes, stream, True)
            work.run()


def _alive(touched, work):
    """The memory must be there still, or lie free in a pool that nobody else uses."""
    found = []
    for memory, pool, array in touched:
        pool = pool and pool()
        if memory() is not None:
            found.append((memory(), array))
        elif pool is None or pool is _default_pool:
            raise RuntimeError(
                f"a graph's {work.name!r} uses memory that was freed: allocate from a "
                "pool of the graph's own, which outlives it"
            )
        elif any(ref() is pool and pool.flushes != n for ref, n in work.pools):
            raise RuntimeError(f"a graph's {work.name!r} uses memory that its pool freed")
    return found


def _order(stream: Stream) -> None:
    """The stream's next tick; the legacy stream and blocking ones wait in turn."""
    if hazards:
        raise RuntimeError(hazards.pop())
    stream.follow(Stream.host)
    if stream.ptr == 0:
        for other in list(Stream.alive):
            if not other.is_non_blocking and other.capture is None:
                stream.follow(other.clock)
    elif not stream.is_non_blocking and stream.capture is None:
        stream.follow(null_stream(stream.device_id).clock)
    stream.clock[stream.ptr] += 1


def enqueue(name: str, run, reads=(), writes=(), stream=None, kind=launches) -> bool:
    """Run it in the stream's order, or record it; returns whether it was recorded.

    `reads` and `writes` are pairs of a Memory and NumPy's view of what is touched.
    """
    stream = get_current_stream() if stream is None else stream
    kind.append(name)
    _order(stream)
    if stream.capture is not None:
        stream.capture.work.append(Work(name, run, list(reads), list(writes)))
        if stream is not stream.capture.origin:
            stream.capture.joined[stream] = 1
        return True
    check_access(reads, stream, False)
    check_access(writes, stream, True)
    run()
    return False


def refuse_in_capture(what: str, stream=None, every=False) -> None:
    """As CuPy does for what a graph cannot hold."""
    streams = Stream.alive if every else [stream or get_current_stream()]
    if any(other.capture is not None for other in streams):
        raise RuntimeError(
            f"the current stream is capturing, so {what} is disallowed"
        )


# ---- memory ----------------------------------------------------------------------
def alloc(size: int) -> MemoryPointer:
    return (local.allocators[-1] if local.allocators else _default_pool.malloc)(size)


@contextmanager
def using_allocator(allocator=None):
    local.allocators.append(allocator)
    try:
        yield
    finally:
        local.allocators.pop()


def get_default_memory_pool() -> MemoryPool:
    return _default_pool


pinned: dict[int, int] = {}  # first address: bytes


class PinnedMemoryPointer(bytearray):
    """cupy.cuda.PinnedMemoryPointer: a buffer of the host."""

    def __init__(self, size: int):
        super().__init__(b"\xff" * size)
        self.ptr = numpy.frombuffer(self, numpy.uint8).ctypes.data if size else 0
        pinned[self.ptr] = size
        weakref.finalize(self, pinned.pop, self.ptr, None).atexit = False

    def size(self) -> int:
        return len(self)


def is_pinned(array: numpy.ndarray) -> bool:
    first = array.ctypes.data
    return any(p <= first and first + array.nbytes <= p + n for p, n in pinned.items())
