"""Stretches of flat storage, for those who own a share of a parameter."""

from minidl.autograd.tensor import Tensor
from minidl.nn.parameter import FlatStorage, Parameter


class Piece(Tensor):
    """Elements `start` to `stop` of a parameter in flat storage, as a vector.

    Its data is a view of the storage, and so is what its `grad` should be. To an
    optimizer it is a parameter of its own; it must begin where an aligned run begins.
    """

    __slots__ = ("storage", "offset", "parameter", "start", "stop")

    def __init__(self, parameter: Parameter, start: int, stop: int):
        self.storage, self.parameter = parameter.storage, parameter
        self.start, self.stop = start, stop
        self.offset = parameter.offset + start
        super().__init__(self.of(self.storage.data), requires_grad=True)

    def of(self, flat):
        """What a flat array with the storage's layout holds of this piece."""
        return flat[self.offset : self.parameter.offset + self.stop]


def pieces(storage: FlatStorage, start: int, stop: int) -> list[Piece]:
    """The pieces of a storage's parameters from element `start` to `stop` of it."""
    found = []
    for p in storage.parameters:
        first, last = max(start - p.offset, 0), min(stop - p.offset, p.data.size)
        if first < last:
            found.append(Piece(p, first, last))
    return found
