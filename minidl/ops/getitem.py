"""Indexing with brackets: slices, integers, None, Ellipsis, masks, integer arrays.

It takes two steps: what needs no arrays gives a view (`basic`), in which the arrays
then pick elements (`pattern`, with ARRAY in their places). PyTorch works in this way
too; NumPy differs where an integer stands apart from an array: in x[0, :, [1, 2]] it
counts as an array there, and moves the dimension of the array to the front.
"""

from math import prod

import numpy as np

from minidl.array.device import (
    array_module,
    check_devices,
    device_of,
    is_array,
    to_device,
)
from minidl.array.layout import repeats
from minidl.array.scatter import add_rows
from minidl.autograd.function import Op, explain
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import as_tensor

ALL = slice(None)
BASIC = (int, slice, type(None), type(Ellipsis))
ARRAY = object()  # in a pattern: the place of an index array


class GetItem(Op):
    """y = x[basic][pattern with arrays in their places], see `Index`."""

    def forward(self, x, basic, pattern, distinct, *arrays):
        self.settings = x.shape, basic, pattern, distinct
        self.save_for_backward(*arrays)
        return take(x, basic, pattern, arrays)

    def backward(self, g):
        arrays = [array.data for array in self.saved_tensors]
        return PutItem.apply(g, *self.settings, *arrays)


class PutItem(Op):
    """Zeros of `shape`, with g added where the index points; equal places add up."""

    def forward(self, g, shape, basic, pattern, distinct, *arrays):
        self.settings = basic, pattern, distinct
        self.save_for_backward(*arrays)
        xp = array_module(g)
        x = xp.zeros(shape, g.dtype)
        if not pattern:
            x[basic] = g
        elif distinct:
            x[basic][fill(pattern, arrays)] = g
        elif basic == (ALL,) and pattern == (ARRAY,):
            rows = arrays[0].reshape(-1)
            rows = xp.where(rows < 0, rows + shape[0], rows)
            width = prod(shape[1:])
            add_rows(x.reshape(shape[0], width), rows, g.reshape(rows.size, width))
        else:
            places = take(xp.arange(x.size).reshape(shape), basic, pattern, arrays)
            add_rows(x.reshape(-1, 1), places.reshape(-1), g.reshape(-1, 1))
        return x

    def backward(self, g):
        arrays = [array.data for array in self.saved_tensors]
        return GetItem.apply(g, *self.settings, *arrays)


def take(x, basic, pattern, arrays):
    y = x[basic]
    return y[fill(pattern, arrays)] if pattern else y


def fill(pattern, arrays) -> tuple:
    arrays = iter(arrays)
    return tuple([next(arrays) if part is ARRAY else part for part in pattern])


def read_index(x, index) -> tuple:
    """An index into the array x as (basic, pattern, distinct, *arrays); distinct says
    that no place comes twice."""
    index = index if isinstance(index, tuple) else (index,)
    if all([type(part) in BASIC for part in index]):
        return index, (), True
    xp = array_module(x)
    basic, pattern, arrays, masks = [], [], [], []
    for part in index:
        part = plain(part, x)
        if isinstance(part, int) and not isinstance(part, bool):
            basic.append(part)
        elif part is None or part is Ellipsis or isinstance(part, slice):
            basic.append(part)
            pattern.append(part if part is Ellipsis else ALL)
        elif isinstance(part, bool):  # a dimension of its own, of size 0 or 1
            basic.append(None)
            pattern.append(ARRAY)
            arrays.append(xp.zeros(int(part), np.int64))
        elif part.dtype == np.bool_:
            masks.append((len(pattern), part))
            basic += [ALL] * part.ndim
            pattern += [ARRAY] * part.ndim
            arrays += part.nonzero()
        else:
            basic.append(ALL)
            pattern.append(ARRAY)
            arrays.append(part)
    if masks:
        check_masks(x[tuple(basic)].shape, pattern, masks)
    distinct = len(masks) == 1 and len(arrays) == masks[0][1].ndim
    return tuple(basic), tuple(pattern if arrays else ()), distinct, *arrays


def plain(part, x):
    """A part of an index of x as None, Ellipsis, a slice, an int, a bool or an array.

    An array may be on the CPU where x is not; DeviceError for one on another GPU.
    """
    if part is None or part is Ellipsis or isinstance(part, (slice, int)):
        return part
    if isinstance(part, Tensor):
        part = part.data
    if array_module(part) is not np:
        check_devices("indexing", x, part)
    xp = array_module(x)
    if isinstance(part, (list, range)):
        part = xp.asarray(part, None if len(part) else np.int64)
    if is_array(part) or isinstance(part, np.generic):
        if part.dtype.kind in "iub":
            dtype = np.bool_ if part.dtype == np.bool_ else np.int64
            return xp.asarray(part, dtype) if part.ndim else part.item()
        raise IndexError(f"an index holds integers or bools, got {part.dtype}")
    raise IndexError(
        "an index is made of integers, slices, None, ..., and lists, arrays or Tensors "
        f"of integers or bools, got {type(part).__name__}"
    )


def check_masks(shape, pattern, masks) -> None:
    """Raise IndexError for a mask that has not the size of what it masks."""
    for position, mask in masks:
        if Ellipsis in pattern[:position]:
            position += len(shape) - len(pattern)
        masked = shape[position : position + mask.ndim]
        if masked != mask.shape:
            raise IndexError(f"a mask of shape {mask.shape} is applied to {masked}")


def getitem(input: Tensor, index) -> Tensor:
    """input[index]: slices, integers, None, Ellipsis, bool masks, integer arrays."""
    return GetItem.apply(input, *read_index(input.data, index))


def setitem(input: Tensor, index, value) -> None:
    """input[index] = value, in place; for tensors outside of any graph.

    What an operation has kept of the tensor for its backward changes with it.
    """
    if input.requires_grad or (isinstance(value, Tensor) and value.requires_grad):
        raise RuntimeError(
            "an assignment to elements is not recorded, and this one involves a tensor "
            "that requires a gradient: use where or scatter, or assign to .data"
        )
    x = input.data
    if repeats(x):
        raise RuntimeError(
            f"elements of this tensor of shape {x.shape} share memory, as after "
            "expand(): clone() it before the assignment"
        )
    value = value.data if isinstance(value, Tensor) else value
    if is_array(value):
        value = to_device(value, device_of(x))
    elif not isinstance(value, (int, float)):
        value = as_tensor(value, input).data
    if is_array(value) and array_module(x).may_share_memory(x, value):
        value = value.copy()  # CuPy does not look whether what it copies overlaps
    basic, pattern, _, *arrays = read_index(x, index)
    try:
        if pattern:
            x[basic][fill(pattern, arrays)] = value
        else:
            x[basic] = value
    except ValueError as error:
        explain(error, "an assignment to elements", (value, x[basic]))
        raise
