"""Padding: more, or less, at both ends of the last dimensions."""

from functools import lru_cache

import numpy as np

from minidl.array.device import array_module
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.resample import Table, resample


class PadConstant(Op):
    """`value` around x, (before, after) for each dimension; negative numbers cut."""

    def forward(self, x, sides, value):
        self.sides = sides
        shape = [n + a + b for n, (a, b) in zip(x.shape, sides, strict=True)]
        sources, targets = [], []
        for n, m, (a, b) in zip(x.shape, shape, sides, strict=True):
            sources.append(slice(max(-a, 0), n - max(-b, 0)))
            targets.append(slice(max(a, 0), m - max(b, 0)))
        y = array_module(x).full(shape, value, x.dtype)
        y[tuple(targets)] = x[tuple(sources)]
        return y

    def backward(self, g):
        return PadConstant.apply(g, [(-a, -b) for a, b in self.sides], 0)


@lru_cache(maxsize=256)
def edge_table(mode: str, n: int, before: int, after: int) -> Table:
    """Which element of n stands at each place of the padded dimension."""
    place = np.arange(-before, n + after)
    if mode == "circular":  # of what cutting has left
        start, stop = max(-before, 0), n - max(-after, 0)
        return Table(n, start + (place - start) % (stop - start))
    if mode == "reflect":
        place = np.abs(place)
        return Table(n, n - 1 - np.abs(n - 1 - place))
    return Table(n, np.clip(place, 0, n - 1))


# the least size of a dimension, for padding of a before and b after it
LEAST_SIZE = {
    "reflect": lambda a, b: max(a, b) + 1,
    "circular": lambda a, b: max(a, b, 1 - a, 1 - b),
    "replicate": lambda a, b: 1,
}


def pad(input: Tensor, pad, mode: str = "constant", value: float | None = None):
    """The input with `pad` = (before, after) of the last dimension, then of the one
    before it, and so on; negative numbers cut off.

    mode: "constant" (filled with `value`, 0 by default), or, for inputs of 1 to 3
    spatial dimensions (N, C, *size) or (C, *size), "reflect" without the edge
    repeated, "replicate" or "circular". RuntimeError where the sizes do not allow it.
    """
    if mode != "constant" and mode not in LEAST_SIZE:
        raise NotImplementedError(
            f"unknown padding mode {mode!r}: expected 'constant', 'reflect', "
            "'replicate' or 'circular'"
        )
    pad, ndim = [int(p) for p in pad], input.ndim
    if len(pad) % 2 or len(pad) > 2 * ndim:
        raise RuntimeError(
            f"pad needs two numbers for each of at most {ndim} dimensions, got {pad}"
        )
    sides = list(zip(pad[-2::-2], pad[::-2], strict=True))
    sides = [(0, 0)] * (ndim - len(sides)) + sides
    if mode == "constant":
        check_cuts(input, pad, sides)
        return PadConstant.apply(input, sides, 0 if value is None else value)
    if value not in (None, 0):
        raise RuntimeError(f"padding mode {mode!r} takes no value")
    spatial = len(pad) // 2
    if not 1 <= spatial <= 3 or ndim not in (spatial + 1, spatial + 2):
        raise NotImplementedError(
            f"padding mode {mode!r} pads all of 1 to 3 spatial dimensions of "
            f"(N, C, *size) or (C, *size), got pad {pad} for shape {input.shape}"
        )
    sides = sides[-spatial:]
    for n, ends in zip(input.shape[-spatial:], sides, strict=True):
        least = max(1, LEAST_SIZE[mode](*ends))
        if n < least or n + sum(ends) < 1:
            raise RuntimeError(
                f"padding mode {mode!r} with pad {pad} needs at least {least} elements "
                f"in each dimension it pads, got shape {tuple(input.shape)}"
            )
    sizes = input.shape[-spatial:]
    return resample(
        input,
        [edge_table(mode, n, *ends) for n, ends in zip(sizes, sides, strict=True)],
    )


def check_cuts(input: Tensor, pad, sides) -> None:
    for n, (before, after) in zip(input.shape, sides, strict=True):
        if n + before + after < 0 or -min(before, after) > n:
            raise RuntimeError(
                f"pad {pad} cuts more off the input of shape {tuple(input.shape)} "
                "than there is"
            )
