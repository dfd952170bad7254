"""Dropout: elements set to zero at random."""

from minidl.array import dropout as raw
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor


class Dropout(Op):
    """y = x mask / (1 - p), with a new mask"""

    def forward(self, x, p):
        self.scale = 1 / (1 - p) if p < 1 else 0.0
        y, mask = raw.dropout(x, p)
        self.save_for_backward(mask)
        return y

    def backward(self, g):
        (mask,) = self.saved_tensors
        return Masked.apply(g, mask, self.scale)


class Masked(Op):
    """y = x mask scale"""

    def forward(self, x, mask, scale):
        self.scale = scale
        self.save_for_backward(mask)
        return raw.kept(x, mask, scale=scale)

    def backward(self, g):
        (mask,) = self.saved_tensors
        return Masked.apply(g, mask, self.scale)


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Each element 0 with probability p, divided by 1 - p otherwise.

    The mask is a function of the seed, the number of draws made before and the
    element's position: the same on every device. Srivastava et al., 2014.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is a probability, between 0 and 1, got {p}")
    if not training or p == 0 or not input.numel():
        return input
    if not input.is_floating_point():
        raise RuntimeError(f"dropout needs floating point, got {input.dtype}")
    return Dropout.apply(input, p)
