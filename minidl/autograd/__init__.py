"""The engine: tensors, operations, and the walk back through them."""

from minidl.autograd.function import Function
from minidl.autograd.mode import (
    enable_grad,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from minidl.autograd.tensor import Tensor
from minidl.autograd.walk import backward, grad

__all__ = [
    "Function",
    "Tensor",
    "backward",
    "enable_grad",
    "grad",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]
