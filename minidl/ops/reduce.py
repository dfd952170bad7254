"""Many elements become one: sums, means, variances, products."""

from math import prod as number_of

from minidl.array.device import array_module
from minidl.array.dtypes import DEFAULT_FLOAT, is_floating_point
from minidl.autograd.function import Arithmetic, Op
from minidl.autograd.structure import stretched
from minidl.autograd.tensor import Tensor
from minidl.ops.elementwise import exp, where
from minidl.ops.operands import as_tensor, cast, floating
from minidl.ops.shape import Reshape, normal_dim


def normal_dims(dim, ndim: int) -> tuple[int, ...]:
    """Dimensions counted from the front; None or () means all."""
    if dim is None or dim == ():
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    dims = tuple([normal_dim(d, ndim) for d in dims])
    if len(dict.fromkeys(dims)) < len(dims):
        raise RuntimeError(f"a dimension appears more than once in dim={dim}")
    return dims if ndim else ()


def is_narrow(dtype) -> bool:
    """Whether a sum in this type would soon overflow or stand still."""
    return dtype.itemsize == 2 and is_floating_point(dtype)


class Reduction(Op):
    """y = reduce(x) over `dims`, which stay as dimensions of size 1 with keepdim.

    Floats of two bytes are computed with as float32.
    """

    keeps = True  # x and y, for backward

    def forward(self, x, dims, keepdim, *options):
        self.shape = x.shape
        self.kept = tuple([1 if d in dims else n for d, n in enumerate(x.shape)])
        narrow = is_narrow(x.dtype)
        y = self.reduce(x.astype(DEFAULT_FLOAT) if narrow else x, dims, *options)
        if narrow:
            y = y.astype(x.dtype)
        if not keepdim:
            y = y.reshape([n for d, n in enumerate(x.shape) if d not in dims])
        if self.keeps:
            self.save_for_backward(x, y)
        return y

    def spread(self, y):
        """What has the shape of the result, so that it broadcasts to the input's."""
        return y if y.shape == self.kept else y.reshape(self.kept)


class Sum(Reduction, Arithmetic):
    """y = sum(x)"""

    keeps = False

    def reduce(self, x, dims):
        return x.sum(axis=dims, keepdims=True, dtype=x.dtype)

    def backward(self, g):
        return stretched(self.spread(g), self.shape)


class Variance(Reduction):
    """y = sum((x - mean)^2) / count, or its square root."""

    def reduce(self, x, dims, count, root):
        self.dims, self.count, self.root = dims, max(count, 0), root
        difference = x - x.mean(axis=dims, keepdims=True)
        difference *= difference
        y = difference.sum(axis=dims, keepdims=True)
        y = array_module(x).divide(y, self.count)
        return y**0.5 if root else y

    def backward(self, g):
        x, y = self.saved_tensors
        slope = 2 / self.count if self.count else float("inf")
        if self.root:  # 0 where there is no variance, as in PyTorch
            flat = y == 0
            g = where(flat, 0.0, g / where(flat, 1.0, y))
            slope /= 2
        return self.spread(g) * slope * (x - mean(x, self.dims, True))


class LogSumExp(Reduction):
    """y = log(sum(exp(x))), shifted by the largest x so that nothing overflows."""

    def reduce(self, x, dims):
        xp = array_module(x)
        if not x.size:
            return xp.log(x.sum(axis=dims, keepdims=True))
        top = x.max(axis=dims, keepdims=True)
        top = xp.where(xp.isfinite(top), top, 0)
        return xp.log(xp.exp(x - top).sum(axis=dims, keepdims=True)) + top

    def backward(self, g):
        x, y = self.saved_tensors
        return self.spread(g) * exp(x - self.spread(y))


class CumulativeSum(Op):
    """y_i = x_0 + ... + x_i along dim; from the other end with `backwards`."""

    def forward(self, x, dim, backwards):
        self.dim, self.backwards = dim, backwards
        if not backwards:
            return x.cumsum(dim, dtype=x.dtype)
        xp = array_module(x)
        return xp.flip(xp.flip(x, dim).cumsum(dim, dtype=x.dtype), dim)

    def backward(self, g):
        return CumulativeSum.apply(g, self.dim, not self.backwards)


def accumulated(input: Tensor, dtype) -> Tensor:
    """The input in dtype; by default integers and bools in int64, where sums fit."""
    input = as_tensor(input)
    if dtype is None and not is_floating_point(input.dtype):
        dtype = "int64"
    return input if dtype is None else cast(input, dtype)


def sum(input: Tensor, dim=None, keepdim: bool = False, *, dtype=None) -> Tensor:
    """The sum over dim (an int, a tuple or all); integers and bools sum to int64."""
    input = accumulated(input, dtype)
    return Sum.apply(input, normal_dims(dim, input.ndim), keepdim)


def mean(input: Tensor, dim=None, keepdim: bool = False, *, dtype=None) -> Tensor:
    """The mean over dim (an int, a tuple or all)."""
    input = input if dtype is None else cast(input, dtype)
    if not is_floating_point(input.dtype):
        raise RuntimeError(
            f"mean() needs floating point, got {input.dtype}: pass dtype=md.float32"
        )
    count = number_of([input.shape[d] for d in normal_dims(dim, input.ndim)])
    if not is_narrow(input.dtype):
        return mean_of(sum(input, dim, keepdim), count)
    wide = mean_of(sum(cast(input, DEFAULT_FLOAT), dim, keepdim), count)
    result = cast(wide, input.dtype)
    result.total, result.count = wide.total, wide.count
    return result


def mean_of(total: Tensor, count: float) -> Tensor:
    """total / count (NaN for none); a number remembers both, as a loss needs to."""
    result = total / count if count else total * float("nan")
    if result.ndim == 0:
        result.total, result.count = total, count
    return result


def var(
    input: Tensor,
    dim=None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The variance over dim: sum((x - mean)^2) / (n - correction).

    The correction is 1 where none is given, 0 with unbiased=False. var(x, False) is
    the biased variance of all elements.
    """
    return variance(input, dim, unbiased, keepdim, correction, False)


def std(
    input: Tensor,
    dim=None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The standard deviation, the square root of `var`."""
    return variance(input, dim, unbiased, keepdim, correction, True)


def variance(input, dim, unbiased, keepdim, correction, root) -> Tensor:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if not is_floating_point(input.dtype):
        raise RuntimeError(f"var and std need floating point, got {input.dtype}")
    dims = normal_dims(dim, input.ndim)
    count = number_of([input.shape[d] for d in dims])
    count -= int(unbiased) if correction is None else correction
    return Variance.apply(input, dims, keepdim, count, root)


def logsumexp(input: Tensor, dim, keepdim: bool = False) -> Tensor:
    """log(sum(exp(input))) over dim, computed without overflow."""
    input = floating(input)
    return LogSumExp.apply(input, normal_dims(dim, input.ndim), keepdim)


def cumsum(input: Tensor, dim: int, *, dtype=None) -> Tensor:
    """The sums of the first 1, 2, ... elements along dim."""
    input = accumulated(input, dtype)
    dim = normal_dim(dim, input.ndim)
    return CumulativeSum.apply(input, dim, False) if input.ndim else input.reshape(())


def prod(
    input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype=None
) -> Tensor:
    """The product over dim or of all elements; of integers and bools in int64."""
    input = accumulated(input, dtype)
    dims = normal_dims(dim, input.ndim)
    shape = [1 if d in dims else n for d, n in enumerate(input.shape)]
    if not keepdim:
        shape = [n for d, n in enumerate(input.shape) if d not in dims]
    if not input.requires_grad:
        y = input.data.prod(axis=dims, keepdims=True, dtype=input.dtype)
        return Tensor(y.reshape(shape))
    if dim is None or not input.ndim:
        return product(Reshape.apply(input, (-1,)), 0).reshape(shape)
    return product(input, dims[0]).reshape(shape)


def product(x: Tensor, dim: int) -> Tensor:
    """A tree of products of pairs: a zero then has a gradient like any number."""
    before = (slice(None),) * dim
    count, odd = x.shape[dim], None
    while count > 1:
        half = count // 2
        if count % 2:
            last = x[(*before, slice(count - 1, None))]
            odd = last if odd is None else odd * last
        x = x[(*before, slice(half))] * x[(*before, slice(half, 2 * half))]
        count = half
    if not count:
        return x.sum(dim, True) + 1
    return x if odd is None else x * odd
