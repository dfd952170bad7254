"""Sums, products, quotients and powers, element by element, with broadcasting."""

import numpy as np

from minidl.array.device import array_module, on_gpu
from minidl.array.dtypes import is_floating_point
from minidl.autograd.function import Arithmetic, Op
from minidl.autograd.structure import Add
from minidl.autograd.tensor import Tensor
from minidl.ops.elementwise import floor, log, neg, tabled, trunc, where, zero
from minidl.ops.operands import matched
from minidl.ops.pointwise import Pointwise


class Sub(Arithmetic):
    """y = a - b"""

    def forward(self, a, b):
        return a - b

    def backward(self, g):
        return g, None if self.edges[1] is None else -g


class Mul(Arithmetic):
    """y = a b"""

    def forward(self, a, b):
        for_a, for_b = self.edges
        self.saved = None if for_b is None else a, None if for_a is None else b
        return a * b

    def backward(self, g):
        a, b = self.saved_like(g)
        return None if b is None else g * b, None if a is None else g * a


class Div(Arithmetic):
    """y = a / b"""

    def forward(self, a, b):
        self.saved = None if self.edges[1] is None else a, b
        return a / b

    def backward(self, g):
        a, b = self.saved_like(g)
        ga = g / b
        return ga, None if a is None else -(ga * (a / b))


class Pow(Op):
    """y = a^b; at 0^0 both gradients are 0."""

    def forward(self, a, b):
        # NumPy knows a shorter way for squares alone
        y = a * a * a if isinstance(b, (int, float)) and b == 3 else a**b
        self.save_for_backward(a, b, None if self.edges[1] is None else y)
        return y

    def backward(self, g):
        a, b, y = self.saved_tensors
        return (
            None if self.edges[0] is None else self.of_base(g, a, b),
            None if self.edges[1] is None else self.of_exponent(g, a, b, y),
        )

    def of_base(self, g, a, b):
        """g b a^(b - 1)"""
        if isinstance(b, Tensor):
            return g * (b * pow(where((a == 0) & (b == 0), 1.0, a), b - 1))
        if b == 0:
            return zero(g)
        return g * ((a if b == 2 else pow(a, b - 1)) * b)

    def of_exponent(self, g, a, b, y):
        """g a^b log(a), and 0 where a is 0, as a^b log(a) tends to."""
        if not isinstance(a, Tensor):
            a = Tensor(array_module(g.data).asarray(a, g.dtype))
        constant = (a == 0) & (b >= 0)
        return g * where(constant, 0.0, y * log(where(constant, 1.0, a)))


floor_divide = tabled(
    "floor_divide", "floor(input / other)", zero, zero, integers="keep"
)
modulo = tabled(
    "remainder",
    "input - other floor(input / other)",
    lambda g: g,
    lambda g, a, b: neg(g * floor(a / b)),
    integers="keep",
)
c_modulo = tabled(
    "fmod",
    "input - other trunc(input / other)",
    lambda g: g,
    lambda g, a, b: neg(g * trunc(a / b)),
    integers="keep",
)
# The two forms are one on paper; rounded, each is exact at its own end
BETWEEN = "where(w < 0.5, a + w * (b - a), b - (1 - w) * (b - a))"
between = Pointwise("lerp", "a b w", BETWEEN)
between_by_number = Pointwise("lerp_by_number", "a b", BETWEEN, scalars="w")


def scaled(other, alpha, operands):
    """alpha other, where alpha may be what an operation on these allows."""
    whole = not any(
        isinstance(x, float) or isinstance(x, Tensor) and x.is_floating_point()
        for x in operands
    )
    if whole and isinstance(alpha, float):
        raise RuntimeError("alpha must be an integer where the operands are integers")
    return other * alpha


def add(input, other, *, alpha=1) -> Tensor:
    """input + alpha other"""
    if alpha != 1:
        other = scaled(other, alpha, (input, other))
    return Add.apply(*matched(input, other))


def sub(input, other, *, alpha=1) -> Tensor:
    """input - alpha other"""
    if alpha != 1:
        other = scaled(other, alpha, (input, other))
    for x in (input, other):
        if isinstance(x, Tensor) and x.data.dtype.kind == "b":
            raise RuntimeError("sub: bools have no difference; use ^ or logical_xor")
    return Sub.apply(*matched(input, other))


def mul(input, other) -> Tensor:
    """input times other"""
    return Mul.apply(*matched(input, other))


def div(input, other, *, rounding_mode: str | None = None) -> Tensor:
    """input / other, which turns integers into floating point; or the quotient
    rounded: by "trunc" towards zero, by "floor" downwards; integers then stay."""
    if rounding_mode is None:
        return Div.apply(*matched(input, other, floating=True))
    a, b = divisible(input, other)
    if rounding_mode == "floor":
        return floor_divide(a, b)
    if rounding_mode != "trunc":
        raise RuntimeError(
            f"rounding_mode must be None, 'trunc' or 'floor', got {rounding_mode!r}"
        )
    if is_floating_point(a.dtype if isinstance(a, Tensor) else b.dtype):
        return trunc(Div.apply(a, b))
    return floor_divide(sub(a, c_modulo(a, b)), b)


def rdiv(input, other) -> Tensor:
    """other / input, for a number by a Tensor"""
    return div(other, input)


def remainder(input, other) -> Tensor:
    """input - other floor(input / other): the rest, with the sign of other."""
    return modulo(*divisible(input, other))


def fmod(input, other) -> Tensor:
    """input - other trunc(input / other): the rest, with the sign of input."""
    return c_modulo(*divisible(input, other))


def divisible(input, other) -> tuple:
    """The operands in their common type, unless an integer is divided by zero.

    A GPU would have to be waited for: there, as in PyTorch, the result is undefined.
    """
    a, b = matched(input, other)
    dtype = (a if isinstance(a, Tensor) else b).dtype
    divisor = b.data if isinstance(b, Tensor) else b
    if not is_floating_point(dtype) and not on_gpu(divisor) and not np.all(divisor):
        raise RuntimeError("an integer is divided by zero")
    return a, b


def pow(input, exponent) -> Tensor:
    """input to the power of exponent

    Integers have no negative powers: RuntimeError, but on a GPU for a Tensor of them,
    whose results then are undefined.
    """
    a, b = matched(input, exponent)
    if not isinstance(a, Tensor) or not is_floating_point(a.dtype):
        check_powers(b)
    return Pow.apply(a, b)


def check_powers(exponent) -> None:
    if isinstance(exponent, Tensor):
        x = exponent.data
        negative = x.dtype.kind == "i" and not on_gpu(x) and (x < 0).any()
    else:
        negative = exponent < 0
    if negative:
        raise RuntimeError(
            "pow: integers cannot be raised to negative powers; make them float"
        )


def lerp(input: Tensor, end: Tensor, weight) -> Tensor:
    """input + weight (end - input)"""
    if isinstance(weight, Tensor):
        return between(input, end, weight)
    return between_by_number(input, end, w=weight)


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value=1) -> Tensor:
    """input + value tensor1 tensor2"""
    return add(input, mul(tensor1, tensor2), alpha=value)


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value=1) -> Tensor:
    """input + value tensor1 / tensor2, for floating point"""
    if not (tensor1.is_floating_point() or tensor2.is_floating_point()):
        raise RuntimeError(
            "addcdiv divides floating point; use add and div on integers"
        )
    return add(input, div(tensor1, tensor2), alpha=value)
