"""Parameters, modules, layers and a few models, named as in PyTorch."""

from minidl.nn import functional, init
from minidl.nn.containers import Sequential
from minidl.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from minidl.nn.layers import Linear
from minidl.nn.models import MLP, SmallCNN
from minidl.nn.module import Module
from minidl.nn.parameter import Parameter
from minidl.nn.simple import (
    CrossEntropyLoss,
    ReLU,
    Sigmoid,
    Tanh,
)
from minidl.nn.spatial import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    Flatten,
    Fold,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    PixelShuffle,
    PixelUnshuffle,
    Unfold,
    Upsample,
)

__all__ = [
    "MLP",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "CrossEntropyLoss",
    "Flatten",
    "Fold",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Module",
    "Parameter",
    "PixelShuffle",
    "PixelUnshuffle",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "SmallCNN",
    "Tanh",
    "Unfold",
    "Upsample",
    "functional",
    "init",
]
