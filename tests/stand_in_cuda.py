"""The stand-in's devices, streams and events, and how work is enqueued.

Work runs as it is enqueued, or is recorded while its stream captures; copies to the
host arrive when the host has waited for them. `launches`, `syncs` and `uploads` name
what was done.
"""

import itertools
import time
import weakref

import cupy
from stand_in_graph import Capture, Graph, launches
from stand_in_memory import (
    TOTAL,
    check_access,
    check_fill,
    default_pool,
    hazards,
    local,
)

CUDARuntimeError = cupy.cuda.runtime.CUDARuntimeError
INVALID_DEVICE, INVALID_HANDLE, NOT_READY = 101, 400, 600
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_UNJOINED = 900, 901, 904

syncs: list[str] = []  # where the host waited
uploads: list[str] = []  # copies from the host
devices = 1


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
        return TOTAL - default_pool.total_bytes(), TOTAL

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

    def advance(self) -> None:
        """The next tick; the legacy stream and blocking ones wait for each other."""
        if hazards:
            raise RuntimeError(hazards.pop())
        self.follow(Stream.host)
        if self.ptr == 0:
            for other in list(Stream.alive):
                if not other.is_non_blocking and other.capture is None:
                    self.follow(other.clock)
        elif not self.is_non_blocking and self.capture is None:
            self.follow(null_stream(self.device_id).clock)
        self.clock[self.ptr] += 1

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
                self.capture.joined[self] = None
            event.capture.joined.pop(event.stream, None)
            if self is not event.capture.origin:
                event.capture.joined.setdefault(self)
        self.follow(event.clock)
        both = dict.fromkeys([*self.arrivals, *event.arrivals])  # each of them once
        self.arrivals = [arrival for arrival in both if arrival.finish is not None]

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
def enqueue(name: str, run, reads=(), writes=(), stream=None, kind=launches) -> bool:
    """Run it in the stream's order, or record it; returns whether it was recorded.

    `reads` and `writes` are pairs of a Memory and NumPy's view of what is touched.
    """
    stream = get_current_stream() if stream is None else stream
    kind.append(name)
    stream.advance()
    if stream.capture is not None:
        stream.capture.record(name, run, reads, writes)
        if stream is not stream.capture.origin:
            stream.capture.joined[stream] = None
        return True
    check_fill(writes)
    check_access(reads, stream, False)
    check_access(writes, stream, True)
    run()
    return False


def refuse_in_capture(what: str, stream=None, every=False) -> None:
    """As CuPy does for what a graph cannot hold."""
    streams = Stream.alive if every else [stream or get_current_stream()]
    if any(other.capture is not None for other in streams):
        raise RuntimeError(f"the current stream is capturing, so {what} is disallowed")
