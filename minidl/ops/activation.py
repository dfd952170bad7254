"""Nonlinearities, element by element, and the softmax family."""

from minidl.array.device import array_module
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import cast, floating
from minidl.ops.pointwise import Pointwise
from minidl.ops.shape import normal_dim

# Gradients in terms of the result: the argument need not be kept
relu_gradient = Pointwise("relu_gradient", "g y", "where(y > 0, g, 0)")
sigmoid_gradient = Pointwise("sigmoid_gradient", "g y", "g * y * (1 - y)")
tanh_gradient = Pointwise("tanh_gradient", "g y", "g * (1 - y * y)")
relu_kernel = Pointwise("relu", "x", "where(x > 0, x, where(x <= 0, 0, x))").kernel
sigmoid_kernel = Pointwise("sigmoid", "x", "sigmoid(x)").kernel
tanh_kernel = Pointwise("tanh", "x", "tanh(x)").kernel
gelu_exact = Pointwise("gelu", "x", "0.5 * x * (1 + erf(x * 0.7071067811865476))")
gelu_tanh = Pointwise(
    "gelu_tanh",
    "x",
    "0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))",
)


class FromResult(Op):
    """y = f(x) where f'(x) is a function of y, which the next operation keeps anyway."""

    def forward(self, x, kernel, gradient):
        y = kernel(x)
        self.gradient = gradient
        self.save_for_backward(y)
        return y

    def backward(self, g):
        return self.gradient(g, *self.saved_tensors)


def relu(input: Tensor) -> Tensor:
    """max(0, input); NaN stays NaN."""
    return FromResult.apply(input, relu_kernel, relu_gradient)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-input))"""
    return FromResult.apply(floating(input), sigmoid_kernel, sigmoid_gradient)


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return FromResult.apply(floating(input), tanh_kernel, tanh_gradient)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x), Phi the normal distribution's; or its approximation by "tanh".

    Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return gelu_exact(input) if approximate == "none" else gelu_tanh(input)


class Softmax(Op):
    """y = exp(x) / sum(exp(x)) along dim"""

    def forward(self, x, dim):
        self.dim = dim
        y = array_module(x).exp(x - x.max(axis=dim, keepdims=True))
        y /= y.sum(axis=dim, keepdims=True)
        self.save_for_backward(y)
        return y

    def backward(self, g):
        (y,) = self.saved_tensors
        gy = g * y
        return gy - y * gy.sum(self.dim, True)


class LogSoftmax(Op):
    """y = x - log(sum(exp(x))) along dim"""

    def forward(self, x, dim):
        self.dim = dim
        xp = array_module(x)
        y = x - x.max(axis=dim, keepdims=True)
        y -= xp.log(xp.exp(y).sum(axis=dim, keepdims=True))
        self.save_for_backward(y)
        return y

    def backward(self, g):
        (y,) = self.saved_tensors
        return g - y.exp() * g.sum(self.dim, True)


def softmax(input: Tensor, dim: int, dtype=None) -> Tensor:
    """exp(x) / sum(exp(x)) along dim"""
    return _along(Softmax, input, dim, dtype)


def log_softmax(input: Tensor, dim: int, dtype=None) -> Tensor:
    """log(softmax(x)) along dim, computed without overflow."""
    return _along(LogSoftmax, input, dim, dtype)


def _along(op, input, dim, dtype):
    if dtype is not None:
        input = cast(input, dtype)
    if not input.ndim:
        return op.apply(input.reshape(1), 0).reshape(())
    dim = normal_dim(dim, input.ndim)
    return op.apply(input, dim) if input.numel() else input * 1
