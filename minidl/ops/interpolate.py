"""Interpolation: images of another size, one linear map a dimension.

The centre of output i of m lies at (i + 1/2) n / m - 1/2 among n inputs, or, with
align_corners, at i (n - 1) / (m - 1), where the outermost ones coincide.
"""

from functools import lru_cache
from operator import index

import numpy as np

from minidl.autograd.tensor import Tensor
from minidl.ops.adaptive import mean_table
from minidl.ops.resample import Table, resample


def step(n: int, m: int, scale: float | None, align: bool) -> float:
    """How far apart two outputs lie among the inputs."""
    if align:
        return (n - 1) / (m - 1) if m > 1 else 0.0
    return 1 / scale if scale else n / m


def centres(n: int, m: int, scale: float | None, align: bool):
    """Where the outputs lie among the inputs."""
    i, ratio = np.arange(m), step(n, m, scale, align)
    return i * ratio if align else (i + 0.5) * ratio - 0.5


@lru_cache(maxsize=256)
def nearest(n: int, m: int, scale: float | None, exact: bool) -> Table:
    """floor(i n / m), or with `exact` the input nearest to the centre; in single
    precision, as PyTorch does, so that ties fall to the same side."""
    ratio = np.float32(1 / scale) if scale else np.float32(n) / np.float32(m)
    i = np.arange(m, dtype=np.float32) + np.float32(0.5 if exact else 0)
    return Table(n, np.minimum((i * ratio).astype(np.int64), n - 1))


@lru_cache(maxsize=256)
def linear(n: int, m: int, scale: float | None, align: bool) -> Table:
    """Between the two inputs beside the centre."""
    x = np.clip(centres(n, m, scale, align), 0, n - 1)
    left = np.minimum(x.astype(np.int64), max(n - 2, 0))
    places = np.stack([left, np.minimum(left + 1, n - 1)])
    return Table(n, places, np.stack([1 - (x - left), x - left]))


def cubic_weight(distance, a: float):
    """Keys, "Cubic convolution interpolation for digital image processing", 1981, (8)
    (its a = -1/2 made a parameter)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@lru_cache(maxsize=256)
def cubic(n: int, m: int, scale: float | None, align: bool) -> Table:
    """Between the four inputs around the centre, the edge repeated."""
    x = centres(n, m, scale, align)
    places = np.floor(x).astype(np.int64) + np.arange(-1, 3)[:, None]
    return Table(n, np.clip(places, 0, n - 1), cubic_weight(x - places, -0.75))


@lru_cache(maxsize=256)
def smoothed(n: int, m: int, scale: float | None, align: bool, mode: str) -> Table:
    """With antialias: the filter as wide as the step, where that is more than 1."""
    ratio = step(n, m, scale, align)
    wide = max(ratio, 1.0)
    reach = (2 if mode == "bicubic" else 1) * wide
    centre = (np.arange(m)[:, None] + 0.5) * ratio
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + reach + 0.5).astype(np.int64), n)
    j = np.arange(n)
    distance = (j + 0.5 - centre) / wide
    if mode == "bicubic":
        weight = cubic_weight(distance, -0.5)
    else:
        weight = np.maximum(1 - np.abs(distance), 0)
    weight = np.where((j >= first) & (j < stop), weight, 0)
    return Table.of_matrix(weight / weight.sum(1, keepdims=True))


# spatial dimensions that each mode takes, and its table for (n, m, scale, align)
MODES = {
    "nearest": ((1, 2, 3), lambda n, m, scale, align: nearest(n, m, scale, False)),
    "nearest-exact": ((1, 2, 3), lambda n, m, scale, align: nearest(n, m, scale, True)),
    "area": ((1, 2, 3), lambda n, m, scale, align: mean_table(n, m)),
    "linear": ((1,), linear),
    "bilinear": ((2,), linear),
    "bicubic": ((2,), cubic),
    "trilinear": ((3,), linear),
}
ALIGNED = ("linear", "bilinear", "bicubic", "trilinear")
SMOOTHED = ("bilinear", "bicubic")


def interpolate(
    input: Tensor,
    size=None,
    scale_factor=None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """(N, C, *size) at another size, given as such or as a factor, for each dimension.

    Modes: nearest, nearest-exact and area for 1 to 3 spatial dimensions, linear,
    bilinear, bicubic, trilinear for theirs. A scale factor serves to find the output's
    size, and the places of its elements unless recompute_scale_factor is set. Raises
    ValueError for arguments that exclude each other, NotImplementedError for a mode
    that does not take so many dimensions.
    """
    check_options(mode, align_corners, antialias)
    n, inputs = input.ndim - 2, input.shape[2:]
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate needs either size or scale_factor, and not both")
    scales = (None,) * n
    if size is not None:
        if recompute_scale_factor:
            raise ValueError("recompute_scale_factor needs a scale_factor, not a size")
        outputs = tuple(map(index, each_dimension(size, n, "size")))
    else:
        factors = each_dimension(scale_factor, n, "scale_factor")
        outputs = tuple(int(k * float(f)) for k, f in zip(inputs, factors, strict=True))
        if not recompute_scale_factor:
            scales = tuple(map(float, factors))
    check_input(input, mode)
    if 0 in input.shape[1:] or min(outputs) < 1:
        raise RuntimeError(
            f"interpolate: sizes must be positive, got an input of shape "
            f"{tuple(input.shape)} and the output size {outputs}"
        )
    table, align = MODES[mode][1], bool(align_corners)
    if antialias:
        table = lambda *arguments: smoothed(*arguments, mode)  # noqa: E731
    sizes = zip(inputs, outputs, scales, strict=True)
    return resample(input, [table(*numbers, align) for numbers in sizes])


def check_options(mode: str, align_corners, antialias: bool) -> None:
    if mode not in MODES:
        raise NotImplementedError(
            f"unknown mode {mode!r} of interpolate: expected one of {', '.join(MODES)}"
        )
    if align_corners is not None and mode not in ALIGNED:
        raise ValueError(f"align_corners means nothing for mode {mode!r}")
    if antialias and mode not in SMOOTHED:
        raise ValueError(f"antialias is for bilinear and bicubic, not for {mode!r}")


def check_input(input: Tensor, mode: str) -> None:
    if input.ndim - 2 not in MODES[mode][0]:
        raise NotImplementedError(
            f"mode {mode!r} takes {' or '.join(map(str, MODES[mode][0]))} spatial "
            f"dimensions after (N, C), got shape {tuple(input.shape)}"
        )
    if not mode.startswith("nearest") and not input.is_floating_point():
        raise NotImplementedError(
            f"mode {mode!r} needs floating point, got {input.dtype}: cast it, or use "
            "mode 'nearest'"
        )


def each_dimension(value, n: int, name: str) -> tuple:
    """One number for each of n dimensions; a single one serves for all."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * n
    if len(values) != n:
        raise ValueError(f"{name} must be a number or {n} of them, got {value!r}")
    return values
