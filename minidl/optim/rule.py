"""A rule in two kernels: one works out a step's few numbers, one changes the weights.

On a GPU both run there, so that a step needs nothing of the host: the counters, and
what follows from them and from the settings, never leave the device.
"""

import math
from functools import cached_property
from types import SimpleNamespace

import numpy as np

from minidl.array.kernel import Kernel

# divisor: what the gradients have been multiplied by; norm: theirs, where it is known
STEP = "found divisor norm"
SHARED = "lr weight_decay maximize decoupled_weight_decay max_norm"
COUNT = """
skip = (found > 0) | isnan(norm) | isinf(norm);
step += 1 - skip;
factor = (1 - 2 * maximize) / divisor;
factor *= min(max_norm / (norm / divisor + 0.000001), 1);
factor = where(skip > 0, 0, factor);
decay = weight_decay * (1 - decoupled_weight_decay);
fade = lr * weight_decay * decoupled_weight_decay;
"""

PLAIN = SimpleNamespace(
    where=lambda condition, a, b: a if condition else b,
    minimum=min,
    maximum=max,
    power=math.pow,
    sqrt=math.sqrt,
    isnan=math.isnan,
    isinf=math.isinf,
)


class Rule:
    """Arithmetic of a step for one flat vector: `body` changes p and the `state`,
    given the descent d.

    d = factor g + weight_decay p, where factor undoes the scale of the loss, clips,
    and is negative when maximizing; with decoupled weight decay d = factor g, and p
    has already lost lr weight_decay p. Where a gradient is infinite or NaN (`found`,
    or a `norm` that is) nothing changes, the counters neither.

    `numbers` are what the body needs besides, computed by `derive` once a step in
    float64, from `settings` of the group and from the counters: `step` and more of
    them. Settings may also be used by the body itself, if `numbers` names them.
    """

    def __init__(
        self,
        name: str,
        state: str,
        numbers: str,
        body: str,
        derive: str = "",
        settings: str = "",
        counters: str = "step",
    ):
        self.name, self.state, self.counters = name, state.split(), counters.split()
        self.settings = [*SHARED.split(), *settings.split()]
        made = [n for n in numbers.split() if n not in self.settings]
        self.used = [n for n in numbers.split() if n in self.settings]
        self.numbers = Kernel(
            f"{name}_numbers",
            outputs=f"{counters} skip factor decay fade {' '.join(made)}",
            scalars=f"{STEP} {' '.join(self.settings)}",
            body=COUNT + derive,
            compute="float64",
        )
        self.made = self.numbers.outputs[len(self.counters) :]
        self.unset = [0.0] * len(self.made)
        scalars = f"skip factor decay fade {numbers}"
        written = ["p", *self.state]
        self.body = (
            "".join(f"auto old_{x} = {x};" for x in written)
            + "auto d = factor * g + decay * p; p -= fade * p;"
            + body
            + "".join(f"{x} = where(skip > 0, old_{x}, {x});" for x in written)
        )
        self.update = Kernel(name, "g", " ".join(written), scalars, self.body)

    @cached_property
    def update_low(self) -> Kernel:
        """`update` that also writes the new p, rounded to another type, to `low`."""
        outputs = " ".join([*self.update.outputs, "low"])
        scalars, body = " ".join(self.update.scalars), self.body + "low = p;"
        return Kernel(f"{self.name}_low", "g", outputs, scalars, body)

    @cached_property
    def plain(self):
        """The numbers' body as a function of Python's floats: faster than NumPy's."""
        scope: dict = {"np": PLAIN}
        exec(self.numbers.body.python, scope)  # noqa: S102
        return scope["body"]

    def on_host(self, counts: list[float], given: dict) -> tuple[float, ...]:
        """The numbers' body on the host: all its outputs, the counters first."""
        values = *counts, *self.unset, *[given[x] for x in self.numbers.scalars], None
        try:
            return self.plain(*values, self.numbers.body.constants)
        except (ArithmeticError, ValueError):  # 1 / 0 is infinite in NumPy and CUDA
            body = self.numbers.body.function(np.dtype(np.float64))
            with np.errstate(all="ignore"):
                return tuple(map(float, body(*map(np.float64, values[:-1]), None)))

    def needed(self, values, given: dict) -> dict:
        """The scalars of `update`, by name, from the outputs of `numbers`."""
        needed = dict(zip(self.made, values[len(self.counters) :], strict=True))
        for name in self.used:
            needed[name] = given[name]
        return needed

    def __call__(self, g, p, state, numbers: dict, low=None) -> None:
        """One launch; arrays of one shape, `state` a list of them."""
        if low is None:
            self.update(g, out=(p, *state), **numbers)
        else:
            self.update_low(g, out=(p, *state, low), **numbers)
