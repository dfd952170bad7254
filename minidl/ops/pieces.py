"""Tensors joined, cut into pieces, repeated and turned around."""

from itertools import accumulate

from minidl.array.device import array_module
from minidl.autograd.function import Op
from minidl.autograd.structure import SumTo
from minidl.autograd.tensor import Tensor
from minidl.ops.getitem import getitem
from minidl.ops.operands import matched
from minidl.ops.shape import (
    Reshape,
    distinct_dims,
    flatten,
    normal_dim,
    sizes,
    unsqueeze,
)


class Cat(Op):
    """Arrays one behind the other along `dim`."""

    def forward(self, dim, *arrays):
        self.dim, self.sizes = dim, [x.shape[dim] for x in arrays]
        return array_module(*arrays).concatenate(arrays, dim)

    def backward(self, g):
        return None, *Split.apply(g, self.sizes, self.dim)


class Split(Op):
    """Pieces of these sizes along `dim`, as views."""

    def forward(self, x, sizes, dim):
        self.dim, before = dim, (slice(None),) * dim
        ends = accumulate(sizes)
        return tuple(
            [x[(*before, slice(e - n, e))] for e, n in zip(ends, sizes, strict=True)]
        )

    def backward(self, *gradients):
        return Cat.apply(self.dim, *gradients)


class Repeat(Op):
    """Copies side by side, `times` along each dimension; x has as many of them."""

    def forward(self, x, times):
        self.shape, self.times = x.shape, times
        return array_module(x).tile(x, times)

    def backward(self, g):
        pairs = list(zip(self.times, self.shape, strict=True))
        g = Reshape.apply(g, tuple([n for pair in pairs for n in pair]))
        g = SumTo.apply(g, tuple([n for _, size in pairs for n in (1, size)]))
        return Reshape.apply(g, self.shape)


class Flip(Op):
    """The order along some dimensions reversed."""

    def forward(self, x, dims):
        self.dims = dims
        return array_module(x).flip(x, dims).copy()

    def backward(self, g):
        return Flip.apply(g, self.dims)


class Roll(Op):
    """The elements shifted along some dimensions, those at the end to the front."""

    def forward(self, x, shifts, dims):
        self.shifts, self.dims = shifts, dims
        return array_module(x).roll(x, shifts, dims)

    def backward(self, g):
        back = tuple(-shift for shift in self.shifts)
        return Roll.apply(g, back, self.dims)


def cat(tensors, dim: int = 0) -> Tensor:
    """The tensors one behind the other along dim; they agree in all other sizes.

    As in PyTorch, an empty tensor of one dimension may stand among any others.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("cat needs at least one tensor")
    if any(not x.ndim for x in tensors):
        raise RuntimeError("cat cannot join tensors of 0 dimensions: use stack")
    tensors = matched(*tensors)
    first = next((x for x in tensors if x.shape != (0,)), tensors[0])
    dim = normal_dim(dim, first.ndim)
    before, after = first.shape[:dim], first.shape[dim + 1 :]
    joined = []
    for x in tensors:
        if x.shape == (0,):
            x = Reshape.apply(x, (*before, 0, *after))
        if (x.ndim, x.shape[:dim], x.shape[dim + 1 :]) != (first.ndim, before, after):
            raise RuntimeError(
                f"cat: shapes {first.shape} and {x.shape} differ in more than "
                f"dimension {dim}"
            )
        joined.append(x)
    return Cat.apply(dim, *joined)


def stack(tensors, dim: int = 0) -> Tensor:
    """Tensors of one shape along a new dimension."""
    tensors = list(tensors)
    if not tensors:
        raise RuntimeError("stack needs at least one tensor")
    for x in tensors:
        if x.shape != tensors[0].shape:
            raise RuntimeError(
                f"stack needs equal shapes, got {tensors[0].shape} and {x.shape}"
            )
    return cat([unsqueeze(x, dim) for x in tensors], normal_dim(dim, x.ndim + 1))


def split(tensor: Tensor, split_size_or_sections, dim: int = 0) -> tuple:
    """Views of the pieces along dim: each of one size (the last may be smaller), or
    of the sizes in a list."""
    dim = piece_dim(tensor, dim, "split")
    total, pieces = tensor.shape[dim], split_size_or_sections
    if not isinstance(pieces, int):
        pieces = sizes((pieces,))
        if sum(pieces) != total or any(n < 0 for n in pieces):
            raise RuntimeError(f"split: sizes {pieces} do not sum to {total}")
    elif pieces < 0 or (not pieces and total):
        raise RuntimeError(f"split: a piece must have at least 1 element, got {pieces}")
    else:
        whole, rest = divmod(total, pieces or 1)
        pieces = (pieces,) * whole + ((rest,) if rest or not whole else ())
    return Split.apply(tensor, pieces, dim)


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple:
    """At most `chunks` views of equal size along dim, the last one smaller."""
    if chunks < 1:
        raise RuntimeError(f"chunk needs at least 1 chunk, got {chunks}")
    total = input.shape[piece_dim(input, dim, "chunk")]
    return split(input, -(-total // chunks) if total else (0,) * chunks, dim)


def unbind(input: Tensor, dim: int = 0) -> tuple:
    """Views of all slices along dim, which disappears."""
    if not input.ndim:
        raise IndexError("unbind needs at least 1 dimension, got a 0-d tensor")
    dim = normal_dim(dim, input.ndim)
    shape = input.shape[:dim] + input.shape[dim + 1 :]
    pieces = Split.apply(input, (1,) * input.shape[dim], dim)
    return tuple([Reshape.apply(x, shape) for x in pieces])


def narrow(input: Tensor, dim: int, start, length: int) -> Tensor:
    """A view of `length` elements along dim, from `start` on."""
    dim = piece_dim(input, dim, "narrow")
    size, start = input.shape[dim], int(start)
    if not -size <= start <= size:
        raise IndexError(f"narrow: start {start} is out of range for size {size}")
    start += size if start < 0 else 0
    if length < 0 or start + length > size:
        raise RuntimeError(
            f"narrow: {length} elements from {start} on do not lie within {size}"
        )
    return getitem(input, (slice(None),) * dim + (slice(start, start + length),))


def piece_dim(x: Tensor, dim: int, name: str) -> int:
    if not x.ndim:
        raise RuntimeError(f"{name} needs at least 1 dimension, got a 0-d tensor")
    return normal_dim(dim, x.ndim)


def repeat(input: Tensor, *size, repeats=None) -> Tensor:
    """Copies side by side, `repeats` of them along each dimension; surplus repeats
    are for new dimensions in front."""
    times = sizes(size, repeats)
    extra = len(times) - input.ndim
    if extra < 0 or any(n < 0 for n in times):
        raise RuntimeError(
            f"repeat needs a number of at least 0 for each of the {input.ndim} "
            f"dimensions, got {times}"
        )
    if extra:
        input = Reshape.apply(input, (1,) * extra + input.shape)
    return Repeat.apply(input, times)


def tile(input: Tensor, *times, dims=None) -> Tensor:
    """As repeat, with 1 for the dimensions in front that dims does not reach."""
    dims = sizes(times, dims)
    return repeat(input, (1,) * (input.ndim - len(dims)) + dims)


def flip(input: Tensor, *reversed, dims=None) -> Tensor:
    """The order along `dims` reversed."""
    return Flip.apply(input, distinct_dims(sizes(reversed, dims), input.ndim, "flip"))


def roll(input: Tensor, shifts, dims=None) -> Tensor:
    """Shifted along dims, what leaves at the end entering at the front; without dims
    the flattened elements are shifted."""
    if dims is None or dims == ():
        return roll(flatten(input), shifts, 0).reshape(input.shape)
    shifts = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    if len(shifts) != len(dims):
        raise RuntimeError(f"roll: {len(shifts)} shifts for {len(dims)} dimensions")
    if not input.ndim:
        return input
    return Roll.apply(input, shifts, tuple(normal_dim(d, input.ndim) for d in dims))
