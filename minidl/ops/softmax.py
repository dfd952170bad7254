"""The softmax family: exponentials over their sum, along one dimension.

Half precision is computed in float32 and rounded once, at the end.
"""

import numpy

from minidl.array.device import array_module
from minidl.array.kernel import Kernel
from minidl.array.standardize import summed
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import cast
from minidl.ops.pointwise import Pointwise
from minidl.ops.shape import normal_dim


def widened(x):
    """x, or a copy in float32 where it is of half precision."""
    return x.astype(numpy.float32) if x.dtype.itemsize < 4 else x


exponential = Kernel("exponential", "x top", "y", body="y = exp(x - top);")
quotient = Kernel("quotient", "x total", "y", body="y = x / total;")
log_quotient = Kernel("log_quotient", "x top bottom", "y", body="y = x - top - bottom;")
softmax_gradient = Pointwise("softmax_gradient", "g s y", "(g - s) * y")
log_softmax_gradient = Pointwise("log_softmax_gradient", "g s y", "g - s * exp(y)")


class Inner(Op):
    """y = sum(a b) along dim, which stays with size 1"""

    def forward(self, a, b, dim):
        self.save_for_backward(a, b)
        return summed(a, b, (dim,))

    def backward(self, g):
        a, b = self.saved_tensors
        return g * b, g * a


class Softmax(Op):
    """y = exp(x) / sum(exp(x)) along dim; -inf everywhere gives NaN, or 0 if `safe`"""

    def forward(self, x, dim, safe=False):
        self.dim = dim
        wide = widened(x)
        xp = array_module(wide)
        top = wide.max(axis=dim, keepdims=True)
        if safe:
            top = xp.where(top == -xp.inf, 0, top)
        y = exponential(wide, top)
        total = summed(y, None, (dim,))
        if safe:
            total = xp.where(total == 0, 1, total)
        y = quotient(y, total, out=y).astype(x.dtype, copy=False)
        self.save_for_backward(y)
        return y

    def backward(self, g):
        (y,) = self.saved_tensors
        return softmax_gradient(g, Inner.apply(g, y, self.dim), y)


class LogSoftmax(Op):
    """y = x - log(sum(exp(x))) along dim"""

    def forward(self, x, dim):
        self.dim = dim
        wide = widened(x)
        xp = array_module(wide)
        top = wide.max(axis=dim, keepdims=True)
        total = summed(exponential(wide, top), None, (dim,))
        y = log_quotient(wide, top, xp.log(total))
        y = y.astype(x.dtype, copy=False)
        self.save_for_backward(y)
        return y

    def backward(self, g):
        (y,) = self.saved_tensors
        return log_softmax_gradient(g, g.sum(self.dim, True), y)


def softmax(input: Tensor, dim: int | None = None, dtype=None) -> Tensor:
    """exp(x) / sum(exp(x)) along dim, in `dtype` if that is given."""
    return along(Softmax, input, dim, dtype)


def log_softmax(input: Tensor, dim: int | None = None, dtype=None) -> Tensor:
    """log(softmax(x)) along dim, computed without overflow."""
    return along(LogSoftmax, input, dim, dtype)


def along(op, input, dim, dtype):
    if dim is None:  # PyTorch's old rule
        dim = 0 if input.ndim in (0, 1, 3) else 1
    if dtype is not None:
        input = cast(input, dtype)
    if input.dtype.kind in "iub":
        raise RuntimeError(
            f"softmax needs floating point, got {input.dtype}: pass dtype=md.float32"
        )
    dim = normal_dim(dim, input.ndim)
    if not input.ndim:
        return op.apply(input.reshape(1), 0).reshape(())
    return op.apply(input, dim) if input.numel() else input * 1
