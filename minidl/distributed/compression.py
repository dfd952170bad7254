"""Gradients in half precision, for sending."""

import numpy as np

from minidl.array.dtypes import bfloat16
from minidl.array.errors import DependencyError


def half_dtype(name: str | None) -> np.dtype | None:
    """The dtype for a `compression` of DataParallel."""
    if name not in (None, "float16", "bfloat16"):
        raise ValueError(f'compression is "float16", "bfloat16" or None, not {name!r}')
    if name == "bfloat16" and bfloat16 is None:
        raise DependencyError(
            "bfloat16 needs the package ml_dtypes: pip install ml_dtypes"
        )
    return {None: None, "float16": np.dtype("float16")}.get(name, bfloat16)


def compressed(gradients, half):
    """The gradients in the dtype `half`, or themselves if that is no smaller."""
    if half is None or gradients.dtype.itemsize <= np.dtype(half).itemsize:
        return gradients
    with np.errstate(over="ignore"):  # infinity, which a GradScaler looks for
        return gradients.astype(half)
