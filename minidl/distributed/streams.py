"""Collectives beside the computation: a stream of their own, ordered by events."""

from minidl.array.device import cupy_module
from minidl.distributed.work import Work


class Lane:
    """A stream of one GPU that runs beside the current one."""

    def __init__(self, device: int):
        self.cuda = cupy_module().cuda
        self.device = self.cuda.Device(device)
        with self.device:
            self.stream = self.cuda.Stream(non_blocking=True)

    def current(self):
        """The stream on which the caller computes."""
        return self.cuda.get_current_stream(self.device.id)

    def event(self, stream):
        """An event that happens when `stream` has done all asked of it until now."""
        with self.device:
            event = self.cuda.Event(disable_timing=True)
            event.record(stream)
        return event

    def follow(self):
        """Let this stream wait for all asked of the current one; that event."""
        event = self.event(self.current())
        self.stream.wait_event(event)
        return event

    def join(self, event) -> None:
        """Let the current stream wait for `event`; the host does not."""
        self.current().wait_event(event)


class LaneWork(Work):
    """A collective beside the current stream, which `wait` makes wait for it."""

    def __init__(self, communicator, call, lane, handle=None, finish=None, then=None):
        super().__init__(communicator, call, handle, finish)
        self.landed = None  # the event after which the result is there
        self.launch = None  # what keeps the arrays until then
        self._lane, self._then = lane, then  # `then`: done on the current stream, last

    def is_completed(self) -> bool:
        there = super().is_completed() and (self.landed is None or self.landed.done)
        if there:
            self.wait()
        return there

    def wait(self) -> bool:
        super().wait()
        if self.landed is not None:
            self._lane.join(self.landed)
        then, self._then, self.launch = self._then, None, None
        if then is not None:
            then()
        return True
