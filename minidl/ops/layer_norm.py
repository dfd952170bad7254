"""Normalisation within a sample: over groups of channels, the last dimensions, or
neighbouring channels."""

from math import prod

import numpy

from minidl.array.device import array_module
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.arithmetic import pow
from minidl.ops.norm import Standardize, affine, scaled


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Each sample's channels in groups, each with mean 0 and variance 1.

    Then weight and bias, one number a channel of (N, C, *). Wu and He, 2018.
    """
    n, channels, *rest = input.shape
    if num_groups <= 0 or channels % num_groups:
        raise RuntimeError(
            f"group_norm: {channels} channels do not fall into {num_groups} groups"
        )
    w, b = affine(weight, bias, (1, num_groups, channels // num_groups, 1))
    x = input.reshape(n, num_groups, channels // num_groups, prod(rest))
    if x.numel():
        x = Standardize.apply(x, w, b, (2, 3), eps, True)[0]
    else:
        x = scaled(x * 1, w, b)
    return x.reshape(input.shape)


def layer_norm(
    input: Tensor,
    normalized_shape,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Mean 0 and variance 1 over the last dimensions, of normalized_shape.

    Then weight and bias, of that shape. Ba, Kiros and Hinton, 2016.
    """
    dims = last_dims("layer_norm", input, normalized_shape, weight, bias)
    if not input.numel():
        return scaled(input * 1, weight, bias)
    return Standardize.apply(input, weight, bias, dims, eps, True)[0]


def rms_norm(
    input: Tensor,
    normalized_shape,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) weight, the mean over the last dimensions.

    eps is the number type's machine epsilon where it is not given.
    Zhang and Sennrich, 2019.
    """
    dims = last_dims("rms_norm", input, normalized_shape, weight, None)
    if eps is None:
        narrow = input.dtype.itemsize < 4
        eps = float(numpy.finfo(numpy.float32 if narrow else input.dtype).eps)
    if not input.numel():
        return scaled(input * 1, weight, None)
    return Standardize.apply(input, weight, None, dims, eps, False)[0]


def last_dims(name: str, input: Tensor, shape, weight, bias) -> tuple[int, ...]:
    """The dimensions that normalized_shape stands for."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        raise RuntimeError(
            f"{name}: an input of shape {tuple(input.shape)} does not end with "
            f"normalized_shape={shape}"
        )
    for part, p in (("weight", weight), ("bias", bias)):
        if p is not None and tuple(p.shape) != shape:
            raise RuntimeError(
                f"{name}: {part} has shape {tuple(p.shape)}, expected {shape}"
            )
    return tuple(range(input.ndim - len(shape), input.ndim))


class ChannelWindow(Op):
    """y[c] = the sum of x[c - before] to x[c + after], over dim 1"""

    def forward(self, x, before, after):
        self.sides = before, after
        xp = array_module(x)
        y = xp.zeros_like(x)
        channels = x.shape[1]
        for shift in range(-before, after + 1):
            low, high = max(0, -shift), min(channels, channels - shift)
            if low < high:
                y[:, low:high] += x[:, low + shift : high + shift]
        return y

    def backward(self, g):
        before, after = self.sides
        return ChannelWindow.apply(g, after, before)


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x / (k + alpha / size * sum of x^2 over `size` neighbouring channels)^beta.

    Krizhevsky, Sutskever and Hinton, 2012, 3.3.
    """
    if input.ndim < 3:
        raise ValueError(
            f"local_response_norm: expected (N, C, *), got shape {tuple(input.shape)}"
        )
    total = ChannelWindow.apply(input * input, size // 2, (size - 1) // 2)
    return input / pow(total * (alpha / size) + k, beta)
