"""Cross entropy's compiled loops against the formula in float64."""

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.array import cross_entropy as raw
from minidl.array import threads
from minidl.array.device import to_numpy
from minidl.autograd.tensor import Tensor
from minidl.nn import functional as F
from minidl.ops.cross_entropy import CountedMean

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


@pytest.mark.parametrize("kind", ["int64", "int32"])  # the loop, and NumPy
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_ignored_labels_have_no_part(kind, smoothing):
    x, g, labels = case(9, 5, "float64")
    out = np.arange(9) % 4 == 1
    ignored = np.where(out, 7, labels).astype(kind)
    terms, p = raw.cross_entropy(x, ignored, smoothing, 7)
    want, same = raw.cross_entropy(x, labels.astype(kind), smoothing)
    np.testing.assert_array_equal(p, same)
    np.testing.assert_array_equal(terms, np.where(out, 0, want))
    got = raw.deviation(np.where(out, np.nan, g), p, ignored, smoothing, 7)
    want = raw.deviation(g, p, labels.astype(kind), smoothing)
    np.testing.assert_array_equal(got, np.where(out[:, None], 0, want))
    assert raw.count_labels("a test", ignored, 5, 7) == (~out).sum()
    with pytest.raises(IndexError, match="a test: label 7 is out of range"):
        raw.count_labels("a test", ignored, 5, -100)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(0,), (1,), (70,), (3, 6, 5), (40_000,)])
def test_the_mean_of_the_terms_that_count(xp, shape, dtype):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, shape)
    terms = np.where(labels == 2, 0, rng.uniform(size=shape)).astype(dtype)
    total, count, mean = raw.counted_mean(xp.asarray(terms), xp.asarray(labels), 2)
    wide, n = terms.astype(float).sum(), (labels != 2).sum()
    assert count.item() == n and mean.dtype == dtype and total.shape == ()
    assert (
        total.dtype == count.dtype == ("float64" if dtype == "float64" else "float32")
    )
    np.testing.assert_allclose(total.item(), wide, rtol=1e-5, atol=1e-12)
    rtol = {"float16": 1e-3}.get(dtype, 1e-5)
    np.testing.assert_allclose(mean.item(), wide / n if n else np.nan, rtol=rtol)


def test_gradients_of_that_mean():
    terms = np.random.default_rng(0).normal(size=(3, 4))
    labels = np.arange(12).reshape(3, 4) % 5

    def of(t):
        mean, total, _ = CountedMean.apply(t, labels, 1)
        return mean * mean + total * 0.5

    check_gradients(of, terms)


def test_a_gpu_says_what_a_cpu_does(xp):
    """Loss, count and gradient; a label out of range is NaN there, in its row alone."""
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(6, 4, 3)), rng.integers(0, 4, (6, 3))
    labels[2] = -100
    for options in (
        {},
        {"label_smoothing": 0.2},
        {"ignore_index": 1, "reduction": "sum"},
        {"ignore_index": 1, "reduction": "none"},
        {"weight": rng.uniform(size=4)},
    ):
        results = []
        for place in (np.asarray, xp.asarray):
            given = {
                k: Tensor(place(v)) if k == "weight" else v for k, v in options.items()
            }
            scores = Tensor(place(x), requires_grad=True)
            marks = np.where(labels == -100, given.get("ignore_index", -100), labels)
            loss = F.cross_entropy(scores, Tensor(place(marks)), **given)
            loss.sum().backward()
            results.append((loss, scores.grad))
            assert "reduction" in options or loss.total is not None
        (loss, grad), (other, its) = results
        np.testing.assert_allclose(to_numpy(other.data), loss.data, rtol=1e-12)
        np.testing.assert_allclose(
            to_numpy(its.data), grad.data, rtol=1e-11, atol=1e-15
        )
        if loss.count is not None:
            assert float(other.count) == pytest.approx(float(loss.count))
    if xp is not np:
        scores = Tensor(xp.asarray(x), requires_grad=True)
        wrong = Tensor(xp.asarray(np.where(labels == -100, 4, labels)))
        terms = F.cross_entropy(scores, wrong, reduction="none")
        terms.sum().backward()
        assert (np.isnan(terms.numpy()) == (labels == -100)).all()
        assert (np.isnan(scores.grad.numpy()).any(1) == (labels == -100)).all()


def test_nothing_counts():
    """The loss is NaN, and its gradient 0, as in PyTorch."""
    for function in (F.cross_entropy, F.nll_loss):
        for weight in (None, Tensor(np.ones(3))):
            x = Tensor(np.ones((2, 3)), requires_grad=True)
            loss = function(x, Tensor(np.full(2, -100)), weight)
            loss.backward()
            assert np.isnan(loss.item()) and not x.grad.numpy().any()


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
