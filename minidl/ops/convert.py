"""A Tensor in another number type, on another device, or for another library."""

from copy import deepcopy

import numpy as np

from minidl.array import dtypes
from minidl.array.device import canonical_device, device_of, to_device
from minidl.array.errors import DependencyError
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import cast
from minidl.ops.pieces import unbind
from minidl.ops.shape import clone


class Move(Op):
    """x on another device."""

    def forward(self, x, device):
        self.device = device_of(x)
        return to_device(x, device)

    def backward(self, g):
        return Move.apply(g, self.device)


def to(input: Tensor, *args, dtype=None, device=None, copy: bool = False) -> Tensor:
    """The tensor in another type, on another device: `to(dtype)`, `to(device)`,
    `to(device, dtype)` or `to(other)`, for the type and device of another Tensor.

    It is the tensor itself where nothing changes, unless `copy` asks for a copy.
    PyTorch's further positional arguments, non_blocking and copy, may follow; copies
    between devices are always in the order of the stream.
    """
    args = list(args)
    if args and isinstance(args[0], Tensor):
        device, dtype = args[0].device, args.pop(0).dtype
    elif args:
        if args[0] is None or isinstance(args[0], str):
            device = args.pop(0)
        if args and not isinstance(args[0], bool):
            dtype = args.pop(0)
    if len(args) > 2:
        raise TypeError(f"to() has arguments that it does not know: {args}")
    copy = args[1] if len(args) == 2 else copy
    result = input
    if device is not None and canonical_device(device) != input.device:
        result = Move.apply(result, device)
    if dtype is not None:
        result = cast(result, known_type(dtype))
    return clone(result) if copy and result is input else result


def known_type(dtype) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype.kind not in "fiub" and dtype != dtypes.BFLOAT16:
        raise TypeError(f"a Tensor holds real numbers or bools, not {dtype}")
    return dtype


def cpu(input: Tensor) -> Tensor:
    """The tensor in the host's memory."""
    return to(input, "cpu")


def cuda(input: Tensor, device: int | str | None = None) -> Tensor:
    """The tensor on a CUDA device: the current one, or that of a number or name."""
    if isinstance(device, int):
        device = f"cuda:{device}"
    return to(input, device or "cuda")


def type_as(input: Tensor, other: Tensor) -> Tensor:
    """The tensor in the type, and on the device, of another."""
    return to(input, other)


def bfloat16(input: Tensor) -> Tensor:
    """The tensor as bfloat16."""
    if dtypes.BFLOAT16 is None:
        raise DependencyError(
            "bfloat16 needs the package ml_dtypes: pip install ml_dtypes"
        )
    return cast(input, dtypes.BFLOAT16)


def to_type(name: str, dtype):
    """The method that casts to one type."""

    def convert(input: Tensor) -> Tensor:
        return cast(input, dtype)

    convert.__name__ = convert.__qualname__ = name
    convert.__doc__ = f"The tensor as {np.dtype(dtype)}."
    return convert


TYPES = {
    "float": np.float32,
    "double": np.float64,
    "half": np.float16,
    "int": np.int32,
    "long": np.int64,
    "bool": np.bool_,
}


def iterate(input: Tensor):
    """The slices along the first dimension."""
    if not input.ndim:
        raise TypeError("a tensor of 0 dimensions cannot be iterated over")
    return iter(unbind(input))


def contains(input: Tensor, element) -> bool:
    """Whether any element equals this one."""
    return bool((input == element).data.any())


def deep_copy(input: Tensor, memo: dict) -> Tensor:
    """A leaf with arrays of its own, outside of flat storage; gradient included."""
    if not input.is_leaf:
        raise RuntimeError(
            "only leaves can be copied by deepcopy; this tensor was computed: use "
            "detach() or clone()"
        )
    result = type(input)(input.data.copy(), input.requires_grad)
    memo[id(input)] = result
    if hasattr(input, "name"):
        result.name = input.name
    if input.grad is not None:
        result.grad = deepcopy(input.grad, memo)
    return result


def reduced(input: Tensor) -> tuple:
    """For pickle: a leaf, its array and whether it requires a gradient."""
    if not input.is_leaf:
        raise RuntimeError("only leaves can be pickled; use detach()")
    return type(input), (input.data, input.requires_grad)
