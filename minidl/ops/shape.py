"""The same elements in another shape or order."""

from math import prod

from minidl.autograd.function import Op
from minidl.autograd.structure import BroadcastTo
from minidl.autograd.tensor import Tensor


class Reshape(Op):
    """The elements in the same order, in another shape."""

    def forward(self, x, shape):
        self.shape = x.shape
        return x.reshape(shape)

    def backward(self, g):
        return Reshape.apply(g, self.shape)


class Permute(Op):
    """The dimensions in another order."""

    def forward(self, x, dims):
        self.dims = dims
        return x.transpose(dims)

    def backward(self, g):
        inverse = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return Permute.apply(g, tuple(inverse))


def sizes(shape) -> tuple[int, ...]:
    """Sizes given as arguments of their own or as one tuple."""
    if len(shape) == 1 and not isinstance(shape[0], int):
        return tuple(shape[0])
    return tuple(shape)


def normal_dim(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    if not -max(ndim, 1) <= dim < max(ndim, 1):
        raise IndexError(
            f"dimension {dim} is out of range for a tensor of {ndim} dimensions: "
            f"expected {-max(ndim, 1)} to {max(ndim, 1) - 1}"
        )
    return dim % ndim if ndim else 0


def reshape(input: Tensor, *shape) -> Tensor:
    """The elements in the same order in another shape; one size may be -1."""
    return Reshape.apply(input, sizes(shape))


def permute(input: Tensor, *dims) -> Tensor:
    """The dimensions in the order given."""
    dims = tuple(normal_dim(d, input.ndim) for d in sizes(dims))
    if sorted(dims) != list(range(input.ndim)):
        raise RuntimeError(
            f"permute needs each of the {input.ndim} dimensions once, got {dims}"
        )
    return Permute.apply(input, dims)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions exchanged."""
    dims = list(range(input.ndim))
    a, b = normal_dim(dim0, input.ndim), normal_dim(dim1, input.ndim)
    if dims:
        dims[a], dims[b] = b, a
    return Permute.apply(input, tuple(dims))


def t(input: Tensor) -> Tensor:
    """The transpose of a matrix; vectors and numbers stay as they are."""
    if input.ndim > 2:
        raise RuntimeError(f"t() needs at most 2 dimensions, got {input.ndim}")
    return transpose(input, 0, 1) if input.ndim == 2 else input


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The dimensions from start_dim to end_dim, both included, made one."""
    start, end = normal_dim(start_dim, input.ndim), normal_dim(end_dim, input.ndim)
    if start > end:
        raise RuntimeError("flatten: start_dim must not come after end_dim")
    middle = prod(input.shape[start : end + 1])  # -1 cannot say it for empty tensors
    return Reshape.apply(input, (*input.shape[:start], middle, *input.shape[end + 1 :]))


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """A new dimension of size 1 at dim."""
    dim = normal_dim(dim, input.ndim + 1)
    return Reshape.apply(input, (*input.shape[:dim], 1, *input.shape[dim:]))


def squeeze(input: Tensor, dim=None) -> Tensor:
    """Without the dimensions of size 1, or without those of them in dim."""
    dims = range(input.ndim) if dim is None else dim
    dims = [dims] if isinstance(dims, int) else dims
    gone = [normal_dim(d, input.ndim) for d in dims]
    shape = [n for d, n in enumerate(input.shape) if not (n == 1 and d in gone)]
    return Reshape.apply(input, tuple(shape))


def broadcast_to(input: Tensor, *shape) -> Tensor:
    """A view of `shape` in which the input repeats."""
    return BroadcastTo.apply(input, sizes(shape))


def expand(input: Tensor, *shape) -> Tensor:
    """A view in which dimensions of size 1 repeat; -1 leaves a size as it is."""
    shape = sizes(shape)
    old = (1,) * (len(shape) - input.ndim) + input.shape
    shape = tuple(o if n == -1 else n for o, n in zip(old, shape, strict=True))
    return BroadcastTo.apply(input, shape)
