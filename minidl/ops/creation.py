"""Tensors out of nothing, or out of what is not a Tensor."""

import numpy as np

from minidl.array.device import canonical_device, device_of, is_array, to_device
from minidl.array.dtypes import DEFAULT_FLOAT
from minidl.autograd.tensor import Tensor


def tensor(data, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A Tensor with a copy of data: numbers, nested lists of them, or an array.

    Without a dtype, Python floats become float32, ints int64, bools bool; an array
    keeps its own. An array stays on its device where none is named.
    """
    if isinstance(data, Tensor):
        data = data.data
    if is_array(data):
        place = device_of(data) if device is None else canonical_device(device)
        array = to_device(data, place)
        array = array.astype(dtype or data.dtype, copy=array is data)
    else:
        array = np.array(data, dtype=dtype)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(getattr(data, "dtype", DEFAULT_FLOAT))
        if array.dtype.kind not in "fiubV":
            raise TypeError(
                f"a Tensor holds numbers; this is {array.dtype}: {data!r:.60}"
            )
        array = to_device(array, canonical_device(device))
    result = Tensor(array)
    return result.requires_grad_() if requires_grad else result
