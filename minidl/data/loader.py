"""Minibatches, ready for the model."""

from collections.abc import Callable, Iterator

import numpy as np

from minidl.array.device import canonical_device, device_of, free_memory, to_device
from minidl.array.pinned import Feed
from minidl.array.sampling import Sampler
from minidl.autograd import Tensor
from minidl.data.datasets import Dataset

RESIDENT_SHARE = 0.25  # of a GPU's free memory: how much a data set may take


class DataLoader:
    """Iterates over (images, labels), Tensors: this rank's share of a global batch.

    The dataset is moved to `device` once, as it is stored; a batch is gathered
    there by one indexing and given to `transform` (float32 from bytes: a quarter
    of the memory of a dataset transformed beforehand, and on a CPU no slower,
    since the gather reads a quarter as much: 41 against 52 us for 128 images of
    MNIST, a thousandth of a step, which is why nothing is prefetched there).

    A dataset of more than a quarter of a GPU's free memory (RESIDENT_SHARE) stays on
    the host: batches are gathered into pinned memory, and the next one is copied
    while the model computes with the last. `pin_memory`, True or False, decides that
    instead. The batches are the same bits in every case.

    `batch_size` is that of all ranks together, and `len` the number of global
    batches, so that all ranks take equally many steps; a rank that is left
    without samples in the last one gets arrays of length 0.

    A pass that is finished moves the sampler on to the next epoch, so that each
    is shuffled anew; `loader.sampler.set_epoch(epoch, position)` resumes one.
    With a `sampler` given, that alone decides shuffle, drop_last and seed.

    Raises DataError for an impossible batch size or device, before any batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Sampler | None = None,
        *,
        drop_last: bool = False,
        seed: int = 0,
        transform: Callable | None = None,
        device: str | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        if not hasattr(dataset, "images"):
            raise TypeError(
                "a DataLoader gathers batches of a Dataset(images, labels) of whole "
                f"arrays (numpy.stack makes one of samples), got "
                f"{type(dataset).__name__}"
            )
        if sampler is None:
            sampler = Sampler(dataset, shuffle=shuffle, seed=seed, drop_last=drop_last)
        elif shuffle or drop_last or seed:
            raise ValueError(
                "shuffle, drop_last and seed are the sampler's where one is given"
            )
        if len(sampler.dataset) != len(dataset):
            raise ValueError(
                f"the sampler is for {len(sampler.dataset)} samples, "
                f"the dataset has {len(dataset)}"
            )
        sampler.num_batches(batch_size)  # refuses an impossible batch size
        self.dataset, self.batch_size, self.sampler = dataset, batch_size, sampler
        self.transform, self.device = transform, canonical_device(device)
        labels = dataset.labels.astype(np.int64, copy=False)
        self._source = source_of([dataset.images, labels], self.device, pin_memory)

    def __len__(self) -> int:
        return self.sampler.num_batches(self.batch_size)

    def __iter__(self) -> Iterator[tuple]:
        epoch = self.sampler.epoch
        index = self.sampler.batches(self.batch_size, self._source.index_device)
        for images, labels in self._source.batches(index):
            if self.transform is not None:
                images = self.transform(images)
            yield Tensor(images), Tensor(labels)
        self.sampler.set_epoch(epoch + 1)


class Resident:
    """Arrays that lie where the batches are to be."""

    def __init__(self, arrays: list, device: str):
        self.index_device = device
        self.arrays = [to_device(array, device) for array in arrays]

    def batches(self, indices: Iterator) -> Iterator[list]:
        """The rows of each index."""
        for index in indices:
            yield self.rows(index)

    def rows(self, index) -> list:
        return [array[index] for array in self.arrays]


class Streamed:
    """Arrays of the host whose batches are sent to a GPU, one ahead of the model."""

    index_device = "cpu"

    def __init__(self, arrays: list, device: str):
        self.arrays, self.device = arrays, device
        self.spare: list[Feed] = []  # each pass under way has one of its own

    def batches(self, indices: Iterator) -> Iterator[list]:
        """The rows of each index."""
        first = next(indices, None)
        if first is None:
            return
        feed = self.feed(len(first))  # no batch of a pass is larger than the first
        feed.send(first)
        for index in indices:
            feed.send(index)
            yield feed.receive()
        yield feed.receive()
        self.spare.append(feed)

    def feed(self, most: int) -> Feed:
        """One that no other pass uses."""
        if self.spare and self.spare[-1].most >= most:
            return self.spare.pop()
        return Feed(self.arrays, most, self.device)


def source_of(arrays: list, device: str, pin_memory: bool | None):
    """Where batches come from: `pin_memory` says, or whether the arrays fit."""
    on_host = device != "cpu" and all(device_of(array) == "cpu" for array in arrays)
    if on_host and pin_memory is None:
        size = sum(array.nbytes for array in arrays)
        pin_memory = size > RESIDENT_SHARE * free_memory(device)
    return (Streamed if on_host and pin_memory else Resident)(arrays, device)
