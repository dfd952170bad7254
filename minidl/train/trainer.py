"""Trainer: epochs of steps, what they cost and what they reach."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from time import perf_counter

import numpy as np

from minidl.array.errors import MinidlError
from minidl.autograd.mode import no_grad
from minidl.data import DataLoader
from minidl.distributed import DataParallel
from minidl.nn import functional as F
from minidl.train.report import Reporter
from minidl.train.step import train_step


class DivergedError(MinidlError, ArithmeticError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Metrics:
    """One epoch, over all ranks: losses are means over samples, time is in seconds."""

    epoch: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    samples: int
    seconds: float
    samples_per_second: float
    lr: float

    def as_dict(self) -> dict:
        return asdict(self)


class Trainer:
    """Trains a classifier: `model` is a DataParallel, `loss_fn(scores, labels)` a mean.

    `scheduler`, if there is one, is stepped after every step. `reporters` hear of
    the steps and epochs; on ranks other than 0 there are usually none.
    """

    def __init__(
        self,
        model: DataParallel,
        optimizer,
        loss_fn=F.cross_entropy,
        scheduler=None,
        reporters: Sequence[Reporter] = (),
    ):
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.scheduler, self.reporters = scheduler, list(reporters)

    def fit(self, train: DataLoader, test: DataLoader, epochs: int) -> list[Metrics]:
        """Train for some epochs, with an evaluation after each."""
        history = []
        try:
            with np.errstate(all="ignore"):  # a loss that is no number is told below
                for epoch in range(1, epochs + 1):
                    history.append(self.one_epoch(epoch, train, test))
                    self.tell("epoch", history[-1])
        finally:
            self.tell("end")
        return history

    def one_epoch(self, epoch: int, train: DataLoader, test: DataLoader) -> Metrics:
        """Train and evaluate once."""
        lr = self.optimizer.param_groups[0]["lr"]
        start = perf_counter()
        loss, samples = self.train_epoch(train, epoch)
        seconds = perf_counter() - start
        test_loss, accuracy = evaluate(self.model, test, self.loss_fn)
        return Metrics(
            epoch=epoch,
            train_loss=loss,
            test_loss=test_loss,
            test_accuracy=accuracy,
            samples=samples,
            seconds=seconds,
            samples_per_second=samples / seconds,
            lr=lr,
        )

    def train_epoch(self, loader: DataLoader, epoch: int) -> tuple[float, int]:
        """One pass: the mean loss over all samples of all ranks, and their number."""
        self.model.train()
        self.tell("begin", epoch, len(loader))
        sums = np.zeros(3)  # the loss's total and count, and samples
        for step, (images, labels) in enumerate(loader, 1):
            loss = train_step(self.model, self.loss_fn, self.optimizer, images, labels)
            if self.scheduler is not None:
                self.scheduler.step()
            sums += loss.total.item(), loss.count, len(labels)
            if not isfinite(sums[0]):
                raise DivergedError(
                    f"the loss is {loss.total.item()} in step {step} of epoch {epoch}: "
                    "training has diverged; try a smaller learning rate"
                )
            self.tell("step", sums[0] / max(sums[1], 1))
        self.model.communicator.all_reduce(sums)
        return float(sums[0] / sums[1]), int(sums[2])

    def tell(self, event: str, *what) -> None:
        for reporter in self.reporters:
            getattr(reporter, event)(*what)


@no_grad()
def evaluate(
    model: DataParallel, loader: DataLoader, loss_fn=F.cross_entropy
) -> tuple[float, float]:
    """Mean loss and accuracy over every sample, once, whatever the number of ranks."""
    was_training = model.training
    model.eval()
    sums = np.zeros(3)
    for images, labels in loader:
        scores = model(images)
        total = loss_fn(scores, labels).total.item()
        right = (scores.argmax(1) == labels).sum().item()
        sums += total, right, len(labels)
    model.communicator.all_reduce(sums)
    model.train(was_training)
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])
