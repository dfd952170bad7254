"""Parameters, modules, layers and a few models, named as in PyTorch."""

from minidl.nn import functional, init
from minidl.nn.containers import Sequential
from minidl.nn.layers import Conv1d, Conv2d, Conv3d, Linear
from minidl.nn.models import MLP, SmallCNN
from minidl.nn.module import Module
from minidl.nn.parameter import Parameter
from minidl.nn.simple import (
    CrossEntropyLoss,
    Flatten,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Tanh,
)

__all__ = [
    "MLP",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "CrossEntropyLoss",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "SmallCNN",
    "Tanh",
    "functional",
    "init",
]
