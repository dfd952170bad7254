"""Nonlinearities as layers."""

from minidl.array.random import empty
from minidl.nn import functional as F
from minidl.nn import init
from minidl.nn.applied import REQUIRED, Applied
from minidl.nn.module import Module
from minidl.nn.parameter import Parameter


class ReLU(Applied, function=F.relu, inplace=False):
    """max(0, x)"""


class ReLU6(Applied, function=F.relu6, inplace=False):
    """min(max(0, x), 6)"""


class LeakyReLU(Applied, function=F.leaky_relu, negative_slope=0.01, inplace=False):
    """x where x > 0, negative_slope x elsewhere"""


class ELU(Applied, function=F.elu, alpha=1.0, inplace=False):
    """x where x > 0, alpha (exp(x) - 1) elsewhere"""


class SELU(Applied, function=F.selu, inplace=False):
    """ELU scaled so that mean 0 and variance 1 keep themselves up."""


class CELU(Applied, function=F.celu, alpha=1.0, inplace=False):
    """x where x > 0, alpha (exp(x / alpha) - 1) elsewhere"""


class GELU(Applied, function=F.gelu, approximate="none"):
    """x Phi(x)"""


class SiLU(Applied, function=F.silu, inplace=False):
    """x sigmoid(x)"""


class Mish(Applied, function=F.mish, inplace=False):
    """x tanh(softplus(x))"""


class Softplus(Applied, function=F.softplus, beta=1.0, threshold=20.0):
    """log(1 + exp(beta x)) / beta"""


class Softsign(Applied, function=F.softsign):
    """x / (1 + |x|)"""


class Hardtanh(Applied, function=F.hardtanh, min_val=-1.0, max_val=1.0, inplace=False):
    """x between min_val and max_val"""


class Hardswish(Applied, function=F.hardswish, inplace=False):
    """x min(max(0, x + 3), 6) / 6"""


class Hardsigmoid(Applied, function=F.hardsigmoid, inplace=False):
    """min(max(0, x + 3), 6) / 6"""


class GLU(Applied, function=F.glu, dim=-1):
    """a sigmoid(b), a and b the halves of x along dim"""


class LogSigmoid(Applied, function=F.logsigmoid):
    """log(sigmoid(x))"""


class Threshold(
    Applied, function=F.threshold, threshold=REQUIRED, value=REQUIRED, inplace=False
):
    """x where x > threshold, value elsewhere"""


class Tanhshrink(Applied, function=F.tanhshrink):
    """x - tanh(x)"""


class Tanh(Applied, function=F.tanh):
    """The hyperbolic tangent."""


class Sigmoid(Applied, function=F.sigmoid):
    """1 / (1 + exp(-x))"""


class Softmax(Applied, function=F.softmax, dim=None):
    """exp(x) / sum(exp(x)) along dim"""


class LogSoftmax(Applied, function=F.log_softmax, dim=None):
    """log(softmax(x)) along dim"""


class PReLU(Module):
    """x where x > 0, weight x elsewhere; weight (num_parameters) is learned."""

    def __init__(self, num_parameters=1, init=0.25, device=None, dtype=None):
        super().__init__()
        self.num_parameters, self.init = num_parameters, init
        self.weight = Parameter(empty((num_parameters,), dtype or "float32", device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight to `init`."""
        init.constant_(self.weight, self.init)

    def forward(self, input):
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class Identity(Module):
    """x; any arguments are taken and forgotten."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def forward(self, input):
        return input


class Dropout(Module):
    """In training, each element 0 with probability p, divided by 1 - p otherwise."""

    def __init__(self, p=0.5, inplace=False):
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p is a probability, between 0 and 1, got {p}")
        super().__init__()
        self.p, self.inplace = p, inplace

    def forward(self, input):
        return F.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
