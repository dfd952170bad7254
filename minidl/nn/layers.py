"""Linear, and how the weights of layers begin."""

from math import sqrt

from minidl.array.random import empty
from minidl.nn import init
from minidl.nn.module import Module
from minidl.nn.parameter import Parameter
from minidl.ops.linear import affine


def weight_and_bias(layer: Module, shape, outputs: int, bias, device, dtype) -> None:
    """Register `weight` and `bias` (or None), uniform in +-1 / sqrt(fan in)."""
    layer.weight = Parameter(empty(shape, dtype or "float32", device))
    init.kaiming_uniform_(layer.weight, sqrt(5))
    layer.register_parameter("bias", None)
    if bias:
        layer.bias = Parameter(empty((outputs,), dtype or "float32", device))
        inputs = init.fans(layer.weight)[0]
        bound = 1 / sqrt(inputs) if inputs else 0
        init.uniform_(layer.bias, -bound, bound)


class Linear(Module):
    """y = x W^T + b; x (*, in_features), weight (out_features, in_features)."""

    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        shape = (out_features, in_features)
        weight_and_bias(self, shape, out_features, bias, device, dtype)

    def forward(self, input, relu: bool = False):
        """The layer's output, or, with `relu`, max(0, that) in one."""
        return affine(input, self.weight, self.bias, relu)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
