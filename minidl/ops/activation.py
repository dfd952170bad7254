"""Nonlinearities, element by element.

Most are a row of a table: an expression that is compiled for CPU and GPU and
differentiated symbolically (`Pointwise`). PyTorch's argument `inplace` is accepted
and changes nothing: the result is a new Tensor, its values are the same.
"""

from minidl.array.kernel import Kernel
from minidl.autograd.function import Arithmetic
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import cast, floating
from minidl.ops.pointwise import Pointwise
from minidl.ops.shape import normal_dim

# name, expression in x, scalars; comparisons are placed so that NaN stays NaN
EXPRESSIONS = {
    name: Pointwise(name, "x", expression, scalars)
    for name, expression, scalars in [
        ("leaky_relu", "where(x > 0, x, slope * x)", "slope"),
        ("elu", "where(x > 0, x, alpha * expm1(x))", "alpha"),
        (
            "selu",
            "1.0507009873554805 * where(x > 0, x, 1.6732632423543772 * expm1(x))",
            "",
        ),
        ("celu", "where(x > 0, x, alpha * expm1(x / alpha))", "alpha"),
        ("gelu", "0.5 * x * (1 + erf(x * 0.7071067811865476))", ""),
        (
            "gelu_tanh",
            "0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))",
            "",
        ),
        ("silu", "x * sigmoid(x)", ""),
        ("mish", "x * tanh(softplus(x))", ""),
        (
            "softplus",
            "where(x * beta > threshold, x, softplus(x * beta) / beta)",
            "beta threshold",
        ),
        ("softsign", "x / (1 + abs(x))", ""),
        ("hardtanh", "where(x <= low, low, where(x >= high, high, x))", "low high"),
        ("hardswish", "where(x <= -3, 0, where(x >= 3, x, x * (x + 3) / 6))", ""),
        ("hardsigmoid", "where(x <= -3, 0, where(x >= 3, 1, x / 6 + 0.5))", ""),
        ("logsigmoid", "-softplus(-x)", ""),
        ("threshold", "where(x <= limit, value, x)", "limit value"),
        ("tanhshrink", "x - tanh(x)", ""),
    ]
}
gate = Pointwise("glu", "a b", "a * sigmoid(b)")
parametric = Pointwise("prelu", "x slope", "where(x > 0, x, slope * x)")


relu_gradient = Pointwise("relu_gradient", "g y", "where(y <= 0, 0, g)")


class FromResult(Arithmetic):
    """y = f(x) where f'(x) is a function of y, which the next op keeps anyway: the
    argument need not be kept."""

    kernel: Kernel
    gradient: Pointwise  # of g and y

    def forward(self, x):
        y = self.kernel(x)
        self.saved = (y,)
        return y

    def backward(self, g):
        (y,) = self.saved_like(g)
        return self.gradient.like(g)(g, y)


class Relu(FromResult):
    kernel = Kernel("relu", "x", "y", body="y = where(x <= 0, 0, x);")
    gradient = relu_gradient


class Sigmoid(FromResult):
    kernel = Pointwise("sigmoid", "x", "sigmoid(x)").kernel
    gradient = Pointwise("sigmoid_gradient", "g y", "g * y * (1 - y)")


class Tanh(FromResult):
    kernel = Pointwise("tanh", "x", "tanh(x)").kernel
    gradient = Pointwise("tanh_gradient", "g y", "g * (1 - y * y)")


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(0, input); NaN stays NaN."""
    return Relu.apply(input)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-input))"""
    return Sigmoid.apply(floating(input))


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return Tanh.apply(floating(input))


def leaky_relu(
    input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    """x where x > 0, negative_slope x elsewhere"""
    return EXPRESSIONS["leaky_relu"](input, slope=negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, alpha (exp(x) - 1) elsewhere. Clevert et al., 2015."""
    return EXPRESSIONS["elu"](input, alpha=alpha)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """1.0507 x where x > 0, 1.0507 1.6733 (exp(x) - 1) elsewhere.

    Klambauer et al., "Self-Normalizing Neural Networks", 2017.
    """
    return EXPRESSIONS["selu"](input)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, alpha (exp(x / alpha) - 1) elsewhere. Barron, 2017."""
    if alpha == 0:
        raise RuntimeError("celu: alpha must not be 0")
    return EXPRESSIONS["celu"](input, alpha=alpha)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x), Phi the normal distribution's; or its approximation by "tanh".

    Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return EXPRESSIONS["gelu" if approximate == "none" else "gelu_tanh"](input)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x)"""
    return EXPRESSIONS["silu"](input)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x tanh(log(1 + exp(x))). Misra, 2019."""
    return EXPRESSIONS["mish"](input)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta; x itself where beta x > threshold"""
    return EXPRESSIONS["softplus"](input, beta=beta, threshold=threshold)


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|)"""
    return EXPRESSIONS["softsign"](input)


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """x, but at least min_val and at most max_val; integers stay integers."""
    if min_val > max_val:
        raise ValueError(f"hardtanh: min_val={min_val} is above max_val={max_val}")
    return cast(EXPRESSIONS["hardtanh"](input, low=min_val, high=max_val), input.dtype)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(0, x), 6)"""
    return hardtanh(input, 0.0, 6.0)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x min(max(0, x + 3), 6) / 6. Howard et al., "Searching for MobileNetV3", 2019."""
    return EXPRESSIONS["hardswish"](input)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(0, x + 3), 6) / 6"""
    return EXPRESSIONS["hardsigmoid"](input)


def logsigmoid(input: Tensor) -> Tensor:
    """log(1 / (1 + exp(-x)))"""
    return EXPRESSIONS["logsigmoid"](input)


def threshold(
    input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Tensor:
    """x where x > threshold, value elsewhere; integers stay integers."""
    result = EXPRESSIONS["threshold"](input, limit=threshold, value=value)
    return cast(result, input.dtype)


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh(x)"""
    return EXPRESSIONS["tanhshrink"](input)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, weight x elsewhere; weight is one number or one a channel (dim 1).

    He et al., "Delving Deep into Rectifiers", 2015.
    """
    channels = input.shape[1] if input.ndim > 1 else 1
    if weight.ndim > 1 or weight.numel() not in (1, channels):
        raise RuntimeError(
            f"prelu: weight of shape {tuple(weight.shape)} does not fit: expected 1 "
            f"element or {channels}, one for each channel"
        )
    if weight.numel() != 1:
        weight = weight.reshape(-1, *[1] * (input.ndim - 2))
    elif weight.ndim:
        weight = weight.reshape(())
    return parametric(input, weight)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a sigmoid(b), a and b the two halves along dim. Dauphin et al., 2016."""
    if not input.ndim:
        raise RuntimeError("glu does not split a tensor of 0 dimensions")
    dim = normal_dim(dim, input.ndim)
    half, odd = divmod(input.shape[dim], 2)
    if odd:
        raise RuntimeError(
            f"glu: dimension {dim} must be even to be halved, got {input.shape[dim]}"
        )
    before = (slice(None),) * dim
    return gate(input[(*before, slice(half))], input[(*before, slice(half, None))])
