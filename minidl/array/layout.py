"""Bringing arrays of any shape and stride to the one flat form that loops read."""

from functools import lru_cache
from math import prod

import numpy

from .compiler import int64_array
from .compiler import pointer as host_pointer


def _pointer(array) -> int:
    return host_pointer(array) if type(array) is numpy.ndarray else array.data.ptr


def span(array) -> tuple[int, int]:
    """Addresses of the first byte and of the one behind the last."""
    start = _pointer(array)
    if array.flags.c_contiguous:
        return start, start + array.nbytes
    ends = [
        (n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)
    ]
    low = start + sum(end for end in ends if end < 0)
    return low, low + sum(map(abs, ends)) + array.itemsize


def same_elements(a, b) -> bool:
    """Whether element i of one lies where element i of the other does."""
    return (
        _pointer(a) == _pointer(b)
        and a.shape == b.shape
        and a.itemsize == b.itemsize
        and (a.strides == b.strides or (a.flags.c_contiguous and b.flags.c_contiguous))
    )


def apart(inputs, outputs) -> bool:
    """Whether the outputs can be written, and nothing shares memory but by identity.

    For contiguous arrays of one shape in the host's memory; outputs may be None.
    """
    spans = []
    for out in outputs:
        if out is None:
            continue
        if not out.flags.writeable:
            return False
        start = host_pointer(out)
        end = start + out.nbytes
        for low, high in spans:
            if start < high and low < end:
                return False
        spans.append((start, end))
    for x in inputs:
        start = host_pointer(x)
        end = start + x.nbytes
        for low, high in spans:
            if start < high and low < end and (start != low or end != high):
                return False
    return True


def shared(inputs, outputs) -> set[int] | None:
    """Positions of the inputs that share memory with an output and are not it.

    Where an input is the output itself, element i is read before it is written.
    None if two outputs share memory.
    """
    spans = [span(out) for out in outputs]
    for k, (start, end) in enumerate(spans):
        if any(start < high and low < end for low, high in spans[:k]):
            return None
    found = set()
    for k, x in enumerate(inputs):
        start, end = span(x)
        for (low, high), out in zip(spans, outputs, strict=True):
            if start < high and low < end and not same_elements(x, out):
                found.add(k)
    return found


def repeats(array) -> bool:
    """Whether two of its elements are one place in memory, as after broadcast_to."""
    pairs = zip(array.shape, array.strides, strict=True)
    return array.size > 0 and any(n > 1 and s == 0 for n, s in pairs)


def memory_order(array) -> tuple[int, ...]:
    """The axes in the order in which they lie in memory, the innermost last."""
    strides = array.strides
    return tuple(sorted(range(array.ndim), key=lambda axis: -abs(strides[axis])))


def inverse(order) -> tuple[int, ...]:
    """The order of axes that takes back a transposition by this one."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def reshaped(array, shape):
    """array.reshape(shape); where the first axis lies innermost and stays the first,
    it lies innermost in the result too, a view or a copy of long runs."""
    if (
        type(array) is numpy.ndarray
        and min(array.ndim, len(shape)) > 1
        and array.shape[0] == shape[0] > 1
        and array.strides[0] == array.itemsize
    ):
        inner = numpy.moveaxis(array, 0, -1).reshape(*shape[1:], shape[0])
        return numpy.moveaxis(inner, -1, 0)
    return array.reshape(shape)


def common_order(arrays) -> tuple[int, ...] | None:
    """An order of axes, not the usual one, that makes all arrays C-contiguous."""
    model = arrays[0]
    order = sorted(range(model.ndim), key=lambda axis: -model.strides[axis])
    if order == list(range(model.ndim)):
        return None
    for array in arrays:
        if array.shape != model.shape or not array.transpose(order).flags.c_contiguous:
            return None
    return tuple(order)


def made_like(arrays, shape, dtype) -> numpy.ndarray:
    """An empty array whose axes lie in memory as those of the first of the arrays that
    has this shape and no gaps."""
    for array in arrays:
        if array.shape == shape and not array.flags.c_contiguous:
            order = memory_order(array)
            if array.transpose(order).flags.c_contiguous:
                made = numpy.empty([shape[axis] for axis in order], dtype)
                return made.transpose(inverse(order))
    return numpy.empty(shape, dtype)


_SHORT = 8  # elements; rows below this are not worth a loop of their own


@lru_cache(maxsize=1024)
def geometry(shape, strides, itemsizes) -> tuple | None:
    """How a strided loop walks arrays of one shape: for loops.CompiledLoop.strided.

    (a letter for each array, elements in a row, rows, the numbers for the C++), with
    neighbouring axes made one where all arrays allow it; None where that leaves
    more than four axes, or short rows.
    """
    lengths, steps = [], []  # of the axes, outermost first; steps of all arrays
    for n, *axis in zip(shape, *strides, strict=True):
        if n == 1:
            continue
        if lengths and all(a == n * b for a, b in zip(steps[-1], axis, strict=True)):
            lengths[-1], steps[-1] = lengths[-1] * n, axis
        else:
            lengths.append(n)
            steps.append(axis)
    if not 0 < len(lengths) <= 4 or lengths[-1] < _SHORT:
        return None
    if any(s % size for axis in steps for s, size in zip(axis, itemsizes, strict=True)):
        return None
    lengths = [1] * (4 - len(lengths)) + lengths
    steps = [(0,) * len(itemsizes)] * (4 - len(steps)) + steps
    in_elements = [
        [axis[k] // size for axis in steps] for k, size in enumerate(itemsizes)
    ]
    letters = "".join({0: "0", 1: "1"}.get(s[3], "s") for s in in_elements)
    numbers = [lengths[1], lengths[2], *(s for each in in_elements for s in each)]
    packed = int64_array(numbers)
    return letters, lengths[3], prod(lengths[:3]), packed


def spread(inputs, outputs, shape) -> list:
    """Views of one shape; inputs that overlap an output otherwise are copied."""
    near = shared(inputs, outputs)
    copied = [x.copy() if k in near else x for k, x in enumerate(inputs)]
    views = [x if x.shape == shape else numpy.broadcast_to(x, shape) for x in copied]
    return [*views, *outputs]


def by_stride(arrays) -> list:
    """The arrays with their axes in the order in which the last one lies in memory."""
    last = arrays[-1]
    if last.flags.c_contiguous:
        return arrays
    order = sorted(range(last.ndim), key=lambda axis: -abs(last.strides[axis]))
    return [array.transpose(order) for array in arrays]


def flatten(inputs, outputs, shape, keep) -> tuple[list, list]:
    """C-contiguous stand-ins, and pairs (output, stand-in) to be copied back.

    An input that overlaps an output is copied. Outputs whose positions are in
    `keep` are read by the kernel: their stand-ins start with their values.
    """
    flat, copies = [], []
    near = shared(inputs, [out for out in outputs if out.flags.c_contiguous])
    for k, x in enumerate(inputs):
        x = x.copy() if k in near else x
        flat.append(numpy.ascontiguousarray(numpy.broadcast_to(x, shape)))
    for k, out in enumerate(outputs):
        if not out.flags.c_contiguous:
            temporary = out.copy("C") if k in keep else numpy.empty(shape, out.dtype)
            copies.append((out, temporary))
            out = temporary
        flat.append(out)
    return flat, copies
