"""Layers with weights: Linear and convolution."""

from math import sqrt

from minidl.array.random import empty
from minidl.nn import functional as F
from minidl.nn import init
from minidl.nn.module import Module
from minidl.nn.parameter import Parameter
from minidl.ops.conv import tuple_of


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

    def forward(self, input):
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Conv(Module):
    """What the convolutions over 1, 2 and 3 dimensions share."""

    dims: int

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = tuple_of(kernel_size, self.dims, "kernel_size")
        self.stride = tuple_of(stride, self.dims, "stride")
        is_name = isinstance(padding, str)
        self.padding = padding if is_name else tuple_of(padding, self.dims, "padding")
        self.dilation = tuple_of(dilation, self.dims, "dilation")
        self.groups = groups
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        weight_and_bias(self, shape, out_channels, bias, device, dtype)

    def forward(self, input):
        function = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
        return function(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}"
        )


class Conv1d(Conv):
    """Convolution of (N, in_channels, L)."""

    dims = 1


class Conv2d(Conv):
    """Convolution of (N, in_channels, H, W)."""

    dims = 2


class Conv3d(Conv):
    """Convolution of (N, in_channels, D, H, W)."""

    dims = 3
