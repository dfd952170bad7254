"""`use_deterministic_algorithms`: the same bits for any number of threads."""

from unittest import mock

import numpy as np
import pytest

import minidl as md
import minidl.nn.functional as F
from minidl import nn, optim
from minidl.array import (
    blas,
    convolution_cpu,
    convolution_plans,
    convolution_sweep,
    threads,
)
from minidl.array.convolution import conv_forward, conv_weight_gradient


@pytest.fixture
def deterministic():
    before = threads.get_num_threads()
    md.use_deterministic_algorithms(True)
    with (
        mock.patch.object(blas, "SERIAL_WORK", 1),
        mock.patch.object(convolution_cpu, "SERIAL_WORK", 1),
        mock.patch.object(convolution_plans, "SERIAL_WORK", 1),
    ):
        yield
    md.use_deterministic_algorithms(False)
    threads.set_num_threads(before)


def same_for_all_threads(compute):
    results = []
    for count in (1, 2, 3, 5):
        threads.set_num_threads(count)
        results.append(compute())
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def weights_after_steps():
    md.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 17, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(17 * 36, 33),
        nn.Linear(33, 5),
    )
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    rng = np.random.default_rng(1)
    images = md.Tensor(rng.normal(size=(9, 3, 12, 12)).astype("float32"))
    labels = md.Tensor(rng.integers(0, 5, 9))
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return [p.data.copy() for p in model.parameters()]


def test_a_training_has_the_same_bits_for_any_number_of_threads(deterministic):
    same_for_all_threads(weights_after_steps)


def test_so_it_has_where_there_is_no_compiler(deterministic):
    x = np.random.default_rng(2).normal(size=(7, 4, 9, 9)).astype("float32")
    w = np.random.default_rng(3).normal(size=(5, 4, 3, 3)).astype("float32")
    geometry = ((1, 1), (1, 1), (1, 1), 1)

    def compute():
        y = conv_forward(x, w, None, *geometry)
        return y, conv_weight_gradient(y, x, w.shape, *geometry)

    with mock.patch.object(convolution_sweep, "_function", lambda name, dtype: None):
        same_for_all_threads(compute)


def test_products_of_odd_sizes_too(deterministic):
    rng = np.random.default_rng(4)
    pairs = [
        [rng.normal(size=size).astype("float32") for size in ((m, k), (k, n))]
        for m, k, n in [(17, 300, 5), (3, 70, 33), (1, 64, 65), (64, 31, 1)]
    ]
    same_for_all_threads(
        lambda: [md.Tensor(a).matmul(md.Tensor(b)).data for a, b in pairs]
    )


def test_no_tiles_then():
    x, w = np.ones((2, 32, 16, 16), "float32"), np.ones((32, 32, 3, 3), "float32")
    geometry = ((1, 1), (1, 1), (1, 1), 1)

    def uses_tiles():
        return convolution_sweep._winograd(x, w.shape, x.shape, *geometry)

    assert uses_tiles()
    md.use_deterministic_algorithms(True)
    try:
        assert not uses_tiles()
    finally:
        md.use_deterministic_algorithms(False)
    assert uses_tiles()


def test_the_switch_says_how_it_stands():
    assert not md.are_deterministic_algorithms_enabled()
    md.use_deterministic_algorithms(True, warn_only=True)
    assert md.are_deterministic_algorithms_enabled()
    with pytest.raises(TypeError, match="True or False, got int"):
        md.use_deterministic_algorithms(0)
    assert md.are_deterministic_algorithms_enabled()
    md.use_deterministic_algorithms(False)
    assert not md.are_deterministic_algorithms_enabled()
