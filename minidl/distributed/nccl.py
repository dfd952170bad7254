"""NCCL: collectives on the memory of the GPUs, one to a rank.

A collective is issued on a stream of its own, after what the current stream was asked
before, and `wait` makes the current stream wait for it: the host never does. While the
current stream is captured into a CUDA graph, the same calls make the collective a
branch of the graph, which `wait` leads back: every rank must capture the same ones,
and replay them in the same order.

The rules are Communicator's, but for two. Halves are rounded each time that two are
added, in an order that NCCL chooses by size and network. And of a NaN and a number,
"max" and "min" may return either.
"""

import threading
from contextlib import contextmanager
from queue import SimpleQueue

from minidl.array.device import array_module, device_of, nccl_module
from minidl.array.errors import DistributedError
from minidl.distributed.arrays import Call, fill
from minidl.distributed.streams import Lane, LaneWork
from minidl.distributed.watch import Launch, Watch
from minidl.distributed.work import Work

LAST_SECONDS = 5.0  # for NCCL to end in: it waits for graphs that still hold it


class NCCL:
    """This rank's part in NCCL's collectives; `uid` is the same on all ranks."""

    def __init__(self, communicator, peers, device: int, uid: bytes):
        self._communicator = communicator
        self._nccl = nccl_module()
        self._lane = Lane(device)
        self._watch = Watch(communicator, peers, self._lane.device)
        self._last = LastCall()
        start = Work(communicator, Call("start NCCL"))
        launch = Launch(start.call, start.number, ())
        self._watch.add(launch)
        try:
            with self._lane.device:  # NCCL takes the current one
                self._handle = self._nccl.NcclCommunicator(
                    communicator.size, uid, communicator.rank
                )
        except RuntimeError as error:
            raise DistributedError(
                f"NCCL does not start on rank {communicator.rank}: {error}; "
                'NCCL_DEBUG=INFO says why, and init("mpi") does without'
            ) from error
        launch.landed = self._lane.event(self._lane.stream)
        self._watch.check = self._handle.check_async_error

    def all_reduce(self, call, array, op):
        values = self._widened(array)
        pointer = values.data.ptr
        kind, op = self._kind(values.dtype.name), self._op(op)
        return self._issue(
            call,
            (array, values),
            lambda stream: self._handle.allReduce(
                pointer, pointer, values.size, kind, op, stream
            ),
            None if values is array else lambda: fill(array, values),
        )

    def broadcast(self, call, array, src):
        pointer, kind = array.data.ptr, self._kind("uint8")
        return self._issue(
            call,
            (array,),
            lambda stream: self._handle.broadcast(
                pointer, pointer, array.nbytes, kind, src, stream
            ),
        )

    def reduce_scatter(self, call, output, input, op):
        sent = self._widened(input)
        values = output
        if sent is not input:
            values = array_module(sent).empty(output.shape, sent.dtype)
        kind, op = self._kind(sent.dtype.name), self._op(op)
        return self._issue(
            call,
            (input, output, sent, values),
            lambda stream: self._handle.reduceScatter(
                sent.data.ptr, values.data.ptr, values.size, kind, op, stream
            ),
            None if values is output else lambda: fill(output, values),
        )

    def all_gather(self, call, output, input):
        kind = self._kind("uint8")
        return self._issue(
            call,
            (input, output),
            lambda stream: self._handle.allGather(
                input.data.ptr, output.data.ptr, input.nbytes, kind, stream
            ),
        )

    def send_receive(self, call, outgoing, dst, incoming, src):
        """Messages; both ranks must give arrays of the same number of bytes."""
        halves = (
            (self._handle.send, outgoing, dst),
            (self._handle.recv, incoming, src),
        )
        halves = [half for half in halves if half[2] is not None]
        kind = self._kind("uint8")

        def launch(stream):
            self._nccl.groupStart()
            try:
                for function, array, rank in halves:
                    function(array.data.ptr, array.nbytes, kind, rank, stream)
            finally:
                self._nccl.groupEnd()

        arrays, ranks = zip(*(half[1:] for half in halves), strict=True)
        self._check_device(arrays)
        launched = self._launch(Launch(call, None, arrays, ranks), launch)
        self._lane.join(launched.landed)

    @contextmanager
    def replaying(self):
        """Watches the graph that is launched inside, on the current stream."""
        work = Work(self._communicator, Call("replay a graph"))
        launched = Launch(work.call, work.number, ())
        self._watch.add(launched)
        try:
            yield
        finally:
            launched.landed = self._lane.event(self._lane.current())

    def idle(self) -> bool:
        """Whether all that was issued is over."""
        return self._watch.idle()

    def close(self) -> None:
        """End NCCL; every rank does, with nothing under way."""
        self._watch.close()
        self._last.make(self._handle.destroy, LAST_SECONDS)

    def abort(self) -> None:
        """End NCCL with what is under way."""
        self._watch.check = None
        self._last.make(self._handle.abort, 1.0)

    def _issue(self, call, arrays, launch, then=None):
        """A Work; `launch(stream)` calls NCCL."""
        self._check_device(arrays)
        work = LaneWork(self._communicator, call, self._lane, then=then)
        if arrays[0].size:
            work.launch = self._launch(Launch(call, work.number, arrays), launch)
            work.landed = work.launch.landed
        return work

    def _launch(self, launched, launch):
        """Call NCCL on the stream beside the current one."""
        lane = self._lane
        with lane.device:
            launched.ready = lane.follow()
            if not lane.current().is_capturing():  # else `replaying` is watched
                self._watch.add(launched)  # NCCL may wait for the others already here
            try:
                launch(lane.stream.ptr)
            finally:
                launched.landed = lane.event(lane.stream)
        return launched

    def _check_device(self, arrays):
        own = f"cuda:{self._lane.device.id}"
        for array in arrays:
            if device_of(array) != own:
                raise ValueError(
                    f"this rank's collectives are on {own}, where its first one was, "
                    f"and this array is on {device_of(array)}"
                )

    def _widened(self, array):
        """The array, or a copy in a type that NCCL has."""
        return array.astype("int32") if self._kind(array.dtype.name) is None else array

    def _kind(self, name):
        """NCCL's number for a type; None for one that it lacks: int16, uint16."""
        return getattr(self._nccl, f"NCCL_{name.upper()}", None)

    def _op(self, op):
        return getattr(self._nccl, f"NCCL_{op.upper()}")


class LastCall:
    """One call of what may never return, on a thread that waits for it from the start:
    while Python ends it starts no more."""

    def __init__(self):
        self._given = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def make(self, function, seconds):
        """Wait for it, so long at most; of two calls only the first is made."""
        self._given.put(function)
        self._thread.join(seconds)

    def _run(self):
        self._given.get()()
