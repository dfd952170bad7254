"""Elements picked out along a dimension by an array of indices, and put back."""

import numpy as np

from minidl.array.device import array_module
from minidl.array.scatter import add_rows
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.arithmetic import add
from minidl.ops.elementwise import where
from minidl.ops.getitem import ALL, ARRAY, GetItem, getitem
from minidl.ops.operands import as_tensor, cast
from minidl.ops.shape import broadcast_to, flatten, normal_dim


class Gather(Op):
    """The elements that `index` names along dim; it may be shorter along others."""

    def forward(self, x, index, dim):
        self.dim, self.shape = dim, x.shape
        self.save_for_backward(index)
        return x.reshape(-1)[places_along(index, dim, x.shape)]

    def backward(self, g):
        (index,) = self.saved_tensors
        return PutAlong.apply(g, index.data, self.dim, self.shape)


class PutAlong(Op):
    """Zeros of `shape`, with g added along dim where `index` names a place."""

    def forward(self, g, index, dim, shape):
        self.dim = dim
        self.save_for_backward(index)
        x = array_module(g).zeros(shape, g.dtype)
        places = places_along(index, dim, shape)
        if index.ndim and index.shape[dim] == 1:  # no place twice
            x.reshape(-1)[places] = g
        else:
            add_rows(x.reshape(-1, 1), places.reshape(-1), g.reshape(-1, 1))
        return x

    def backward(self, g):
        (index,) = self.saved_tensors
        return Gather.apply(g, index.data, self.dim)


class Scatter(Op):
    """x with the elements that `index` names along dim replaced by those of src."""

    def forward(self, x, index, src, dim):
        self.dim = dim
        self.save_for_backward(index)
        y = array_module(x).array(x, order="C")
        y.reshape(-1)[places_along(index, dim, x.shape)] = src
        return y

    def backward(self, g):
        (index,) = self.saved_tensors
        gx = gsrc = None
        if self.edges[0] is not None:
            gx = Scatter.apply(g, index, 0, self.dim)
        if self.edges[2] is not None:
            gsrc = Gather.apply(g, index, self.dim)
        return gx, None, gsrc


def places_along(index, dim: int, shape):
    """Where the elements named along dim lie in a flattened array of `shape`.

    Raises RuntimeError for an index that points outside, which CuPy would not see.
    """
    if not shape:
        return index * 0
    xp, index = array_module(index), index.astype(np.int64, copy=False)
    size = shape[dim]
    if xp is np and index.size and not (0 <= index.min() and index.max() < size):
        raise RuntimeError(
            f"an index from {index.min()} to {index.max()} points outside of "
            f"dimension {dim}, which has size {size}"
        )
    places, stride = 0, 1
    for d in reversed(range(len(shape))):
        if d == dim:
            here = index
        else:
            ones = (1,) * (len(shape) - d - 1)
            here = xp.arange(index.shape[d]).reshape(-1, *ones)
        places = places + here * stride
        stride *= shape[d]
    return places


def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """output[i][j][k] = input[index[i][j][k]][j][k] for dim 0, alike for others."""
    dim = check_index(input, dim, index, "gather", input)
    return Gather.apply(input, index, dim)


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices along dim that a vector of indices names."""
    dim = normal_dim(dim, input.ndim)
    check_integers(index, "index_select")
    if index.ndim > 1:
        raise IndexError(f"index_select needs a vector of indices, got {index.ndim}-d")
    index = flatten(index)
    if not input.ndim:
        return getitem(flatten(input), index).reshape(())
    pattern = (ALL,) * dim + (ARRAY,)
    return GetItem.apply(input, (ALL,), pattern, False, index.data)


def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """The elements that indices name along dim, the other dimensions broadcasting;
    without dim, in the flattened input."""
    check_integers(indices, "take_along_dim")
    if dim is None:
        return Gather.apply(flatten(input), wrapped(flatten(indices), input.numel()), 0)
    dim = normal_dim(dim, input.ndim)
    if input.ndim != indices.ndim:
        raise RuntimeError(
            f"take_along_dim: input has {input.ndim} dimensions and indices have "
            f"{indices.ndim}; they need the same number"
        )
    shapes = [[*x.shape] for x in (input, indices)]
    size, length = shapes[0][dim], shapes[1][dim]
    shapes[0][dim] = shapes[1][dim] = 1
    shape = list(np.broadcast_shapes(*shapes))
    shape[dim] = size
    input = broadcast_to(input, shape)
    shape[dim] = length
    return Gather.apply(input, wrapped(broadcast_to(indices, shape), size), dim)


def scatter(
    input: Tensor, dim: int, index: Tensor, src=None, *, value=None, reduce=None
) -> Tensor:
    """A copy of input with output[index[i][j]][j] = src[i][j] for dim 0.

    src is a Tensor or a number (also as `value`). Where index names a place twice,
    one of the elements of src stays; with `reduce="add"` all are added to input's.
    PyTorch's reduce="multiply" is not offered.
    """
    src = value if src is None else src
    dim = check_index(input, dim, index, "scatter", src)
    src = source(src, index, input)
    if reduce == "add":
        return add(input, PutAlong.apply(src, index, dim, input.shape))
    if reduce is not None:
        raise RuntimeError(f"reduce must be 'add' or None, got {reduce!r}")
    return Scatter.apply(input, index, src, dim)


def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """input with src[i][j] added at [index[i][j]][j] for dim 0; equal places add up."""
    return scatter(input, dim, index, src, reduce="add")


def masked_fill(input: Tensor, mask: Tensor, value) -> Tensor:
    """value where the mask holds, input elsewhere; the type stays input's."""
    if mask.dtype != np.bool_:
        raise RuntimeError(f"masked_fill needs a mask of bool, got {mask.dtype}")
    value = cast(as_tensor(value, input), input.dtype)
    if value.ndim:
        raise RuntimeError(
            f"masked_fill needs one value, got a tensor of shape {value.shape}"
        )
    return where(mask, value, input)


def source(src, index: Tensor, input: Tensor) -> Tensor:
    """What is scattered, in the index's shape."""
    if not isinstance(src, Tensor):
        return broadcast_to(cast(as_tensor(src, input), input.dtype), index.shape)
    if src.dtype != input.dtype:
        raise RuntimeError(
            f"scatter: src is {src.dtype} and input {input.dtype}; cast one with .to()"
        )
    if src.shape == index.shape:
        return src
    return getitem(src, tuple([slice(n) for n in index.shape]))


def wrapped(index: Tensor, size: int) -> Tensor:
    """Indices from the end, which are negative, counted from the front."""
    index = cast(index, np.int64)
    return where(index < 0, index + size, index)


def check_integers(index: Tensor, name: str) -> None:
    if index.dtype.kind not in "iu":
        raise RuntimeError(f"{name} needs indices of int64, got {index.dtype}")


def check_index(input: Tensor, dim: int, index: Tensor, name: str, other) -> int:
    """The dim, counted from the front, once index fits input and the other Tensor."""
    check_integers(index, name)
    dim = normal_dim(dim, input.ndim)
    if not index.data.size:
        return dim
    for x in (input, other) if isinstance(other, Tensor) else (input,):
        if max(x.ndim, 1) != max(index.ndim, 1):
            raise RuntimeError(
                f"{name}: index has {index.ndim} dimensions and must have {x.ndim}"
            )
        sizes = zip(index.shape, x.shape, strict=False)
        free = dim if x is input else None
        if any(n > m and d != free for d, (n, m) in enumerate(sizes)):
            raise RuntimeError(
                f"{name}: an index of shape {index.shape} is larger than a tensor of "
                f"shape {x.shape}"
            )
    return dim
