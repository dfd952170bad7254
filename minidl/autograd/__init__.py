"""The engine: tensors, operations, and the walk back through them."""

from minidl.autograd.checkpoint import checkpoint
from minidl.autograd.custom import Function
from minidl.autograd.differentiate import backward, grad
from minidl.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck
from minidl.autograd.mode import (
    enable_grad,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from minidl.autograd.tensor import Tensor

__all__ = [
    "Function",
    "GradcheckError",
    "Tensor",
    "backward",
    "checkpoint",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]
