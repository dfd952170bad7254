"""What depends on the order of the elements: extremes, and sorting."""

from typing import NamedTuple

from minidl.array.device import array_module
from minidl.array.dtypes import BFLOAT16, DEFAULT_FLOAT
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.elementwise import maximum, minimum
from minidl.ops.reduce import Reduction, normal_dims
from minidl.ops.shape import normal_dim


class Ordered(NamedTuple):
    """Elements, and where along the dimension they were."""

    values: Tensor
    indices: Tensor


class Select(Op):
    """The elements at `index`, along dim; no place may be named twice."""

    def forward(self, x, index, dim):
        self.shape, self.dim = x.shape, dim
        self.save_for_backward(index)
        return array_module(x).take_along_axis(x, index, dim)

    def backward(self, g):
        (index,) = self.saved_tensors
        return Place.apply(g, index.data, self.dim, self.shape)


class Place(Op):
    """Zeros of `shape` with x at `index`, along dim."""

    def forward(self, x, index, dim, shape):
        self.dim = dim
        self.save_for_backward(index)
        xp = array_module(x)
        places = [
            xp.arange(n).reshape([-1 if d == e else 1 for e in range(x.ndim)])
            for d, n in enumerate(x.shape)
        ]
        places[dim] = index
        y = xp.zeros(shape, x.dtype)
        y[tuple(places)] = x
        return y

    def backward(self, g):
        (index,) = self.saved_tensors
        return Select.apply(g, index.data, self.dim)


class Extreme(Reduction):
    """y = max(x) or min(x); equals share the gradient."""

    def reduce(self, x, dims, name):
        self.dims = dims
        return getattr(x, name)(axis=dims, keepdims=True)

    def backward(self, g):
        x, y = self.saved_tensors
        equal = x.data == self.spread(y).data
        count = equal.sum(axis=self.dims, keepdims=True, dtype=g.dtype)
        return self.spread(g) * Tensor(equal / count)


def check_not_empty(input: Tensor, dims, error=IndexError) -> None:
    if 0 in [input.shape[d] for d in dims]:
        raise error(
            f"nothing is the largest or smallest of no elements: the shape is "
            f"{tuple(input.shape)}, and dimensions {dims} are reduced"
        )


def amax(input: Tensor, dim=(), keepdim: bool = False) -> Tensor:
    """The largest element over dim (an int, a tuple or all); equals share the
    gradient."""
    return extreme("max", input, dim, keepdim)


def amin(input: Tensor, dim=(), keepdim: bool = False) -> Tensor:
    """The smallest element over dim (an int, a tuple or all); equals share the
    gradient."""
    return extreme("min", input, dim, keepdim)


def extreme(name: str, input: Tensor, dim, keepdim: bool) -> Tensor:
    dims = normal_dims(dim, input.ndim)
    everything = dim is None or dim == ()
    check_not_empty(input, dims, RuntimeError if everything else IndexError)
    return Extreme.apply(input, dims, keepdim, name)


def max(
    input: Tensor, dim=None, keepdim: bool = False, *, other: Tensor | None = None
) -> Tensor | Ordered:
    """The largest element; or (values, indices) of the largest along dim, of equals
    the first, which alone gets the gradient; or max(input, other), the larger one of
    two tensors, element by element."""
    if isinstance(dim, Tensor) or other is not None:
        return maximum(input, dim if other is None else other)
    return amax(input) if dim is None else first("max", input, dim, keepdim)


def min(
    input: Tensor, dim=None, keepdim: bool = False, *, other: Tensor | None = None
) -> Tensor | Ordered:
    """The smallest element; or (values, indices) of the smallest along dim, of equals
    the first, which alone gets the gradient; or min(input, other), the smaller one of
    two tensors, element by element."""
    if isinstance(dim, Tensor) or other is not None:
        return minimum(input, dim if other is None else other)
    return amin(input) if dim is None else first("min", input, dim, keepdim)


def first(name: str, input: Tensor, dim: int, keepdim: bool) -> Ordered:
    if not input.ndim:
        values, indices = first(name, input.reshape(1), dim, False)
        return Ordered(values.reshape(()), indices)
    indices = position(name, input, dim, True)
    values = Select.apply(input, indices.data, normal_dim(dim, input.ndim))
    if keepdim:
        return Ordered(values, indices)
    return Ordered(values.squeeze(dim), indices.squeeze(dim))


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the largest element is, of equals the first: as an index along dim, or
    into the flattened input."""
    return position("max", input, dim, keepdim)


def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the smallest element is, of equals the first: as an index along dim, or
    into the flattened input."""
    return position("min", input, dim, keepdim)


def position(name: str, input: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    check_not_empty(input, normal_dims(dim, input.ndim))
    x = input.data
    find = getattr(array_module(x), "arg" + name)
    if x.dtype == BFLOAT16:  # which CuPy has no loop for
        x = x.astype(DEFAULT_FLOAT)
    if dim is not None:
        dim = normal_dim(dim, input.ndim)
    if not input.ndim:
        return Tensor(find(x.reshape(1)))
    return Tensor(find(x, dim, keepdims=keepdim))


def order(input: Tensor, dim: int, descending: bool):
    """The indices that sort; equals keep their order, NaN counts as the largest."""
    xp, x = array_module(input.data), input.data
    if x.dtype == BFLOAT16:  # which CuPy cannot sort
        x = x.astype(DEFAULT_FLOAT)
    if not descending:
        return xp.argsort(x, axis=dim, kind="stable")
    # sorted from behind and read from behind, equals are in order again
    index = xp.argsort(xp.flip(x, dim), axis=dim, kind="stable")
    return xp.flip(x.shape[dim] - 1 - index, dim)


def sort(
    input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False
) -> Ordered:
    """The elements in order along dim, and where they were.

    Always stable; PyTorch promises that with stable=True alone.
    """
    dim = normal_dim(dim, input.ndim)
    if not input.ndim:
        return whole(input)
    index = order(input, dim, descending)
    return Ordered(Select.apply(input, index, dim), Tensor(index))


def argsort(
    input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False
) -> Tensor:
    """The indices that put the elements along dim in order; always stable."""
    return sort(input.detach(), dim, descending).indices


def topk(
    input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Ordered:
    """The k largest (or smallest) elements along dim, and where they are.

    They come in order; PyTorch promises that with sorted=True alone.
    """
    dim = normal_dim(dim, input.ndim)
    size = input.shape[dim] if input.ndim else 1
    if not 0 <= k <= size:
        raise RuntimeError(f"topk: k is {k}, and dim {dim} has {size} elements")
    if not input.ndim:
        return whole(input)
    found = order(input, dim, largest)[(slice(None),) * dim + (slice(k),)]
    index = found.copy()  # a view would keep them all
    return Ordered(Select.apply(input, index, dim), Tensor(index))


def whole(input: Tensor) -> Ordered:
    """A 0-d tensor, in order."""
    return Ordered(
        input.reshape(()), Tensor(array_module(input.data).zeros((), "int64"))
    )
