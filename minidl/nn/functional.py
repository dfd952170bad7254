"""The functions behind the layers, with PyTorch's names and arguments."""

from minidl.ops.activation import gelu, log_softmax, relu, sigmoid, softmax, tanh
from minidl.ops.conv import conv1d, conv2d, conv3d
from minidl.ops.linear import linear
from minidl.ops.loss import cross_entropy, mse_loss
from minidl.ops.pool import avg_pool2d, max_pool2d

__all__ = [
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "conv3d",
    "cross_entropy",
    "gelu",
    "linear",
    "log_softmax",
    "max_pool2d",
    "mse_loss",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]
