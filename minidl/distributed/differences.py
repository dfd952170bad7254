"""How far arrays are from what they should be, and whether one is another's multiple.

Gradients and weights are dicts of NumPy arrays by parameter name.
"""

from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """How far a parameter of a rank is from what it should be."""

    parameter: str | None
    rank: int
    size: float


def distances(expected: dict, everyone: list[dict]) -> list[Difference]:
    """By parameter the rank that is farthest off, relative to the largest element.

    The elements of a parameter count as no less than a thousandth of the model's
    largest: what is zero but for rounding has no size of its own.
    """
    sizes = {name: np.abs(array).max(initial=0) for name, array in expected.items()}
    floor = 1e-3 * max(sizes.values(), default=0)
    found = []
    for name, array in expected.items():
        scale = max(sizes[name], floor) or 1.0
        errors = [np.abs(own[name] - array).max(initial=0) / scale for own in everyone]
        rank = int(np.argmax(errors))  # the first NaN, if there is one
        found.append(Difference(name, rank, float(errors[rank])))
    return found


def beyond(found: list[Difference], tolerance: float) -> list[Difference]:
    """Those that are larger, NaN included."""
    return [d for d in found if not d.size <= tolerance]


def multiple(
    got: dict, candidate: dict, names: list[str], tolerance: float
) -> float | None:
    """k with got = k candidate in these parameters; None if there is no such k."""
    g, c = (np.concatenate([d[k].ravel() for k in names]) for d in (got, candidate))
    if not c.any() or not g.any():
        return None
    k = float(g @ c / (c @ c))
    error = np.abs(g - k * c).max()
    return k if error <= 100 * tolerance * np.abs(g).max() else None
