"""Elements picked out by index, and put back."""

from minidl.array.device import array_module
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor


class GetItem(Op):
    """y = x[index], with all that NumPy's indexing allows."""

    def forward(self, x, index):
        self.shape, self.index = x.shape, index
        return x[index]

    def backward(self, g):
        return PutItem.apply(g, self.index, self.shape)


class PutItem(Op):
    """Zeros of `shape`, with g added where the index points; equal places add up."""

    def forward(self, g, index, shape):
        self.index = index
        xp = array_module(g)
        x = xp.zeros(shape, g.dtype)
        parts = index if isinstance(index, tuple) else (index,)
        if any(hasattr(part, "dtype") for part in parts):
            xp.add.at(x, index, g)
        else:  # slices, integers: no place twice
            x[index] = g
        return x

    def backward(self, g):
        return GetItem.apply(g, self.index)


class Gather(Op):
    """The elements that `index` names along dim."""

    def forward(self, x, index, dim):
        self.dim, self.shape = dim, x.shape
        self.save_for_backward(index)
        return array_module(x).take_along_axis(x, index, dim)

    def backward(self, g):
        (index,) = self.saved_tensors
        return PutAlong.apply(g, index.data, self.dim, self.shape)


class PutAlong(Op):
    """Zeros of `shape`, with g put along dim where `index` names a place."""

    def forward(self, g, index, dim, shape):
        self.dim = dim
        self.save_for_backward(index)
        xp = array_module(g)
        x = xp.zeros(shape, g.dtype)
        places = list(xp.indices(index.shape, sparse=True))
        places[dim] = index
        xp.add.at(x, tuple(places), g)
        return x

    def backward(self, g):
        (index,) = self.saved_tensors
        return Gather.apply(g, index.data, self.dim)


def raw_index(index):
    """An index with arrays in the place of Tensors and of lists."""
    if isinstance(index, tuple):
        return tuple(raw_index(part) for part in index)
    return index.data if isinstance(index, Tensor) else index


def getitem(input: Tensor, index) -> Tensor:
    """input[index]: slices, integers, None, Ellipsis, bool masks, integer arrays."""
    return GetItem.apply(input, raw_index(index))
