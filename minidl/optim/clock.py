"""What parameters that step together have counted, and what a step works with.

On a CPU these are numbers; on a GPU they are arrays of one element there, written and
read by kernels alone.
"""

import numpy as np

from minidl.array.device import (
    Array,
    array_module,
    device_of,
    on_gpu,
    to_device,
    use_device,
)
from minidl.autograd.tensor import Tensor
from minidl.optim.rule import Rule


class Settings(dict):
    """A group's settings by name, where its rule reads them."""

    def __init__(self, like: Array):
        self.like = like  # an array on the device
        self.known: dict[str, float] = {}  # of the host, as last written

    def refresh(self, values: dict) -> None:
        """Take over the values that have changed: on a GPU by a launch each.

        A number travels as an argument of its launch, so that nothing waits. A value
        that is a Tensor on a GPU is copied from there each time. Raises RuntimeError
        for a changed number while a CUDA graph is captured, which would repeat it.
        """
        if values == self.known:
            return
        for name, value in values.items():
            if isinstance(value, Tensor):
                if on_gpu(value.data) and on_gpu(self.like):
                    self.copy_in(name, value.data)
                    continue
                value = value.item()
            if self.known.get(name) != value:
                if on_gpu(self.like):
                    self.write(name, float(value))
                else:
                    self[name] = float(value)
                self.known[name] = value

    def write(self, name: str, value: float) -> None:
        """Write a number to the device."""
        with self.like.device:
            if array_module(self.like).cuda.get_current_stream().is_capturing():
                raise RuntimeError(
                    f"the setting {name!r} has changed: call the optimizer's refresh() "
                    "before a step is captured, not only before it is replayed"
                )
            self.cell(name).fill(value)

    def copy_in(self, name: str, value: Array) -> None:
        """Copy a number that is on a GPU."""
        self.known.pop(name, None)
        with self.like.device:
            self.cell(name)[...] = to_device(value, device_of(self.like))

    def cell(self, name: str) -> Array:
        """The one-element array of a setting."""
        if name not in self:
            self[name] = array_module(self.like).empty(1, np.float64)
        return self[name]


class Clock:
    """The counters of parameters that always have stepped together."""

    def __init__(self, counts: Array):
        self.counts = counts  # float64, on the parameters' device
        self.cells: dict[Rule, tuple] = {}

    def split(self) -> "Clock":
        """A clock that goes on by itself from here."""
        with use_device(device_of(self.counts)):
            return Clock(self.counts.copy())

    def advance(self, rule: Rule, given: dict, dtype: np.dtype) -> dict:
        """Count a step; what the rule's kernel needs in it, by name."""
        if on_gpu(self.counts):
            values = self.places(rule, dtype)
            rule.numbers(out=values, **{x: given[x] for x in rule.numbers.scalars})
        else:
            values = rule.on_host(self.values(), given)
            for i in range(len(self.counts)):
                self.counts[i] = values[i]
        return rule.needed(values, given)

    def places(self, rule: Rule, dtype: np.dtype) -> tuple:
        """Where a rule's numbers are written: in the type that it computes in."""
        if rule not in self.cells:
            first, count = len(self.counts), len(rule.numbers.outputs)
            with self.counts.device:
                made = array_module(self.counts).empty(count - first, dtype)
            self.cells[rule] = tuple(
                array[i : i + 1]
                for array in (self.counts, made)
                for i in range(len(array))
            )
        return self.cells[rule]

    def set(self, values: tuple[float, ...]) -> None:
        with use_device(device_of(self.counts)):
            for i, value in enumerate(values):
                self.counts[i : i + 1].fill(value)

    def values(self) -> list[float]:
        """The counters, as numbers of the host."""
        return self.counts.tolist()
