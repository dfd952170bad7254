"""Ranks as processes: collectives of MPI on host arrays; on GPUs, NCCL's if there is.

Every collective of MPI is a non-blocking one, waited for in Python: a wait can be
interrupted, and sees when a rank has ended that it waits for.
"""

import os
import pickle
import time
import warnings

import numpy as np

from minidl.array.device import nccl_module, on_gpu
from minidl.distributed import gpus
from minidl.distributed.arrays import check_message
from minidl.distributed.communicator import Communicator
from minidl.distributed.failing import exit_status, report
from minidl.distributed.nccl import NCCL
from minidl.distributed.peers import Lookout, Peers
from minidl.distributed.requests import Requests
from minidl.distributed.staging import Staged
from minidl.distributed.work import Work

YIELD_EVERY, LOOK_EVERY = 10, 4000  # tests of a request, at under 1 us each


class MPICommunicator(Communicator):
    """One rank of a job under mpiexec, mpirun or srun; `MPI` is mpi4py.MPI.

    Works progress while one is waited for or polled: call `poll` now and then
    between `all_reduce(..., async_op=True)` and `wait` to overlap them with other
    work. Arrays on GPUs take NCCL's way where every rank has a GPU of its own and
    that library, otherwise MPI's, as `wanted` ("nccl", "mpi" or None) has it;
    `backend` says which, once the first has come.
    """

    def __init__(self, MPI, timeout, witness, wanted="mpi", share_gpus=False):
        self._MPI, self._witness = MPI, witness
        self._wanted, self.share_gpus = wanted, share_gpus
        self._mpi = MPI.COMM_WORLD.Dup()  # apart from the caller's own messages
        self._requests = Requests(MPI, self._mpi)
        self._pairs = MPI.COMM_WORLD.Dup()  # messages between two ranks
        node = self._mpi.Split_type(MPI.COMM_TYPE_SHARED)
        super().__init__(self._mpi.rank, self._mpi.size, node.rank, node.size)
        node.Free()
        self.backend = wanted or "mpi"
        hosts = self._mpi.allgather(self.host)
        self._peers = Peers(MPI, self._mpi, hosts, timeout)
        self._lookout = Lookout(self._peers)
        # the ways of arrays on GPUs: in collectives, and in messages before the first
        self._way = self._mail = None
        self.doing = ""

    @property
    def doing(self):
        return self._doing

    @doing.setter
    def doing(self, what):
        self._doing = what
        self._witness.note(what)

    def _all_reduce(self, call, array, op):
        if call.where:
            return self._gpus(array).all_reduce(call, array, op)
        return Work(self, call, *self._requests.all_reduce(array, op))

    def _broadcast(self, call, array, src):
        if call.where:
            return self._gpus(array).broadcast(call, array, src)
        return Work(self, call, *self._requests.broadcast(array, src))

    def _reduce_scatter(self, call, output, input, op):
        if call.where:
            return self._gpus(output).reduce_scatter(call, output, input, op)
        return Work(self, call, *self._requests.reduce_scatter(output, input, op))

    def _all_gather(self, call, output, input):
        if call.where:
            return self._gpus(output).all_gather(call, output, input)
        self._requests.place(output, input)
        return Work(self, call, *self._requests.all_gather(output))

    def _barrier(self, call):
        return Work(self, call, self._mpi.Ibarrier(), lambda: None)

    def _all_gather_object(self, call, obj):
        return self._gather_objects(self._mpi, call, obj)

    def _gather_objects(self, mpi, call, obj):
        data = np.frombuffer(pickle.dumps(obj), np.uint8)
        lengths = np.empty(self.size, np.int64)
        mine = np.array([data.size], np.int64)
        Work(self, call, mpi.Iallgather(mine, lengths), lambda: None).wait()
        together = np.empty(lengths.sum(), np.uint8)
        request = mpi.Iallgatherv(data, (together, lengths))
        Work(self, call, request, lambda: None).wait()
        ends = lengths.cumsum()
        return [
            pickle.loads(together[end - length : end])
            for end, length in zip(ends, lengths, strict=True)
        ]

    def _send_receive(self, call, outgoing, dst, incoming, src):
        arrays = [x for x, r in ((outgoing, dst), (incoming, src)) if r is not None]
        there = [array for array in arrays if on_gpu(array)]
        if not there:
            return self.send_receive_on_host(call, outgoing, dst, incoming, src)
        if self._way is None and self._mail is None:  # two ranks alone do not agree
            self._mail = Staged(self, None, there[0].device.id)
        way = self._way or self._mail
        way.send_receive(call, outgoing, dst, incoming, src)

    def send_receive_on_host(self, call, outgoing, dst, incoming, src):
        """`send_receive` of host arrays."""
        requests, statuses = [], [self._MPI.Status() for _ in range(2)]
        if src is not None:
            memory = self._requests.memory(incoming)
            requests.append(self._pairs.Irecv(memory, src))
        if dst is not None:
            memory = self._requests.memory(outgoing)
            requests.append(self._pairs.Isend(memory, dst))
        try:
            self._trade(
                call, requests, statuses, [r for r in (src, dst) if r is not None]
            )
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

    def _trade(self, call, requests, statuses, ranks):
        """Wait for messages from and to `ranks`."""
        tests, ended, since = 0, None, time.monotonic()
        while not self._MPI.Request.Testall(requests, statuses[: len(requests)]):
            tests += 1
            if tests % YIELD_EVERY == 0:
                os.sched_yield()  # there may be more ranks than cores
            if tests % LOOK_EVERY == 0:
                ended = self._lookout.look_for(ranks, call, since, ended)

    def _gpus(self, array):
        """The way that arrays on GPUs take: NCCL, or MPI.

        Agreed on by all ranks when the first comes.
        """
        if self._way is None:
            self._way = self._agree(array.device.id)
        return self._way

    def _agree(self, device):
        call = self._call("agree on GPUs")
        own = gpus.report(self, self._MPI, device)
        # not where other ranks may send arrays of the host
        reports = self._gather_objects(self._pairs, call, own)
        way = gpus.way(reports, self._wanted, self.share_gpus)
        asked = self._wanted == "mpi" or self.share_gpus
        if way == "staged" and not asked and self.rank == 0:
            warnings.warn(
                "arrays on GPUs travel through the memory of the hosts: NCCL is not "
                "where CuPy finds it on all ranks (pip install nvidia-nccl-cu12, or "
                "-cu13)",
                RuntimeWarning,
                stacklevel=2,
            )
        if way == "nccl":
            if len(reports) > len({told.gpu for told in reports}):
                os.environ.setdefault("NCCL_MULTI_RANK_GPU_ENABLE", "1")
            uid = nccl_module().get_unique_id() if self.rank == 0 else None
            uid = self._all_gather_object(call, uid)[0]
            self.backend = "nccl"
            return NCCL(self, self._peers, device, uid)
        requests = Requests(self._MPI, self._mpi.Dup())
        return Staged(self, requests, device, way == "direct")

    def replaying(self):
        return super().replaying() if self._way is None else self._way.replaying()

    def place(self, device="auto", share=None):
        return gpus.own(self, device, self.share_gpus if share is None else share)

    def _arrived(self, work):
        if work._handle.Test():
            return True
        self._lookout.look(work.call, work.number)
        return False

    def _await(self, work):
        tests = 0
        while not work._handle.Test():
            tests += 1
            if tests % YIELD_EVERY == 0:
                os.sched_yield()  # there may be more ranks than cores
            if tests % LOOK_EVERY == 0:
                self._lookout.look(work.call, work.number)

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
        while not self._peers.all_ended() or self._outstanding or not self._idle():
            self.poll()
            time.sleep(0.001)
        if self._way is not None:
            self._way.close()  # before MPI ends
        self._peers.finish()

    def _idle(self):
        return self._way is None or self._way.idle()

    def abort(self, status=1):
        """End the job on all ranks, at once, with `status`."""
        self._witness.dismiss(spoken=True)
        if self._way is not None:
            self._way.abort()
        self._MPI.COMM_WORLD.Abort(status)
        os._exit(status)  # Abort may return before the launcher ends this rank

    def failed(self, exception):
        """Report an exception that nobody caught, and end the job on all ranks."""
        if self.size == 1 or exit_status(exception) == 0:
            return
        self._witness.dismiss(spoken=True)
        report(exception, self)
        self.abort(exit_status(exception))
