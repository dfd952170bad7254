"""Diagonals and triangles of matrices, or of stacks of them."""

from minidl.array.device import array_module
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.shape import normal_dim


class Diagonal(Op):
    """The elements (i, i + offset) of dims, as the last dimension."""

    def forward(self, x, offset, dims):
        self.settings = x.shape, offset, dims
        return array_module(x).diagonal(x, offset, *dims)

    def backward(self, g):
        return PutDiagonal.apply(g, *self.settings)


class PutDiagonal(Op):
    """Zeros of `shape`, with g on a diagonal."""

    def forward(self, g, shape, offset, dims):
        self.settings = offset, dims
        xp = array_module(g)
        x = xp.zeros(shape, g.dtype)
        i = xp.arange(g.shape[-1])
        matrices = xp.moveaxis(x, dims, (-2, -1))  # a view
        matrices[..., i - min(offset, 0), i + max(offset, 0)] = g
        return x

    def backward(self, g):
        return Diagonal.apply(g, *self.settings)


class Triangle(Op):
    """One side of the diagonal kept, zeros on the other; `name` is tril or triu."""

    def forward(self, x, name, diagonal):
        self.settings = name, diagonal
        y = getattr(array_module(x), name)(x, diagonal)
        return y.astype(x.dtype, copy=False)  # CuPy's makes bfloat16 float32

    def backward(self, g):
        return Triangle.apply(g, *self.settings)


def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The diagonal of dim1 and dim2, as the last dimension; a view."""
    dims = normal_dim(dim1, input.ndim), normal_dim(dim2, input.ndim)
    if input.ndim < 2 or dims[0] == dims[1]:
        raise RuntimeError(
            f"a diagonal needs two different dimensions, got {dim1} and {dim2} of a "
            f"tensor of shape {input.shape}"
        )
    return Diagonal.apply(input, offset, dims)


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """input[..., i, j] where j <= i + diagonal, zero elsewhere"""
    return triangle(input, "tril", diagonal)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """input[..., i, j] where j >= i + diagonal, zero elsewhere"""
    return triangle(input, "triu", diagonal)


def triangle(input: Tensor, name: str, diagonal: int) -> Tensor:
    if input.ndim < 2:
        raise RuntimeError(f"{name} needs at least 2 dimensions, got {input.ndim}")
    return Triangle.apply(input, name, diagonal)
