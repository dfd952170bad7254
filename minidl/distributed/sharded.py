"""Gradients of the global batch, a share of them on each rank.

An all-reduce is a reduce-scatter and an all-gather. Between the two, every rank holds
the sum of its share of the gradients: enough to update that share of the weights, for
which it needs the same share of the optimizer's state, and nobody the rest.
Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", 2020, section 5.1: as much is sent as by an all-reduce.
"""

from minidl.array import euclid
from minidl.autograd.tensor import Tensor
from minidl.distributed.compression import compressed
from minidl.distributed.exchange import Bucket, BucketedExchange, divide, stays
from minidl.nn.parameter import FlatStorage, Parameter
from minidl.nn.piece import Piece, pieces


class ShardedBucket(Bucket):
    """A slice of a flat storage, of which this rank owns one of `size` equal parts."""

    def __init__(self, storage, start, stop, parameters, communicator):
        super().__init__(storage, start, stop, parameters)
        self.storage, self.start, self.stop = storage, start, stop
        part = (stop - start) // communicator.size
        self.own = slice(communicator.rank * part, (communicator.rank + 1) * part)
        self.pieces = pieces(storage, start + self.own.start, start + self.own.stop)

    def send(self, communicator, half) -> None:
        self.sent = compressed(self.gradients, half)
        self.work = communicator.reduce_scatter(
            self.sent[self.own], self.sent, async_op=True
        )

    def receive(self) -> None:
        self.work.wait()
        if self.sent is not self.gradients:
            self.gradients[self.own] = self.sent[self.own]
        self.reset()


class ShardedExchange(BucketedExchange):
    """Leaves the mean gradients in the pieces that this rank owns, and nowhere else.

    Buckets are cut at any element, so that they divide among the ranks; a parameter
    may lie in several. `overflow` tells, after `wait`, whether any rank has found an
    element of its sums that is not finite.
    """

    def __init__(self, parameters, communicator, bucket_cap_mb: float = 25, half=None):
        super().__init__(parameters, communicator, bucket_cap_mb, half)
        self.storages: list[FlatStorage] = []

    def adopt(self, parameters: list[Parameter]) -> list[Piece]:
        """Move parameters into storages of their own; the pieces this rank owns."""
        kinds: dict = {}
        for p in parameters:
            kinds.setdefault((p.dtype, p.device), []).append(p)
        made = [FlatStorage(kind, self.communicator.size) for kind in kinds.values()]
        trained = dict.fromkeys(self.parameters)
        self.storages += made
        cut = [bucket for storage in made for bucket in self.cut(storage, trained)]
        self.buckets = cut[::-1] + self.buckets  # the last is ready first
        for bucket in cut:
            for p in bucket.parameters:
                self.buckets_of.setdefault(p, []).append(bucket)
        return [piece for bucket in cut for piece in bucket.pieces]

    def cut(self, storage: FlatStorage, trained):
        """Buckets of a storage, from its head to its tail."""
        storage.sharded = True
        unit = storage.unit * self.communicator.size
        wanted = int(self.bucket_bytes / storage.data.itemsize)
        length = max(wanted // unit, 1) * unit
        for start in range(0, storage.size, length):
            stop = min(start + length, storage.size)
            members = [
                p
                for p in storage.parameters
                if p in trained and p.offset < stop and storage.end(p) > start
            ]
            yield ShardedBucket(storage, start, stop, members, self.communicator)

    def plan(self) -> None:
        if self.under_way:
            return
        for p in self.parameters:
            if p not in self.buckets_of:
                raise RuntimeError(
                    f"parameter {p.name!r} requires a gradient, and the ShardedAdam of "
                    "this model does not train it: give it all parameters"
                )
            if p.storage is not self.buckets_of[p][0].storage:
                raise RuntimeError(
                    f"parameter {p.name!r} has moved: build optimizers after moving or "
                    "casting a model"
                )
        self.under_way, self.sent = True, 0

    def owners(self) -> list:
        return [piece for bucket in self.buckets for piece in bucket.pieces]

    def wait(self, count) -> None:
        """Leave in every own piece's `grad` the mean over the global batch.

        The parameters' own `grad` is None again.
        """
        self.send_rest()
        for bucket in self.buckets:
            bucket.receive()
        own = [bucket.gradients[bucket.own] for bucket in self.buckets]
        total, present = self.agree(count, overflow(own, stays(count)))
        for gradients in own:
            divide(gradients, total)
        there = {
            p: somewhere for p, somewhere in zip(self.parameters, present, strict=True)
        }
        for bucket in self.buckets:
            for piece in bucket.pieces:
                gradient = Tensor(piece.of(piece.storage.grad))
                piece.grad = gradient if there.get(piece.parameter) else None
        for p in self.parameters:
            p.grad = None
        self.under_way = False

    def gather(self, storage: FlatStorage, flat) -> None:
        """Fill a flat array, of which each rank has its own pieces, on all ranks."""
        works = []
        for bucket in self.buckets:
            if bucket.storage is storage:
                whole = flat[bucket.start : bucket.stop]
                own = whole[bucket.own]
                works.append(self.communicator.all_gather(whole, own, async_op=True))
        for work in works:
            work.wait()

    def gather_parameters(self) -> None:
        """Give every rank the weights that the others have updated."""
        for storage in self.storages:
            self.gather(storage, storage.data)


def overflow(arrays, stay: bool):
    """Whether an element is not finite; on the device, if it is to stay there."""
    found = euclid.norm(arrays)[1]
    return found if stay else bool(found)  # one wait for all of them
