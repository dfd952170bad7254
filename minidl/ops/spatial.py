"""What functions over the last one to three dimensions of their input share."""

from operator import index

from minidl.autograd.tensor import Tensor
from minidl.ops.shape import Reshape


def tuple_of(value, n: int, name: str) -> tuple[int, ...]:
    """One int for each of n dimensions; a single one serves for all."""
    if type(value) is int:
        return (value,) * n
    values = tuple(map(index, value)) if hasattr(value, "__len__") else (index(value),)
    if len(values) == 1:
        values *= n
    if len(values) != n:
        raise RuntimeError(f"{name} must be an int or {n} of them, got {value!r}")
    return values


def batched(function, n: int, name: str, input: Tensor):
    """Call with (N, C, *size); what came without a batch dimension goes so too.

    `function` returns a Tensor or a tuple of them. What it raises for sizes that do
    not fit comes as the RuntimeError that PyTorch raises.
    """
    if input.ndim not in (n + 1, n + 2):
        raise RuntimeError(
            f"{name}: expected an input of {n + 2} dimensions (N, C, *size), or of "
            f"{n + 1} without a batch, got shape {tuple(input.shape)}"
        )
    single = input.ndim == n + 1
    if single:
        input = Reshape.apply(input, (1, *input.shape))
    try:
        result = function(input)
    except ValueError as error:
        raise RuntimeError(f"{name}: {error}") from None
    if not single:
        return result
    if isinstance(result, tuple):
        return tuple([Reshape.apply(y, y.shape[1:]) for y in result])
    return Reshape.apply(result, result.shape[1:])


def check_images(name: str, input: Tensor) -> None:
    """Only the batch may be empty."""
    if 0 in input.shape[1:]:
        raise RuntimeError(
            f"{name}: only the batch dimension may be empty, got an input of shape "
            f"{tuple(input.shape)}"
        )
