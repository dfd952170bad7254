"""What a communicator takes, and how the arrays of several ranks become one."""

from functools import cache
from typing import NamedTuple

import numpy as np

from minidl.array.device import device_of, is_array, on_gpu

OPS = {"sum": np.add, "avg": np.add, "max": np.maximum, "min": np.minimum}
KINDS = {
    "half": ("float16", "bfloat16"),
    "float": ("float32", "float64"),
    "integer": ("int8", "int16", "int32", "int64")
    + ("uint8", "uint16", "uint32", "uint64"),
    "bool": ("bool",),
}
DTYPES = ", ".join(name for names in KINDS.values() for name in names)


@cache  # NumPy makes up dtype.name anew each time
def kind(dtype):
    """The key in KINDS of a dtype, or None for one that does not travel."""
    for key, names in KINDS.items():
        if dtype.name in names and dtype.isnative:
            return key
    return None


class Call(NamedTuple):
    """One collective as a rank calls it: what ranks must agree on."""

    name: str
    detail: str = ""  # the operation, or the source rank
    dtype: np.dtype | str = ""
    shape: tuple[int, ...] | None = None
    where: str = ""  # "GPU" for arrays that are there

    def __str__(self):
        shape = "" if self.shape is None else f"shape {self.shape}"
        words = [self.detail, str(self.dtype), shape, self.where]
        return f"{self.name}({', '.join(filter(None, words))})"


def check(name, *arrays):
    """Refuse, before anything is sent, what a communicator cannot take."""
    for array in arrays:
        if not is_array(array):
            raise TypeError(
                f"{name} takes a NumPy or CuPy array, not {type(array).__name__}; "
                "of a tensor, pass its data"
            )
        if kind(array.dtype) is None:
            raise TypeError(
                f"{name} does not take {array.dtype}; it takes {DTYPES}, "
                "in the byte order of the machine"
            )
        if not array.flags.c_contiguous:
            raise ValueError(
                f"{name} needs a C-contiguous array, and the one of shape "
                f"{array.shape} has strides {array.strides}; pass a contiguous copy"
            )


def check_writable(name, array):
    """Refuse a read-only array for a result."""
    if not on_gpu(array) and not array.flags.writeable:
        raise ValueError(f"{name} writes its result into an array that is read-only")


def check_op(name, op, array):
    """Refuse an unknown operation, and one that the dtype does not have."""
    if op not in OPS:
        raise ValueError(f"{name} knows the ops {', '.join(OPS)}, not {op!r}")
    if kind(array.dtype) == "bool" or op == "avg" and kind(array.dtype) == "integer":
        raise TypeError(f"{name} has no {op} of {array.dtype}")


def check_blocks(name, whole, part, size):
    """Refuse arrays that are not one flat array and its `size` equal parts."""
    if device_of(whole) != device_of(part):
        raise ValueError(
            f"{name} needs its two arrays on one device, and got them on "
            f"{device_of(whole)} and {device_of(part)}"
        )
    if whole.dtype != part.dtype or whole.size != size * part.size:
        raise ValueError(
            f"{name} over {size} ranks needs an array of {size} x {part.size} "
            f"elements of {part.dtype}, and got {whole.size} of {whole.dtype}"
        )


def check_message(array, nbytes, src):
    """Refuse a message of another length than the array that it is to fill."""
    if nbytes != array.nbytes:
        raise RuntimeError(
            f"rank {src} has sent {nbytes} bytes, and the array that should receive "
            f"them has {array.nbytes}"
        )


def fill(array, values):
    """Write as many values, of any shape and dtype, into an array beside them."""
    array[...] = values.reshape(array.shape)


def accumulator(dtype):
    """The dtype that sums are kept in: float32 for the half precisions."""
    return np.dtype("float32") if kind(dtype) == "half" else dtype


def combine(arrays, op):
    """Fold the arrays of all ranks in rank order; halves are rounded once, last."""
    dtype = arrays[0].dtype
    total = arrays[0].astype(accumulator(dtype))
    for array in arrays[1:]:
        OPS[op](total, array.astype(total.dtype, copy=False), out=total)
    if op == "avg":
        np.divide(total, len(arrays), out=total)
    return total.astype(dtype, copy=False)
