"""The three operations that the engine itself needs: a gradient is added to another,
summed over what broadcasting added, and cast to the type of its input."""

from minidl.array.casting import cast
from minidl.array.device import array_module
from minidl.autograd.function import Arithmetic, Op
from minidl.autograd.tensor import Tensor


class Add(Arithmetic):
    """y = a + b"""

    def forward(self, a, b):
        return a + b

    def backward(self, g):
        return g, g


class SumTo(Op):
    """Sum over the dimensions that broadcasting from `shape` would add."""

    def forward(self, x, shape):
        self.shape = x.shape
        extra = x.ndim - len(shape)
        stretched = [
            extra + d for d, n in enumerate(shape) if n == 1 != x.shape[extra + d]
        ]
        y = x.sum(axis=(*range(extra), *stretched), keepdims=True, dtype=x.dtype)
        return y.reshape(shape)

    def backward(self, g):
        return BroadcastTo.apply(g, self.shape)


def check_sum_to(given: tuple, shape: tuple, name: str) -> None:
    """A gradient may be larger than its input only by what broadcasting adds."""
    pairs = zip(reversed(shape), reversed(given), strict=False)
    if len(given) < len(shape) or any(n != m and n != 1 for n, m in pairs):
        raise RuntimeError(
            f"{name}.backward returned a gradient of shape {given} for an input of "
            f"shape {shape}"
        )


class BroadcastTo(Op):
    """A view of `shape` in which x repeats."""

    def forward(self, x, shape):
        self.shape = x.shape
        return array_module(x).broadcast_to(x, shape)

    def backward(self, g):
        return SumTo.apply(g, self.shape)


def stretched(x, shape):
    """A Tensor, or a bare array, as a view of `shape` in which it repeats."""
    if isinstance(x, Tensor):
        return BroadcastTo.apply(x, shape)
    return array_module(x).broadcast_to(x, shape)


class Cast(Op):
    """x as another number type."""

    def forward(self, x, dtype):
        self.dtype = x.dtype
        return cast(x, dtype)

    def backward(self, g):
        return Cast.apply(g, self.dtype)
