"""Trainer: epochs of steps, what they cost and what they reach."""

from collections.abc import Callable, Sequence
from math import isfinite
from time import perf_counter

import numpy as np

from minidl.array.device import to_device
from minidl.array.errors import MinidlError
from minidl.array.random import default_generator
from minidl.autograd.mode import no_grad
from minidl.data import DataLoader
from minidl.distributed import DataParallel
from minidl.nn import functional as F
from minidl.optim import GradScaler
from minidl.train.progress import Metrics, Progress, Tally
from minidl.train.report import Reporter
from minidl.train.step import UNSCALED, train_step

PATIENCE = 32  # steps in a row that a scaler may leave out for their loss


class DivergedError(MinidlError, ArithmeticError):
    """The loss is no longer a number."""


class Trainer:
    """Trains a classifier: `model` is a DataParallel, `loss_fn(scores, labels)` a mean.

    `scheduler`, if there is one, is stepped after every step. `reporters` hear of
    the steps and epochs; on ranks other than 0 there are usually none. `scaler` scales
    the loss, and is part of the state; without one nothing is scaled. `step` is what
    stands for `train_step`, as a CapturedStep. `progress` says where the training
    stands; `fit` goes on from there.

    What the steps of a GPU have made of the loss is looked at after the first and then
    after every 32 (LOOK_EVERY), so that the host stays ahead of the device: a loss
    that is no number is told that much later.
    """

    def __init__(
        self,
        model: DataParallel,
        optimizer,
        loss_fn=F.cross_entropy,
        scheduler=None,
        reporters: Sequence[Reporter] = (),
        scaler: GradScaler = UNSCALED,
        step: Callable | None = None,
    ):
        if not isinstance(model, DataParallel):
            raise TypeError(
                f"a Trainer takes a DataParallel(model), got {type(model).__name__}"
            )
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.scheduler, self.reporters = scheduler, list(reporters)
        self.scaler, self.step = scaler, step or train_step
        self.progress = Progress()

    def fit(self, train: DataLoader, test: DataLoader, epochs: int) -> list[Metrics]:
        """Train for some epochs in all, with an evaluation after each."""
        try:
            with np.errstate(all="ignore"):  # a loss that is no number is told below
                while self.progress.epoch <= epochs:
                    self.one_epoch(train, test)
                    self.tell("epoch", self.progress.history[-1])
        finally:
            self.tell("end")
        return self.progress.history

    def one_epoch(self, train: DataLoader, test: DataLoader) -> None:
        """Train, or what is left of an epoch, and evaluate."""
        progress = self.progress
        if progress.steps == 0:
            progress.lr = float(self.optimizer.param_groups[0]["lr"])
        loss, samples = self.train_epoch(train)
        self.model.communicator.doing = f"evaluating after epoch {progress.epoch}"
        test_loss, accuracy = evaluate(self.model, test, self.loss_fn)
        progress.finish(
            Metrics(
                epoch=progress.epoch,
                train_loss=loss,
                test_loss=test_loss,
                test_accuracy=accuracy,
                samples=samples,
                seconds=progress.seconds,
                samples_per_second=samples / progress.seconds,
                lr=progress.lr,
            )
        )

    def train_epoch(self, loader: DataLoader) -> tuple[float, int]:
        """One pass: the mean loss over all samples of all ranks, and their number."""
        self.model.train()
        progress, communicator = self.progress, self.model.communicator
        start = perf_counter() - progress.seconds
        loader.sampler.set_epoch(progress.epoch - 1)
        steps = len(loader)
        seen = min(progress.steps * loader.batch_size, len(loader.dataset))
        loader.sampler.set_epoch(progress.epoch - 1, seen)
        self.tell("begin", progress.epoch, steps, progress.steps)
        sums = progress.sums
        for step, (images, labels) in enumerate(loader, progress.steps + 1):
            communicator.doing = f"step {step} of epoch {progress.epoch}"
            loss = self.step(
                self.model, self.loss_fn, self.optimizer, images, labels, self.scaler
            )
            if self.scheduler is not None:
                self.scheduler.step()
            sums.add(loss.total, loss.count, len(labels), self.scaler.is_enabled())
            progress.steps = step
            if sums.due or step == steps:
                self.look()
            progress.total_steps += 1
            progress.seconds = perf_counter() - start
            self.tell("step", sums.found[0] / max(sums.found[1], 1))
        total = communicator.all_reduce(self.look().copy())
        return float(total[0] / total[1]), int(total[2])

    def look(self) -> np.ndarray:
        """The epoch's sums so far; raises DivergedError where they are no numbers.

        With a scaler, which leaves out such a step, where PATIENCE in a row are none.
        """
        sums, progress = self.progress.sums, self.progress
        found = sums.look()
        if not isfinite(found[0]):
            raise DivergedError(
                f"the loss is {found[0]} {'in' if sums.sums is None else 'by'} step "
                f"{progress.steps} of epoch {progress.epoch}: training has diverged; "
                "try a smaller learning rate"
            )
        if sums.lost >= PATIENCE and self.scaler.is_enabled():
            raise DivergedError(
                f"the loss of {sums.lost} steps in a row, by step {progress.steps} of "
                f"epoch {progress.epoch}, is no finite number: training has diverged; "
                "try a smaller learning rate, or another precision"
            )
        return found

    def tell(self, event: str, *what) -> None:
        for reporter in self.reporters:
            getattr(reporter, event)(*what)

    def state_dict(self) -> dict:
        """All that it takes to go on as if nothing had been; every rank calls this.

        `ranks` holds what differs between them: sums, random numbers, and buffers, as
        the running statistics of batch norm.
        """
        buffers = self.model.module.named_buffers()
        own = {
            "sums": self.look(),
            "random": default_generator().state,
            "buffers": {name: tensor.numpy() for name, tensor in buffers},
        }
        return {
            "model": self.model.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
            "progress": self.progress.state_dict(),
            "ranks": self.model.communicator.all_gather_object(own),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state, on as many ranks as it was taken from or others.

        On others, all take the random numbers and buffers of rank 0. Raises
        RuntimeError where this training scales its loss and that one did not.
        """
        self.scaler.load_state_dict(state.get("scaler", {}))
        self.model.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.progress.load_state_dict(state["progress"])
        rank, ranks = self.model.communicator.rank, state["ranks"]
        if len(ranks) == self.model.communicator.size:
            own, sums = ranks[rank], ranks[rank]["sums"]
        else:
            own, sums = ranks[0], sum(r["sums"] for r in ranks) * (rank == 0)
        self.progress.sums = Tally(sums)
        default_generator().state = own["random"]
        for name, tensor in self.model.module.named_buffers():
            tensor.data[...] = to_device(own["buffers"][name], tensor.device)


@no_grad()
def evaluate(
    model: DataParallel, loader: DataLoader, loss_fn=F.cross_entropy
) -> tuple[float, float]:
    """Mean loss and accuracy over every sample, once, whatever the number of ranks."""
    was_training = model.training
    model.eval()
    sums = Tally()
    for images, labels in loader:
        scores = model(images)
        right = (scores.argmax(1) == labels).sum()
        sums.add(loss_fn(scores, labels).total, right, len(labels))
    total = model.communicator.all_reduce(sums.look())
    model.train(was_training)
    return float(total[0] / total[2]), float(total[1] / total[2])
