"""One training, walked through step by step by one rank or by each of several.

Plain gradient descent, w -= lr g, in float64: rounding hides nothing, and a gradient
that is N times too large shows, as it would not under Adam, which divides it away.
"""

from collections.abc import Callable
from contextvars import copy_context
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count, islice

import numpy as np

from minidl.array.device import to_numpy
from minidl.array.random import manual_seed
from minidl.array.sampling import Sampler
from minidl.autograd.tensor import Tensor
from minidl.distributed.communicator import Alone, Communicator, simulated
from minidl.distributed.data_parallel import DataParallel
from minidl.nn.batch_norm import BatchNorm
from minidl.nn.module import Module, array_of
from minidl.ops.creation import tensor


@dataclass(frozen=True)
class Trial:
    """What is trained on one rank and on several; the arguments of `verify`."""

    make_model: Callable[[], Module]
    loss_fn: Callable
    dataset: object
    batch_size: int
    steps: int | None = None
    lr: float = 0.01
    seed: int = 0
    make_exchange: Callable = DataParallel
    make_loader: Callable | None = None
    tolerance: float = 1e-8

    def loader(self, communicator: Communicator):
        """What is passed over once an epoch: this rank's share of each batch."""
        if self.make_loader is not None:
            return self.make_loader(communicator)
        return Shares(self, communicator)


class Shares:
    """This rank's (inputs, labels) of each global batch, shuffled anew in each pass."""

    def __init__(self, trial: Trial, communicator: Communicator, **options):
        dataset = trial.dataset
        if hasattr(dataset, "images"):
            dataset = dataset.images, dataset.labels
        self.inputs, self.labels = dataset
        self.batch_size = trial.batch_size
        self.sampler = Sampler(
            range(len(self.labels)),
            communicator.size,
            communicator.rank,
            **{"seed": trial.seed, **options},
        )

    def indices(self):
        """Of each batch of one epoch."""
        return self.sampler.batches(self.batch_size)

    def __iter__(self):
        for index in self.indices():
            yield self.inputs[index], self.labels[index]
        self.sampler.set_epoch(self.sampler.epoch + 1)


@dataclass
class Step:
    """What one rank knows after a step; step 0 is before the first."""

    number: int
    weights: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray] = field(default_factory=dict)  # after exchange
    epoch: int = 0
    samples: list[bytes] = field(default_factory=list)
    own: dict[str, np.ndarray] = field(default_factory=dict)  # summed over its samples
    count: float = 0.0  # the terms of that sum
    mean: dict[str, np.ndarray] = field(default_factory=dict)  # were that the loss
    repeatable: bool = True  # whether the same samples give the same gradient again
    norms: list[str] = field(default_factory=list)  # layers of batch statistics


class OneRank:
    """The reference: no exchange, the gradient of the mean over the whole batch."""

    def __init__(self, module: Module, communicator: Communicator):
        self.module = module

    def __call__(self, *inputs):
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()


class Twin:
    """A copy of the model that tells what a rank's own samples contribute.

    Of the sum of their losses, or of its mean: where layers such as SyncBatchNorm pass
    gradients on between ranks, the one is no multiple of the other.
    """

    def __init__(self, model: Module):
        self.parallel = DataParallel(deepcopy(model), Alone(), overlap=False)

    def contribute(self, model: Module, loss_fn, inputs, labels, mean: bool = False):
        """(gradients of the sum or mean of the losses, number of its terms)."""
        twin = self.parallel.module
        for mine, its in zip(twin.parameters(), model.parameters(), strict=True):
            mine.data[...] = its.data
            mine.grad = None
        loss = loss_fn(twin(inputs), labels)
        (loss if mean else self.parallel.sum_behind(loss)).backward()
        return gradients_of(twin), float(loss.count)


def weights_of(model: Module) -> dict[str, np.ndarray]:
    return {name: to_numpy(p.data).copy() for name, p in model.named_parameters()}


def gradients_of(model: Module) -> dict[str, np.ndarray]:
    """By name; a parameter without one has zeros."""
    return {
        name: np.zeros(p.shape) if p.grad is None else to_numpy(p.grad.data).copy()
        for name, p in model.named_parameters()
    }


def digests(inputs: Tensor, labels: Tensor) -> list[bytes]:
    """Samples by their content, so that any loader can be followed."""
    rows = zip(to_numpy(inputs.data), to_numpy(labels.data), strict=True)
    return [blake2b(x.tobytes() + y.tobytes()).digest()[:16] for x, y in rows]


def walk(trial: Trial, communicator: Communicator, make_exchange):
    """Train, and yield a Step after each, step 0 before the first."""
    manual_seed(trial.seed)
    model = trial.make_model().to(np.float64).train()
    device = next(model.parameters()).device
    twin = None if make_exchange is OneRank else Twin(model)
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and "Sync" not in type(module).__name__
    ]
    yield Step(0, weights_of(model))

    parallel = make_exchange(model, communicator)
    for number, (epoch, batch) in enumerate(batches(trial, communicator), 1):
        inputs, labels = (as_tensor(array, device) for array in batch)
        step = Step(number, {}, {}, epoch, digests(inputs, labels), norms=norms)
        if twin is not None:
            samples = model, trial.loss_fn, inputs, labels
            step.own, step.count = twin.contribute(*samples)
            step.mean, _ = twin.contribute(*samples, mean=True)
            if number == 1:
                again, _ = twin.contribute(*samples)
                same = (np.array_equal(again[k], g) for k, g in step.own.items())
                step.repeatable = all(same)
        model.zero_grad()
        parallel.backward(trial.loss_fn(parallel(inputs), labels))
        step.gradients = gradients_of(model)
        for p in model.parameters():
            if p.grad is not None:
                p.data[...] -= trial.lr * p.grad.data
        step.weights = weights_of(model)
        yield step


def batches(trial: Trial, communicator: Communicator):
    """(epoch, batch) for `trial.steps` steps, pass after pass over the loader."""
    loader = trial.loader(communicator)
    passes = ((epoch, batch) for epoch in count(1) for batch in once(loader))
    return islice(passes, trial.steps)


def once(loader):
    """One pass, which must not be empty: it would be tried without end."""
    empty = True
    for batch in loader:
        empty = False
        yield batch
    if empty:
        raise ValueError("a pass over the loader gives no batch: it has no samples")


def as_tensor(array, device: str) -> Tensor:
    """On the model's device; floating-point numbers as float64."""
    array = array_of(array)
    return tensor(array, np.float64 if array.dtype.kind == "f" else None, device)


def alone(trial: Trial):
    """The walk of one rank, in a context in which `init()` says so too."""
    context = copy_context()
    context.run(simulated.set, Alone())
    steps = walk(trial, Alone(), OneRank)
    while True:
        yield context.run(next, steps)
