"""Data parallelism: every rank computes its share, then the gradients are added up.

The truth is the global batch: what is differentiated on each rank is the *sum* of
its losses, and the sum over all ranks is divided by the global count, so that uneven
shares, ignored labels and accumulation come out as they would on one rank.

`NaiveExchange` shows what must happen; `BucketedExchange` does it while backward is
still running. Both leave the same numbers behind.
"""

from contextlib import contextmanager

import numpy as np

from minidl.array.device import array_module
from minidl.array.errors import DistributedError
from minidl.autograd.tensor import Tensor
from minidl.distributed.communicator import Communicator
from minidl.distributed.consistency import check_same_weights
from minidl.distributed.launch import init
from minidl.nn.module import Module
from minidl.nn.parameter import FlatStorage, Parameter, flat_storages


class NaiveExchange:
    """After backward, one all-reduce a parameter."""

    def __init__(self, parameters: list[Parameter], communicator: Communicator):
        self.parameters, self.communicator = parameters, communicator
        self.stop_wanted = False  # by this rank, from any moment on
        self.stop = False  # whether any rank did at the last step: the same on all

    def ready(self, parameter: Tensor) -> None:
        """A parameter's gradient is complete: nothing to be done yet."""

    def wait(self, count: float) -> None:
        """Leave in every `grad` the sum over all ranks, divided by the global count."""
        total, present = self.agree(count)
        for p, somewhere in zip(self.parameters, present, strict=True):
            if somewhere:
                if p.grad is None:
                    p.grad = Tensor(array_module(p.data).zeros_like(p.data))
                self.communicator.all_reduce(p.grad.data)
                p.grad.data[...] *= 1 / total

    def agree(self, count: float) -> tuple[float, list[bool]]:
        """The global count, and for each parameter whether any rank has a gradient.

        A parameter without one on some ranks counts as zero there; without one on any
        rank it is left alone, as it would be on one rank.
        """
        present = (p.grad is not None for p in self.parameters)
        own = np.array([count, self.stop_wanted, *present], dtype=float)
        self.communicator.all_reduce(own)
        self.stop = bool(own[1])
        if not own[0]:
            raise DistributedError(
                "the global batch has no terms to take the mean of: every label is "
                "ignored, or no rank has a sample"
            )
        return float(own[0]), [bool(n) for n in own[2:]]


class Bucket:
    """A slice of the flat gradients, and the parameters it waits for."""

    def __init__(self, storage: FlatStorage, start: int, stop: int, parameters):
        self.gradients = storage.grad[start:stop]
        self.parameters = parameters
        self.reset()

    def reset(self) -> None:
        self.missing = len(self.parameters)
        self.work = None


class BucketedExchange(NaiveExchange):
    """Buckets of the flat gradients leave as they fill, while backward goes on.

    Backward reaches the last layers first, so buckets are cut from the tail. They are
    sent strictly in this order, so that every rank issues the same sequence whatever
    its timing. Li et al., "PyTorch Distributed: Experiences on Accelerating Data
    Parallel Training", 2020, section 3.2.
    """

    def __init__(self, parameters, communicator, bucket_cap_mb: float = 25):
        super().__init__(parameters, communicator)
        self.bucket_bytes = bucket_cap_mb * 2**20
        self.buckets: list[Bucket] = []
        self.bucket_of: dict[Parameter, Bucket] = {}
        self.planned: list[FlatStorage | None] = []
        self.under_way = False

    def ready(self, parameter: Tensor) -> None:
        """A parameter's gradient is complete: send its bucket if that was the last."""
        self.plan()
        bucket = self.bucket_of.get(parameter)
        if bucket is not None:
            bucket.missing -= 1
            self.send()
            self.communicator.poll()

    def wait(self, count: float) -> None:
        self.plan()
        for p in self.parameters:
            if p.grad is None:
                p.gradient_view[...] = 0
        for bucket in self.buckets:
            bucket.missing = 0
        self.send()
        total, present = self.agree(count)
        for bucket in self.buckets:
            bucket.work.wait()
            bucket.gradients *= 1 / total
            bucket.reset()
        self.under_way = False
        for p, somewhere in zip(self.parameters, present, strict=True):
            if somewhere and p.grad is None:
                p.accumulate(Tensor(p.gradient_view))

    def send(self) -> None:
        """Start the all-reduce of every full bucket whose turn it is."""
        while self.sent < len(self.buckets) and not self.buckets[self.sent].missing:
            bucket = self.buckets[self.sent]
            bucket.work = self.communicator.all_reduce(bucket.gradients, async_op=True)
            self.sent += 1

    def plan(self) -> None:
        """Cut the buckets, anew where parameters have moved since the last step."""
        if self.under_way:
            return
        self.under_way, self.sent = True, 0
        flat_storages([p for p in self.parameters if p.storage is None])
        if self.planned == [p.storage for p in self.parameters]:
            return
        self.planned = [p.storage for p in self.parameters]
        trained = dict.fromkeys(self.parameters)
        self.buckets = [
            bucket
            for storage in reversed(list(dict.fromkeys(self.planned)))
            for bucket in self.cut(storage, trained)
        ]
        self.bucket_of = {p: b for b in self.buckets for p in b.parameters}

    def cut(self, storage: FlatStorage, trained):
        """Buckets of a storage, from its tail to its head."""
        stop, members = storage.size, []
        for p in reversed(storage.parameters):
            if p in trained:
                members.append(p)
            full = (stop - p.offset) * p.data.itemsize >= self.bucket_bytes
            if members and (full or p is storage.parameters[0]):
                yield Bucket(storage, p.offset, stop, members)
                stop, members = p.offset, []


class DataParallel:
    """A model whose gradients are those of the global batch, on every rank.

        model = distributed.DataParallel(model)
        loss = F.cross_entropy(model(images), labels)
        model.backward(loss)

    `backward` stands in the place of `loss.backward()`: it needs the loss's count.
    The model stays what it was, `module`, with its parameters' names. Arguments are
    those of PyTorch's DistributedDataParallel where it has them; `communicator` is
    that of `init()` unless given, `overlap=False` chooses the naive exchange.

    Raises DistributedError on every rank, here, if the ranks hold different weights.
    """

    def __init__(
        self,
        module: Module,
        communicator: Communicator | None = None,
        bucket_cap_mb: float = 25,
        overlap: bool = True,
    ):
        self.module = module
        self.communicator = init() if communicator is None else communicator
        trained = [p for p in module.parameters() if p.requires_grad]
        self.exchange = (
            BucketedExchange(trained, self.communicator, bucket_cap_mb)
            if overlap
            else NaiveExchange(trained, self.communicator)
        )
        self.count = 0.0
        self.syncing = True
        check_same_weights(module, self.communicator)

    def __call__(self, *inputs, **options):
        return self.module(*inputs, **options)

    def __getattr__(self, name: str):
        """What is not the exchange's is the model's: train, eval, state_dict, ..."""
        if name == "module":  # not yet there, while this is being copied
            raise AttributeError(name)
        return getattr(self.module, name)

    def share(self, loss: Tensor) -> Tensor:
        """What this rank differentiates: the sum behind a mean."""
        if loss.total is None:
            raise RuntimeError(
                "this loss does not know how many terms it is the mean over, which its "
                "gradient on several ranks depends on: use a loss of minidl with "
                "reduction='mean', or the mean() of your terms, as the last operation"
            )
        self.count += float(loss.count)
        return loss.total

    def ready(self, parameter: Tensor) -> None:
        """For `on_grad_ready` of Tensor.backward."""
        if self.syncing:
            self.exchange.ready(parameter)

    def wait(self) -> None:
        """Return when every gradient is that of the global batch."""
        if self.syncing:
            self.exchange.wait(self.count)
            self.count = 0.0

    def backward(self, loss: Tensor) -> None:
        """loss.backward() on the global batch."""
        self.share(loss).backward(on_grad_ready=self.ready)
        self.wait()

    @contextmanager
    def no_sync(self):
        """Accumulate gradients on each rank; the next backward outside sends all."""
        self.syncing = False
        try:
            yield
        finally:
            self.syncing = True
