"""Many elements become one: sums, means, extremes."""

from math import prod

from minidl.array.device import array_module
from minidl.array.dtypes import is_floating_point
from minidl.autograd.function import Op
from minidl.autograd.structure import BroadcastTo
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import cast, floating
from minidl.ops.shape import Reshape, normal_dim


class Sum(Op):
    """The sum over `dims`, which stay as dimensions of size 1 with keepdim."""

    def forward(self, x, dims, keepdim):
        self.shape = x.shape
        self.kept = tuple(1 if d in dims else n for d, n in enumerate(x.shape))
        return x.sum(axis=dims, keepdims=keepdim)

    def backward(self, g):
        return BroadcastTo.apply(Reshape.apply(g, self.kept), self.shape)


def normal_dims(dim, ndim: int) -> tuple[int, ...]:
    """Dimensions counted from the front; None or () means all."""
    if dim is None or dim == ():
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    dims = tuple(normal_dim(d, ndim) for d in dims)
    if len(dict.fromkeys(dims)) < len(dims):
        raise RuntimeError(f"a dimension appears more than once in dim={dim}")
    return dims if ndim else ()


def sum(input: Tensor, dim=None, keepdim: bool = False, *, dtype=None) -> Tensor:
    """The sum over dim (an int, a tuple or all); integers and bools sum to int64."""
    if dtype is None and not is_floating_point(input.dtype):
        dtype = "int64"
    if dtype is not None:
        input = cast(input, dtype)
    return Sum.apply(input, normal_dims(dim, input.ndim), keepdim)


def mean(input: Tensor, dim=None, keepdim: bool = False, *, dtype=None) -> Tensor:
    """The mean over dim (an int, a tuple or all)."""
    input = input if dtype is None else cast(input, dtype)
    if not is_floating_point(input.dtype):
        raise RuntimeError(
            f"mean() needs floating point, got {input.dtype}: pass dtype=md.float32"
        )
    count = prod(input.shape[d] for d in normal_dims(dim, input.ndim))
    return mean_of(sum(input, dim, keepdim), count)


def mean_of(total: Tensor, count: float) -> Tensor:
    """total / count (NaN for none); a number remembers both, as a loss needs to."""
    result = total / count if count else total * float("nan")
    if result.ndim == 0:
        result.total, result.count = total, count
    return result


class Extreme(Op):
    """The largest (or smallest) along `dim`, and where it first is."""

    def forward(self, x, dim, name):
        xp = array_module(x)
        self.dim, self.shape = dim, x.shape
        index = xp.expand_dims(getattr(xp, "arg" + name)(x, axis=dim), dim)
        self.save_for_backward(index)
        return xp.take_along_axis(x, index, dim), index

    def backward(self, g, _):
        from minidl.ops.index import PutAlong

        (index,) = self.saved_tensors
        return PutAlong.apply(g, index.data, self.dim, self.shape)


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the largest element is: the first of equals, as an index along dim, or
    into the flattened input."""
    return Tensor(array_module(input.data).argmax(input.data, dim, keepdims=keepdim))


def logsumexp(input: Tensor, dim, keepdim: bool = False) -> Tensor:
    """log(sum(exp(input))), computed without overflow."""
    from minidl.ops.elementwise import exp, log

    input = floating(input)
    dims = normal_dims(dim, input.ndim)
    xp = array_module(input.data)
    top = input.data.max(axis=dims, keepdims=True)
    top = Tensor(xp.where(xp.isfinite(top), top, 0).astype(input.dtype))
    result = log(sum(exp(input - top), dims, True)) + top
    return (
        result
        if keepdim
        else Reshape.apply(
            result, tuple(n for d, n in enumerate(input.shape) if d not in dims)
        )
    )
