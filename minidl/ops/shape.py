"""The same elements in another shape or order: views, wherever an array allows it."""

from math import prod

from minidl.array.layout import reshaped
from minidl.autograd.function import Op
from minidl.autograd.structure import BroadcastTo
from minidl.autograd.tensor import Tensor


class Reshape(Op):
    """The elements in the same order, in another shape."""

    def forward(self, x, shape):
        self.shape = x.shape
        try:
            return reshaped(x, shape)
        except ValueError:
            raise RuntimeError(
                f"a tensor of shape {x.shape} has {x.size} elements and cannot take "
                f"the shape {tuple(shape)}"
            ) from None

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


class Clone(Op):
    """A copy, its elements one after another in memory."""

    def forward(self, x):
        return x.copy()

    def backward(self, g):
        return g


def sizes(shape, keyword=None) -> tuple[int, ...]:
    """Sizes given as arguments of their own, as one tuple, or by keyword."""
    if keyword is not None:
        shape = (*shape, keyword)
    if len(shape) == 1 and type(shape[0]) is not int and hasattr(shape[0], "__iter__"):
        shape = shape[0]
    return tuple([n if type(n) is int else int(n) for n in shape])


def normal_dim(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    if not -max(ndim, 1) <= dim < max(ndim, 1):
        raise IndexError(
            f"dimension {dim} is out of range for a tensor of {ndim} dimensions: "
            f"expected {-max(ndim, 1)} to {max(ndim, 1) - 1}"
        )
    return dim % ndim if ndim else 0


def distinct_dims(dim, ndim: int, name: str) -> tuple[int, ...]:
    """An int or several, counted from the front, each at most once."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    dims = tuple([normal_dim(d, ndim) for d in dims])
    if len(dict.fromkeys(dims)) < len(dims):
        raise RuntimeError(f"{name}: a dimension appears more than once in {dim}")
    return dims


def reshape(input: Tensor, *size, shape=None) -> Tensor:
    """The elements in the same order in another shape; one size may be -1."""
    return Reshape.apply(input, sizes(size, shape))


def view(input: Tensor, *shape) -> Tensor:
    """As reshape: an input that lies scattered in memory, which PyTorch's view
    refuses, is copied."""
    return Reshape.apply(input, sizes(shape))


def permute(input: Tensor, *order, dims=None) -> Tensor:
    """The dimensions in the order given."""
    dims = distinct_dims(sizes(order, dims), input.ndim, "permute")
    if len(dims) != input.ndim:
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


def matrix_transpose(input: Tensor) -> Tensor:
    """The last two dimensions exchanged."""
    n = input.data.ndim
    if n == 2:
        return Permute.apply(input, (1, 0))
    if n < 2:
        raise RuntimeError(f".mT needs at least 2 dimensions, got {n}")
    return Permute.apply(input, (*range(n - 2), n - 1, n - 2))


def movedim(input: Tensor, source, destination) -> Tensor:
    """The dimensions `source` moved to `destination`, the others kept in order."""
    source = distinct_dims(source, input.ndim, "movedim")
    destination = distinct_dims(destination, input.ndim, "movedim")
    if len(source) != len(destination):
        raise RuntimeError(
            f"movedim needs as many destinations as sources, got {source} and "
            f"{destination}"
        )
    if not input.ndim:
        return input
    others = iter([d for d in range(input.ndim) if d not in source])
    goes = dict(zip(destination, source, strict=True))
    dims = [goes[d] if d in goes else next(others) for d in range(input.ndim)]
    return Permute.apply(input, tuple(dims))


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
    gone = distinct_dims(dims, input.ndim, "squeeze")
    shape = [n for d, n in enumerate(input.shape) if not (n == 1 and d in gone)]
    return Reshape.apply(input, tuple(shape))


def expand(input: Tensor, *shape, size=None) -> Tensor:
    """A view in which dimensions of size 1 repeat; -1 leaves a size as it is."""
    wanted = sizes(shape, size)
    extra = len(wanted) - input.ndim
    shape = (1,) * extra + input.shape
    result = tuple([o if n == -1 else n for o, n in zip(shape, wanted, strict=False)])
    fits = all([o in (1, n) for o, n in zip(shape, result, strict=False)])
    if extra < 0 or not fits or any(n == -1 for n in wanted[:extra]):
        raise RuntimeError(
            f"a tensor of shape {input.shape} cannot be expanded to {wanted}: sizes "
            "other than 1 must stay, and new dimensions come first"
        )
    return BroadcastTo.apply(input, result)


def broadcast_to(input: Tensor, *shape, size=None) -> Tensor:
    """As expand: a view of this shape in which the input repeats."""
    return expand(input, *shape, size=size)


def clone(input: Tensor) -> Tensor:
    """A copy that gradients flow through."""
    return Clone.apply(input)


def contiguous(input: Tensor) -> Tensor:
    """The input if its elements lie one after another in memory, else a copy."""
    return input if input.data.flags.c_contiguous else Clone.apply(input)
