"""What explains that N ranks do not train as one: (cause, why), or None.

With s_r the sum that rank r's own samples contribute and c_r its number of terms, the
gradient after the exchange should be

    truth = (s_1 + ... + s_N) / (c_1 + ... + c_N)

Each mistake leaves another number in its place, which is looked for.
"""

from collections import Counter

import numpy as np

from minidl.array.errors import listed
from minidl.distributed.differences import beyond, distances, multiple

SEED = "rank-dependent seed"
SHUFFLE = "different shuffling"
LAST_BATCH = "forgotten last batch"
UNEVEN = "uneven batch"
DIVISION = "missing division"
TWICE = "one division too many"
STALE = "stale gradients"
SKIPPED = "skipped bucket"
LOST_RANK = "forgotten rank"
BATCH_NORM = "batch norm"
COUPLED = "samples that depend on each other"
RANDOM = "random layers"
COMPRESSION = "compression"
ROUNDING = "rounding"
UPDATE = "changed weights"
UNKNOWN = "unknown"

# binary digits, the smallest number above 0, the largest; the coarsest first
PRECISIONS = {
    "bfloat16": (8, 2.0**-133, 2.0**128),
    "float16": (11, 2.0**-24, 65504.0),
}


def explain_samples(expected, everyone):
    """When the ranks together have other samples than the one rank."""
    ahead = [r for r, step in enumerate(everyone) if step.epoch > expected.epoch]
    behind = [r for r, step in enumerate(everyone) if step.epoch < expected.epoch]
    if ahead:
        return LAST_BATCH, (
            f"rank {listed(ahead)} starts epoch {expected.epoch + 1} while one rank "
            f"trains the last {len(expected.samples)} samples of epoch {expected.epoch}"
        )
    if behind:
        return SHUFFLE, f"rank {listed(behind)} has more batches an epoch than one rank"
    wanted = Counter(expected.samples)
    present = Counter(sample for step in everyone for sample in step.samples)
    lost, more = (wanted - present).total(), (present - wanted).total()
    of = f"{lost} of the {wanted.total()} samples of the global batch"
    if lost and more:
        return SHUFFLE, (
            f"{of} are on no rank, and {more} others are; shuffle with one seed on all "
            "ranks, and let each take its share of that order"
        )
    if lost:
        return LAST_BATCH, f"{of} are on no rank"
    if more:
        return UNEVEN, (
            f"{more} more than the {wanted.total()} samples of the global batch: "
            "shares are filled up with samples that then count twice"
        )
    return None


class Gradients:
    """The gradients of one step: what ranks have, and what they may have instead."""

    def __init__(self, everyone, before, tolerance):
        self.everyone, self.before, self.tolerance = everyone, before, tolerance
        names = list(everyone[0].gradients)
        self.total = sum(step.count for step in everyone)
        self.truth = {
            k: sum(step.own[k] for step in everyone) / self.total for k in names
        }
        found = distances(self.truth, [step.gradients for step in everyone])
        self.worst = max(d.size for d in found)
        self.wrong = [d.parameter for d in beyond(found, tolerance)]
        every = len(self.wrong) == len(names) > 1
        self.which = "every parameter" if every else listed(self.wrong)

    def explain(self):
        """The first cause that fits."""
        if not self.wrong:
            return self.coupled()
        reasons = (
            self.division,
            self.stale,
            self.skipped,
            self.lost_rank,
            self.compression,
            self.random,
            self.rounding,
        )
        for reason in reasons:
            if (found := reason()) is not None:
                return found
        return UNKNOWN, f"the gradient of {self.which} fits no cause that is known here"

    def factor(self, candidate: dict) -> float | None:
        """What every rank has in place of 1 times the candidate, if that is all."""
        factors = [
            multiple(step.gradients, candidate, self.wrong, self.tolerance)
            for step in self.everyone
        ]
        if None in factors or np.ptp(factors) > 1e-6 * abs(factors[0]):
            return None
        return factors[0]

    def coupled(self):
        """The exchange is right, and yet the shares do not make up the whole."""
        norms = self.everyone[0].norms
        if norms:
            return BATCH_NORM, (
                f"layer {listed(norms)} takes its statistics from a rank's own share "
                "of the batch; convert the model to synchronised batch norm"
            )
        return COUPLED, (
            "the exchange is right, but the loss is no mean over samples that do not "
            "know of each other"
        )

    def division(self):
        ranks = len(self.everyone)
        busy = [step for step in self.everyone if step.count]
        means = {k: sum(step.mean[k] for step in busy) for k in self.truth}
        k = self.factor(means)
        if k is not None and np.isclose(k, 1):
            return DIVISION, (
                f"the gradient of {self.which} is the sum of the ranks' means, not "
                f"divided by the {ranks} ranks"
            )
        if k is not None and np.isclose(k * ranks, 1):
            counts = listed([f"{step.count:.0f}" for step in self.everyone])
            return UNEVEN, (
                f"the gradient of {self.which} is the mean of the ranks' means, which "
                f"are over {counts} terms; weight them by these"
            )
        k = self.factor(self.truth)
        if k is None or np.isclose(k, 1):
            return None
        return (DIVISION if abs(k) > 1 else TWICE), (
            f"the gradient of {self.which} is {k:.6g} times that of the global batch, "
            f"of {self.total:.0f} terms on {ranks} ranks"
        )

    def stale(self):
        last = self.before.gradients
        if last and self.factor(last) is not None:
            return STALE, f"the gradient of {self.which} is that of the step before"

    def skipped(self):
        got = [step.gradients[k] for step in self.everyone for k in self.wrong]
        if not any(gradient.any() for gradient in got):
            return SKIPPED, f"the gradient of {self.which} is zero on every rank"
        busy = [s for s in self.everyone if any(s.own[k].any() for k in self.wrong)]
        for own in ([step.own for step in busy], [step.mean for step in busy]):
            factors = [
                multiple(step.gradients, its, self.wrong, self.tolerance)
                for step, its in zip(busy, own, strict=True)
            ]
            if factors and None not in factors:
                return SKIPPED, (
                    f"each rank has its own gradient of {self.which}: it is not "
                    "exchanged"
                )

    def lost_rank(self):
        for rank, step in enumerate(self.everyone):
            others = {k: g - step.own[k] / self.total for k, g in self.truth.items()}
            if self.factor(others) is not None:
                return LOST_RANK, (
                    f"the gradient of {self.which} lacks the part of rank {rank}"
                )

    def compression(self):
        for name, precision in PRECISIONS.items():
            if all(
                self.rounded(k, step.gradients[k] * self.total, *precision)
                for step in self.everyone
                for k in self.truth
            ):
                return COMPRESSION, (
                    f"gradients are sent in {name}, and differ by its "
                    f"{'rounding' if np.isfinite(self.worst) else 'overflow'} alone; "
                    "verify without compression, or with a larger tolerance"
                )

    def rounded(self, k, sent, digits, smallest, largest) -> bool:
        """Whether this is the truth, times the count, but for what half precision does.

        Each rank's part is rounded to so many binary digits, and so is their sum.
        """
        parts = sum(np.abs(step.own[k]) for step in self.everyone)
        bound = len(self.everyone) * (2.0 ** (1 - digits) * parts + smallest)
        near = np.abs(sent - self.total * self.truth[k]) <= bound
        overflown = ~np.isfinite(sent) & (parts > largest)
        mantissa = np.frexp(np.where(overflown, 0, sent))[0] * 2**digits
        few = np.abs(mantissa - np.rint(mantissa)) < 1e-9
        return bool((few & (near | overflown)).all())

    def random(self):
        if not all(step.repeatable for step in self.everyone):
            return RANDOM, (
                "the same samples give another gradient each time: layers such as "
                "dropout draw differently on each rank; verify without them"
            )

    def rounding(self):
        if self.worst < 1e-2:
            return ROUNDING, (
                f"the gradient of {self.which} is right within {self.worst:.1e}; if it "
                "is computed in a lower precision, verify with a larger tolerance"
            )
