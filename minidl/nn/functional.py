"""The functions behind the layers, with PyTorch's names and arguments."""

from minidl.ops.activation import gelu, log_softmax, relu, sigmoid, softmax, tanh
from minidl.ops.adaptive import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
)
from minidl.ops.conv import conv1d, conv2d, conv3d
from minidl.ops.conv_transpose import (
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from minidl.ops.fold import fold, pixel_shuffle, pixel_unshuffle, unfold
from minidl.ops.interpolate import interpolate
from minidl.ops.linear import linear
from minidl.ops.loss import cross_entropy, mse_loss
from minidl.ops.pad import pad
from minidl.ops.pool import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_entropy",
    "fold",
    "gelu",
    "interpolate",
    "linear",
    "log_softmax",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mse_loss",
    "pad",
    "pixel_shuffle",
    "pixel_unshuffle",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
    "unfold",
]
