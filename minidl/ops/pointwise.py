"""Functions written as one expression: one kernel forward, one kernel backward.

The expression is compiled for CPU and GPU by `Kernel` and differentiated
symbolically. The gradient is a function of the same kind, so every order of
derivative is again one kernel.
"""

from minidl.array import calculus
from minidl.array.kernel import Kernel
from minidl.autograd.function import Op
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

    def __call__(self, *inputs, **scalars):
        return Evaluate.apply(*matched(*inputs, floating=True), self, scalars)

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


class Evaluate(Op):
    """One call of a Pointwise function."""

    def forward(self, *inputs):
        *arrays, self.function, self.scalars = inputs
        wanted = [i for i, edge in enumerate(self.edges) if edge is not None]
        kept = {j for i in wanted for j in self.function.gradient(i)[1]}
        self.save_for_backward(
            *[x if i in kept else None for i, x in enumerate(arrays)]
        )
        return self.function.kernel(*arrays, **self.scalars)

    def backward(self, g):
        saved = self.saved_tensors
        gradients = []
        for position, _ in enumerate(saved):
            function, needed = self.function.gradient(position)
            if self.edges[position] is None or function is None:
                gradients.append(None)
                continue
            names = function.scalars.split()
            scalars = {name: self.scalars[name] for name in names}
            gradients.append(function(g, *[saved[i] for i in needed], **scalars))
        return tuple(gradients)
