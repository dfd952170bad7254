"""Collectives of Tensors, with gradients: torch.distributed.nn.functional here.

Each is a linear map from the tensors of all ranks to those of all ranks, and its
backward is the transposed map, a collective too:

    all_reduce  <-> all_reduce      all_gather  <-> reduce_scatter
    broadcast   <-> sum on rank src, zero elsewhere

What is differentiated is the sum of what the ranks call backward on. All ranks must do
so, through the same collectives in the same order. Unlike `distributed.all_reduce` and
the others, which work in place on arrays, these take a Tensor and return a new one;
unlike PyTorch's, `all_gather` returns one Tensor and `reduce_scatter` takes one, whose
first dimension holds the ranks' parts end to end.
"""

from minidl.array.device import array_module
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.distributed.communicator import Communicator
from minidl.distributed.launch import init


def own_copy(x):
    """A contiguous array that a collective may write into."""
    return array_module(x).array(x, order="C")


class AllReduce(Op):
    """y = sum of all ranks' x, or its mean; gx = the same of all ranks' gy."""

    def forward(self, x, op, communicator):
        self.op, self.communicator = op, communicator
        return communicator.all_reduce(own_copy(x), op)

    def backward(self, g):
        return AllReduce.apply(g, self.op, self.communicator)


class AllGather(Op):
    """y = all ranks' x, end to end; gx = the sum of all ranks' gy, this rank's part."""

    def forward(self, x, communicator):
        self.communicator = communicator
        shape = (communicator.size * x.shape[0], *x.shape[1:])
        y = array_module(x).empty(shape, x.dtype)
        return communicator.all_gather(y, own_copy(x))

    def backward(self, g):
        return ReduceScatter.apply(g, "sum", self.communicator)


class ReduceScatter(Op):
    """y = this rank's part of the sum of all ranks' x; gx = all ranks' gy."""

    def forward(self, x, op, communicator):
        self.op, self.communicator = op, communicator
        shape = (x.shape[0] // communicator.size, *x.shape[1:])
        y = array_module(x).empty(shape, x.dtype)
        return communicator.reduce_scatter(y, own_copy(x), op)

    def backward(self, g):
        gx = AllGather.apply(g, self.communicator)
        return gx / self.communicator.size if self.op == "avg" else gx


class Broadcast(Op):
    """y = x of rank src; there, gx = the sum of all ranks' gy, and elsewhere zero."""

    def forward(self, x, src, communicator):
        self.src, self.communicator = src, communicator
        return communicator.broadcast(own_copy(x), src)

    def backward(self, g):
        total = AllReduce.apply(g, "sum", self.communicator)
        # times 0, no new zeros: all ranks are to take part in its backward too
        return total if self.communicator.rank == self.src else total * 0


def all_reduce(
    tensor: Tensor, op: str = "sum", communicator: Communicator | None = None
) -> Tensor:
    """The sum ("sum") or the mean ("avg") over all ranks, on all of them."""
    check("all_reduce", tensor, op)
    return AllReduce.apply(tensor, op, communicator or init())


def all_gather(tensor: Tensor, communicator: Communicator | None = None) -> Tensor:
    """The tensors (n, *) of all ranks, end to end: (size n, *)."""
    check("all_gather", tensor)
    if not tensor.ndim:
        raise ValueError(
            "all_gather needs a Tensor of 1 dimension or more, got a scalar"
        )
    return AllGather.apply(tensor, communicator or init())


def reduce_scatter(
    tensor: Tensor, op: str = "sum", communicator: Communicator | None = None
) -> Tensor:
    """Of the sum or the mean (size n, *) over all ranks, this rank's part (n, *)."""
    communicator = communicator or init()
    check("reduce_scatter", tensor, op)
    if not tensor.ndim or tensor.shape[0] % communicator.size:
        raise ValueError(
            f"reduce_scatter over {communicator.size} ranks needs a first dimension "
            f"that they divide, got a Tensor of shape {tuple(tensor.shape)}"
        )
    return ReduceScatter.apply(tensor, op, communicator)


def broadcast(
    tensor: Tensor, src: int = 0, communicator: Communicator | None = None
) -> Tensor:
    """The tensor of rank `src`; those of the others give shape and dtype."""
    check("broadcast", tensor)
    return Broadcast.apply(tensor, src, communicator or init())


def check(name: str, tensor: Tensor, op: str = "sum") -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{name} with gradients takes a Tensor, not {type(tensor).__name__}: for "
            f"arrays there is distributed.{name}"
        )
    if op not in ("sum", "avg"):
        raise ValueError(
            f'{name} has gradients for the ops "sum" and "avg", not {op!r}'
        )
    if not tensor.is_floating_point():
        raise TypeError(f"{name} with gradients takes floats, not {tensor.dtype}")
