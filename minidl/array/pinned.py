"""Host memory that a GPU reads and writes by itself, and batches sent through it.

A copy from it runs beside the computation, and the host does not wait for its end;
so it must not be written anew before that.
"""

from collections import deque

import numpy

from .device import Array, cupy_module, use_device


def pinned(array: Array) -> numpy.ndarray:
    """A host array like this one, which a GPU reads and writes by itself.

    CuPy keeps the memory of those that are freed for others of the size.
    """
    memory = cupy_module().cuda.alloc_pinned_memory(max(array.nbytes, 1))
    return numpy.ndarray(array.shape, array.dtype, memory)


class Buffer:
    """Room for `most` rows of each array, pinned on the host and on the device."""

    def __init__(self, arrays: list[numpy.ndarray], most: int):
        cupy = cupy_module()
        shapes = [(most, *array.shape[1:]) for array in arrays]
        self.there = [
            cupy.empty(shape, array.dtype)
            for shape, array in zip(shapes, arrays, strict=True)
        ]
        self.here = [pinned(array) for array in self.there]
        self.copied = cupy.cuda.Event(disable_timing=True)
        self.rows = 0

    def fill(self, arrays: list[numpy.ndarray], index: numpy.ndarray) -> None:
        """Gather these rows on the host, once what was there before has left."""
        if not self.copied.done:
            self.copied.synchronize()
        self.rows = len(index)
        for array, here in zip(arrays, self.here, strict=True):
            numpy.take(array, index, axis=0, out=here[: self.rows], mode="clip")

    def copy(self, stream) -> None:
        """Start the copy to the device."""
        for here, there in zip(self.here, self.there, strict=True):
            if self.rows:
                there[: self.rows].set(here[: self.rows], stream)
        self.copied.record(stream)


class Feed:
    """Rows of the host's arrays on their way to a GPU: while some compute, others come.

        feed = Feed([images, labels], 128, "cuda:0")
        feed.send(index)
        feed.send(next_index)
        images, labels = feed.receive()

    At most two are under way. The copies run on a stream of their own. The host waits
    only where it is two batches ahead of the device, which has work enough meanwhile.
    """

    def __init__(self, arrays: list[numpy.ndarray], most: int, device: str):
        self.arrays, self.most, self.device = arrays, most, device
        with use_device(device):
            cuda = cupy_module().cuda
            self.stream = cuda.Stream(non_blocking=True)
            with self.stream:
                self.buffers = deque(Buffer(arrays, most) for _ in range(2))
        self.sent: deque[Buffer] = deque()

    def send(self, index: numpy.ndarray) -> None:
        """Gather the rows of this index, at most `most`, and start their copy."""
        if len(self.sent) == len(self.buffers):
            raise RuntimeError("two batches are under way: receive one of them first")
        buffer = self.buffers[0]
        with use_device(self.device):
            buffer.fill(self.arrays, index)
            buffer.copy(self.stream)
        self.buffers.rotate(-1)
        self.sent.append(buffer)

    def receive(self) -> list[Array]:
        """The rows that were sent first, in new arrays of the current stream."""
        buffer = self.sent.popleft()
        with use_device(self.device):
            current = cupy_module().cuda.get_current_stream()
            current.wait_event(buffer.copied)
            rows = [there[: buffer.rows].copy() for there in buffer.there]
            self.stream.wait_event(current.record())  # what comes next overwrites them
        return rows
