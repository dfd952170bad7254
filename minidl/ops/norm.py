"""Normalisation: values made to have mean 0 and variance 1 over some dimensions.

One operation, `Standardize`, serves batch, layer, group and instance norm, which
differ in the dimensions they take the mean over and in the shape of weight and bias.
"""

from math import prod

import numpy

from minidl.array.device import array_module
from minidl.array.standardize import standardize, standardize_gradient
from minidl.autograd.function import Op
from minidl.autograd.mode import recording
from minidl.autograd.tensor import Tensor
from minidl.ops.elementwise import pow
from minidl.ops.operands import cast
from minidl.ops.reduce import sum as sum_over


class Standardize(Op):
    """y = (x - mean) / sqrt(var + eps) w + b, with the mean and variance over dims.

    Outputs y, mean and var (the latter without gradients); not `centred`, the mean
    is taken to be 0. w and b, which may be None, broadcast to x.
    """

    materialize_grads = False

    def forward(self, x, w, b, dims, eps, centred):
        self.dims, self.eps, self.centred = dims, eps, centred
        y, mean, var = standardize(x, w, b, dims, eps, centred)
        self.save_for_backward(x, w, mean, var)
        self.undifferentiable = (mean, var)
        return y, mean, var

    def backward(self, g, *_):
        if recording.get():
            return self.recorded(g)
        x, w, mean, var = (s if s is None else s.data for s in self.saved_tensors)
        gradients = standardize_gradient(
            g.data, x, w, mean, var, self.dims, self.eps, self.centred
        )
        needed = self.needs_input_grad
        return tuple(
            Tensor(gradient) if gradient is not None and need else None
            for gradient, need in zip(gradients, needed[:3], strict=True)
        )

    def recorded(self, g):
        """The same gradients, by operations that can be differentiated again."""
        x, w, *_ = self.saved_tensors
        count = prod(x.shape[d] for d in self.dims)

        def mean(t):
            return sum_over(t, self.dims, True) / count

        d = x - mean(x) if self.centred else x
        rstd = pow(mean(d * d) + self.eps, -0.5)
        xhat = d * rstd
        gh = g if w is None else g * w
        gx = gh - xhat * mean(gh * xhat)
        if self.centred:
            gx = gx - mean(gh)
        return gx * rstd, None if w is None else g * xhat, g


def affine(weight, bias, shape) -> list:
    """Weight and bias in a shape that broadcasts to the input, or None."""
    return [None if p is None else p.reshape(shape) for p in (weight, bias)]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) weight + bias, for each channel of (N, C, *).

    In training mean and var are the batch's, and the running statistics, where they
    are given, move in place: r += momentum (statistic - r), with the unbiased var.
    Otherwise they are the running ones. Ioffe and Szegedy, 2015.
    """
    shape = (1, -1, *[1] * (input.ndim - 2)) if input.ndim > 1 else (1,)
    count = prod(input.shape) // max(input.shape[1], 1) if input.ndim > 1 else 0
    if training and count == 1:
        raise ValueError(
            "batch_norm: training needs more than 1 value for each channel, got an "
            f"input of shape {tuple(input.shape)}"
        )
    check_statistics(input, running_mean, running_var, training)
    w, b = affine(weight, bias, shape)
    if not input.numel():
        return scaled(input * 1, w, b)
    if not training:
        mean, var = affine(running_mean, running_var, shape)
        scale = pow(var + eps, -0.5)
        scale = scale if w is None else scale * w
        shift = -mean * scale if b is None else b - mean * scale
        return input * cast(scale, input.dtype) + cast(shift, input.dtype)
    dims = (0, *range(2, input.ndim))
    y, mean, var = Standardize.apply(input, w, b, dims, eps, True)
    if running_mean is not None:
        move(running_mean, mean.data, momentum)
    if running_var is not None:
        move(running_var, var.data * (count / (count - 1)), momentum)
    return y


def check_statistics(input, running_mean, running_var, training: bool) -> None:
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError(
            "batch_norm: evaluation needs running_mean and running_var; training=True "
            "takes the statistics of the batch"
        )
    channels = input.shape[1] if input.ndim > 1 else None
    for name, r in (("running_mean", running_mean), ("running_var", running_var)):
        if r is not None and channels is not None and r.shape != (channels,):
            raise RuntimeError(
                f"batch_norm: {name} has shape {tuple(r.shape)}, the input has "
                f"{channels} channels"
            )


def move(running: Tensor, statistic, momentum: float) -> None:
    """running += momentum (statistic - running), in place"""
    r = running.data
    r *= 1 - momentum
    r += (momentum * statistic).reshape(r.shape)


def scaled(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    """x w + b"""
    x = x if w is None else x * w
    return x if b is None else x + b


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """batch_norm with the statistics of each sample of (N, C, *) on its own.

    The running statistics move towards the mean of the samples' ones.
    Ulyanov, Vedaldi and Lempitsky, 2016.
    """
    if not use_input_stats:
        return batch_norm(
            input, running_mean, running_var, weight, bias, False, momentum, eps
        )
    count = prod(input.shape[2:])
    if count == 1:
        raise ValueError(
            "instance_norm: training needs more than 1 value for each channel of a "
            f"sample, got an input of shape {tuple(input.shape)}"
        )
    w, b = affine(weight, bias, (1, -1, *[1] * (input.ndim - 2)))
    if not input.numel():
        return scaled(input * 1, w, b)
    dims = tuple(range(2, input.ndim))
    y, mean, var = Standardize.apply(input, w, b, dims, eps, True)
    if running_mean is not None:
        move(running_mean, mean.data.mean(axis=0), momentum)
    if running_var is not None:
        unbiased = var.data.mean(axis=0) * (count / (count - 1))
        move(running_var, unbiased, momentum)
    return y


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
