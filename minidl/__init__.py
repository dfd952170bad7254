"""minidl: a small deep-learning framework on CuPy and NumPy."""

from minidl import autograd, nn, ops, optim
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

__version__ = "0.1.0"
