"""Cross entropy's compiled loops against the formula in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.array import cross_entropy as raw
from minidl.array import threads

TOLERANCE = {"float32": 2e-6, "float64": 1e-14}


def case(n, classes, dtype, scale=3.0):
    rng = np.random.default_rng(n + 17 * classes)
    x, g = rng.normal(0, scale, (n, classes)), rng.normal(size=n)
    return x.astype(dtype), g.astype(dtype), rng.integers(0, classes, n)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from([1, 1000]),
    st.sampled_from(["int64", "int32"]),
    st.sampled_from([0.0, 0.3]),
)
def test_the_loops_are_the_formula(n, classes, dtype, scale, kind, smoothing):
    x, g, labels = case(n, classes, dtype, scale)
    terms, p = raw.cross_entropy(x, labels.astype(kind), smoothing)
    gx = raw.deviation(g, p, labels.astype(kind), smoothing)
    exact, places = x.astype(float), (np.arange(n), labels)
    exact -= exact.max(1, keepdims=True)
    want = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    target = np.full(exact.shape, smoothing / classes)
    target[places] += 1 - smoothing
    loss = np.log(np.exp(exact).sum(1)) - (target * exact).sum(1)
    slope = want - target
    for got, right in ((p, want), (terms, loss), (gx, slope * g[:, None])):
        assert got.dtype == dtype and got.shape == right.shape
        assert np.abs(got - right).max() <= TOLERANCE[dtype] * (1 + np.abs(right).max())


def test_nan_and_infinity_stay_in_their_row():
    x, _, labels = case(6, 5, "float32")
    x[1, 3], x[2, 0], x[3, 2] = np.nan, np.inf, -np.inf
    labels[3] = 2
    terms, p = raw.cross_entropy(x, labels)
    assert np.isnan(terms[[1, 2]]).all() and np.isnan(p[[1, 2]]).all()
    assert terms[3] == np.inf and p[3, 2] == 0
    assert np.isfinite(terms[[0, 4, 5]]).all() and np.isfinite(p[[0, 3, 4, 5]]).all()


@pytest.mark.skipif(
    raw._function("forward", np.dtype("float32")) is None,
    reason="there is no compiler",
)
def test_any_threads_and_any_memory_order_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(raw, "SERIAL_SIZE", 0)
    x, g, labels = case(33, 19, "float32")
    columns, spread = np.asfortranarray(x), np.repeat(labels, 2)[::2]
    before, results = threads.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            for scores, numbers in ((x, labels), (columns, spread)):
                terms, p = raw.cross_entropy(scores, numbers)
                results.append((terms, p, raw.deviation(g, p, numbers)))
    finally:
        threads.set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 4), (2, 3, 0)])
def test_other_shapes_go_through_numpy(shape):
    x = np.random.default_rng(0).normal(size=shape)
    labels = np.zeros((shape[0], *shape[2:]), int)
    terms, p = raw.cross_entropy(x, labels)
    assert terms.shape == labels.shape and p.shape == shape
    assert raw.deviation(terms, p, labels).shape == shape
