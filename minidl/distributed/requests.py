"""MPI's collectives with the rules of a Communicator: what is begun, and how it ends.

Every collective is a non-blocking one. MPICH adds up in an order that depends on the
number of ranks and the length alone, so equal runs give equal bits.
"""

import numpy as np

from minidl.array.device import array_module, on_gpu
from minidl.distributed.arrays import accumulator, combine, fill


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


class Requests:
    """Collectives over the communicator `mpi` of mpi4py.

    Each returns (request, finish): once the request is complete, `finish()` leaves the
    result in the array that it is for. Results of one communicator are to be finished
    in the order in which they were begun. "max" and "min" hold the arrays of all ranks
    at once; they are meant for small ones. Device arrays are taken where the MPI
    reads their memory, by what `direct` allows.
    """

    def __init__(self, MPI, mpi):
        self._MPI, self._mpi = MPI, mpi
        # for second steps: works are completed, not begun, in one order on all ranks
        self._second = mpi.Dup()

    @staticmethod
    def direct(op, dtype):
        """Whether `all_reduce` computes with MPI's own arithmetic alone."""
        return op in ("sum", "avg") and accumulator(dtype) == dtype

    def memory(self, array):
        """The bytes of an array, whatever its dtype."""
        if on_gpu(array):
            return self._MPI.buffer.fromaddress(array.data.ptr, array.nbytes)
        return array.reshape(-1).view(np.uint8)

    def all_reduce(self, array, op):
        if op in ("max", "min"):  # MPI's own have no rule for NaN
            arrays = np.empty((self._mpi.size, array.size), array.dtype)
            request = self._mpi.Iallgather(self.memory(array), self.memory(arrays))
            return request, lambda: fill(array, combine(list(arrays), op))
        if not self.direct(op, array.dtype):
            return self._all_reduce_half(array, op)
        numbers = array
        if on_gpu(array):
            kind = self._MPI.Datatype.fromcode(array.dtype.char)
            numbers = [self.memory(array), array.size, kind]
        request = self._mpi.Iallreduce(self._MPI.IN_PLACE, numbers)

        def finish():
            if op == "avg":
                array_module(array).divide(array, self._mpi.size, out=array)

        return request, finish

    def _all_reduce_half(self, array, op):
        """Each rank sums a block in float32, and sends it to all: halves travel."""
        part = -(-array.size // self._mpi.size)
        sent = np.zeros(part * self._mpi.size, array.dtype)
        sent[: array.size] = array.reshape(-1)
        blocks = np.empty((self._mpi.size, part), array.dtype)
        total = np.empty_like(sent)

        def gather():
            own = combine(list(blocks), op)
            return self._second.Iallgather(self.memory(own), self.memory(total))

        request = self._mpi.Ialltoall(self.memory(sent), self.memory(blocks))
        return TwoSteps(request, gather), lambda: fill(array, total[: array.size])

    def broadcast(self, array, src):
        return self._mpi.Ibcast(self.memory(array), root=src), nothing

    def reduce_scatter(self, output, input, op):
        blocks = np.empty((self._mpi.size, output.size), input.dtype)
        request = self._mpi.Ialltoall(self.memory(input), self.memory(blocks))
        return request, lambda: fill(output, combine(list(blocks), op))

    def place(self, output, input):
        """Copy this rank's part to where `all_gather` wants it; it may be there."""
        start = self._mpi.rank * input.size
        own = output.reshape(-1)[start : start + input.size]
        own[...] = input.reshape(-1)

    def all_gather(self, output):
        """Every rank's part is in its place in `output`, and goes to all."""
        request = self._mpi.Iallgather(self._MPI.IN_PLACE, self.memory(output))
        return request, nothing


def nothing():
    """The result is where it belongs already."""
