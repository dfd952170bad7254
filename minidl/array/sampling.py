"""Which samples a rank sees, and when: a function of (seed, epoch, position)."""

from collections.abc import Iterator, Sized
from numbers import Integral

import numpy as np

from minidl.array.device import Array, to_device
from minidl.array.errors import UsageError
from minidl.array.random import Generator, key, permutation


class Sampler:
    """Cuts each epoch into global batches, and each batch among the ranks.

        order = permutation keyed by (seed, epoch), or 0, 1, 2, ... unshuffled
        batch k = order[k B : (k + 1) B],  rank r takes a contiguous share of it

    The global batches are thus the same on any number of ranks. Shares differ by
    at most one sample, also in an uneven last batch, where a rank's share may be
    empty. Over the ranks every sample comes exactly once an epoch; unshuffled,
    this makes evaluation exact.

    The arguments are those of PyTorch's DistributedSampler; what differs: one rank
    is the default (`distributed.DistributedSampler` asks for its rank), nothing is
    padded, `drop_last` leaves out an incomplete last global batch, and since
    a share depends on the global batch size, one iterates `batches(batch_size)`.

    Raises UsageError for more ranks than samples and for no samples, ValueError for
    a rank that is not one of `num_replicas`.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"rank should be 0 to num_replicas - 1 = {num_replicas - 1}, got {rank}"
            )
        if not len(dataset):
            raise UsageError("the data set has no samples")
        if num_replicas > len(dataset):
            raise UsageError(
                f"{num_replicas} ranks cannot share {len(dataset)} samples: "
                "start at most as many ranks as there are samples"
            )
        self.dataset = dataset
        self.num_replicas, self.rank = num_replicas, rank
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.epoch = self.position = 0

    def set_epoch(self, epoch: int, position: int = 0) -> None:
        """Choose the epoch, from its sample `position` on (to resume within it).

        `position` counts samples of all ranks, so that the number of ranks and
        the batch size may differ from those of the run that is resumed.
        """
        if epoch < 0 or not 0 <= position <= len(self.dataset):
            raise ValueError(
                f"epoch should be at least 0 and position 0 to {len(self.dataset)}, "
                f"got epoch {epoch} and position {position}"
            )
        self.epoch, self.position = epoch, position

    def order(self, device: str | None = "cpu") -> Array:
        """The indices of the whole epoch, of all ranks, in their order.

        They are made on the device that is to use them, and the same on all.
        """
        count = len(self.dataset)
        if not self.shuffle:
            return to_device(np.arange(count), device)
        generator = Generator(key("order", int(self.seed), int(self.epoch)))
        return permutation(count, device, generator)

    def num_batches(self, batch_size: int) -> int:
        """How many global batches of `batch_size` are left of the epoch."""
        self._check(batch_size)
        left = len(self.dataset) - self.position
        return left // batch_size if self.drop_last else -(-left // batch_size)

    def batches(self, batch_size: int, device: str | None = "cpu") -> Iterator[Array]:
        """This rank's indices of each global batch; the last may have none.

        Raises UsageError for a `batch_size` that is smaller than the number of ranks.
        """
        count = self.num_batches(batch_size)
        order = self.order(device)[self.position :]
        for k in range(count):
            batch = order[k * batch_size : (k + 1) * batch_size]
            yield batch[share(len(batch), self.num_replicas, self.rank)]

    def _check(self, batch_size: int) -> None:
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UsageError(
                f"the batch size should be a positive integer, got {batch_size!r}"
            )
        if batch_size < self.num_replicas:
            raise UsageError(
                f"a global batch of {batch_size} leaves some of {self.num_replicas} "
                "ranks without samples: use a larger batch or fewer ranks"
            )


def share(count: int, num_replicas: int, rank: int) -> slice:
    """The contiguous part of `count` samples that is `rank`'s: within one, equal."""
    size, longer = divmod(count, num_replicas)  # the first `longer` ranks take one more
    start = rank * size + min(rank, longer)
    return slice(start, start + size + (rank < longer))
