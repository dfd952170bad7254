"""What every rank can say to the others, and the communicator of a lone rank."""

import socket
import sys
from collections import deque
from contextlib import nullcontext
from contextvars import ContextVar

from minidl.array.device import on_gpu, take_device
from minidl.distributed.arrays import (
    Call,
    check,
    check_blocks,
    check_op,
    check_writable,
    fill,
)
from minidl.distributed.work import Work

# The communicator of a simulated rank, in the context of its thread.
simulated = ContextVar("simulated", default=None)


class Communicator:
    """The ranks of a job, seen from one of them.

    Every rank calls the same collectives in the same order, from one thread. Arrays
    are NumPy's or CuPy's, on all ranks alike, C-contiguous, of a float, integer or
    bool dtype; float16 and bfloat16 are summed in float32 and rounded once. `op` is
    "sum", "avg" (floats only), "max" or "min" (both propagate NaN). The same ranks
    and inputs give the same bits, and every rank gets the same bits. (NCCL has other
    rules for halves and NaN: see `nccl.py`.)

    Of an array on a GPU, "until the result is there" means until what is asked of the
    current stream from then on will find it: the host does not wait.

    A backend gives `_all_reduce`, `_broadcast`, `_reduce_scatter`, `_all_gather` and
    `_barrier`, each of which returns a Work, `_all_gather_object`, and for works
    that are not done at once `_arrived` (which never blocks) and `_await`.

    `doing` may be set to a few words on what this rank does ("step 3 of epoch 1"),
    which are part of every message about its failing.
    """

    backend = ""

    def __init__(self, rank, size, local_rank, local_size):
        self.rank: int = rank
        self.size: int = size
        self.local_rank: int = local_rank
        self.local_size: int = local_size
        self.host: str = socket.gethostname()
        self.doing = ""  # what failures say that this rank did last
        self.closed = False
        self._issued = 0
        self._outstanding = deque()

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold collectives; known once one has been made."""
        return self.backend in ("alone", "nccl")

    def all_reduce(self, array, op: str = "sum", async_op: bool = False):
        """Reduce `array` over all ranks, in place; the array, or a Work if async."""
        check("all_reduce", array)
        check_op("all_reduce", op, array)
        check_writable("all_reduce", array)
        work = self._all_reduce(self._call("all_reduce", op, array), array, op)
        if async_op:
            return work
        work.wait()
        return array

    def broadcast(self, array, src: int = 0):
        """Copy the array of rank `src` into everyone's `array`; the array."""
        self._check_rank("broadcast", src)
        check("broadcast", array)
        check_writable("broadcast", array)
        self._broadcast(self._call("broadcast", f"src {src}", array), array, src).wait()
        return array

    def reduce_scatter(self, output, input, op: str = "sum", async_op: bool = False):
        """Reduce `input` and keep block `rank` of it: output (n), input (size * n).

        `output` may be that block of `input` itself. The output, or a Work if async.
        """
        check("reduce_scatter", output, input)
        check_op("reduce_scatter", op, input)
        check_blocks("reduce_scatter", input, output, self.size)
        check_writable("reduce_scatter", output)
        call = self._call("reduce_scatter", op, input)
        work = self._reduce_scatter(call, output, input, op)
        if async_op:
            return work
        work.wait()
        return output

    def all_gather(self, output, input, async_op: bool = False):
        """Lay the inputs of all ranks end to end: output (size * n), input (n).

        `input` may be block `rank` of `output` itself. The output, or a Work if async.
        """
        check("all_gather", output, input)
        check_blocks("all_gather", output, input, self.size)
        check_writable("all_gather", output)
        work = self._all_gather(self._call("all_gather", "", input), output, input)
        if async_op:
            return work
        work.wait()
        return output

    def send(self, array, dst: int) -> None:
        """Give `array` to rank `dst`, which calls `recv`; may wait until it has."""
        self.send_receive(array, dst, None, None)

    def recv(self, array, src: int):
        """Fill `array` with what rank `src` sends to this one; the array."""
        return self.send_receive(None, None, array, src)

    def send_receive(self, outgoing, dst: int | None, incoming, src: int | None):
        """Send to one rank while receiving from another; `incoming`.

        Messages between two ranks arrive in order. Where `dst` or `src` is None,
        that half does not take place.
        """
        halves = (("to", dst), ("from", src))
        halves = [f"{way} rank {rank}" for way, rank in halves if rank is not None]
        call = self._call("send_receive", ", ".join(halves))
        for name, array, rank in (("send", outgoing, dst), ("recv", incoming, src)):
            if rank is not None:
                self._check_rank(name, rank)
                check(name, array)
        if src is not None:
            check_writable("recv", incoming)
        self._send_receive(call, outgoing, dst, incoming, src)
        return incoming

    def place(self, device: str | None = "auto", share: bool | None = None) -> str:
        """The device of this rank, "cpu" or "cuda:N": call it on all ranks.

        `device` is a name that minidl.tensor takes. Of several GPUs, every rank of a
        host gets its own, in the order of the ranks; it becomes the thread's current
        one, which "cuda" then means. `share` lets ranks have one together (None: as
        `init` was told).
        """
        return take_device(device)

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._barrier(self._call("barrier")).wait()

    def all_gather_object(self, obj) -> list:
        """The picklable objects of all ranks, by rank."""
        return self._all_gather_object(self._call("all_gather_object"), obj)

    def broadcast_object(self, obj, src: int = 0):
        """The picklable object of rank `src`."""
        self._check_rank("broadcast_object", src)
        call = self._call("broadcast_object", f"src {src}")
        return self._all_gather_object(call, obj if self.rank == src else None)[src]

    def poll(self) -> None:
        """Let collectives under way progress, and complete those that can."""
        while self._outstanding and self._arrived(self._outstanding[0]):
            self._complete_first()

    def replaying(self):
        """A context for launching a CUDA graph that has collectives in it.

        All ranks enter it. One that stalls is then noticed, as in a collective.
        """
        return nullcontext()

    def abort(self, status: int = 1) -> None:
        """End the job on all ranks, at once."""
        sys.exit(status)

    def close(self) -> None:
        """Take no further part; a second call does nothing."""
        self.closed = True

    def failed(self, exception: BaseException) -> None:
        """What a rank does about an exception that nobody caught: let it pass."""

    def __enter__(self):
        return self

    def __exit__(self, kind, exception, traceback):
        if exception is not None:
            self.failed(exception)
        self.close()

    def __repr__(self):
        return f"<{type(self).__name__}: rank {self.rank} of {self.size}>"

    def _call(self, name, detail="", array=None):
        if self.closed:
            raise RuntimeError(f"{name} on a communicator that has been closed")
        if array is None:
            return Call(name, detail)
        where = "GPU" if on_gpu(array) else ""
        return Call(name, detail, array.dtype, array.shape, where)

    def _check_rank(self, name, src):
        if not 0 <= src < self.size:
            way = "to" if name == "send" else "from"
            raise ValueError(f"{name} {way} rank {src}, of ranks 0 to {self.size - 1}")

    def _complete_first(self):
        work = self._outstanding.popleft()
        work._finish()
        work._done = True
        work._handle = work._finish = None  # they hold the buffers


class Alone(Communicator):
    """The one rank of a job of one: every collective is the identity."""

    backend = "alone"

    def __init__(self):
        super().__init__(rank=0, size=1, local_rank=0, local_size=1)

    def _all_reduce(self, call, array, op):
        return Work(self, call)

    def _broadcast(self, call, array, src):
        return Work(self, call)

    def _reduce_scatter(self, call, output, input, op):
        return self._all_gather(call, output, input)

    def _all_gather(self, call, output, input):
        fill(output, input)
        return Work(self, call)

    def _barrier(self, call):
        return Work(self, call)

    def _all_gather_object(self, call, obj):
        return [obj]

    def _send_receive(self, call, outgoing, dst, incoming, src):
        if dst is None or src is None:
            raise RuntimeError("a lone rank has no other to send to or receive from")
        fill(incoming, outgoing)
