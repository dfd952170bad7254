"""Batch norm with the statistics of the global batch."""

import numpy as np

from minidl.array.device import array_module
from minidl.array.dtypes import wide_type
from minidl.array.standardize import (
    deviations,
    scale_and_shift,
    summed,
    uncentre,
)
from minidl.autograd.function import Op
from minidl.autograd.mode import recording
from minidl.autograd.tensor import Tensor
from minidl.distributed.communicator import Communicator
from minidl.distributed.launch import init
from minidl.nn import functional as F
from minidl.nn.batch_norm import BatchNorm
from minidl.nn.module import Module
from minidl.ops.norm import affine, move


def combined(counts, means, squares) -> tuple:
    """(n, mean, var) of the union of samples; one row of means and squares each.

    With n_i samples of mean m_i and sum of squared deviations s_i,
    n = sum n_i, m = sum n_i m_i / n, var = (sum s_i + sum n_i (m_i - m)^2) / n.
    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", 1979.
    """
    n = counts.sum()
    weights = (counts / max(n, 1))[:, None]
    mean = (weights * means).sum(0)
    var = squares.sum(0) / max(n, 1) + (weights * (means - mean) ** 2).sum(0)
    return int(n), mean, var


def statistics(x, communicator: Communicator) -> tuple:
    """Values a channel, and their mean and variance, over all ranks."""
    xp, wide = array_module(x), wide_type(x.dtype)
    channels, count = x.shape[1], x.size // max(x.shape[1], 1)
    mean = over_channels(x.astype(wide, copy=False)) / max(count, 1)
    d = deviations(x, mean, wide, True)
    own = xp.empty(1 + 2 * channels, np.float64)
    own[0] = count
    own[1 : 1 + channels] = mean.reshape(-1)
    own[1 + channels :] = over_channels(d, d).reshape(-1)
    rows = xp.empty((communicator.size, own.size), np.float64)
    communicator.all_gather(rows, own)
    means, squares = rows[:, 1 : 1 + channels], rows[:, 1 + channels :]
    n, mean, var = combined(rows[:, 0], means, squares)
    shape = (1, channels, *[1] * (x.ndim - 2))
    return n, mean.astype(wide).reshape(shape), var.astype(wide).reshape(shape)


def over_channels(a, b=None):
    """The sums of a, or of a b, over each channel of (N, C, *)."""
    dims = (0, *range(2, a.ndim))
    if a.size:
        return summed(a, b, dims)
    return array_module(a).zeros((1, a.shape[1], *[1] * (a.ndim - 2)), a.dtype)


class SyncStandardize(Op):
    """y = (x - mean) / sqrt(var + eps) w + b, with mean and var of n values, of all
    ranks' x.

    With xhat = (x - mean) / sqrt(var + eps), h = g w and means over all ranks,
    gx = (h - mean(h) - xhat mean(h xhat)) / sqrt(var + eps); gw = sum(g xhat) and
    gb = sum(g) are this rank's, to be added up with its other gradients.
    """

    def forward(self, x, w, b, n, mean, var, eps, communicator):
        xp, wide = array_module(x), wide_type(x.dtype)
        self.n, self.communicator = n, communicator
        scale = 1 / xp.sqrt(var + eps)
        self.save_for_backward(x, w, mean, scale)
        y = xp.empty(x.shape, x.dtype)
        w = xp.ones_like(mean) if w is None else w
        b = xp.zeros_like(mean) if b is None else b
        scale_and_shift(deviations(x, mean, wide, True), scale, w, b, out=y)
        return y

    def backward(self, g):
        if recording.get():
            raise RuntimeError(
                "SyncBatchNorm has no second derivative: use BatchNorm where gradients "
                "are differentiated (create_graph=True)"
            )
        x, w, mean, scale = (s if s is None else s.data for s in self.saved_tensors)
        g = g.data.astype(mean.dtype, copy=False)
        d = deviations(x, mean, mean.dtype, True)
        gb, gw = over_channels(g), over_channels(g, d) * scale
        gradients = [None, None if w is None else gw, gb]
        if self.needs_input_grad[0]:
            last = scale if w is None else scale * w
            gradients[0] = self.gradient(g, d, gb, gw * scale, last)
        return tuple(
            Tensor(gradient) if need else None
            for gradient, need in zip(gradients, self.needs_input_grad[:3], strict=True)
        )

    def gradient(self, g, d, *sums_and_scale):
        """(g - sum(g) / n - d sum(g d) scale^2 / n) scale w, in the place of d."""
        *sums, last = sums_and_scale
        xp, shape = array_module(g), last.shape
        sums = xp.stack([s.reshape(-1) for s in sums]).astype(np.float64)
        self.communicator.all_reduce(sums)
        offset, along = (
            s.astype(g.dtype).reshape(shape) for s in sums / max(self.n, 1)
        )
        uncentre(g, d, xp.ones_like(last), offset, along, last, out=d)
        return d


class SyncBatchNorm(BatchNorm):
    """Batch norm of (N, C, *), in training by the statistics of the global batch.

    Equal to BatchNorm on one rank with the batches of all, whose sizes may differ and
    be 0. `communicator` (PyTorch: process_group) is that of `init()` unless given.
    Every rank must run forward and backward through the same layers in the same
    order. Raises ValueError, on all ranks, for a global batch of 1 value a channel.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        communicator: Communicator | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype
        )
        self.communicator = communicator

    def check(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"SyncBatchNorm: expected an input of shape (N, {self.num_features}, "
                f"*), got {tuple(input.shape)}"
            )

    def batch_norm(
        self, input, running_mean, running_var, weight, bias, training, momentum, eps
    ) -> Tensor:
        communicator = self.communicator or init()
        if communicator.size == 1 or not training:
            return F.batch_norm(
                *(input, running_mean, running_var, weight, bias),
                *(training, momentum, eps),
            )
        n, mean, var = statistics(input.data, communicator)
        if n == 1:
            raise ValueError(
                "SyncBatchNorm: training needs more than 1 value for each channel, and "
                f"the ranks have 1 in all; that of rank {communicator.rank} is of "
                f"shape {tuple(input.shape)}"
            )
        if n and running_mean is not None:
            move(running_mean, mean, momentum)
            move(running_var, var * (n / (n - 1)), momentum)
        w, b = affine(weight, bias, mean.shape)
        return SyncStandardize.apply(input, w, b, n, mean, var, eps, communicator)

    @classmethod
    def convert(
        cls, module: Module, communicator: Communicator | None = None
    ) -> Module:
        """The module, with every batch norm in it replaced by a SyncBatchNorm.

        Parameters and running statistics are the same objects. A module that is a
        batch norm itself is replaced in what is returned.
        """
        made: dict = {}
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BatchNorm) and not isinstance(child, cls):
                    if id(child) not in made:
                        made[id(child)] = cls.of(child, communicator)
                    setattr(parent, name, made[id(child)])
        if isinstance(module, BatchNorm) and not isinstance(module, cls):
            return cls.of(module, communicator)
        return module

    convert_sync_batchnorm = convert  # PyTorch's name

    @classmethod
    def of(cls, layer: BatchNorm, communicator) -> "SyncBatchNorm":
        """A synchronised layer with the parameters and statistics of another."""
        layer_settings = layer.num_features, layer.eps, layer.momentum, layer.affine
        made = cls(*layer_settings, layer.track_running_stats, communicator)
        for table in ("_parameters", "_buffers"):
            made.__dict__[table].update(layer.__dict__[table])
        return made.train(layer.training)
