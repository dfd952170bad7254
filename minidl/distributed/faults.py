"""Faults as they are made, planted on purpose: `verify` must tell each by its name.

    minidl verify --plant missing-division

Most of them still train, which is why they go unnoticed.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from minidl.array.errors import UsageError
from minidl.array.random import manual_seed
from minidl.distributed import causes
from minidl.distributed.data_parallel import DataParallel
from minidl.distributed.launch import init
from minidl.distributed.trial import Shares, Trial
from minidl.nn.activation import Dropout
from minidl.nn.batch_norm import BatchNorm1d
from minidl.nn.containers import Sequential


class MissingDivision(DataParallel):
    """Adds up the ranks' gradients of their means."""

    op = "sum"

    def backward(self, loss):
        loss.backward()
        for p in self.module.parameters():
            self.communicator.all_reduce(p.grad.data, self.op)
        self.exchanged.done = True


class MeanOfMeans(MissingDivision):
    """Takes the mean of the ranks' means, of however few samples they are."""

    op = "avg"


class SkippedBucket(DataParallel):
    """Leaves out the last two parameters: each rank keeps its own gradient."""

    def backward(self, loss):
        self.sum_behind(loss).backward()
        own = [p.grad.data.copy() for p in self.module.parameters()]
        count, self.count = self.count, 0.0
        self.exchange.wait(count)
        for p, gradient in list(zip(self.module.parameters(), own, strict=True))[-2:]:
            p.grad.data[...] = gradient / count


class NoExchange(DataParallel):
    """Trains every rank on its own."""

    def backward(self, loss):
        loss.backward()


class StaleGradients(DataParallel):
    """Gives the gradients of the step before, as a missing wait does."""

    last = None

    def backward(self, loss):
        super().backward(loss)
        fresh = [p.grad.data.copy() for p in self.module.parameters()]
        for p, gradient in zip(
            self.module.parameters(), self.last or fresh, strict=True
        ):
            p.grad.data[...] = gradient
        self.last = fresh


class ForgottenRank(DataParallel):
    """Counts the samples of the last rank, and loses its gradient."""

    def backward(self, loss):
        self.sum_behind(loss).backward()
        if self.communicator.rank == self.communicator.size - 1:
            self.module.zero_grad(set_to_none=False)
        self.wait()


class PaddedShares(Shares):
    """Repeats samples until all shares of a batch are equally long."""

    def indices(self):
        left = len(self.labels)
        for index in super().indices():
            length = -(-min(left, self.batch_size) // self.sampler.num_replicas)
            left -= self.batch_size
            yield np.resize(index if len(index) else [0], length)


def exchange(kind):
    return lambda trial: replace(trial, make_exchange=kind)


def loader(kind=Shares, **options):
    """A loader with these options of the sampler on the ranks, right on one rank."""

    def plant(trial: Trial) -> Trial:
        def make_loader(communicator):
            given = {k: v(trial, communicator) for k, v in options.items()}
            if communicator.size == 1:
                return Shares(trial, communicator)
            return kind(trial, communicator, **given)

        return replace(trial, make_loader=make_loader)

    return plant


def rank_seed(trial: Trial) -> Trial:
    def make_model():
        manual_seed(trial.seed + init().rank)
        return trial.make_model()

    return replace(trial, make_model=make_model)


def with_layer(make_layer):
    """One more layer after the model's last, for its number of outputs."""

    def plant(trial: Trial) -> Trial:
        def make_model():
            model = trial.make_model()
            *_, last = model.parameters()  # the bias, or (outputs, inputs)
            return Sequential(model, make_layer(last.shape[0]))

        return replace(trial, make_model=make_model)

    return plant


# name -> (what plants it, the cause that verify must give)
FAULTS = {
    "missing-division": (exchange(MissingDivision), causes.DIVISION),
    "mean-of-means": (exchange(MeanOfMeans), causes.UNEVEN),
    "skipped-bucket": (exchange(SkippedBucket), causes.SKIPPED),
    "no-exchange": (exchange(NoExchange), causes.SKIPPED),
    "stale-gradients": (exchange(StaleGradients), causes.STALE),
    "forgotten-rank": (exchange(ForgottenRank), causes.LOST_RANK),
    "different-shuffling": (
        loader(seed=lambda trial, communicator: trial.seed + communicator.rank),
        causes.SHUFFLE,
    ),
    "forgotten-last-batch": (
        loader(drop_last=lambda trial, communicator: True),
        causes.LAST_BATCH,
    ),
    "padded-batch": (loader(PaddedShares), causes.UNEVEN),
    "compression": (
        exchange(partial(DataParallel, compression="float16")),
        causes.COMPRESSION,
    ),
    "rank-seed": (rank_seed, causes.SEED),
    "batch-norm": (with_layer(BatchNorm1d), causes.BATCH_NORM),
    "dropout": (with_layer(lambda features: Dropout(0.5)), causes.RANDOM),
}


def planted(name: str, trial: Trial) -> Trial:
    """The trial with this fault in it."""
    if name not in FAULTS:
        raise UsageError(f"no fault is called {name!r}; known: {', '.join(FAULTS)}")
    plant, _ = FAULTS[name]
    return plant(trial)
