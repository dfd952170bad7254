"""What one rank does, and when: ranges that nest, on the host and on its GPU."""

from collections.abc import Callable
from time import perf_counter_ns
from typing import NamedTuple

from minidl.array.device import cupy_module, use_device
from minidl.array.graph import recording_graph


class Range(NamedTuple):
    """Something that was done, in nanoseconds of the rank's own clock."""

    name: str
    category: str
    start: int
    end: int
    details: dict | None = None


class Recorder:
    """What the rank of this thread has done so far.

    `host` holds ranges of the host, and `gpu`, once it is `finished`, the same as the
    GPU came to them: from when it had done all that was asked of it before to when it
    had done all that was asked of it inside. `flights` are collectives, from when they
    are issued to when they are known to be complete.
    """

    def __init__(
        self,
        device: str = "cpu",
        shapes: bool = False,
        clock: Callable[[], int] = perf_counter_ns,
    ):
        self.shapes, self.clock = shapes, clock
        self.host: list[Range] = []
        self.gpu: list[Range] = []
        self.flights: list[Range] = []
        self.departures: dict[int, int] = {}  # number of a work: when it was issued
        self.events = NoEvents() if device == "cpu" else Events(device, clock)

    def range(self, name: str, category: str, details: dict | None = None) -> "Open":
        """A context: a range from its beginning to its end."""
        return Open(self, name, category, details)

    def mark(self) -> tuple:
        """Now, on the host and on the GPU."""
        return self.clock(), self.events.mark()

    def add(self, name: str, category: str, since: tuple, until: tuple, details=None):
        """A range between two marks."""
        self.host.append(Range(name, category, since[0], until[0], details))
        self.events.add(self.gpu, name, category, since[1], until[1], details)

    def departs(self, work) -> None:
        """A collective has been issued, and the host may wait for it later."""
        self.departures[work.number] = self.clock()

    def arrives(self, work) -> None:
        """A collective is known to be complete."""
        start = self.departures.pop(work.number, None)
        if start is not None:
            name = work.call.name
            self.flights.append(Range(name, "communication", start, self.clock()))

    def finish(self) -> None:
        """Wait for the GPU, and fill in its times."""
        self.events.finish()


class Open:
    """A range that has begun; NVIDIA's tools see it too (NVTX)."""

    __slots__ = ("recorder", "name", "category", "details", "since")

    def __init__(self, recorder, name, category, details):
        self.recorder, self.name, self.category = recorder, name, category
        self.details = details

    def __enter__(self):
        self.recorder.events.push(self.name)
        self.since = self.recorder.mark()
        return self

    def __exit__(self, *_):
        recorder = self.recorder
        until = recorder.mark()
        recorder.events.pop()
        recorder.add(self.name, self.category, self.since, until, self.details)


class NoEvents:
    """Of a GPU that is not there."""

    def mark(self, stream=None) -> None:
        """Nothing."""

    def push(self, name: str) -> None:
        """Nothing."""

    def pop(self) -> None:
        """Nothing."""

    def add(self, *_) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class Events:
    """The GPU's own times, by events between what it is asked to do.

    Its clock is set by the host's once, when it has nothing to do. While a CUDA graph
    is recorded nothing runs, and there are no times.
    """

    def __init__(self, device: str, clock: Callable[[], int]):
        self.device, self.cuda = device, cupy_module().cuda
        self.nvtx = self.cuda.nvtx if self.cuda.nvtx.available else None
        self.spans: list[tuple] = []
        with use_device(device):
            self.cuda.Device().synchronize()
            self.first = self.mark()
            self.first.synchronize()
            self.zero = clock()
            self.cuda.profiler.start()

    def mark(self, stream=None):
        """An event that happens when the stream has done all asked of it until now."""
        if recording_graph() is not None:
            return None
        event = self.cuda.Event()
        event.record(stream)
        return event

    def push(self, name: str) -> None:
        if self.nvtx:
            self.nvtx.RangePush(name)

    def pop(self) -> None:
        if self.nvtx:
            self.nvtx.RangePop()

    def add(self, ranges: list, name, category, start, end, details=None) -> None:
        """A range between two events, for a list that gets it at the end."""
        if start is not None and end is not None:
            self.spans.append((ranges, name, category, start, end, details))

    def finish(self) -> None:
        with use_device(self.device):
            self.cuda.profiler.stop()
            self.cuda.Device().synchronize()
            for ranges, name, category, start, end, details in self.spans:
                times = self.time(start), self.time(end)
                ranges.append(Range(name, category, *times, details))
        self.spans.clear()

    def time(self, event) -> int:
        """When it happened, by the host's clock."""
        return self.zero + round(1e6 * self.cuda.get_elapsed_time(self.first, event))
