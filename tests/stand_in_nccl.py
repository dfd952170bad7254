"""A strict stand-in for cupy.cuda.nccl, over MPI and the stand-in for CuPy.

    stand_in.install(devices=4)
    stand_in_nccl.install()

Calls have the arguments of CuPy's NcclCommunicator. They are refused where a pointer
lies in no array of the communicator's device, where numbers of types and operations
mean nothing, and where the ranks do not call the same. As in NCCL, halves are rounded
at each addition, and "max" and "min" pass over NaN.
"""

import os
import sys
import time
import weakref
from types import ModuleType

import numpy as np
import stand_in
import stand_in_cuda
import stand_in_memory
from ml_dtypes import bfloat16
from mpi4py import MPI

KINDS = {
    "INT8": "i1",
    "UINT8": "u1",
    "INT32": "i4",
    "UINT32": "u4",
    "INT64": "i8",
    "UINT64": "u8",
    "FLOAT16": "f2",
    "FLOAT32": "f4",
    "FLOAT64": "f8",
    "BFLOAT16": bfloat16,
}
OPS = {
    "SUM": np.add,
    "PROD": np.multiply,
    "MAX": np.fmax,
    "MIN": np.fmin,
    "AVG": np.add,
}
DTYPES, FOLDS = [np.dtype(kind) for kind in KINDS.values()], list(OPS.values())
AVG = list(OPS).index("AVG")

memories: weakref.WeakSet = weakref.WeakSet()
calls: list[str] = []  # what this rank has asked for
group: list | None = None  # messages between groupStart and groupEnd


class NcclError(RuntimeError):
    """As CuPy's."""


def view(ptr: int, count: int, dtype, device: int):
    """(memory, array) at a device pointer."""
    for memory in memories:
        if (
            memory.ptr <= ptr
            and ptr + count * dtype.itemsize <= memory.ptr + memory.size
        ):
            if memory.device_id != device:
                raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: another device's pointer")
            return memory, np.ndarray((count,), dtype, memory.bytes, ptr - memory.ptr)
    raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: a pointer into no array")


class NcclCommunicator:
    """cupy.cuda.nccl.NcclCommunicator, of the current device."""

    def __init__(self, ndev, commId, rank, config=None):  # noqa: N803 - CuPy's name
        if type(commId) is not bytes or len(commId) != 128:
            raise ValueError("commId length != 128.")
        self._mpi = MPI.COMM_WORLD.Dup()
        if (ndev, rank) != (self._mpi.size, self._mpi.rank):
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: another rank or size")
        self._device, self._alive = stand_in_cuda.current_device(), True
        self._same("init", commId)

    def _same(self, *call):
        everyone = self._mpi.allgather(call)
        if any(other != call for other in everyone):
            raise NcclError(f"NCCL_ERROR_INVALID_USAGE: ranks call {everyone}")

    def _dtype(self, number):
        if type(number) is not int or not 0 <= number < len(DTYPES):
            raise NcclError(f"NCCL_ERROR_INVALID_ARGUMENT: type {number!r}")
        return DTYPES[number]

    def _run(self, call, sent, got, function, stream):
        """In the stream's order: `got` becomes the function of all ranks' `sent`."""
        if not self._alive:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: a communicator that has ended")
        stream = stand_in_cuda.stream_of(stream)
        if stream.device_id != self._device:
            raise NcclError("NCCL_ERROR_INVALID_ARGUMENT: another device's stream")
        calls.append(call[0])

        def run():
            self._same(*call)
            got[1][...] = function(self._mpi.allgather(sent[1].copy()))

        stand_in.enqueue(f"nccl {call[0]}", run, [sent], [got], stream)

    def _reduced(self, op, size):
        if type(op) is not int or not 0 <= op < len(FOLDS):
            raise NcclError(f"NCCL_ERROR_INVALID_ARGUMENT: operation {op!r}")

        def fold(arrays):
            total = arrays[0]
            for array in arrays[1:]:
                total = FOLDS[op](total, array)
            return total / total.dtype.type(size) if op == AVG else total

        return fold

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):  # noqa: N802
        dtype, fold = self._dtype(datatype), self._reduced(op, self._mpi.size)
        sent, got = (view(p, count, dtype, self._device) for p in (sendbuf, recvbuf))
        self._run(("allReduce", count, datatype, op), sent, got, fold, stream)

    def reduceScatter(  # noqa: N802
        self, sendbuf, recvbuf, recvcount, datatype, op, stream
    ):
        dtype, fold = self._dtype(datatype), self._reduced(op, self._mpi.size)
        sent = view(sendbuf, recvcount * self._mpi.size, dtype, self._device)
        got = view(recvbuf, recvcount, dtype, self._device)
        start = self._mpi.rank * recvcount

        def own(arrays):
            return fold(arrays)[start : start + recvcount]

        self._run(("reduceScatter", recvcount, datatype, op), sent, got, own, stream)

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):  # noqa: N802
        dtype = self._dtype(datatype)
        sent = view(sendbuf, count, dtype, self._device)
        got = view(recvbuf, count * self._mpi.size, dtype, self._device)
        self._run(("allGather", count, datatype), sent, got, np.concatenate, stream)

    def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
        dtype = self._dtype(datatype)
        sent, got = (view(p, count, dtype, self._device) for p in (sendbuff, recvbuff))
        call = "broadcast", count, datatype, root
        self._run(call, sent, got, lambda arrays: arrays[root], stream)

    def send(self, sendbuf, count, datatype, peer, stream):
        memory = view(sendbuf, count, self._dtype(datatype), self._device)
        self._message("send", memory, lambda x: self._mpi.Isend(x, peer), stream)

    def recv(self, recvbuf, count, datatype, peer, stream):
        memory = view(recvbuf, count, self._dtype(datatype), self._device)
        self._message("recv", memory, lambda x: self._mpi.Irecv(x, peer), stream)

    def _message(self, name, memory, begin, stream):
        global group
        calls.append(name)
        message = name, memory, begin, stand_in_cuda.stream_of(stream)
        if group is not None:
            group.append(message)
        else:
            group = [message]
            groupEnd()

    def check_async_error(self):
        pass

    def abort(self):
        self._alive = False
        sys.stderr.write("NCCL is aborted\n")
        time.sleep(0.3)  # mpiexec drops what it has not read when MPI is aborted

    def destroy(self):
        if self._alive:
            self._alive = False
            self._mpi.Barrier()  # an error once MPI has ended
            calls.append("destroy")


def groupStart():  # noqa: N802
    global group
    group = []


def groupEnd():  # noqa: N802
    global group
    messages, group = group, None
    if not messages:
        return
    reads = [memory for name, memory, _, _ in messages if name == "send"]
    writes = [memory for name, memory, _, _ in messages if name == "recv"]

    def run():
        requests = [begin(memory[1].view(np.uint8)) for _, memory, begin, _ in messages]
        MPI.Request.Waitall(requests)

    stand_in.enqueue("nccl messages", run, reads, writes, messages[0][3])


def get_unique_id() -> bytes:
    return os.urandom(128)


def get_version() -> int:
    return int(os.environ.get("STAND_IN_NCCL", "22809"))


def install() -> None:
    """Put the stand-in where minidl looks for NCCL; `stand_in` is installed already."""
    from minidl.array.device import nccl_module

    module = ModuleType("cupy.cuda.nccl")
    own = (
        NcclCommunicator,
        NcclError,
        groupStart,
        groupEnd,
        get_unique_id,
        get_version,
    )
    vars(module).update({thing.__name__: thing for thing in own})
    vars(module).update({f"NCCL_{name}": k for k, name in enumerate(KINDS)})
    vars(module).update({f"NCCL_{name}": k for k, name in enumerate(OPS)})
    module.available = True
    sys.modules[module.__name__] = module
    nccl_module.cache_clear()
    plain = stand_in_memory.Memory.__init__

    def registered(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        memories.add(self)

    stand_in_memory.Memory.__init__ = registered
