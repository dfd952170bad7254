"""Batch norm's compiled loops against the formulas in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl.array import standardize_loops, threads
from minidl.array.standardize import standardize, standardize_gradient

TOLERANCE = {"float32": 3e-6, "float64": 1e-13}
needs_compiler = pytest.mark.skipif(
    standardize_loops._function("forward", np.dtype("float32")) is None,
    reason="there is no compiler",
)


def textbook(x, w, b, g, eps):
    """y, mean, var and the gradients of x, w and b."""
    dims = (0, *range(2, x.ndim))
    mean, var = x.mean(dims, keepdims=True), x.var(dims, keepdims=True)
    xhat = (x - mean) / np.sqrt(var + eps)
    h = g * w
    gx = h - h.mean(dims, keepdims=True)
    gx = (gx - xhat * (h * xhat).mean(dims, keepdims=True)) / np.sqrt(var + eps)
    gw, gb = (v.sum(dims, keepdims=True) for v in (g * xhat, g))
    return [xhat * w + b, mean, var, gx, gw, gb]


def case(n, channels, rows, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, size=(n, channels, *rows))
    g = rng.normal(size=x.shape)
    w, b = rng.normal(size=(2, 1, channels, *[1] * len(rows)))
    return [a.astype(dtype) for a in (x, w, b, g)]


def computed(x, w, b, g, eps=1e-3):
    dims = (0, *range(2, x.ndim))
    y, mean, var = standardize(x, w, b, dims, eps, True)
    return [y, mean, var, *standardize_gradient(g, x, w, mean, var, dims, eps, True)]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([(8,), (3, 5), (37,), (64, 2), (5000,), (3, 2, 50)]),
    st.sampled_from(["float32", "float64"]),
    st.booleans(),
)
def test_the_loops_are_the_formulas(n, channels, rows, dtype, plain):
    x, w, b, g = case(n, channels, rows, dtype, n)
    exact = [a.astype(float) for a in (x, w, b, g)]
    if plain:
        w, b, exact[1:3] = None, None, (1.0, 0.0)
    for got, want in zip(computed(x, w, b, g), textbook(*exact, 1e-3), strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        assert np.abs(got - want).max() <= TOLERANCE[dtype] * (1 + np.abs(want).max())


@needs_compiler
def test_they_serve_batch_norm_alone():
    x, w, _, _ = case(2, 3, (4, 5), "float32")
    forward = standardize_loops.forward
    assert forward(x, w, None, (0, 2, 3), 0.0) is not None
    assert forward(x, w.astype(float), None, (0, 2, 3), 0.0) is None
    assert forward(x, w[..., :1].repeat(5, 3), None, (0, 2, 3), 0.0) is None
    assert forward(x, w, None, (2, 3), 0.0) is None
    assert forward(x[:, :, 0], w[0], None, (0, 2), 0.0) is None  # rows too short
    assert forward(x.astype("float16"), None, None, (0, 2, 3), 0.0) is None
    assert forward(x[:0], w, None, (0, 2, 3), 0.0) is None


@needs_compiler
def test_any_memory_order_and_any_threads_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(standardize_loops, "SERIAL_SIZE", 0)
    x, w, b, g = case(4, 5, (6, 7), "float32")
    before, results = threads.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            results += [computed(x, w, b, g)]
            swapped = [a.transpose(0, 3, 2, 1).copy() for a in (x, g)]
            x2, g2 = (a.transpose(0, 3, 2, 1) for a in swapped)
            results += [computed(x2, w, b, g2)]
    finally:
        threads.set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_nan_stays_in_its_channel():
    x, w, b, g = case(2, 3, (4, 4), "float32")
    x[1, 1, 2, 3] = np.nan
    y, mean, var, gx, *_ = computed(x, w, b, g)
    for array in (y, mean, var, gx):
        assert np.isnan(array[:, 1]).all()
        assert np.isfinite(array[:, ::2]).all()
