"""Normalisation layers, and their weights and running statistics."""

import numpy

from minidl.array.random import empty
from minidl.autograd.tensor import Tensor
from minidl.nn import functional as F
from minidl.nn import init
from minidl.nn.applied import REQUIRED, Applied
from minidl.nn.module import Module
from minidl.nn.parameter import Parameter


def register_affine(layer: Module, shape, weight, bias, device, dtype) -> None:
    """Register `weight`, ones, and `bias`, zeros, of this shape, or None for them."""
    for name, wanted in (("weight", weight), ("bias", bias)):
        p = Parameter(empty(shape, dtype or "float32", device)) if wanted else None
        layer.register_parameter(name, p)
    reset_affine(layer)


def reset_affine(layer: Module) -> None:
    if layer.weight is not None:
        init.ones_(layer.weight)
    if getattr(layer, "bias", None) is not None:
        init.zeros_(layer.bias)


class RunningNorm(Module):
    """What batch norm and instance norm share: weights and running statistics."""

    dims: tuple[int, ...]  # allowed numbers of dimensions of the input

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        track_running_stats=True,
        device=None,
        dtype=None,
        *,
        bias=True,
    ):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        shape = (num_features,)
        register_affine(self, shape, affine, affine and bias, device, dtype)
        names = "running_mean", "running_var", "num_batches_tracked"
        for name in names:
            self.register_buffer(name, None)
        if track_running_stats:
            for name in names[:2]:
                self._buffers[name] = Tensor(empty(shape, dtype or "float32", device))
            self.num_batches_tracked = Tensor(empty((), numpy.int64, device))
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Forget the batches seen: mean 0, variance 1."""
        if self.track_running_stats:
            init.zeros_(self.running_mean)
            init.ones_(self.running_var)
            init.zeros_(self.num_batches_tracked)

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        reset_affine(self)

    def check(self, input) -> None:
        if input.ndim not in self.dims:
            raise ValueError(
                f"{type(self).__name__}: expected an input of "
                f"{' or '.join(map(str, self.dims))} dimensions, got {input.ndim}"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm(RunningNorm):
    """Batch norm: by the batch's statistics in training, the running ones otherwise.

    With momentum None the running statistics are the mean over all batches.
    """

    def forward(self, input):
        self.check(input)
        momentum = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.data[...] += 1
            if momentum is None:
                momentum = 1 / self.num_batches_tracked.item()
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            momentum or 0.0,
            self.eps,
        )


class BatchNorm1d(BatchNorm):
    """Batch norm of (N, C) or (N, C, L)."""

    dims = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch norm of (N, C, H, W)."""

    dims = (4,)


class BatchNorm3d(BatchNorm):
    """Batch norm of (N, C, D, H, W)."""

    dims = (5,)


class InstanceNorm(RunningNorm):
    """Instance norm: by the statistics of each sample, or the running ones."""

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=False,
        track_running_stats=False,
        device=None,
        dtype=None,
        *,
        bias=True,
    ):
        super().__init__(
            *(num_features, eps, momentum, affine, track_running_stats, device, dtype),
            bias=bias,
        )

    def forward(self, input):
        self.check(input)
        batched = input.ndim == self.dims[1]
        x = input if batched else input.unsqueeze(0)
        y = F.instance_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum or 0.0,
            self.eps,
        )
        return y if batched else y.squeeze(0)


class InstanceNorm1d(InstanceNorm):
    """Instance norm of (N, C, L) or (C, L)."""

    dims = (2, 3)


class InstanceNorm2d(InstanceNorm):
    """Instance norm of (N, C, H, W) or (C, H, W)."""

    dims = (3, 4)


class InstanceNorm3d(InstanceNorm):
    """Instance norm of (N, C, D, H, W) or (C, D, H, W)."""

    dims = (4, 5)


class GroupNorm(Module):
    """Group norm of (N, num_channels, *)."""

    def __init__(
        self,
        num_groups,
        num_channels,
        eps=1e-5,
        affine=True,
        device=None,
        dtype=None,
        *,
        bias=True,
    ):
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(
                f"num_groups={num_groups} must divide num_channels={num_channels}"
            )
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = eps, affine
        shape = (num_channels,)
        register_affine(self, shape, affine, affine and bias, device, dtype)

    reset_parameters = reset_affine

    def forward(self, input):
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, "
            f"affine={self.affine}, bias={self.bias is not None}"
        )


class LayerNorm(Module):
    """Layer norm over the last dimensions, of normalized_shape."""

    def __init__(
        self,
        normalized_shape,
        eps=1e-5,
        elementwise_affine=True,
        bias=True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.normalized_shape = shape_of(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        wanted = elementwise_affine, elementwise_affine and bias
        register_affine(self, self.normalized_shape, *wanted, device, dtype)

    reset_parameters = reset_affine

    def forward(self, input):
        return F.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps
        )

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """Division by the root mean square over the last dimensions."""

    def __init__(
        self,
        normalized_shape,
        eps=None,
        elementwise_affine=True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.normalized_shape = shape_of(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        weight = None
        if elementwise_affine:
            weight = Parameter(empty(self.normalized_shape, dtype or "float32", device))
        self.register_parameter("weight", weight)
        self.reset_parameters()

    reset_parameters = reset_affine

    def forward(self, input):
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}"
        )


def shape_of(normalized_shape) -> tuple[int, ...]:
    """A shape given as an int or a sequence of them."""
    if isinstance(normalized_shape, int):
        return (normalized_shape,)
    return tuple(normalized_shape)


class LocalResponseNorm(
    Applied,
    function=F.local_response_norm,
    size=REQUIRED,
    alpha=1e-4,
    beta=0.75,
    k=1.0,
):
    """x / (k + alpha / size * sum of x^2 over neighbouring channels)^beta"""

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
