"""Stopping and going on: what a training saves, when, and what it goes on from."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minidl.array.errors import CheckpointError, UsageError
from minidl.distributed import Communicator
from minidl.distributed.consistency import check_still_same
from minidl.distributed.exchange import NaiveExchange
from minidl.train.output import say, tell
from minidl.train.report import Reporter
from minidl.train.store import Store, read
from minidl.train.trainer import Trainer

# What a resumed training must have been told alike; the rest changes no result.
MEANING = (
    "dataset model optimizer lr weight_decay batch_size epochs seed precision".split()
)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """A signal has asked for the training to end, and it has been saved."""


class SaveCheckpoints(Reporter):
    """Saves after every `every` steps, or each epoch, and when a signal has asked.

    `extra` is saved beside the trainer's state. To be told of the steps on all ranks;
    rank 0 writes. Raises Stopped, on all ranks at the same step.
    """

    def __init__(self, trainer: Trainer, store: Store, every: int | None, extra: dict):
        self.trainer, self.store, self.every, self.extra = trainer, store, every, extra

    def step(self, loss: float) -> None:
        progress, stop = self.trainer.progress, self.trainer.model.exchange.stop
        if stop or (self.every and progress.total_steps % self.every == 0):
            path = self.save()
        if stop:
            raise Stopped(
                f"stopped {progress}, as a signal has asked; saved {path}: "
                "go on with --resume auto"
            )

    def epoch(self, metrics) -> None:
        if not self.every:
            self.save()

    def save(self) -> Path:
        """Save, of several ranks on rank 0; where."""
        communicator = self.trainer.model.communicator
        step = self.trainer.progress.total_steps
        communicator.doing = f"saving the checkpoint of step {step}"
        state = {**self.extra, "training": self.trainer.state_dict()}
        if communicator.rank == 0:
            self.store.save(step, state)
        return self.store.path(step)


class CheckWeights(Reporter):
    """Sees after every `every` steps, or each epoch, that ranks hold equal weights."""

    def __init__(self, trainer: Trainer, every: int | None):
        self.trainer, self.every = trainer, every

    def step(self, loss: float) -> None:
        if self.every and self.trainer.progress.total_steps % self.every == 0:
            self.check()

    def epoch(self, metrics) -> None:
        if not self.every:
            self.check()

    def check(self) -> None:
        model, step = self.trainer.model, self.trainer.progress.total_steps
        check_still_same(model.module, model.communicator, f"after step {step}")


@contextmanager
def stopping_on_signals(exchange: NaiveExchange) -> Iterator[None]:
    """SIGTERM and SIGUSR1 ask for an end at the next step, on all ranks."""
    if threading.current_thread() is not threading.main_thread():
        yield  # simulated ranks: signals are for the process
        return

    def ask(number, frame):
        exchange.stop_wanted = True

    before = [signal.signal(number, ask) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def go_on(
    trainer: Trainer, resume: str | None, store: Store, config: dict, scaling
) -> None:
    """Take over the state of the checkpoint that --resume means, if there is one."""
    communicator = trainer.model.communicator
    found = find(resume, store, communicator)
    if found is None:
        return
    path, state = found
    check_alike(path, state, config, scaling.state_dict())
    trainer.load_state_dict(state["training"])
    store.adopt(path)
    if communicator.rank == 0:  # or rank 0 of simulated ones
        tell(f"resuming    {path} ({trainer.progress})")


def find(resume: str | None, store: Store, communicator: Communicator):
    """(path, state) of the checkpoint that `--resume` means, on every rank, or None.

    Rank 0 alone reads; what is damaged is passed over, with a sentence, where `resume`
    names no single checkpoint. Raises CheckpointError.
    """
    if resume is None:
        return None
    found = locate(resume, store) if communicator.rank == 0 else None
    return communicator.broadcast_object(found)


def locate(resume: str, store: Store):
    def tell(sentence):
        say(f"{sentence}; trying the one before")

    path = store.directory if resume == "auto" else Path(resume)
    try:
        if resume == "auto":
            return store.latest(tell)
        if not path.is_dir():
            return path, read(path)
        inside = path / store.directory.name
        found = Store(inside if inside.is_dir() else path).latest(tell)
    except OSError as error:  # a closed directory above it, for one
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {error.strerror or error}"
        ) from error
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {path}")
    return found


def check_alike(path: Path, state: dict, config: dict, scaling: dict) -> None:
    """Refuse a checkpoint of a training that was told otherwise, or saw other data."""
    saved = {"precision": "fp32", **state["config"]}  # older ones do not say
    others = [
        f"--{name.replace('_', '-')} {saved[name]} (now {config[name]})"
        for name in MEANING
        if saved[name] != config[name]
    ]
    if others:
        raise UsageError(
            f"{path} is from a training with {', '.join(others)}: resume with the same "
            "settings, or train anew into another --out"
        )
    same = saved["training_samples"] == config["training_samples"] and all(
        np.array_equal(state["standardize"][name], value)
        for name, value in scaling.items()
    )
    if not same:
        raise UsageError(
            f"{path} is from a training on other data than those found now: resume "
            "with the same --data"
        )
