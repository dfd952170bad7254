"""Number types: NumPy's, with PyTorch's rule of what a mixture of them becomes."""

import numpy as np

from .device import Array, bfloat16

float16, float32, float64 = np.float16, np.float32, np.float64
int8, int16, int32, int64 = np.int8, np.int16, np.int32, np.int64
uint8, bool_ = np.uint8, np.bool_
DEFAULT_FLOAT = np.dtype(np.float32)
BFLOAT16 = None if bfloat16 is None else np.dtype(bfloat16)


def is_floating_point(dtype: np.dtype) -> bool:
    """Whether a number type has gradients."""
    return dtype.kind == "f" or dtype == BFLOAT16


def wide_type(dtype: np.dtype) -> np.dtype:
    """The type to compute in: float32 for those of fewer bits."""
    return DEFAULT_FLOAT if dtype.itemsize < 4 else dtype


def widened(x: Array) -> Array:
    """The array, or a copy in float32 where it is of fewer bits."""
    return x.astype(wide_type(x.dtype), copy=False)


def category(dtype: np.dtype) -> int:
    """0 for bool, 1 for integers, 2 for floating point."""
    return 2 if is_floating_point(dtype) else int(dtype.kind in "iu")


def promote(a: np.dtype, b: np.dtype) -> np.dtype:
    """The type that holds both, floating point beating integers of any width."""
    if a == b:
        return a
    if category(a) != category(b):
        return a if category(a) > category(b) else b
    if BFLOAT16 in (a, b):
        return DEFAULT_FLOAT if a.itemsize == b.itemsize == 2 else max_size(a, b)
    return np.promote_types(a, b)


def max_size(a: np.dtype, b: np.dtype) -> np.dtype:
    return a if a.itemsize >= b.itemsize else b


def result_type(*operands) -> np.dtype:
    """The type of an operation on arrays and Python numbers, by PyTorch's rule.

    Arrays with dimensions decide; 0-d arrays count only where they are of a higher
    category (bool < integer < floating point) than those, Python numbers only where
    they are of a higher category than all arrays. So `float32 * 2.5` is float32, and
    `int64 + 2.5` is float32, PyTorch's default, where NumPy would widen to float64.
    """
    best: list[np.dtype | None] = [None, None]  # with dimensions, 0-d
    number = -1  # the highest category of a Python number
    for x in operands:
        dtype = getattr(x, "dtype", None)
        if dtype is None:
            number = max(number, number_category(x))
        else:
            rank = 0 if x.ndim else 1
            best[rank] = dtype if best[rank] is None else promote(best[rank], dtype)
    dtype = best[0] if best[0] is not None else best[1]
    if best[0] is not None and best[1] is not None:
        if category(best[1]) > category(best[0]):
            dtype = best[1]
    if dtype is None or number > category(dtype):
        return (np.dtype(np.bool_), np.dtype(np.int64), DEFAULT_FLOAT)[number]
    return dtype


def number_category(x) -> int:
    """0 for a bool, 1 for an int, 2 for a float; anything else is a TypeError."""
    if isinstance(x, (bool, np.bool_)):
        return 0
    if isinstance(x, (int, np.integer)):
        return 1
    if isinstance(x, (float, np.floating)):
        return 2
    raise TypeError(f"expected a Tensor or a number, got {type(x).__name__}")
