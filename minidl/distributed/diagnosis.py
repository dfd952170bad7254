"""Where N ranks part from one: the first step, parameter and rank, and why."""

from typing import NamedTuple

import numpy as np

from minidl.array.errors import DistributedError
from minidl.distributed import causes
from minidl.distributed.differences import Difference, beyond, distances


class Finding(NamedTuple):
    """The first parameter and step that differ, and what explains it."""

    cause: str
    why: str
    step: int  # from 1; 0 is before the first
    parameter: str | None  # None where samples differ and no gradient does
    quantity: str  # "weight" or "gradient"
    rank: int
    difference: float  # relative

    def __str__(self) -> str:
        when = f"in step {self.step}" if self.step else "before the first step"
        what = "no parameter yet"
        if self.parameter is not None:
            what = f"the {self.quantity} of {self.parameter} on rank {self.rank}"
        return (
            f"first difference: {when}, {what} (relative {self.difference:.2g})\n"
            f"likely cause: {self.cause}: {self.why}"
        )


def diagnose(expected, everyone, before, tolerance) -> tuple[float, Finding | None]:
    """(the largest difference, what is found) in the Steps of one rank and of all.

    `before` is the one rank's Step before this one, None at step 0.
    """
    if before is None:
        return diagnose_start(expected, everyone, tolerance)
    if not all(np.isfinite(g).all() for g in expected.gradients.values()):
        raise DistributedError(
            f"the gradient of one rank is no number in step {expected.number}: verify "
            "with a smaller lr"
        )
    gradients = distances(expected.gradients, [step.gradients for step in everyone])
    weights = distances(expected.weights, [step.weights for step in everyone])
    quantity, differing = "gradient", beyond(gradients, tolerance)
    if not differing:
        quantity, differing = "weight", beyond(weights, tolerance)

    reason = causes.explain_samples(expected, everyone)
    if reason is None and not differing:
        return max(d.size for d in gradients + weights), None
    if reason is None and quantity == "gradient":
        reason = causes.Gradients(everyone, before, tolerance).explain()
    elif reason is None:
        why = "the gradients agree, so that something else changes weights"
        reason = causes.UPDATE, why
    first = differing[0] if differing else Difference(None, 0, 0.0)
    name, rank, size = first
    return size, Finding(*reason, expected.number, name, quantity, rank, size)


def diagnose_start(expected, everyone, tolerance):
    """Every rank starts from the weights of the one rank."""
    shapes = [{k: w.shape for k, w in s.weights.items()} for s in [expected, *everyone]]
    others = [rank for rank, its in enumerate(shapes[1:]) if its != shapes[0]]
    if others:
        raise DistributedError(
            f"make_model() builds another model on rank {others[0]} than on one rank: "
            f"{shapes[1:][others[0]]}, not {shapes[0]}"
        )
    found = distances(expected.weights, [step.weights for step in everyone])
    differing = beyond(found, tolerance)
    if not differing:
        return max(d.size for d in found), None
    name, rank, size = differing[0]
    apart = beyond(distances(everyone[0].weights, [s.weights for s in everyone]), 0.0)
    why = (
        "ranks draw different initial weights; seed alike on all ranks"
        if apart
        else "the initial weights depend on the number of ranks"
    )
    return size, Finding(causes.SEED, why, 0, name, "weight", rank, size)
