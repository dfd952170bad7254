"""The sampler of this rank."""

from collections.abc import Sized

from minidl.array.sampling import Sampler
from minidl.distributed.launch import init


class DistributedSampler(Sampler):
    """A Sampler for one rank of several: those of `init()` where they are not given.

    The arguments are PyTorch's; see `Sampler` for what differs.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if num_replicas is None:
            num_replicas = init().size
        if rank is None:
            rank = init().rank
        super().__init__(dataset, num_replicas, rank, shuffle, seed, drop_last)
