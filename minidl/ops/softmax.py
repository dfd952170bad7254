"""The softmax family: exponentials over their sum, along one dimension."""

from minidl.array import softmax as raw
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import cast
from minidl.ops.shape import normal_dim


class Softmax(Op):
    """y = exp(x) / sum(exp(x)) along dim; -inf everywhere gives NaN, or 0 if `safe`"""

    def forward(self, x, dim, safe=False):
        self.dim = dim
        y = raw.softmax(x, dim, safe)
        self.save_for_backward(y)
        return y

    def backward(self, g):
        (y,) = self.saved_tensors
        return SoftmaxGradient.apply(g, y, self.dim)


class SoftmaxGradient(Op):
    """gx = (g - sum(g y)) y"""

    def forward(self, g, y, dim):
        self.dim = dim
        self.save_for_backward(g, y)
        return raw.softmax_gradient(g, y, dim)

    def backward(self, h):
        g, y = self.saved_tensors
        along = (h * y).sum(self.dim, True)
        gg = (h - along) * y
        return gg, h * (g - (g * y).sum(self.dim, True)) - g * along


class LogSoftmax(Op):
    """y = x - log(sum(exp(x))) along dim"""

    def forward(self, x, dim):
        self.dim = dim
        y = raw.log_softmax(x, dim)
        self.save_for_backward(y)
        return y

    def backward(self, g):
        (y,) = self.saved_tensors
        return LogSoftmaxGradient.apply(g, y, self.dim)


class LogSoftmaxGradient(Op):
    """gx = g - sum(g) exp(y)"""

    def forward(self, g, y, dim):
        self.dim = dim
        self.save_for_backward(g, y)
        return raw.log_softmax_gradient(g, y, dim)

    def backward(self, h):
        g, y = self.saved_tensors
        p = y.exp()
        along = (h * p).sum(self.dim, True)
        return h - along, -g.sum(self.dim, True) * p * h


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
