"""The CUDA kernels of normalisation, against the formulas in float64."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl.array.device import bfloat16
from minidl.array.standardize import (
    rescale,
    rescale_gradient,
    standardize,
    standardize_gradient,
)

pytest.importorskip("cupy", reason="CuPy is not installed")

TOLERANCE = {8: 1e-11, 4: 2e-5, 2: 2e-2}
HALF = bfloat16 or "float16"
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
CASES = st.sampled_from(  # shape, dims, shape of the parameters, dtype
    [
        ((4, 3, 5, 5), (0, 2, 3), (1, 3, 1, 1), "float32"),
        ((3, 2, 40, 60), (0, 2, 3), (1, 2, 1, 1), "float32"),
        ((3, 2, 40, 60), (0, 2, 3), (1, 2, 1, 1), "float16"),
        ((300, 40), (0,), (1, 40), "float64"),
        ((300, 40), (0,), (1, 40), HALF),
        ((1, 2, 9000), (0, 2), (1, 2, 1), "float64"),
        ((6, 31), (1,), (31,), "float32"),
        ((2, 3, 1000), (2,), (1000,), "float32"),
        ((5, 4, 8), (1, 2), (4, 8), HALF),
        ((2, 5000), (1,), (5000,), "float64"),
        ((2, 4, 3, 20), (2, 3), (1, 4, 3, 1), "float32"),  # groups of 3 channels
        ((2, 3, 4, 5), (2, 3), (1, 3, 1, 1), "float32"),  # each channel of a sample
    ]
)


@pytest.fixture
def cupy(stand_in):
    return stand_in.cupy


def textbook(x, w, b, g, dims, eps, centred):
    """y, mean, var, gx, g xhat and g."""
    mean = x.mean(dims, keepdims=True) * centred
    var = ((x - mean) ** 2).mean(dims, keepdims=True)
    xhat, h = (x - mean) / np.sqrt(var + eps), g * w
    gx = h - h.mean(dims, keepdims=True) * centred
    gx = (gx - xhat * (h * xhat).mean(dims, keepdims=True)) / np.sqrt(var + eps)
    return [xhat * w + b, mean, var, gx, g * xhat, g]


def summed_to(array, shape):
    """The gradient of what has been broadcast."""
    shape = (1,) * (array.ndim - len(shape)) + tuple(shape)  # of array's ndim
    dims = tuple(d for d, n in enumerate(shape) if n == 1)
    return array.sum(dims, keepdims=True)


def close(got, want, dtype):
    got = got.get().astype(float)
    assert got.shape == want.shape
    error = np.abs(got - want).max() / (1 + np.abs(want).max())
    assert error <= TOLERANCE[np.dtype(dtype).itemsize]


@pytest.mark.slow
@once
@given(CASES, st.booleans(), st.booleans(), st.sampled_from([0, 50]))
def test_the_kernels_are_the_formulas(stand_in, cupy, case, plain, centred, mean):
    shape, dims, parameters, dtype = case
    centred = centred or 0 in dims
    mean = 0 if np.dtype(dtype).itemsize == 2 else mean
    draw = np.random.default_rng(shape[-1])
    x, g = draw.normal(mean, 2, shape).astype(dtype), draw.normal(size=shape)
    g, (w, b) = g.astype(dtype), draw.normal(size=(2, *parameters)).astype(dtype)
    exact = [a.astype(float) for a in (x, w, b, g)]
    if plain:
        exact[1:3] = 1.0, 0.0
    want = textbook(*exact, dims, 1e-3, centred)
    x, w, b, g = map(cupy.asarray, (x, w, b, g))
    w, b = (None, None) if plain else (w, b)
    stand_in.reset()
    y, *statistics = standardize(x, w, b, dims, 1e-3, centred)
    forward = len(stand_in.launches)
    gradients = standardize_gradient(g, x, w, *statistics, dims, 1e-3, centred)
    assert not stand_in.syncs and not stand_in.uploads
    assert (forward, len(stand_in.launches)) <= ((2, 4) if 0 in dims else (1, 4))
    assert y.dtype == dtype and gradients[0].dtype == dtype
    for got, right in zip([y, *statistics], want[:3], strict=True):
        close(got, right, dtype)
    close(gradients[0], want[3], dtype)
    for got, right in zip(gradients[1:], want[4:], strict=True):
        if plain and 0 not in dims:
            right = right.sum(dims, keepdims=True)
            close(got, right, dtype)
        else:
            ours = summed_to(got.get().astype(float), parameters).reshape(parameters)
            right = summed_to(right, parameters).reshape(parameters)
            close(cupy.asarray(ours), right, dtype)


@once
@given(CASES, st.booleans(), st.booleans())
def test_given_statistics(stand_in, cupy, case, plain, channels_last):
    """One launch forward, one back, and one more for the sums that parameters need."""
    shape, dims, parameters, dtype = case
    if 0 not in dims:
        return
    draw = np.random.default_rng(shape[-1])
    wide = "float64" if dtype == "float64" else "float32"
    x, g = (draw.normal(size=shape).astype(dtype) for _ in range(2))
    w, b, mean = draw.normal(size=(3, *parameters)).astype(wide)
    var = draw.random(parameters).astype(wide)
    exact = [a.astype(float) for a in (x, w, b, g, mean, var)]
    if plain:
        exact[1:3] = 1.0, 0.0
    scale = 1 / np.sqrt(exact[5] + 1e-3)
    xhat = (exact[0] - exact[4]) * scale
    x, w, b, g, mean, var = map(cupy.asarray, (x, w, b, g, mean, var))
    if channels_last and len(shape) > 2:
        x = cupy.moveaxis(cupy.ascontiguousarray(cupy.moveaxis(x, 1, -1)), -1, 1)
    w, b = (None, None) if plain else (w, b)
    stand_in.reset()
    y = rescale(x, w, b, mean, var, dims, 1e-3)
    assert len(stand_in.launches) == 1 and y.strides == x.strides
    alone, *none = rescale_gradient(x, None, w, mean, var, dims, 1e-3)
    assert len(stand_in.launches) == 2 and none == [None, None]
    gx, gw, gb = rescale_gradient(g, x, w, mean, var, dims, 1e-3)
    assert len(stand_in.launches) <= 5 and y.dtype == gx.dtype == dtype
    assert not stand_in.syncs and not stand_in.uploads
    close(alone, exact[0] * exact[1] * scale, dtype)
    close(y, xhat * exact[1] + exact[2], dtype)
    close(gx, exact[3] * exact[1] * scale, dtype)
    close(gw, summed_to(exact[3] * xhat, parameters), dtype)
    close(gb, summed_to(exact[3], parameters), dtype)


def test_channels_last_stay_so(cupy, stand_in):
    draw = np.random.default_rng(0)
    x, g = draw.normal(3, 2, (2, 2, 4, 5, 40)).astype("float32")
    there, back = (cupy.asarray(a).transpose(0, 3, 1, 2) for a in (x, g))
    w = cupy.asarray(draw.normal(size=(1, 40, 1, 1)).astype("float32"))
    stand_in.reset()
    dims = (0, 2, 3)
    y, mean, var = standardize(there, w, None, dims, 0.0, True)
    gradients = standardize_gradient(back, there, w, mean, var, dims, 0.0, True)
    assert len(stand_in.launches) == 4
    assert y.strides == gradients[0].strides == there.strides
    moved = [a.transpose(0, 3, 1, 2).astype(float) for a in (x, g)]
    want = textbook(moved[0], w.get(), 0, moved[1], dims, 0.0, True)
    for got, right in zip([y, mean, var, gradients[0]], want, strict=False):
        close(got, right, "float32")


@pytest.mark.parametrize("shape", [(64, 2, 8, 8), (4096, 3), (1, 2, 20000)])
def test_large_means_and_outliers_cost_no_digits(cupy, shape):
    x = np.random.default_rng(0).normal(size=shape) + 1e4
    x.reshape(-1)[0] = -1e5
    x = x.astype("float32")
    dims = (0, *range(2, x.ndim))
    _, mean, var = standardize(cupy.asarray(x), None, None, dims, 0.0, True)
    exact = x.astype(float)
    np.testing.assert_allclose(mean.get(), exact.mean(dims, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(var.get(), exact.var(dims, keepdims=True), rtol=1e-4)
    last = standardize(cupy.asarray(x), None, None, dims[1:] or (1,), 0.0, True)
    exact = exact.var(dims[1:] or (1,), keepdims=True)
    np.testing.assert_allclose(last[2].get(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("eps", [1, np.float32(1)])
@pytest.mark.parametrize("dims", [(0, 2), (2,)])
def test_eps_may_be_any_number(cupy, eps, dims):
    x = np.random.default_rng(5).normal(size=(4, 3, 8)).astype("float32")
    want = standardize(x, None, None, dims, 1.0, True)
    back = standardize_gradient(x, x, None, *want[1:], dims, 1.0, True)
    got = standardize(cupy.asarray(x), None, None, dims, eps, True)
    there = [cupy.asarray(a) for a in (x, x, *want[1:])]
    gx = standardize_gradient(*there[:2], None, *there[2:], dims, eps, True)[0]
    assert np.allclose(got[0].get(), want[0], atol=1e-5)
    assert np.allclose(gx.get(), back[0], atol=1e-5)


def test_a_nan_stays_in_its_channel(cupy):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype("float32")
    x[1, 1, 2, 3] = np.nan
    y = standardize(cupy.asarray(x), None, None, (0, 2, 3), 0.0, True)[0].get()
    assert np.isnan(y[:, 1]).all() and np.isfinite(y[:, ::2]).all()
