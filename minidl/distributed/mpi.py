"""Ranks as processes: collectives of MPI, on host buffers.

Every collective is a non-blocking one, waited for in Python: a wait can be
interrupted, and sees when a rank has ended that it waits for. CuPy arrays travel
through host copies. MPICH adds up in an order that depends on the number of ranks
and the length alone, so equal runs give equal bits.
"""

import os
import pickle
import time

import numpy as np

from minidl.array.device import on_gpu, to_numpy
from minidl.distributed.arrays import accumulator, check_message, combine, store
from minidl.distributed.communicator import Communicator, Work
from minidl.distributed.failing import exit_status, report
from minidl.distributed.peers import Peers

YIELD_EVERY, LOOK_EVERY = 10, 4000  # tests of a request, at under 1 us each


def as_bytes(array):
    """The memory of a host array, whatever its dtype."""
    return array.reshape(-1).view(np.uint8)


class TwoSteps:
    """Two requests as one: the second is made when the first is complete."""

    def __init__(self, request, then):
        self._request, self._then = request, then

    def Test(self):  # noqa: N802 - MPI's name
        if not self._request.Test():
            return False
        if self._then is None:
            return True
        self._request, self._then = self._then(), None
        return self._request.Test()


class MPICommunicator(Communicator):
    """One rank of a job under mpiexec, mpirun or srun; `MPI` is mpi4py.MPI.

    Works progress while one is waited for or polled: call `poll` now and then
    between `all_reduce(..., async_op=True)` and `wait` to overlap them with other
    work. "max" and "min" hold the arrays of all ranks at once; they are meant for
    small ones.
    """

    backend = "mpi"

    def __init__(self, MPI, timeout, witness):
        self._MPI, self._witness = MPI, witness
        self._mpi = MPI.COMM_WORLD.Dup()  # apart from the caller's own messages
        # for second steps: works are completed, not begun, in one order on all ranks
        self._second = self._mpi.Dup()
        self._pairs = MPI.COMM_WORLD.Dup()  # messages between two ranks
        node = self._mpi.Split_type(MPI.COMM_TYPE_SHARED)
        super().__init__(self._mpi.rank, self._mpi.size, node.rank, node.size)
        node.Free()
        hosts = self._mpi.allgather(self.host)
        self._peers = Peers(MPI, self._mpi, hosts, timeout)
        self.doing = ""

    @property
    def doing(self):
        return self._doing

    @doing.setter
    def doing(self, what):
        self._doing = what
        self._witness.note(what)

    def _all_reduce(self, call, array, op):
        host = to_numpy(array)
        if op in ("max", "min"):  # MPI's own have no rule for NaN
            arrays = np.empty((self.size, host.size), host.dtype)
            request = self._mpi.Iallgather(as_bytes(host), as_bytes(arrays))
            return Work(
                self, call, request, lambda: store(array, combine(list(arrays), op))
            )
        if accumulator(host.dtype) != host.dtype:
            return self._all_reduce_half(call, array, host, op)
        request = self._mpi.Iallreduce(self._MPI.IN_PLACE, host)

        def finish():
            if op == "avg":
                np.divide(host, self.size, out=host)
            store(array, host)

        return Work(self, call, request, finish)

    def _all_reduce_half(self, call, array, host, op):
        """Each rank sums a block in float32, and sends it to all: halves travel."""
        part = -(-host.size // self.size)
        sent = np.zeros(part * self.size, host.dtype)
        sent[: host.size] = host.reshape(-1)
        blocks = np.empty((self.size, part), host.dtype)
        total = np.empty_like(sent)

        def gather():
            own = combine(list(blocks), op)
            return self._second.Iallgather(as_bytes(own), as_bytes(total))

        request = self._mpi.Ialltoall(as_bytes(sent), as_bytes(blocks))
        return Work(
            self,
            call,
            TwoSteps(request, gather),
            lambda: store(array, total[: host.size]),
        )

    def _broadcast(self, call, array, src):
        host = to_numpy(array)
        request = self._mpi.Ibcast(as_bytes(host), root=src)
        return Work(self, call, request, lambda: store(array, host))

    def _reduce_scatter(self, call, output, input, op):
        sent = to_numpy(input)
        blocks = np.empty((self.size, output.size), sent.dtype)
        request = self._mpi.Ialltoall(as_bytes(sent), as_bytes(blocks))
        return Work(
            self, call, request, lambda: store(output, combine(list(blocks), op))
        )

    def _all_gather(self, call, output, input):
        sent = to_numpy(input)
        gathered = np.empty(output.shape, output.dtype) if on_gpu(output) else output
        if np.may_share_memory(sent, gathered):
            sent = sent.copy()
        request = self._mpi.Iallgather(as_bytes(sent), as_bytes(gathered))
        return Work(self, call, request, lambda: store(output, gathered))

    def _barrier(self, call):
        return Work(self, call, self._mpi.Ibarrier(), lambda: None)

    def _all_gather_object(self, call, obj):
        data = np.frombuffer(pickle.dumps(obj), np.uint8)
        lengths = np.empty(self.size, np.int64)
        mine = np.array([data.size], np.int64)
        Work(self, call, self._mpi.Iallgather(mine, lengths), lambda: None).wait()
        together = np.empty(lengths.sum(), np.uint8)
        request = self._mpi.Iallgatherv(data, (together, lengths))
        Work(self, call, request, lambda: None).wait()
        ends = lengths.cumsum()
        return [
            pickle.loads(together[end - length : end])
            for end, length in zip(ends, lengths, strict=True)
        ]

    def _send_receive(self, outgoing, dst, incoming, src):
        requests, statuses = [], [self._MPI.Status() for _ in range(2)]
        if src is not None:
            host = to_numpy(incoming)
            requests.append(self._pairs.Irecv(as_bytes(host), src))
        if dst is not None:
            requests.append(self._pairs.Isend(as_bytes(to_numpy(outgoing)), dst))
        try:
            self._trade(requests, statuses, [r for r in (src, dst) if r is not None])
        except self._MPI.Exception as error:
            if self._MPI.Get_error_class(statuses[0].Get_error()) == (
                self._MPI.ERR_TRUNCATE
            ):
                raise RuntimeError(
                    f"rank {src} has sent more bytes than the {incoming.nbytes} of the "
                    "array that should receive them"
                ) from error
            raise
        if src is not None:
            check_message(incoming, statuses[0].Get_count(self._MPI.BYTE), src)
            store(incoming, host)

    def _trade(self, requests, statuses, ranks):
        """Wait for messages from and to `ranks`."""
        tests, ended = 0, None
        while not self._MPI.Request.Testall(requests, statuses[: len(requests)]):
            tests += 1
            if tests % YIELD_EVERY == 0:
                os.sched_yield()  # there may be more ranks than cores
            if tests % LOOK_EVERY == 0:
                ended = self._peers.look_for(ranks, ended)

    def _arrived(self, work):
        if work._handle.Test():
            return True
        self._peers.look(work.call, work.number)
        return False

    def _await(self, work):
        tests = 0
        while not work._handle.Test():
            tests += 1
            if tests % YIELD_EVERY == 0:
                os.sched_yield()  # there may be more ranks than cores
            if tests % LOOK_EVERY == 0:
                self._peers.look(work.call, work.number)

    def _complete_first(self):
        call = self._outstanding[0].call
        super()._complete_first()
        self._peers.last = call, self.doing

    def close(self):
        """Say goodbye, and wait until every rank has: nobody is left behind."""
        if self.closed:
            return
        super().close()
        self._peers.goodbye(self._issued)
        while not self._peers.all_ended() or self._outstanding:
            self.poll()
            time.sleep(0.001)
        self._peers.finish()

    def abort(self, status=1):
        """End the job on all ranks, at once, with `status`."""
        self._witness.dismiss(spoken=True)
        self._MPI.COMM_WORLD.Abort(status)
        os._exit(status)  # Abort may return before the launcher ends this rank

    def failed(self, exception):
        """Report an exception that nobody caught, and end the job on all ranks."""
        if self.size == 1 or exit_status(exception) == 0:
            return
        self._witness.dismiss(spoken=True)
        report(exception, self)
        self.abort(exit_status(exception))
