"""Images on a GPU as they lie in memory: channels first, or last."""

from .cuda_source import contiguous, empty
from .device import Array


def in_memory(x: Array) -> tuple[Array, bool]:
    """x of (N, C, *), or a view (N, *, C) where that is how it lies in memory.

    And which of the two. Contiguous: a copy where x lies in neither way.
    """
    if x.ndim > 2 and not x.flags.c_contiguous:
        last = x.transpose(_to_last(x))
        if last.flags.c_contiguous:
            return last, True
    return contiguous(x), False


def like_that(x: Array, last: bool, dtype=None) -> Array:
    """x of (N, C, *) so that it lies in that way, a copy where it does not."""
    return contiguous(x.transpose(_to_last(x)) if last else x, dtype)


def made(shape, dtype, last: bool) -> Array:
    """An array for (N, C, *) that lies in that way."""
    return empty((shape[0], *shape[2:], shape[1]) if last else shape, dtype)


def usual(x: Array, last: bool) -> Array:
    """The view (N, C, *)."""
    return x.transpose(0, -1, *range(1, x.ndim - 1)) if last else x


def _to_last(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim), 1)
