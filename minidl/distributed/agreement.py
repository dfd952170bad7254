"""Whether N ranks train as one: the same training on both, compared step by step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from minidl.distributed.communicator import Alone, Communicator
from minidl.distributed.data_parallel import DataParallel
from minidl.distributed.diagnosis import Finding, diagnose
from minidl.distributed.faults import planted
from minidl.distributed.launch import init
from minidl.distributed.simulated import Simulated
from minidl.distributed.trial import Trial, alone, once, walk
from minidl.nn.module import Module


@dataclass(frozen=True)
class Report:
    """What came of `verify`; print it."""

    ranks: int
    steps: int  # that were trained
    difference: float  # relative: the largest, or that of the finding
    finding: Finding | None = None

    @property
    def agrees(self) -> bool:
        return self.finding is None

    @property
    def cause(self) -> str | None:
        return self.finding.cause if self.finding else None

    def __str__(self) -> str:
        if self.agrees:
            return (
                f"{self.ranks} ranks train as one: over {self.steps} steps, gradients "
                f"and weights are the same within {self.difference:.1e} (relative)"
            )
        return f"{self.ranks} ranks do not train as one\n{self.finding}"


@np.errstate(all="ignore")  # what is no number is told, below
def compare(communicator: Communicator, trial: Trial) -> Report:
    """Walk on all ranks, and on rank 0 alone beside it, until they part."""
    lead = communicator.rank == 0
    if trial.steps is None:
        length = sum(1 for _ in once(trial.loader(Alone()))) if lead else 0
        trial = replace(trial, steps=communicator.broadcast_object(length) + 2)
    reference = alone(trial) if lead else repeat(None)
    before, worst = None, 0.0
    for step in walk(trial, communicator, trial.make_exchange):
        expected = next(reference)
        everyone = communicator.all_gather_object(step)
        verdict = None
        if lead:
            verdict = diagnose(expected, everyone, before, trial.tolerance)
        difference, finding = communicator.broadcast_object(verdict)
        if finding is not None:
            return Report(communicator.size, step.number, difference, finding)
        before, worst = expected, max(worst, difference)
    return Report(communicator.size, trial.steps, worst)


def verify(
    make_model: Callable[[], Module],
    loss_fn: Callable,
    dataset,
    batch_size: int,
    steps: int | None = None,
    ranks: int | None = None,
    *,
    lr: float = 0.01,
    seed: int = 0,
    make_exchange: Callable = DataParallel,
    make_loader: Callable | None = None,
    tolerance: float = 1e-8,
    plant: str | None = None,
) -> Report:
    """Train on one rank and on several, and tell where they part and why.

    `make_model()` is called after md.manual_seed(seed); its model is trained in
    float64 by plain gradient descent on `loss_fn(model(inputs), labels)`, a mean.
    `dataset` is (inputs, labels), or has `images` and `labels`. `batch_size` is that
    of all ranks together; `steps` is one epoch and two more unless given. Ranks are
    those of mpirun or of `init()` where there are several, otherwise `ranks` (2)
    simulated ones. What is tested is minidl's, or your own:

    `make_exchange(model, communicator)` has `backward(loss)` and is called like the
    model; after it, gradients should be those of the mean over the global batch.
    `make_loader(communicator)` is passed over once an epoch and gives that rank's
    (inputs, labels) of each batch; on one rank it gives the whole batch.

    `tolerance` is relative to a parameter's largest element (or to a thousandth of
    the model's). `plant` names one of `faults.FAULTS`, to see it caught.

    The report has `agrees`, `cause` (one of those in `causes`, or None) and `finding`,
    the first step and parameter that differ. Raises DistributedError where there is
    nothing to compare: models of other shapes, or gradients that are no numbers.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps should be at least 1, got {steps}")
    trial = Trial(
        make_model,
        loss_fn,
        dataset,
        batch_size,
        steps,
        lr,
        seed,
        make_exchange,
        make_loader,
        tolerance,
    )
    if plant is not None:
        trial = planted(plant, trial)
    communicator = init()
    if communicator.size == 1:
        return Simulated(2 if ranks is None else ranks).run(compare, trial)[0]
    if ranks not in (None, communicator.size):
        raise ValueError(f"this job has {communicator.size} ranks, not {ranks}")
    return compare(communicator, trial)
