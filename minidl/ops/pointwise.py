"""Functions written as one expression: one kernel forward, one kernel backward.

The expression is compiled for CPU and GPU by `Kernel` and differentiated
symbolically. The gradient is a function of the same kind, so every order of
derivative is again one kernel.
"""

from minidl.array import calculus
from minidl.array.kernel import Kernel
from minidl.autograd.function import Arithmetic
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import matched


class Pointwise:
    """y = expression(arguments; scalars), element by element, with broadcasting.

    `gelu = Pointwise("gelu", "x", "0.5 * x * (1 + erf(x * 0.7071067811865476))")` is
    called as `gelu(x)`, scalars by name. Arguments are Tensors, or numbers beside one.
    """

    def __init__(self, name: str, arguments: str, expression: str, scalars: str = ""):
        self.name, self.expression, self.scalars = name, expression, scalars
        self.arguments = arguments.split()
        self.kernel = Kernel(
            name,
            inputs=arguments,
            outputs="result",
            scalars=scalars,
            body=f"result = {calculus.expand(expression)};",
        )
        self.gradients: dict[int, tuple] = {}
        self.op = type(name, (Evaluate,), {"function": self})

    def __call__(self, *inputs, **scalars):
        inputs = matched(*inputs, floating=True)
        return self.op.apply(*inputs, scalars) if scalars else self.op.apply(*inputs)

    def like(self, g):
        """What to call where g is at hand: a bare array needs the kernel alone."""
        return self if isinstance(g, Tensor) else self.kernel

    def gradient(self, position: int) -> tuple["Pointwise | None", list[int]]:
        """The function (g, *needed arguments) -> gradient of one argument, and the
        positions of the arguments it needs; None where the gradient is zero."""
        if position not in self.gradients:
            name = self.arguments[position]
            slope = calculus.derivative(self.expression, name)
            used = calculus.names(slope)
            needed = [i for i, other in enumerate(self.arguments) if other in used]
            g = "g"
            while g in self.arguments:
                g += "g"
            function = None
            if slope != "0":
                function = Pointwise(
                    f"{self.name}_{name}",
                    " ".join([g, *(self.arguments[i] for i in needed)]),
                    g if slope == "1" else f"{g} * ({slope})",
                    " ".join(s for s in self.scalars.split() if s in used),
                )
            self.gradients[position] = function, needed
        return self.gradients[position]


class Evaluate(Arithmetic):
    """One call of a Pointwise function; a class is made for each."""

    function: Pointwise
    scalars: dict = {}

    def forward(self, *arrays):
        if len(arrays) > len(self.function.arguments):
            *arrays, self.scalars = arrays
        kept = [None] * len(arrays)
        for position, edge in enumerate(self.edges):
            if edge is not None:
                for needed in self.function.gradient(position)[1]:
                    kept[needed] = arrays[needed]
        self.saved = kept
        return self.function.kernel(*arrays, **self.scalars)

    def backward(self, g):
        saved = self.saved_like(g)
        gradients = []
        for position, _ in enumerate(saved):
            function, needed = self.function.gradient(position)
            if self.edges[position] is None or function is None:
                gradients.append(None)
                continue
            scalars = self.scalars
            if scalars:
                scalars = {name: scalars[name] for name in function.scalars.split()}
            arguments = [saved[i] for i in needed]
            gradients.append(function.like(g)(g, *arguments, **scalars))
        return tuple(gradients)
