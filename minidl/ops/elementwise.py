"""Arithmetic, element by element, with broadcasting.

The engine sums a gradient over the dimensions that broadcasting added, so an
operation is its formula and the formulas of its gradients. Where the mathematics is
a table it stands as one: `GRADIENTS`, whose rules name by their parameters what is
kept for backward (a, b: the arguments, y: the result).
"""

from inspect import signature

from minidl.array.device import array_module
from minidl.autograd.function import Op
from minidl.autograd.structure import Add
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import as_tensor, floating, matched
from minidl.ops.pointwise import Pointwise


class Sub(Op):
    """y = a - b"""

    def forward(self, a, b):
        return a - b

    def backward(self, g):
        return g, neg(g)


class Mul(Op):
    """y = a b"""

    def forward(self, a, b):
        needs_a, needs_b = self.needs_input_grad
        self.save_for_backward(a if needs_b else None, b if needs_a else None)
        return a * b

    def backward(self, g):
        a, b = self.saved_tensors
        return None if b is None else Mul.apply(g, b), None if a is None else g * a


class Div(Op):
    """y = a / b"""

    def forward(self, a, b):
        y = a / b
        self.save_for_backward(b, y if self.needs_input_grad[1] else None)
        return y

    def backward(self, g):
        b, y = self.saved_tensors
        ga = g / b
        return ga, None if y is None else neg(ga * y)


class Pow(Op):
    """y = a^b; the gradient of b is 0 where a is 0, as y log(a) tends to."""

    def forward(self, a, b):
        y = array_module(a, b).power(a, b)
        self.save_for_backward(a, b, y if self.needs_input_grad[1] else None)
        return y

    def backward(self, g):
        a, b, y = self.saved_tensors
        ga = gb = None
        if self.edges[0] is not None:
            if isinstance(b, Tensor):
                ga = g * where(b == 0, 0.0, b * pow(a, b - 1))
            else:
                ga = g * (b * pow(a, b - 1)) if b else g * 0.0
        if self.edges[1] is not None:
            base = as_tensor(a, g)
            gb = g * where(base == 0, 0.0, y * log(where(base == 0, 1.0, base)))
        return ga, gb


class Where(Op):
    """y = a where the condition holds, else b"""

    def forward(self, condition, a, b):
        self.save_for_backward(condition)
        return array_module(condition).where(condition, a, b)

    def backward(self, g):
        (condition,) = self.saved_tensors
        return None, where(condition, g, 0.0), where(condition, 0.0, g)


class Tabled(Op):
    """An operation whose gradients are a row of a table."""

    function: str  # of the array module
    rules: tuple
    keeps: tuple[str, ...]  # all that the rules name, but g

    def forward(self, *arrays):
        y = getattr(array_module(*arrays), self.function)(*arrays)
        values = dict(zip("ab", arrays, strict=False), y=y)
        self.save_for_backward(*[values[name] for name in self.keeps])
        return y

    def backward(self, g):
        values = dict(zip(self.keeps, self.saved_tensors, strict=True), g=g)
        return tuple(
            None
            if rule is None or edge is None
            else rule(*[values[name] for name in signature(rule).parameters])
            for rule, edge in zip(self.rules, self.edges, strict=True)
        )


def share(g, chosen, other):
    """The gradient of the chosen one of two, half of it where they tie."""
    return where(chosen == other, g * 0.5, where(chosen > other, g, 0.0))


# NumPy's name of the function: the gradient of each argument
GRADIENTS = {
    "negative": (lambda g: neg(g),),
    "abs": (lambda g, a: g * sign(a),),
    "exp": (lambda g, y: g * y,),
    "log": (lambda g, a: g / a,),
    "log1p": (lambda g, a: g / (a + 1),),
    "expm1": (lambda g, y: g * (y + 1),),
    "sqrt": (lambda g, y: g / (y * 2),),
    "square": (lambda g, a: g * (a * 2),),
    "reciprocal": (lambda g, y: neg(g * (y * y)),),
    "sin": (lambda g, a: g * cos(a),),
    "cos": (lambda g, a: neg(g * sin(a)),),
    "tan": (lambda g, y: g * (y * y + 1),),
    "sign": (None,),
    "floor": (None,),
    "ceil": (None,),
    "rint": (None,),
    "trunc": (None,),
    "maximum": (
        lambda g, a, b: share(g, a, b),
        lambda g, a, b: share(g, b, a),
    ),
    "minimum": (
        lambda g, a, b: share(g, b, a),
        lambda g, a, b: share(g, a, b),
    ),
    "arctan2": (
        lambda g, a, b: g * b / (a * a + b * b),
        lambda g, a, b: neg(g * a / (a * a + b * b)),
    ),
}


def tabled(name: str, function: str, keeps_integers: bool = False):
    """The public function for a row of the table."""
    rules = GRADIENTS[function]
    wanted = [n for rule in rules if rule for n in signature(rule).parameters]
    keeps = tuple(n for n in ("a", "b", "y") if n in wanted)
    op = type(name.capitalize(), (Tabled,), {})
    op.function, op.rules, op.keeps = function, rules, keeps

    if len(rules) == 1:

        def apply(input):
            return op.apply(as_tensor(input) if keeps_integers else floating(input))

    else:

        def apply(input, other):
            return op.apply(*as_tensors(*matched(input, other)))

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"{name.capitalize()}, element by element; NumPy's {function}."
    return apply


def as_tensors(*operands):
    """All operands as Tensors, numbers in the type of the Tensor beside them."""
    like = next(x for x in operands if isinstance(x, Tensor))
    xp = array_module(like.data)
    return [
        x if isinstance(x, Tensor) else Tensor(xp.asarray(x, like.dtype))
        for x in operands
    ]


neg = tabled("neg", "negative", keeps_integers=True)
abs = tabled("abs", "abs", keeps_integers=True)
exp, log, log1p, expm1 = (tabled(n, n) for n in ("exp", "log", "log1p", "expm1"))
sqrt, sin, cos, tan = (tabled(n, n) for n in ("sqrt", "sin", "cos", "tan"))
square = tabled("square", "square", keeps_integers=True)
reciprocal = tabled("reciprocal", "reciprocal")
sign = tabled("sign", "sign", keeps_integers=True)
floor = tabled("floor", "floor", keeps_integers=True)
ceil = tabled("ceil", "ceil", keeps_integers=True)
round = tabled("round", "rint", keeps_integers=True)
trunc = tabled("trunc", "trunc", keeps_integers=True)
maximum = tabled("maximum", "maximum")
minimum = tabled("minimum", "minimum")
atan2 = tabled("atan2", "arctan2")
erf = Pointwise("erf", "x", "erf(x)")


def add(input, other, *, alpha=1) -> Tensor:
    """input + alpha other"""
    return Add.apply(*matched(input, other if alpha == 1 else mul(other, alpha)))


def sub(input, other, *, alpha=1) -> Tensor:
    """input - alpha other"""
    return Sub.apply(*matched(input, other if alpha == 1 else mul(other, alpha)))


def mul(input, other) -> Tensor:
    """input times other"""
    return Mul.apply(*matched(input, other))


def div(input, other) -> Tensor:
    """input / other; integers are divided as floating point."""
    return Div.apply(*matched(input, other, floating=True))


def pow(input, exponent) -> Tensor:
    """input to the power of exponent"""
    return Pow.apply(*matched(input, exponent))


def where(condition, input, other) -> Tensor:
    """input where the condition holds, other elsewhere"""
    return Where.apply(as_tensor(condition), *matched(input, other))


def comparison(name: str, ufunc: str):
    """A comparison: a Tensor of bool, without a gradient."""

    def compare(input, other) -> Tensor:
        a, b = matched(input, other)
        a, b = (x.data if isinstance(x, Tensor) else x for x in (a, b))
        return Tensor(getattr(array_module(a, b), ufunc)(a, b))

    compare.__name__ = compare.__qualname__ = name
    compare.__doc__ = f"Whether input is {ufunc.replace('_', ' ')} to other."
    return compare


eq, ne = comparison("eq", "equal"), comparison("ne", "not_equal")
lt, le = comparison("lt", "less"), comparison("le", "less_equal")
gt, ge = comparison("gt", "greater"), comparison("ge", "greater_equal")


def test(name: str):
    """A test of each element: a Tensor of bool, without a gradient."""

    def apply(input) -> Tensor:
        return Tensor(getattr(array_module(input.data), name)(input.data))

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"{name}, element by element."
    return apply


isnan, isinf, isfinite = test("isnan"), test("isinf"), test("isfinite")
