"""Gradient clipping, on flat gradients (PyTorch has it in nn.utils)."""

from collections.abc import Iterable

import numpy as np

from minidl.array import euclid
from minidl.array.device import Array, array_module, device_of, on_gpu, to_device
from minidl.array.dtypes import widened
from minidl.array.kernel import Kernel
from minidl.autograd.tensor import Tensor
from minidl.optim.flat import runs, storage_of

# zero stays zero, whatever the norm: between parameters it is never written again
shrink = Kernel(
    "clip_norm",
    outputs="g",
    scalars="total limit",
    body="g = where(g == 0, g, g * min(limit / (total + 0.000001), 1));",
)
clamp = Kernel(
    "clip_value", outputs="g", scalars="limit", body="g = max(min(g, limit), -limit);"
)


def gradients(parameters: Tensor | Iterable[Tensor]) -> list:
    """The gradients as arrays, one for neighbours in flat storage."""
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [run.grad for run in runs(parameters)]


def whole_gradients(parameters: Tensor | Iterable[Tensor]) -> list:
    """The gradients as arrays; RuntimeError where this rank knows only a share."""
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if any(getattr(storage_of(p), "sharded", False) for p in parameters):
        raise RuntimeError(
            "of these gradients every rank knows only a share: clip them with "
            "ShardedAdam's clip_grad_norm_(max_norm)"
        )
    return gradients(parameters)


def norm(array: Array, order: float) -> Array:
    """The vector norm as a 0-d array, in float32 or wider."""
    xp = array_module(array)
    return xp.asarray(xp.linalg.norm(widened(array.reshape(-1)), order))


def total_norm(arrays: list, order: float) -> Array:
    """The norm over all arrays as a 0-d array, in float32 or wider."""
    if order != 2:
        norms = [norm(g, order) for g in arrays]
        xp, device = array_module(norms[0]), device_of(norms[0])
        return norm(xp.stack([to_device(n, device) for n in norms]), order)
    dtype = np.result_type(np.float32, *(g.dtype for g in arrays))
    if not on_gpu(arrays[0]):
        return np.asarray(euclid.norm(arrays)[0], dtype)
    with arrays[0].device:
        found = euclid.on_device(arrays)
        root = found[1:2] if dtype == np.float64 else found[3:4].view(dtype)[:1]
        return root.reshape(())


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """g *= min(1, max_norm / (norm + 1e-6)); returns the norm over all gradients.

    The norm stays on the device. Raises RuntimeError, changing nothing, for a norm that
    is not finite, if `error_if_nonfinite`: to know, a GPU is waited for.
    """
    found = whole_gradients(parameters)
    if not found:
        return Tensor(np.zeros((), np.float32))
    total = total_norm(found, float(norm_type))
    if error_if_nonfinite and not np.isfinite(float(total)):
        raise RuntimeError(
            f"the norm of order {norm_type} of the gradients is {float(total)}: "
            "they cannot be clipped"
        )
    for g in found:
        shrink(out=g, total=to_device(total, device_of(g)), limit=float(max_norm))
    return Tensor(total)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """g = min(max(g, -clip_value), clip_value)."""
    for g in whole_gradients(parameters):
        clamp(out=g, limit=float(clip_value))
