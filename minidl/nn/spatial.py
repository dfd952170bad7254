"""Layers without weights over the spatial dimensions: pooling and changes of size."""

from minidl.nn import functional as F
from minidl.nn.applied import REQUIRED, Applied
from minidl.ops.shape import flatten

MAX_POOL = {
    "kernel_size": REQUIRED,
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "return_indices": False,
    "ceil_mode": False,
}
AVG_POOL = {
    "kernel_size": REQUIRED,
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
}


class MaxPool1d(Applied, function=F.max_pool1d, **MAX_POOL):
    """The largest of each window of (N, C, L)."""


class MaxPool2d(Applied, function=F.max_pool2d, **MAX_POOL):
    """The largest of each window of (N, C, H, W)."""


class MaxPool3d(Applied, function=F.max_pool3d, **MAX_POOL):
    """The largest of each window of (N, C, D, H, W)."""


class AvgPool1d(Applied, function=F.avg_pool1d, **AVG_POOL):
    """The mean of each window of (N, C, L)."""


class AvgPool2d(Applied, function=F.avg_pool2d, **AVG_POOL, divisor_override=None):
    """The mean of each window of (N, C, H, W)."""


class AvgPool3d(Applied, function=F.avg_pool3d, **AVG_POOL, divisor_override=None):
    """The mean of each window of (N, C, D, H, W)."""


class AdaptiveAvgPool1d(Applied, function=F.adaptive_avg_pool1d, output_size=REQUIRED):
    """The means of output_size windows of (N, C, L)."""


class AdaptiveAvgPool2d(Applied, function=F.adaptive_avg_pool2d, output_size=REQUIRED):
    """The means of windows of (N, C, H, W), output_size of them."""


class AdaptiveMaxPool2d(
    Applied,
    function=F.adaptive_max_pool2d,
    output_size=REQUIRED,
    return_indices=False,
):
    """The largest of each window of (N, C, H, W), output_size of them."""


class Upsample(
    Applied,
    function=F.interpolate,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
):
    """(N, C, *size) at another size."""


class PixelShuffle(Applied, function=F.pixel_shuffle, upscale_factor=REQUIRED):
    """(*, C r^2, H, W) -> (*, C, H r, W r)"""


class PixelUnshuffle(Applied, function=F.pixel_unshuffle, downscale_factor=REQUIRED):
    """(*, C, H r, W r) -> (*, C r^2, H, W)"""


class Unfold(
    Applied, function=F.unfold, kernel_size=REQUIRED, dilation=1, padding=0, stride=1
):
    """The windows of (N, C, H, W) as columns."""


class Fold(
    Applied,
    function=F.fold,
    output_size=REQUIRED,
    kernel_size=REQUIRED,
    dilation=1,
    padding=0,
    stride=1,
):
    """Columns added up to images (N, C, H, W)."""


class Flatten(Applied, function=flatten, start_dim=1, end_dim=-1):
    """The dimensions from start_dim to end_dim made one."""
