"""Softmax and cross entropy's CUDA kernels, against the formulas in float64."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl.array import (
    cross_entropy,
    cuda_cross_entropy,
    cuda_softmax,
    cuda_teams,
    softmax,
)
from minidl.array.cuda_source import source_of, types_of
from minidl.array.device import bfloat16

pytest.importorskip("cupy", reason="CuPy is not installed")
from machine_code import kernels  # noqa: E402
from test_cuda_compile import compile_cuda, nvrtc  # noqa: E402, F401

TOLERANCE = {8: 1e-13, 4: 3e-6, 2: 1e-2}
HALF = bfloat16 or "float16"
CASES = st.sampled_from(
    [
        ((3, 1), "float32"),
        ((70, 10), "float64"),
        ((40, 8), HALF),
        ((5, 31), "float16"),
        ((2, 1000), "float32"),
        ((4, 1000), "float64"),
        ((2, 5000), HALF),
        ((1, 20000), "float32"),
        ((3, 7, 5), "float32"),
        ((2, 40, 3, 3), "float16"),
    ]
)
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def cupy(stand_in):
    return stand_in.cupy


def launched(function, *args):
    """The result, and how many launches it took; nothing was waited for."""
    import stand_in

    stand_in.reset()
    result = function(*args)
    assert not stand_in.syncs and not stand_in.uploads
    return result, len(stand_in.launches)


def close(got, want, dtype):
    assert got.dtype == dtype and got.shape == want.shape
    error = np.abs(got.get().astype(float) - want)
    assert error.max(initial=0) <= TOLERANCE[np.dtype(dtype).itemsize] * (
        1 + np.abs(want).max(initial=0)
    )


@pytest.mark.slow
@once
@given(CASES, st.sampled_from([1, 30]))
def test_softmax_and_its_gradient(cupy, case, scale):
    shape, dtype = case
    draw = np.random.default_rng(shape[-1])
    x, g = (draw.normal(0, s, shape).astype(dtype) for s in (scale, 1))
    wide = x.astype(float) - x.astype(float).max(1, keepdims=True)
    logs = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    gw = g.astype(float)
    for log in (False, True):
        forward = softmax.log_softmax if log else softmax.softmax
        backward = softmax.log_softmax_gradient if log else softmax.softmax_gradient
        y, count = launched(forward, cupy.asarray(x), 1)
        assert count == 1
        close(y, logs if log else np.exp(logs), dtype)
        exact = y.get().astype(float)
        if log:
            want = gw - gw.sum(1, keepdims=True) * np.exp(exact)
        else:
            want = (gw - (gw * exact).sum(1, keepdims=True)) * exact
        gx, count = launched(backward, cupy.asarray(g), y, 1)
        assert count == 1
        close(gx, want, dtype)


@pytest.mark.slow
@once
@given(CASES, st.sampled_from([1, 30]), st.sampled_from([0.0, 0.3]))
def test_cross_entropy_and_its_gradient(cupy, case, scale, smoothing):
    shape, dtype = case
    kind = "int32" if dtype == "float16" else "int64"
    draw = np.random.default_rng(shape[1])
    x = draw.normal(0, scale, shape).astype(dtype)
    labels = draw.integers(0, shape[1], (shape[0], *shape[2:])).astype(kind)
    g = draw.normal(size=labels.shape).astype(dtype)
    wide = x.astype(float) - x.astype(float).max(1, keepdims=True)
    logs = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    target = np.full(shape, smoothing / shape[1])
    places = np.expand_dims(labels.astype(int), 1)
    np.put_along_axis(target, places, 1 - smoothing + smoothing / shape[1], 1)
    (terms, p), count = launched(
        cross_entropy.cross_entropy, cupy.asarray(x), cupy.asarray(labels), smoothing
    )
    assert count == 1
    close(terms, -(target * logs).sum(1), dtype)
    close(p, np.exp(logs), dtype)
    slope = p.get().astype(float) - target
    gx, count = launched(
        cross_entropy.deviation, cupy.asarray(g), p, cupy.asarray(labels), smoothing
    )
    assert count == 1
    close(gx, slope * np.expand_dims(g.astype(float), 1), dtype)


@pytest.mark.parametrize("classes", [3, 8, 300, 5000])
def test_infinities_are_those_of_the_cpu(cupy, classes):
    x = np.random.default_rng(0).normal(size=(6, classes)).astype("float32")
    x[1, 2], x[2, 0], x[3, 1], x[4] = np.nan, np.inf, -np.inf, -np.inf
    for function, *rest in (
        (softmax.softmax, False),
        (softmax.softmax, True),
        (softmax.log_softmax,),
    ):
        with np.errstate(all="ignore"):
            want = function(x, 1, *rest)
        got = function(cupy.asarray(x), 1, *rest).get()
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    labels = np.array([0, 1, 1, 1, 0, 2])
    got = cross_entropy.cross_entropy(cupy.asarray(x), cupy.asarray(labels))
    with np.errstate(all="ignore"):
        want = cross_entropy.cross_entropy(x, labels)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours.get(), theirs, rtol=1e-5, atol=1e-6)


def test_empty_and_unaligned_rows(cupy):
    terms, p = cross_entropy.cross_entropy(
        cupy.empty((0, 3), "float32"), cupy.empty(0, "int64")
    )
    assert terms.shape == (0,) and p.shape == (0, 3)
    x = cupy.asarray(np.arange(33, dtype="float32"))
    want = softmax.softmax(np.arange(1, 33, dtype="float32").reshape(2, 16), 1)
    got = softmax.softmax(x[1:].reshape(2, 16), 1).get()
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.slow
def test_the_kernels_compile(nvrtc):  # noqa: F811
    for dtype, team, vector in (
        ("float32", 1, 1),
        ("float64", 16, 2),
        ("float16", 1024, 8),
        (HALF, 32, 8),
    ):
        for text, extra in (
            (cuda_softmax._SOFTMAX, ()),
            (cuda_cross_entropy._CROSS_ENTROPY, (("L", np.dtype("int64")),)),
            (cuda_cross_entropy._COUNTED, (("L", np.dtype("uint8")),)),
        ):
            types = (*types_of(np.empty(0, dtype)), *extra)
            numbers = (("TEAM", team), ("VECTOR", vector))
            code = source_of(cuda_teams.SOURCE + text, types, numbers)
            assert compile_cuda(code, "sm_80", options=(), raw=True)[1:4] == b"ELF"


def test_rows_are_read_16_bytes_at_a_time(nvrtc):  # noqa: F811
    for dtype, vector in (("float32", 4), (HALF, 8)):
        types = types_of(np.empty(0, dtype))
        numbers = (("TEAM", 32), ("VECTOR", vector))
        code = source_of(cuda_teams.SOURCE + cuda_softmax._SOFTMAX, types, numbers)
        found = kernels(compile_cuda(code, "sm_90", options=(), raw=True))
        for each in found.values():
            assert each.frame == 0 and each.loads == {16: 8}
            assert set(each.stores) == {16}
