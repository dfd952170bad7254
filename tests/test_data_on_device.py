"""Batches on a GPU: the same bits, nothing waited for, nothing written too early."""

import numpy as np
import pytest

from minidl import data, nn, optim
from minidl.array import pinned
from minidl.array.device import free_memory, to_numpy
from minidl.data import DataLoader, Dataset, Sampler, Standardize
from minidl.data.loader import RESIDENT_SHARE, Resident, Streamed
from minidl.distributed import Alone, DataParallel
from minidl.nn import functional as F
from minidl.train import CapturedStep, train_step


def dataset_of(n=53, channels=3, dtype=np.uint8, seed=0) -> Dataset:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, channels, 4, 5)).astype(dtype)
    return Dataset(images, rng.integers(0, 10, n).astype(np.uint8))


def passes(loader, count=2) -> list:
    """The batches of some passes, on the host."""
    return [
        (to_numpy(images.data), to_numpy(labels.data))
        for _ in range(count)
        for images, labels in loader
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for pair, wanted in zip(found, expected, strict=True):
        for array, other in zip(pair, wanted, strict=True):
            assert array.dtype == other.dtype
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shuffle, batch_size", [(True, 16), (False, 10), (True, 53)])
def test_the_bits_are_the_cpus(stand_in, pin_memory, channels, shuffle, batch_size):
    dataset = dataset_of(channels=channels)
    scaling = Standardize().fit(dataset.images)
    options = dict(shuffle=shuffle, seed=3, transform=scaling)
    expected = passes(DataLoader(dataset, batch_size, **options))
    there = DataLoader(
        dataset, batch_size, device="cuda", pin_memory=pin_memory, **options
    )
    images, labels = next(iter(there))
    assert images.device == labels.device == "cuda:0"
    assert_same(passes(there), expected)


@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_shares_of_ranks_and_resumed_epochs(stand_in, pin_memory, rank):
    """A rank may have nothing of the last batch."""
    dataset = dataset_of(n=16)

    def loader(**options):
        sampler = Sampler(dataset, 3, rank, seed=1)
        sampler.set_epoch(2, 5)
        return DataLoader(dataset, 5, sampler=sampler, **options)

    there = loader(device="cuda", pin_memory=pin_memory)
    expected = passes(loader())
    assert min(len(labels) for _, labels in expected) == (rank == 0)
    assert_same(passes(there), expected)


def test_the_order_is_made_on_the_device(stand_in):
    for shuffle in (True, False):
        sampler = Sampler(range(1000), shuffle=shuffle, seed=5)
        there = sampler.order("cuda")
        assert isinstance(there, stand_in.cupy.ndarray)
        np.testing.assert_array_equal(there.get(), sampler.order())


@pytest.mark.parametrize("pin_memory", [False, True])
def test_an_epoch_never_waits(stand_in, pin_memory):
    dataset = dataset_of()
    scaling = Standardize().fit(dataset.images)
    loader = DataLoader(
        *(dataset, 8, True), transform=scaling, device="cuda", pin_memory=pin_memory
    )
    list(loader)
    stand_in.reset()
    batches = list(loader)
    assert stand_in.syncs == []
    # a resident batch crosses nothing; others as bytes, their labels beside them
    assert len(stand_in.uploads) == (2 * len(batches) if pin_memory else 0)
    kernels = [name for name in stand_in.launches if name.startswith("minidl_stand")]
    assert kernels == ["minidl_standardize_channels"] * len(batches)


@pytest.mark.parametrize("step", [train_step, CapturedStep()])
@pytest.mark.parametrize("pin_memory", [False, True])
def test_a_training_never_waits(stand_in, step, pin_memory):
    """Nor do batches and steps meet in memory: the stand-in would see the race."""
    dataset = dataset_of(n=64)
    network = nn.Sequential(nn.Flatten(), nn.Linear(60, 10)).to("cuda")
    model = DataParallel(network, Alone())
    optimizer = optim.Adam(model.parameters())
    loader = DataLoader(
        *(dataset, 8, True),
        transform=Standardize().fit(dataset.images),
        device="cuda",
        pin_memory=pin_memory,
    )
    for epoch in range(2):
        if epoch:
            stand_in.reset()
        for images, labels in loader:
            step(model, F.cross_entropy, optimizer, images, labels)
    assert stand_in.syncs == []


def test_where_a_data_set_goes(stand_in, monkeypatch):
    dataset = dataset_of()

    def kind(**options):
        return type(DataLoader(dataset, 8, **options)._source)

    assert kind() is kind(device="cuda") is kind(pin_memory=True) is Resident
    assert kind(device="cuda", pin_memory=True) is Streamed
    size = dataset.images.nbytes + 8 * len(dataset)
    for spare, expected in ((0, Resident), (-8, Streamed)):
        free = size / RESIDENT_SHARE + spare
        monkeypatch.setattr(data.loader, "free_memory", lambda _, free=free: free)
        assert kind(device="cuda") is expected
        assert kind(device="cuda", pin_memory=False) is Resident
    there = Dataset(*map(stand_in.cupy.asarray, (dataset.images, dataset.labels)))
    assert type(DataLoader(there, 8, device="cuda")._source) is Resident


def test_free_memory_counts_what_the_pool_keeps(stand_in):
    before = free_memory("cuda:0")
    array = stand_in.cupy.empty(1 << 20, np.uint8)
    assert free_memory("cuda:0") == before - array.nbytes
    del array
    assert free_memory("cuda:0") == before


def test_passes_side_by_side_and_broken_off(stand_in):
    dataset = dataset_of()
    here = DataLoader(dataset, 8)
    there = DataLoader(dataset, 8, device="cuda", pin_memory=True)
    expected = passes(here, 1)
    for _ in range(2):
        pairs = list(zip(there, there, strict=True))
        for k in (0, 1):
            found = [[to_numpy(x.data) for x in pair[k]] for pair in pairs]
            assert_same(found, expected)
    for _, __ in zip(range(3), there, strict=False):
        pass
    assert_same(passes(there, 1), expected)


def test_pinned_memory_is_not_written_before_its_copy_is_over(stand_in, monkeypatch):
    """Where the device is behind, the host waits; the stand-in sees that it must."""
    dataset = dataset_of()
    expected = passes(DataLoader(dataset, 8), 1)
    event = stand_in.cupy.cuda.Event
    monkeypatch.setattr(event, "done", property(lambda self: False))
    loader = DataLoader(dataset, 8, device="cuda", pin_memory=True)
    assert_same(passes(loader, 1), expected)
    assert stand_in.syncs.count("event.synchronize") == len(expected)
    monkeypatch.setattr(event, "synchronize", lambda self: None)
    loader = DataLoader(dataset, 8, device="cuda", pin_memory=True)
    batches = list(loader)
    assert len(batches) == len(expected)
    early = 0
    while True:
        try:
            stand_in.cupy.cuda.Device().synchronize()
            break
        except RuntimeError as error:
            assert "pinned memory was written" in str(error)
            early += 1
    assert early > 2 * (len(expected) - 3)  # by chance, some rows may be the same


def test_a_feed_holds_two(stand_in):
    feed = pinned.Feed([np.arange(6.0)], 2, "cuda:0")
    for k in (0, 2):
        feed.send(np.array([k, k + 1]))
    with pytest.raises(RuntimeError, match="receive one of them first"):
        feed.send(np.array([4]))
    assert feed.receive()[0].get().tolist() == [0, 1]
    feed.send(np.array([4]))
    assert [feed.receive()[0].get().tolist() for _ in "ab"] == [[2, 3], [4]]


def test_standardize_follows_its_numbers(stand_in):
    images = dataset_of().images
    scaling, there = Standardize().fit(images), stand_in.cupy.asarray(images)
    for factor in (1.0, 2.0):
        scaling.mean *= factor  # in place too
        np.testing.assert_array_equal(scaling(there).get(), scaling(images))
    stand_in.reset()
    scaling(there)
    assert len(stand_in.launches) == 1 and stand_in.uploads == []


def test_the_next_batch_is_copied_beside_the_step(stand_in):
    """Its copy waits for nothing that was asked of the model's stream in between."""
    feed = pinned.Feed([np.arange(8.0)], 2, "cuda:0")
    for k in (0, 2):
        feed.send(np.array([k, k + 1]))
    stream = stand_in.cupy.cuda.get_current_stream()
    before = stream.clock[stream.ptr]
    feed.receive()[0] * 2  # a step
    assert feed.sent[0].copied.clock.get(stream.ptr, 0) <= before
    feed.send(np.array([4, 5]))  # into the buffer that was received from
    assert before < feed.sent[1].copied.clock[stream.ptr] < stream.clock[stream.ptr]
