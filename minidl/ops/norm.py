"""Normalisation: values made to have mean 0 and variance 1 over some dimensions.

One operation, `Standardize`, serves batch, layer, group and instance norm, which
differ in the dimensions they take the mean over and in the shape of weight and bias.
"""

from math import prod

from minidl.array.device import array_module
from minidl.array.kernel import Kernel
from minidl.array.standardize import (
    rescale,
    rescale_gradient,
    standardize,
    standardize_gradient,
)
from minidl.autograd.function import Op
from minidl.autograd.mode import recording
from minidl.autograd.tensor import Tensor
from minidl.ops.arithmetic import pow
from minidl.ops.operands import cast
from minidl.ops.reduce import sum as sum_over

moved = Kernel(
    "moved",
    inputs="statistic",
    outputs="r",
    scalars="momentum scale",
    body="r = r * (1 - momentum) + momentum * (scale * statistic);",
)


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
        gx, gw, gb = standardize_gradient(
            g.data, x, w, mean, var, self.dims, self.eps, self.centred
        )
        gradients = gx, gw, g.data if w is None else gb  # which has w's shape
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


class Rescale(Op):
    """y = (x - mean) / sqrt(var + eps) w + b, where mean and var are constants."""

    def forward(self, x, w, b, mean, var, dims, eps):
        needed = [edge is not None for edge in self.edges]
        if any(needed):  # training may move them before backward
            mean, var = mean.copy(), var.copy()
        self.save_for_backward(x if any(needed[1:]) else None, w)
        self.constants = mean, var, dims, eps
        return rescale(x, w, b, *self.constants)

    def backward(self, g):
        x, w = self.saved_tensors
        mean, var, dims, eps = self.constants
        if recording.get():
            scale = Tensor(1 / array_module(var).sqrt(var + eps))
            gw = None if x is None else g * ((x - Tensor(mean)) * scale)
            scale = scale if w is None else scale * w
            return g * cast(scale, g.dtype), gw, g
        x, w = (s if s is None else s.data for s in (x, w))
        gradients = rescale_gradient(g.data, x, w, mean, var, dims, eps)
        return tuple([s if s is None else Tensor(s) for s in gradients])


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
    dims = (0, *range(2, input.ndim))
    if not training:
        mean, var = (r.data.reshape(shape) for r in (running_mean, running_var))
        return Rescale.apply(input, w, b, mean, var, dims, eps)
    y, mean, var = Standardize.apply(input, w, b, dims, eps, True)
    if running_mean is not None:
        move(running_mean, mean.data, momentum)
    if running_var is not None:
        move(running_var, var.data, momentum, count / (count - 1))
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


def move(running: Tensor, statistic, momentum: float, scale: float = 1.0) -> None:
    """running += momentum (scale statistic - running), in place"""
    r = running.data
    moved(statistic.reshape(r.shape), out=r, momentum=momentum, scale=scale)


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
        move(running_var, var.data.mean(axis=0), momentum, count / (count - 1))
    return y
