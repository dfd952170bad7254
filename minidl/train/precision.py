"""What `--precision` names: the type that products are computed in.

Weights, gradients and moments are float32 in all of them, and so is what is saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import numpy as np

from minidl.array.dtypes import BFLOAT16
from minidl.array.errors import UsageError
from minidl.array.precision import (
    get_float32_matmul_precision,
    set_float32_matmul_precision,
)
from minidl.nn import Module
from minidl.nn import functional as F
from minidl.ops.autocast import autocast, narrow
from minidl.optim import GradScaler

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
START = 2.0**10  # PyTorch's 2^16 is for a mean; a rank differentiates its sum
NARROW = {"bf16": BFLOAT16, "fp16": np.dtype(np.float16)}


class Precision:
    """How a model and its loss compute on a device, and what scales the loss.

    bf16 and fp16 are autocast, and fp16 scales the loss, since small gradients would
    be 0. tf32 lets a GPU round what it multiplies to 11 bits; on a CPU it is fp32.
    Raises UsageError for another name, DependencyError for bf16 without ml_dtypes.
    """

    def __init__(self, name: str, device: str):
        if name not in PRECISIONS:
            raise UsageError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {name!r}"
            )
        self.dtype = narrow(NARROW[name]) if name in NARROW else None
        kind = "cpu" if device == "cpu" else "cuda"
        self.autocast = autocast(kind, self.dtype, enabled=name in NARROW)
        self.loss_fn = self.autocast(F.cross_entropy)
        self.scaler = GradScaler(init_scale=START, enabled=name == "fp16")
        self.products = "high" if name == "tf32" else "highest"

    def apply(self, model: Module) -> None:
        """Let a model compute in this precision from now on."""
        forward = self.autocast(type(model).forward)
        model.forward = MethodType(forward, model)  # a copy of the model gets its own

    def keep_low(self, model: Module) -> None:
        """Let the optimizer write the weights in 16 bits too, so that no step casts."""
        if self.dtype is not None:
            for storage in dict.fromkeys(p.storage for p in model.parameters()):
                storage.keep_low(self.dtype)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Products of float32 as this precision has them, and afterwards as before."""
        before = get_float32_matmul_precision()
        set_float32_matmul_precision(self.products)
        try:
            yield
        finally:
            set_float32_matmul_precision(before)
