"""How the gradients of all ranks are added up.

The truth is the global batch: what is differentiated on each rank is the *sum* of
its losses, and the sum over all ranks is divided by the global count, so that uneven
shares, ignored labels and accumulation come out as they would on one rank. Where the
global count is known before backward, the sum that is differentiated is divided by it,
and the gradients' sums are means already: see `DataParallel.share`.

`NaiveExchange` shows what must happen; `BucketedExchange` does it while backward is
still running. Both leave the same numbers behind.
"""

import numpy as np

from minidl.array.device import array_module, is_array
from minidl.array.errors import DistributedError
from minidl.array.graph import recording_graph
from minidl.array.kernel import Kernel
from minidl.autograd.tensor import Tensor
from minidl.distributed.communicator import Communicator
from minidl.distributed.compression import compressed
from minidl.nn.parameter import FlatStorage, Parameter, flat_storages

by_count = Kernel("by_count", outputs="g", scalars="count", body="g *= 1 / count;")


def divide(gradients, count) -> None:
    """g /= count: a number, an array of one element on the device, or None for 1."""
    if is_array(count):
        by_count(out=gradients, count=count)
    elif count is not None:
        gradients *= 1 / count


def stays(count) -> bool:
    """Whether a count is on the devices, and what is agreed with it is to be there."""
    return count is None or is_array(count)


class NaiveExchange:
    """After backward, one all-reduce a parameter."""

    def __init__(
        self, parameters: list[Parameter], communicator: Communicator, half=None
    ):
        self.parameters, self.communicator = parameters, communicator
        self.half = half  # the dtype to send in, where that is smaller
        self.overflow = False  # see `agree`
        self.present: list[bool] = []  # what `agree` has found last
        self.kept: list[tuple] = []  # see `keep`
        self.stop_wanted = False  # by this rank, from any moment on
        self.stop = False  # whether any rank did at the last step: the same on all

    def ready(self, parameter: Tensor) -> None:
        """A parameter's gradient is complete: nothing to be done yet."""

    def wait(self, count) -> None:
        """Leave in every `grad` the sum over all ranks, divided by the global count.

        `count` is this rank's; None, on all ranks, for gradients divided already.
        """
        total, present = self.agree(count)
        for p, somewhere in zip(self.parameters, present, strict=True):
            if somewhere:
                if p.grad is None:
                    p.grad = Tensor(array_module(p.data).zeros_like(p.data))
                gradient = p.grad.data
                gradient[...] = self.communicator.all_reduce(
                    compressed(gradient, self.half)
                )
                divide(gradient, total)

    def owners(self) -> list:
        """What holds the gradients after an exchange."""
        return self.parameters

    def keep(self) -> None:
        """Put aside what an earlier exchange has left: sums of all ranks already."""
        self.kept = [
            (p, p.grad.data.copy()) for p in self.owners() if p.grad is not None
        ]
        for p, _ in self.kept:
            p.grad = None

    def add_kept(self) -> None:
        """Add what was put aside to the gradients of the exchange since."""
        for p, before in self.kept:
            if p.grad is None:
                p.grad = Tensor(before)
            else:
                p.grad.data[...] += before
        self.kept = []

    def give_up(self) -> None:
        """Forget a step that has ended halfway."""
        self.kept = []

    def agree(self, count, overflow=False) -> tuple:
        """The global count, and for each parameter whether any rank has a gradient.

        A parameter without one on some ranks counts as zero there; without one on any
        rank it is left alone, as it would be on one rank. `self.overflow` becomes
        whether any rank says so: a question only where ranks see different sums.

        A count that is an array on a device stays there, where one of 0 makes the
        gradients NaN; as a number it is a DistributedError. A CUDA graph does not ask
        again who has gradients: it holds the answer of the step before.
        """
        if stays(count):
            if not recording_graph():
                self.agree(1.0)
            if count is not None:
                self.communicator.all_reduce(count)
            if is_array(overflow):
                self.overflow = self.communicator.all_reduce(overflow)
            return count, self.present
        present = (p.grad is not None for p in self.parameters)
        own = np.array([count, overflow, self.stop_wanted, *present], float)
        self.communicator.all_reduce(own)
        self.overflow, self.stop = bool(own[1]), bool(own[2])
        if not own[0]:
            raise DistributedError(
                "the global batch has no terms to take the mean of: every label is "
                "ignored, or no rank has a sample"
            )
        self.present = [bool(n) for n in own[3:]]
        return float(own[0]), self.present


class Bucket:
    """A slice of the flat gradients, and the parameters it waits for."""

    def __init__(self, storage: FlatStorage, start: int, stop: int, parameters):
        self.gradients = storage.grad[start:stop]
        self.parameters = parameters
        self.reset()

    def reset(self) -> None:
        self.missing = len(self.parameters)
        self.sent = self.work = None

    def send(self, communicator: Communicator, half) -> None:
        """Start the sum over all ranks."""
        self.sent = compressed(self.gradients, half)
        self.work = communicator.all_reduce(self.sent, async_op=True)

    def receive(self) -> None:
        """Leave the sum in the gradients."""
        self.work.wait()
        if self.sent is not self.gradients:
            self.gradients[...] = self.sent
        self.reset()


class BucketedExchange(NaiveExchange):
    """Buckets of the flat gradients leave as they fill, while backward goes on.

    Backward reaches the last layers first, so buckets are cut from the tail. They are
    sent strictly in this order, so that every rank issues the same sequence whatever
    its timing. Li et al., "PyTorch Distributed: Experiences on Accelerating Data
    Parallel Training", 2020, section 3.2.
    """

    def __init__(self, parameters, communicator, bucket_cap_mb: float = 25, half=None):
        super().__init__(parameters, communicator, half)
        self.bucket_bytes = bucket_cap_mb * 2**20
        self.buckets: list[Bucket] = []
        self.buckets_of: dict[Parameter, list[Bucket]] = {}
        self.planned: list[FlatStorage | None] = []
        self.under_way = False

    def ready(self, parameter: Tensor) -> None:
        """A parameter's gradient is complete: send its bucket if that was the last."""
        self.plan()
        if parameter in self.buckets_of:
            for bucket in self.buckets_of[parameter]:
                bucket.missing -= 1
            self.send()
            self.communicator.poll()

    def wait(self, count) -> None:
        self.send_rest()
        total, present = self.agree(count)
        for bucket in self.buckets:
            bucket.receive()
            divide(bucket.gradients, total)
        self.under_way = False
        for p, somewhere in zip(self.parameters, present, strict=True):
            if somewhere and p.grad is None:
                p.accumulate(Tensor(p.gradient_view))

    def give_up(self) -> None:
        super().give_up()
        self.under_way = False
        for bucket in self.buckets:
            bucket.reset()

    def send(self) -> None:
        """Send every full bucket whose turn it is."""
        while self.sent < len(self.buckets) and not self.buckets[self.sent].missing:
            self.buckets[self.sent].send(self.communicator, self.half)
            self.sent += 1

    def send_rest(self) -> None:
        """Send what backward has not filled, with zeros where it left no gradient."""
        self.plan()
        for p in self.parameters:
            if p.grad is None:
                p.gradient_view[...] = 0
        for bucket in self.buckets:
            bucket.missing = 0
        self.send()

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
        self.buckets_of = {p: [] for p in self.parameters}
        for bucket in self.buckets:
            for p in bucket.parameters:
                self.buckets_of[p].append(bucket)

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
