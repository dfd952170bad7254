"""Runs of parameters in flat storage, and the flat state of an optimizer."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from minidl.array.device import Array, array_module, device_of, use_device
from minidl.autograd.tensor import Tensor
from minidl.nn.parameter import ALIGNMENT, FlatStorage, Parameter
from minidl.optim.clock import Clock, Settings


class Run(NamedTuple):
    """Parameters that lie end to end, as one array each of data and gradients."""

    first: Tensor
    data: Array
    grad: Array
    low: Array | None = None  # of the weights in another type


def runs(
    parameters: Iterable[Tensor], alike: Callable[[Tensor, Tensor], bool] | None = None
) -> Iterator[Run]:
    """The parameters with gradients, neighbours in flat storage together.

    A parameter p and its neighbour q are separated where alike(p, q) is false; one
    that lies in no flat storage is a run of its own, in its own shape.
    """
    run: list[Tensor] = []
    storage, end = None, 0  # of the run, and where the next parameter would begin
    for p in parameters:
        if p.grad is None:
            continue
        own = storage_of(p)
        joins = run and own is not None and own is storage and p.offset == end
        if run and not (joins and (not alike or alike(run[-1], p))):
            yield joined(run)
            run = []
        run.append(p)
        storage, end = own, 0 if own is None else own.end(p)
    if run:
        yield joined(run)


def storage_of(p: Tensor) -> FlatStorage | None:
    return getattr(p, "storage", None)


def joined(run: list[Tensor]) -> Run:
    first, storage = run[0], storage_of(run[0])
    if storage is None:
        return Run(first, first.data, first.grad.data)
    part = slice(first.offset, storage.end(run[-1]))
    low = None if storage.low is None else storage.low[part]
    return Run(first, storage.data[part], storage.grad[part], low)


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
    """Flat arrays of state, laid out as flat storage of the same parameters is.

    Parameters have one clock as long as they all have stepped together: `counters`
    says what it counts, and from where.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        counters: dict[str, float],
        state: dict[Tensor, dict],
    ):
        self.parameters, self.counters, self.state = parameters, counters, state
        self.dtype, self.device = parameters[0].dtype, parameters[0].data.device
        unit = ALIGNMENT // self.dtype.itemsize
        self.offsets, self.ends, self.size = {}, {}, 0
        for p in parameters:
            self.offsets[p] = self.size
            self.size += -(-p.data.size // unit) * unit
            self.ends[p] = self.size
        self.buffers: dict[str, Array] = {}
        self.compute = np.result_type(self.dtype, np.float32)  # what kernels work in
        self.settings = Settings(self.like)
        with use_device(device_of(self.like)):
            counts = array_module(self.like).asarray(list(counters.values()), float)
        clock = Clock(counts)
        self.clocks: dict[Tensor, Clock] = {}
        for p in parameters:
            self.set_clock(p, clock)

    @property
    def like(self) -> Array:
        """An array on the device, of the number type."""
        return self.parameters[0].data

    def check(self, names: dict[Tensor, str]) -> None:
        """Raise RuntimeError if a parameter has another type or device by now, or a
        gradient that has not been exchanged with the other ranks."""
        for p in self.parameters:
            exchanged = getattr(p, "exchanged", None)
            if exchanged is not None and not exchanged.done and p.grad is not None:
                raise RuntimeError(
                    f"the gradient of parameter {names[p]!r} is this rank's alone: "
                    "call backward(loss) of the DataParallel, not loss.backward(), and "
                    "make that after its parameters have been frozen or unfrozen"
                )
            if p.data.dtype != self.dtype or p.data.device != self.device:
                raise RuntimeError(
                    f"parameter {names[p]!r} has become {p.dtype} on {p.device}: "
                    "build optimizers after moving or casting a model"
                )

    def add(self, name: str, value: float) -> None:
        """A new buffer, filled with a value."""
        with use_device(device_of(self.like)):
            xp = array_module(self.like)
            self.buffers[name] = xp.full(self.size, value, self.dtype)

    def part_ways(self) -> None:
        """Give clocks of their own to parameters that stay while others step."""
        absent = [p for p in self.parameters if p.grad is None]
        if absent and len(absent) < len(self.parameters):
            stepping = {self.clocks[p] for p in self.parameters if p.grad is not None}
            staying: dict[Clock, Clock] = {}
            for p in absent:
                clock = self.clocks[p]
                if clock in stepping:
                    if clock not in staying:
                        staying[clock] = clock.split()
                    self.set_clock(p, staying[clock])

    def set_clock(self, p: Tensor, clock: Clock) -> None:
        """Let a parameter's state count by this clock."""
        self.clocks[p] = clock
        for i, name in enumerate(self.counters):
            self.state[p][name] = Tensor(clock.counts[i, ...])

    def set_counts(self, counts: dict[Tensor, dict]) -> None:
        """Let each parameter have counted this.

        Clocks stay where they are, which a captured step knows, and never become one
        again; one whose parameters differ from now on is split.
        """
        first = {}  # of each clock, the counts of its first parameter
        split: dict[tuple, Clock] = {}
        for p in self.parameters:
            clock = self.clocks[p]
            values = tuple(float(counts[p][name]) for name in self.counters)
            if first.setdefault(clock, values) != values:
                if (clock, values) not in split:
                    split[clock, values] = clock.split()
                    split[clock, values].set(values)
                self.set_clock(p, split[clock, values])
        for clock, values in first.items():
            clock.set(values)

    def together(self, p: Tensor, q: Tensor) -> bool:
        """Whether one launch can do for both: neighbours, equally many steps."""
        return self.clocks[p] is self.clocks[q] and self.ends[p] == self.offsets[q]

    def part(self, buffer: Array, run: Run) -> Array:
        """What a buffer holds of a run, in its shape."""
        start = self.offsets[run.first]
        return buffer[start : start + run.data.size].reshape(run.data.shape)

    def view(self, name: str, p: Tensor) -> Array:
        """What a buffer holds of a parameter."""
        return FlatStorage.view(self.buffers[name], self.offsets[p], p.shape)
