"""minidl: a small deep-learning framework on CuPy and NumPy."""

__version__ = "0.1.0"  # first: the rooms may ask for it

from minidl import autograd, data, distributed, nn, ops, optim, train
from minidl.array.dtypes import (
    bfloat16,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
)
from minidl.array.random import manual_seed
from minidl.autograd import Tensor, enable_grad, is_grad_enabled, no_grad
from minidl.ops.creation import tensor
