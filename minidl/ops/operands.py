"""Operands become Tensors of one type before an operation sees them."""

import numpy as np

from minidl.array.device import array_module, is_array
from minidl.array.dtypes import BFLOAT16, DEFAULT_FLOAT, is_floating_point, result_type
from minidl.autograd.structure import Cast
from minidl.autograd.tensor import Tensor


def as_tensor(x, like: Tensor | None = None) -> Tensor:
    """x itself if it is a Tensor; a number or an array becomes one, beside `like`."""
    if isinstance(x, Tensor):
        return x
    xp = array_module(x if like is None else like.data)
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        array = x if is_array(x) else np.asarray(x)
        if array.dtype.kind not in "biufV":
            raise TypeError(f"expected a Tensor or numbers, got {type(x).__name__}")
        return Tensor(xp.asarray(array))
    return Tensor(xp.asarray(x, DEFAULT_FLOAT if isinstance(x, float) else None))


def cast(x: Tensor, dtype) -> Tensor:
    """x in the given number type; x itself where it has it.

    No gradient passes through whole numbers.
    """
    if x.data.dtype == dtype:
        return x
    if not is_floating_point(np.dtype(dtype)):
        return Tensor(x.data.astype(dtype))
    return Cast.apply(x, dtype)


def floating(x: Tensor) -> Tensor:
    """x, integers cast to PyTorch's default floating-point type."""
    if not isinstance(x, Tensor):
        x = as_tensor(x)
    dtype = x.data.dtype
    if dtype.kind == "f" or is_floating_point(dtype):
        return x
    return Cast.apply(x, DEFAULT_FLOAT)


def matched(*operands, floating=False) -> tuple:
    """The operands in their common type (see `result_type`), at least one a Tensor.

    Python numbers stay as they are: NumPy and CuPy never widen for them. With
    `floating`, integers become floating point.
    """
    if len(operands) == 2:
        a, b = operands
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            dtype = a.data.dtype
            if dtype is b.data.dtype and dtype.kind == "f":
                return operands
    dtype = None
    for x in operands:
        if isinstance(x, Tensor):
            other = x.data.dtype
            if dtype is None:
                dtype = other
            elif dtype is not other:
                break
        elif type(x) is not float and type(x) is not int:
            break
    else:
        if dtype is not None and dtype.kind == "f":
            return operands
    return slowly_matched(operands, floating)


def slowly_matched(operands, to_floating) -> tuple:
    # NumPy's scalars are numbers here; NumPy would widen for a float64
    operands = [x.item() if isinstance(x, np.generic) else x for x in operands]
    like = next((x for x in operands if isinstance(x, Tensor)), None)
    if like is None:
        like = as_tensor(operands[0])
        operands = (like, *operands[1:])
    operands = [
        x if isinstance(x, (Tensor, bool, int, float)) else as_tensor(x, like)
        for x in operands
    ]
    dtype = result_type(*[x.data if isinstance(x, Tensor) else x for x in operands])
    if to_floating and not is_floating_point(dtype):
        dtype = DEFAULT_FLOAT
    if dtype == BFLOAT16:  # the one type that NumPy does widen for Python numbers
        xp = array_module(like.data)
        operands = [
            x if isinstance(x, Tensor) else Tensor(xp.asarray(x, dtype))
            for x in operands
        ]
    return tuple([cast(x, dtype) if isinstance(x, Tensor) else x for x in operands])
