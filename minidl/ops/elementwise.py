"""Functions of one or two arguments, element by element: a table.

A row is the function's name, what it is, and the gradient of each argument, whose
rule names by its parameters what is kept for backward (a, b: the arguments, y: the
result). The engine sums a gradient over the dimensions that broadcasting added.
"""

from inspect import signature

from minidl.array.device import array_module
from minidl.array.dtypes import DEFAULT_FLOAT, is_floating_point
from minidl.autograd.function import Arithmetic, Op
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import as_tensor, cast, matched
from minidl.ops.pointwise import Pointwise


class Tabled(Op):
    """An operation whose gradients are a row of the table."""

    function: str  # NumPy's and CuPy's name of it
    rules: tuple  # of each argument: (rule, places in (*arguments, y) that it names)

    def forward(self, *arrays):
        y = getattr(array_module(*arrays), self.function)(*arrays)
        values = (*arrays, y)
        kept = [None] * len(values)
        for position, edge in enumerate(self.edges):
            if edge is not None:
                for place in self.rules[position][1]:
                    kept[place] = values[place]
        self.saved = kept
        return y

    def backward(self, g):
        saved = self.saved_tensors
        gradients = []
        for edge, (rule, places) in zip(self.edges, self.rules, strict=True):
            needed = [saved[place] for place in places]
            gradients.append(None if edge is None else rule(g, *needed))
        return tuple(gradients)


class Neg(Arithmetic):
    """y = -x"""

    def forward(self, x):
        return -x

    def backward(self, g):
        return -g


class Sign(Op):
    """y = 1 where x > 0, -1 where x < 0, else 0"""

    def forward(self, x):
        if x.dtype.kind == "b":
            return x.copy()
        return array_module(x).subtract(x > 0, x < 0, dtype=x.dtype)

    def backward(self, g):
        return zero(g)


class Where(Op):
    """y = a where the condition holds, else b"""

    def forward(self, condition, a, b):
        self.save_for_backward(condition)
        y = array_module(condition).where(condition, a, b)
        # CuPy's where makes bfloat16 float32
        dtype = getattr(a, "dtype", getattr(b, "dtype", y.dtype))
        return y.astype(dtype, copy=False)

    def backward(self, g):
        (condition,) = self.saved_tensors
        return (
            None,
            None if self.edges[1] is None else Where.apply(condition, g, 0.0),
            None if self.edges[2] is None else Where.apply(condition, 0.0, g),
        )


def tabled(name: str, meaning: str, *rules, numpy: str = "", integers: str = "float"):
    """The public function of a row.

    `numpy` is NumPy's name of it, where it is another. `integers` says what becomes
    of them: they turn into "float", are computed with ("keep"), or are "whole"
    already and their own result.
    """
    places = {"a": 0, "b": 1, "y": len(rules)}
    op = type(name.capitalize(), (Tabled,), {"function": numpy or name})
    op.rules = tuple(
        (rule, [places[kept] for kept in list(signature(rule).parameters)[1:]])
        for rule in rules
    )

    def of_one(input: Tensor) -> Tensor:
        input = as_tensor(input)
        if not is_floating_point(input.data.dtype):
            if integers == "whole":
                return Tensor(input.data.copy())
            if integers == "float" or input.data.dtype.kind == "b":
                input = cast(input, DEFAULT_FLOAT if integers == "float" else "int64")
        return op.apply(input)

    def of_two(input: Tensor, other: Tensor) -> Tensor:
        return op.apply(*matched(input, other, floating=integers == "float"))

    function = of_one if len(rules) == 1 else of_two
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{meaning}, element by element."
    return function


def zero(g: Tensor) -> Tensor:
    """The gradient through a function that is constant almost everywhere."""
    return Tensor(array_module(g.data).zeros_like(g.data))


def share(g: Tensor, mine, others) -> Tensor:
    """The gradient of the larger of two, half of it where they tie."""
    return where(mine == others, g * 0.5, where(mine < others, 0.0, g))


abs = tabled("abs", "|input|", lambda g, a: g * sign(a), integers="keep")
exp = tabled("exp", "e^input", lambda g, y: g * y)
log = tabled("log", "The natural logarithm of input", lambda g, a: g / a)
log1p = tabled("log1p", "log(1 + input)", lambda g, a: g / (a + 1))
expm1 = tabled("expm1", "e^input - 1", lambda g, y: g * (y + 1))
sqrt = tabled("sqrt", "The square root of input", lambda g, y: g / (y * 2))
square = tabled("square", "input^2", lambda g, a: g * (a * 2), integers="keep")
reciprocal = tabled("reciprocal", "1 / input", lambda g, y: neg(g * (y * y)))
sin = tabled("sin", "The sine of input", lambda g, a: g * cos(a))
cos = tabled("cos", "The cosine of input", lambda g, a: neg(g * sin(a)))
tan = tabled("tan", "The tangent of input", lambda g, y: g * (y * y + 1))
floor = tabled("floor", "The next whole number below", zero, integers="whole")
ceil = tabled("ceil", "The next whole number above", zero, integers="whole")
trunc = tabled("trunc", "input without its fraction", zero, integers="whole")
rint = tabled("rint", "The nearest whole number", zero, integers="whole")
maximum = tabled(
    "maximum",
    "The larger one",
    lambda g, a, b: share(g, a, b),
    lambda g, a, b: share(g, b, a),
    integers="keep",
)
minimum = tabled(
    "minimum",
    "The smaller one",
    lambda g, a, b: share(g, b, a),
    lambda g, a, b: share(g, a, b),
    integers="keep",
)
atan2 = tabled(
    "atan2",
    "The angle of the point (other, input)",
    lambda g, a, b: g * (b / (a * a + b * b)),
    lambda g, a, b: neg(g * (a / (a * a + b * b))),
    numpy="arctan2",
)
inverse_root = Pointwise("rsqrt", "x", "1 / sqrt(x)")
error_function = Pointwise("erf", "x", "erf(x)")


def neg(input: Tensor) -> Tensor:
    """-input, element by element."""
    if not isinstance(input, Tensor):
        input = as_tensor(input)
    if input.data.dtype.kind == "b":
        raise RuntimeError("neg: bools have no negative; use ~ or logical_not")
    return Neg.apply(input)


def sign(input: Tensor) -> Tensor:
    """-1, 0 or 1, the sign of input; 0 for NaN, as in PyTorch."""
    return Sign.apply(as_tensor(input))


def rsqrt(input: Tensor) -> Tensor:
    """1 / sqrt(input), element by element."""
    return inverse_root(input)


def erf(input: Tensor) -> Tensor:
    """The error function, 2 / sqrt(pi) times e^(-t^2) integrated from 0 to input."""
    return error_function(input)


def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """input rounded to so many decimals, halves to even; negative: to tens, ..."""
    if decimals == 0:
        return rint(input)
    if not is_floating_point(input.dtype):
        raise RuntimeError(f"round: decimals need floating point, got {input.dtype}")
    if decimals < 0:
        tens = 10.0**-decimals
        return rint(input / tens) * tens
    tens = 10.0**decimals
    return rint(input * tens) / tens


def where(condition, input=None, other=None):
    """input where the condition holds, other elsewhere.

    With the condition alone: the indices where it holds, one Tensor a dimension.
    """
    condition = as_tensor(condition)
    if input is None and other is None:
        return tuple(Tensor(index) for index in condition.data.nonzero())
    if condition.dtype != bool:
        raise RuntimeError(f"where: the condition must be bool, got {condition.dtype}")
    if not (isinstance(input, Tensor) or isinstance(other, Tensor)):
        input = as_tensor(input, condition)  # on its device
    return Where.apply(condition, *matched(input, other))


class Clamp(Op):
    """y = min(max(x, low), high); a bound may be None."""

    def forward(self, x, low, high):
        self.save_for_backward(x, low, high)
        xp = array_module(x)  # its clip is no choice: CuPy's has no bfloat16
        y = x if low is None else xp.maximum(x, low)
        return y if high is None else xp.minimum(y, high)

    def backward(self, g):
        x, low, high = self.saved_tensors
        gx, glow, ghigh = g, None, None
        if low is not None:
            gx = where(x >= low, gx, 0.0)
        if high is not None:
            gx = where(x <= high, gx, 0.0)
        if self.edges[1] is not None:
            below = x < low
            glow = where(below if high is None else below & (low < high), g, 0.0)
        if self.edges[2] is not None:
            above = x > high
            ghigh = where(above if low is None else above | (high < low), g, 0.0)
        return gx, glow, ghigh


def clamp(input: Tensor, min=None, max=None) -> Tensor:
    """min(max(input, min), max); where the bounds cross, max wins."""
    if min is None and max is None:
        raise RuntimeError("clamp needs min or max, got neither")
    bounds = iter(matched(input, *[x for x in (min, max) if x is not None]))
    input = next(bounds)
    return Clamp.apply(input, *[x if x is None else next(bounds) for x in (min, max)])
