"""Whether all ranks hold the same weights."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from minidl.array.errors import DistributedError, listed
from minidl.autograd.tensor import Tensor
from minidl.distributed.communicator import Communicator
from minidl.nn.module import Module


def check_same_weights(module: Module, communicator: Communicator) -> None:
    """Refuse ranks whose model has other names, shapes or values than rank 0's."""
    others = different(module.state_dict().items(), communicator)
    if others:
        ranks = ", ".join(str(rank) for rank, _ in others)
        raise DistributedError(
            f"the model of rank {ranks} differs from that of rank 0: build "
            "it alike on all ranks, after the same md.manual_seed(...), or load the "
            "same checkpoint"
        )


def check_still_same(module: Module, communicator: Communicator, when: str) -> None:
    """Raise DistributedError, on every rank, where the ranks' parameters have parted.

    The running statistics of batch norm are left out: ranks have their own.
    """
    others = different(module.named_parameters(), communicator)
    if others:
        named = [f"that of rank {rank} (first in {name})" for rank, name in others]
        raise DistributedError(
            f"{when} the model of rank 0 differs from {listed(named, 8)}: "
            "some rank has changed its weights by other gradients than the rest, or "
            "its memory is faulty; continue from the last checkpoint"
        )


def different(
    named: Iterable[tuple[str, Tensor]], communicator: Communicator
) -> list[tuple[int, str]]:
    """The ranks that hold others than rank 0, each with the first name that differs."""
    digests = {
        name: blake2b(
            f"{tensor.shape} {tensor.dtype} ".encode()
            + np.ascontiguousarray(tensor.numpy()).tobytes(),
            digest_size=8,
        ).hexdigest()
        for name, tensor in named
    }
    total = blake2b(repr(digests).encode(), digest_size=8).hexdigest()
    everyone = communicator.all_gather_object(total)
    if all(other == everyone[0] for other in everyone):
        return []
    everything = [list(d.items()) for d in communicator.all_gather_object(digests)]
    first = everything[0]
    found = []
    for rank, theirs in enumerate(everything):
        if theirs != first:
            parted = [b for a, b in zip(first, theirs, strict=False) if a != b]
            found.append((rank, (parted or [("the number of tensors",)])[0][0]))
    return found
