"""Autocast: functions compute in 16 bits where that is safe, without casts in a model.

Weights stay float32. What a function computes in is a matter of tables, one for each
kind of device (`autocast_rules`); a function that is in none takes what it is given.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps

import numpy as np

from minidl.array.device import is_array, on_gpu
from minidl.array.dtypes import BFLOAT16, DEFAULT_FLOAT, is_floating_point
from minidl.array.errors import DependencyError
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import cast

DEFAULTS = {"cpu": BFLOAT16, "cuda": np.dtype(np.float16)}  # as in PyTorch
current: ContextVar = ContextVar("autocast", default=None)  # a Region, or None


class Region:
    """What is in force: the type of each kind of device, or None, and copies of
    weights in such types, made once."""

    def __init__(self, types: dict, made: dict, keep: bool):
        self.types, self.made, self.keep = types, made, keep

    def cast(self, x: Tensor, dtype) -> Tensor:
        """x in this type. The gradient of a float32 weight goes to the weight itself,
        which takes it in float32: nothing is rounded on the way."""
        weight = x.creator is None and x.requires_grad and x.dtype == DEFAULT_FLOAT
        if not weight or dtype == DEFAULT_FLOAT:
            return cast(x, dtype)
        copy = x.copy_in(np.dtype(dtype), self.made if self.keep else {})
        return Tensor(copy, True, x)


class autocast:  # noqa: N801 - PyTorch's name
    """Products and convolutions compute in `dtype` inside, sums and losses in float32.

        with md.autocast("cuda", md.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    Also a decorator. `dtype` is bfloat16 on "cpu" and float16 on "cuda" unless given;
    each device_type is switched for itself. Inside a region a weight is cast once, and
    again in the next region, unless cache_enabled is False; one whose FlatStorage
    keeps a copy in `dtype` (`keep_low`) is not cast at all. float64 stays float64.
    Raises RuntimeError for another device or type, DependencyError for bfloat16
    without ml_dtypes. torch.autocast, which turns itself off for other types.
    """

    def __init__(
        self,
        device_type: str,
        dtype=None,
        enabled: bool = True,
        cache_enabled: bool = True,
    ):
        if device_type not in DEFAULTS:
            raise RuntimeError(
                f"autocast knows the devices 'cpu' and 'cuda', got {device_type!r}"
            )
        self.arguments = device_type, dtype, enabled, cache_enabled
        self.dtype = None
        if enabled:
            self.dtype = narrow(DEFAULTS[device_type] if dtype is None else dtype)
        self.before: list = []  # a stack: the same object may be entered again inside

    def __enter__(self):
        before = current.get()
        self.before.append(before)
        device_type, _, _, keep = self.arguments
        types = {**(before.types if before else {}), device_type: self.dtype}
        off = not any(types.values())
        made = before.made if before else {}
        current.set(None if off else Region(types, made, keep))
        return self

    def __exit__(self, *error):
        current.set(self.before.pop())

    def __call__(self, function: Callable) -> Callable:
        @wraps(function)
        def inside(*args, **options):
            with type(self)(*self.arguments):  # threads may be inside at once
                return function(*args, **options)

        return inside


def narrow(dtype) -> np.dtype:
    """A type of 16 bits that autocast can compute in."""
    if dtype is None:
        raise DependencyError(
            "bfloat16 needs the package ml_dtypes: pip install ml_dtypes"
        )
    dtype = np.dtype(dtype)
    if dtype not in (BFLOAT16, np.float16):
        raise RuntimeError(f"autocast computes in float16 or bfloat16, got {dtype}")
    return dtype


# What a function computes in, given the types of its operands and that of the region


def low(found: list, dtype) -> np.dtype:
    """The region's type."""
    return dtype


def full(found: list, dtype) -> np.dtype:
    """float32"""
    return DEFAULT_FLOAT


def widest(found: list, dtype) -> np.dtype:
    """float32 if any operand is, otherwise the region's type."""
    return DEFAULT_FLOAT if DEFAULT_FLOAT in found else dtype


def refused(found: list, dtype) -> np.dtype:
    """A logarithm of what 16 bits have rounded to 0 or 1 is infinite."""
    raise RuntimeError(
        "binary_cross_entropy is unsafe under autocast: leave out the sigmoid, and use "
        "binary_cross_entropy_with_logits"
    )


def casting(function: Callable, rules: dict[str, Callable | None]) -> Callable:
    """The function, which in a region first casts its operands by the device's rule."""

    @wraps(function)
    def inside(*args, **options):
        region = current.get()
        if region is None:
            return function(*args, **options)
        operands = list(eligible([*args, *options.values()]))
        kind = "cuda" if any(on_gpu(x.data) for x in operands) else "cpu"
        dtype, rule = region.types.get(kind), rules[kind]
        if dtype is None or rule is None or not operands:
            return function(*args, **options)
        dtype = rule([x.dtype for x in operands], dtype)
        args = [fitted(region, x, dtype) for x in args]
        options = {name: fitted(region, x, dtype) for name, x in options.items()}
        token = current.set(None)  # what the function calls has its types already
        try:
            return function(*args, **options)
        finally:
            current.reset(token)

    return inside


def eligible(values):
    """The Tensors that a rule is for, also in lists; bare arrays count."""
    for x in values:
        if isinstance(x, (list, tuple)):
            yield from eligible(x)
        elif isinstance(x, Tensor) or is_array(x):
            if is_floating_point(x.dtype) and x.dtype != np.float64:
                yield x if isinstance(x, Tensor) else Tensor(x)


def fitted(region: Region, x, dtype):
    """An argument with what is eligible in it in this type."""
    if type(x) in (list, tuple):
        return type(x)([fitted(region, item, dtype) for item in x])
    for operand in eligible([x]):
        return region.cast(operand, dtype)
    return x
