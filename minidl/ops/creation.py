"""Tensors out of nothing, or out of what is not a Tensor."""

from contextlib import contextmanager
from math import ceil

import numpy as np

from minidl.array import random
from minidl.array.device import (
    canonical_device,
    cupy_module,
    device_of,
    is_array,
    to_device,
    use_device,
)
from minidl.array.dtypes import DEFAULT_FLOAT
from minidl.array.random import Generator
from minidl.autograd.tensor import Tensor
from minidl.ops.shape import sizes


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
        if dtype is None and array.dtype == np.float64 and not hasattr(data, "dtype"):
            array = array.astype(DEFAULT_FLOAT)
        if array.dtype.kind not in "fiubV":
            raise TypeError(
                f"a Tensor holds numbers; this is {array.dtype}: {data!r:.60}"
            )
        array = to_device(array, canonical_device(device))
    return finished(array, requires_grad)


def from_dlpack(ext_tensor) -> Tensor:
    """A Tensor that shares the memory of an array or tensor of another library.

    Raises what the other library raises where it cannot share (PyTorch: a tensor
    that requires a gradient; NumPy: a type it does not know, as bfloat16).
    """
    kind, _ = ext_tensor.__dlpack_device__()
    on_cpu = kind in (1, 3)  # DLPack's numbers of the CPU, and of pinned memory
    return Tensor((np if on_cpu else cupy_module()).from_dlpack(ext_tensor))


def finished(array, requires_grad: bool) -> Tensor:
    result = Tensor(array)
    return result.requires_grad_() if requires_grad else result


@contextmanager
def module_on(device):
    """The array module whose new arrays are on the device."""
    device = canonical_device(device)
    with use_device(device):
        yield np if device == "cpu" else cupy_module()


def zeros(
    *shape, size=None, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """All elements 0."""
    return full(sizes(shape, size), 0, dtype or DEFAULT_FLOAT, device, requires_grad)


def ones(
    *shape, size=None, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """All elements 1."""
    return full(sizes(shape, size), 1, dtype or DEFAULT_FLOAT, device, requires_grad)


def full(
    size, fill_value, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """All elements fill_value, whose type is float32, int64 or bool if omitted."""
    shape = sizes((size,))
    if any(n < 0 for n in shape):
        raise RuntimeError(f"sizes must not be negative, got {shape}")
    dtype = dtype or default_type(fill_value)
    with module_on(device) as xp:
        return finished(xp.full(shape, fill_value, dtype), requires_grad)


def default_type(*values) -> np.dtype:
    """The type of Python numbers that nobody gave a type."""
    kind = np.result_type(*[type(value) for value in values]).kind
    return (
        DEFAULT_FLOAT if kind == "f" else np.dtype("bool" if kind == "b" else "int64")
    )


def arange(
    start=0, end=None, step=1, *, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """start, start + step, ... up to but without end; int64 if all three are ints."""
    start, end = (0, start) if end is None else (start, end)
    start, end, step = [
        x.item() if isinstance(x, Tensor) else +x for x in (start, end, step)
    ]
    if not step or (end - start) / step < 0:
        raise RuntimeError(
            f"arange from {start} to {end}: a step of {step} does not lead there"
        )
    if dtype is None:
        dtype = default_type(start, end, step)
    count = ceil((end - start) / step)
    with module_on(device) as xp:
        if all(isinstance(x, int) for x in (start, end, step)):
            array = start + xp.arange(count) * step
        else:
            array = start + xp.arange(count, dtype="float64") * step
        return finished(array.astype(dtype), requires_grad)


def linspace(
    start, end, steps: int, *, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """`steps` numbers at equal distances, from start to end, both included."""
    if steps < 0:
        raise RuntimeError(f"the number of steps must not be negative, got {steps}")
    with module_on(device) as xp:
        array = xp.linspace(float(start), float(end), steps).astype(
            dtype or DEFAULT_FLOAT
        )
        return finished(array, requires_grad)


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype=None,
    device=None,
    requires_grad: bool = False,
) -> Tensor:
    """Ones on the diagonal of an n x m matrix (m is n if omitted), zeros elsewhere."""
    if n < 0 or (m or 0) < 0:
        raise RuntimeError(f"sizes must not be negative, got {n} and {m}")
    with module_on(device) as xp:
        return finished(xp.eye(n, m, dtype=dtype or DEFAULT_FLOAT), requires_grad)


def rand(
    *shape,
    size=None,
    generator: Generator | None = None,
    dtype=None,
    device=None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform in [0, 1)."""
    shape, dtype = sizes(shape, size), dtype or DEFAULT_FLOAT
    array = random.uniform(shape, dtype=dtype, device=device, generator=generator)
    return finished(array, requires_grad)


def randn(
    *shape,
    size=None,
    generator: Generator | None = None,
    dtype=None,
    device=None,
    requires_grad: bool = False,
) -> Tensor:
    """Normal, with mean 0 and variance 1."""
    shape, dtype = sizes(shape, size), dtype or DEFAULT_FLOAT
    array = random.normal(shape, dtype=dtype, device=device, generator=generator)
    return finished(array, requires_grad)


def randint(
    *bounds_and_size,
    low: int = 0,
    high: int | None = None,
    size=None,
    generator: Generator | None = None,
    dtype=None,
    device=None,
    requires_grad: bool = False,
) -> Tensor:
    """Integers from low (0 if omitted) to high - 1: randint(low, high, size)."""
    given = list(bounds_and_size)
    size = given.pop() if size is None else size
    high = given.pop() if high is None else high
    low = given.pop() if given else low
    if low >= high:
        raise RuntimeError(f"randint needs low < high, got {low} and {high}")
    array = random.integers(low, high, sizes((size,)), np.int64, device, generator)
    return finished(array.astype(dtype or np.int64, copy=False), requires_grad)


def randperm(
    n: int, *, generator: Generator | None = None, dtype=None, device=None
) -> Tensor:
    """The integers from 0 to n - 1 in random order."""
    array = random.permutation(n, device or "cpu", generator)
    return Tensor(array.astype(dtype or np.int64, copy=False))


def full_like(
    input: Tensor, fill_value, *, dtype=None, device=None, requires_grad: bool = False
) -> Tensor:
    """As full, with the shape and, if omitted, the type and device of input."""
    dtype, device = dtype or input.dtype, device or input.device
    return full(input.shape, fill_value, dtype, device, requires_grad)


def like(function):
    """The form of a function that takes shape, type and device from a Tensor."""

    def of(input: Tensor, *args, dtype=None, device=None, **options) -> Tensor:
        dtype, device = dtype or input.dtype, device or input.device
        return function(*args, input.shape, dtype=dtype, device=device, **options)

    name = function.__name__
    of.__name__ = of.__qualname__ = f"{name}_like"
    of.__doc__ = f"As {name}, with input's shape and, if omitted, its type and device."
    return of


zeros_like, ones_like = like(zeros), like(ones)
rand_like, randn_like, randint_like = like(rand), like(randn), like(randint)
