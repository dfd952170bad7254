"""Batch norm and instance norm: layers with running statistics."""

import numpy

from minidl.array.random import empty
from minidl.autograd.tensor import Tensor
from minidl.nn import functional as F
from minidl.nn import init
from minidl.nn.module import Module
from minidl.nn.norm import register_affine, reset_affine


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
        return self.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            momentum or 0.0,
            self.eps,
        )

    def batch_norm(self, *arguments):
        return F.batch_norm(*arguments)


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
