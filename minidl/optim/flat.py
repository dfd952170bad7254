"""Runs of parameters in flat storage, and the flat state of an optimizer."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from minidl.array.device import Array, array_module, device_of, use_device
from minidl.autograd.tensor import Tensor
from minidl.nn.parameter import ALIGNMENT, FlatStorage, Parameter


class Run(NamedTuple):
    """Parameters that lie end to end, as one array each of data and gradients."""

    first: Tensor
    data: Array
    grad: Array


def runs(
    parameters: Iterable[Tensor], alike: Callable[[Tensor, Tensor], bool] | None = None
) -> Iterator[Run]:
    """The parameters with gradients, neighbours in flat storage together.

    A parameter p and its neighbour q are separated where alike(p, q) is false; one
    that lies in no flat storage is a run of its own, in its own shape.
    """
    run: list[Tensor] = []
    for p in parameters:
        if p.grad is None:
            continue
        if run and not (neighbours(run[-1], p) and (not alike or alike(run[-1], p))):
            yield joined(run)
            run = []
        run.append(p)
    if run:
        yield joined(run)


def storage_of(p: Tensor) -> FlatStorage | None:
    return getattr(p, "storage", None)


def neighbours(p: Tensor, q: Tensor) -> bool:
    storage = storage_of(p)
    return (
        storage is not None and storage is storage_of(q) and storage.end(p) == q.offset
    )


def joined(run: list[Tensor]) -> Run:
    first, storage = run[0], storage_of(run[0])
    if storage is None:
        return Run(first, first.data, first.grad.data)
    part = slice(first.offset, storage.end(run[-1]))
    return Run(first, storage.data[part], storage.grad[part])


def gathered(parameters: list[Tensor]) -> list[list[Tensor]]:
    """The parameters by number type and device, in flat storage.

    Where one lies in no storage yet, all of its kind are moved into a new one.
    """
    kinds: dict = {}
    for p in parameters:
        kinds.setdefault((p.dtype, p.device), []).append(p)
    for members in kinds.values():
        members = [p for p in members if isinstance(p, Parameter)]
        if any(p.storage is None for p in members):
            FlatStorage(members)
    return list(kinds.values())


class FlatState:
    """Flat arrays of state, laid out as flat storage of the same parameters is."""

    def __init__(self, parameters: list[Tensor]):
        self.parameters = parameters
        self.dtype, self.device = parameters[0].dtype, parameters[0].data.device
        unit = ALIGNMENT // self.dtype.itemsize
        self.offsets, self.ends, self.size = {}, {}, 0
        for p in parameters:
            self.offsets[p] = self.size
            self.size += -(-p.data.size // unit) * unit
            self.ends[p] = self.size
        self.buffers: dict[str, Array] = {}

    def check(self, names: dict[Tensor, str]) -> None:
        """Raise RuntimeError if a parameter has another type or device by now, or a
        gradient that has not been exchanged with the other ranks."""
        for p in self.parameters:
            exchanged = getattr(p, "exchanged", None)
            if exchanged is not None and not exchanged.done and p.grad is not None:
                raise RuntimeError(
                    f"the gradient of parameter {names[p]!r} is this rank's alone: "
                    "call backward(loss) of the DataParallel, not loss.backward()"
                )
            if p.data.dtype != self.dtype or p.data.device != self.device:
                raise RuntimeError(
                    f"parameter {names[p]!r} has become {p.dtype} on {p.device}: "
                    "build optimizers after moving or casting a model"
                )

    def add(self, name: str, value: float) -> None:
        """A new buffer, filled with a value."""
        like = self.parameters[0].data
        with use_device(device_of(like)):
            self.buffers[name] = array_module(like).full(self.size, value, self.dtype)

    def adjacent(self, p: Tensor, q: Tensor) -> bool:
        return self.ends[p] == self.offsets[q]

    def part(self, buffer: Array, run: Run) -> Array:
        """What a buffer holds of a run, in its shape."""
        start = self.offsets[run.first]
        return buffer[start : start + run.data.size].reshape(run.data.shape)

    def view(self, name: str, p: Tensor) -> Array:
        """What a buffer holds of a parameter."""
        return FlatStorage.view(self.buffers[name], self.offsets[p], p.shape)
