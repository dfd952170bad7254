"""The collectives as functions of the process's communicator (`init()`'s).

The names are torch.distributed's. They act on arrays, not tensors, and differ where
a communicator does: `all_reduce`, `broadcast` and `recv` return the array, and
`all_gather_object` returns the list.
"""

from minidl.distributed.launch import init


def get_rank() -> int:
    """The rank of this process."""
    return init().rank


def get_world_size() -> int:
    """The number of ranks."""
    return init().size


def get_backend() -> str:
    """The name of the backend: "alone", "mpi", "nccl" or "simulated"."""
    return init().backend


def all_reduce(array, op: str = "sum", async_op: bool = False):
    """See `Communicator.all_reduce`."""
    return init().all_reduce(array, op, async_op)


def broadcast(array, src: int = 0):
    """See `Communicator.broadcast`."""
    return init().broadcast(array, src)


def reduce_scatter(output, input, op: str = "sum", async_op: bool = False):
    """See `Communicator.reduce_scatter`; PyTorch's `reduce_scatter_tensor`."""
    return init().reduce_scatter(output, input, op, async_op)


def all_gather(output, input, async_op: bool = False):
    """See `Communicator.all_gather`; PyTorch's `all_gather_into_tensor`."""
    return init().all_gather(output, input, async_op)


reduce_scatter_tensor = reduce_scatter
all_gather_into_tensor = all_gather


def send(array, dst: int) -> None:
    """See `Communicator.send`."""
    init().send(array, dst)


def recv(array, src: int):
    """See `Communicator.recv`."""
    return init().recv(array, src)


def barrier() -> None:
    """See `Communicator.barrier`."""
    init().barrier()


def all_gather_object(obj) -> list:
    """See `Communicator.all_gather_object`."""
    return init().all_gather_object(obj)


def broadcast_object(obj, src: int = 0):
    """See `Communicator.broadcast_object`."""
    return init().broadcast_object(obj, src)


def destroy_process_group() -> None:
    """Close the communicator; the next `init()` makes a new one."""
    init().close()
