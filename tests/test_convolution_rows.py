"""Convolutions of NumPy alone, with the batch innermost, against direct sums."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_raw_convolution import convolutions

from minidl.array import batch_innermost, determinism, threads
from minidl.array import convolution_columns as columns
from minidl.array import convolution_rows as rows
from minidl.array import convolution_tiles as tiles
from minidl.array.convolution import (
    conv_bias_gradient,
    conv_forward,
    conv_input_gradient,
    conv_rectified_gradient,
    conv_weight_gradient,
    output_shape,
)
from minidl.array.convolution_sweep import _function as swept

NONE = SimpleNamespace(compiler=lambda: None)
FEW = settings(deadline=None, max_examples=25)
TOLERANCE = {"float64": 1e-11, "float32": 3e-5}


@contextmanager
def alone(tile=1 << 22, matrix=1 << 19, chunk=1 << 23):
    """NumPy without a compiler, threads and blocks as in a large convolution."""
    with (
        mock.patch.object(rows, "compiler", NONE),
        mock.patch("minidl.array.convolution_sweep._function", lambda *a: None),
        mock.patch.multiple(rows, SERIAL_WORK=0, LEAST_BATCH=1),
        mock.patch.multiple(rows, TILE_BYTES=tile, MATRIX_BYTES=matrix),
        mock.patch.multiple(tiles, SERIAL_WORK=0, BATCH=1, SUMS=1, CHUNK_BYTES=chunk),
    ):
        yield


def innermost(array):
    """The same array with its batch innermost in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0)


def by_rows(array):
    made = batch_innermost.empty(array.shape, array.dtype)
    made[...] = array
    return made


LAYOUTS = st.sampled_from([np.ascontiguousarray, innermost, by_rows])


def reference(x, w, b, gy, geometry):
    """y, gx and gw in float64, by the columns of the textbooks."""
    x, w, b, gy = (np.ascontiguousarray(a, float) for a in (x, w, b, gy))
    gw = np.empty_like(w)
    columns.weight_gradient(gy, x, gw, *geometry)
    y = columns.forward(x, w, b, gy.shape, *geometry)
    return y, columns.input_gradient(gy, w, x.shape, *geometry), gw


def assert_near(got, want):
    assert got.shape == want.shape
    scale = np.abs(want).max(initial=1)
    assert np.abs(got - want).max(initial=0) <= TOLERANCE[got.dtype.name] * scale


def check(x, w, b, gy, geometry, dtype, laid_x, laid_gy):
    want = reference(x, w, b, gy, geometry)
    x, gy = laid_x(x.astype(dtype)), laid_gy(gy.astype(dtype))
    w, b = w.astype(dtype), b.astype(dtype)
    got, relu = (conv_forward(x, w, b, *geometry, relu=r) for r in (False, True))
    if rows.serves(x, w.shape):
        assert got.strides[0] == got.itemsize  # for the next layer
    assert_near(got, want[0])
    np.testing.assert_array_equal(relu, np.maximum(got, 0))
    assert_near(conv_input_gradient(gy, w, x.shape, *geometry), want[1])
    gw = np.full(w.shape, np.nan, dtype)
    assert conv_weight_gradient(gy, x, w.shape, *geometry, out=gw) is gw
    assert_near(gw, want[2])


@FEW
@given(
    convolutions(st.sampled_from([2, 8, 9])),
    st.sampled_from(["float64", "float32"]),
    LAYOUTS,
    LAYOUTS,
    st.sampled_from([1, 4000, 1 << 22]),
)
def test_rows_are_the_textbook_lowering(case, dtype, laid_x, laid_gy, size):
    x, w, b, geometry = case
    gy = np.random.default_rng(5).normal(size=output_shape(x.shape, w.shape, *geometry))
    with alone(size, size // 4):
        check(x, w, b, gy, geometry, dtype, laid_x, laid_gy)
        # strides and large filters take this way to gx, others may
        got = rows.input_gradient(laid_gy(gy), w, x.shape, *geometry)
    assert_near(got, reference(x, w, b, gy, geometry)[1])


@FEW
@given(
    st.sampled_from([8, 33]),
    st.tuples(st.integers(4, 9), st.integers(4, 9)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.sampled_from([16, 19]), st.sampled_from([16, 18])),
    st.sampled_from([1, 80000, 1 << 23]),
    LAYOUTS,
)
def test_tiles_are_the_textbook_lowering(n, size, padding, channels, chunk, laid):
    size = tuple(max(s, 6 - 2 * p) for s, p in zip(size, padding, strict=True))
    (k, c), geometry = channels, ((1, 1), padding, (1, 1), 1)
    rng = np.random.default_rng(n)
    x, w, b = (rng.normal(size=s) for s in ((n, c, *size), (k, c, 3, 3), k))
    gy = rng.normal(size=output_shape(x.shape, w.shape, *geometry))
    with alone(chunk=chunk):
        x32 = x.astype("float32")
        assert tiles.serves(x32, w.shape, gy.shape, *geometry)
        check(x, w, b, gy, geometry, "float32", laid, laid)


def gradients(x, w, b):
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    y = conv_forward(x, w, b, *geometry)
    return (
        y,
        conv_input_gradient(y, w, x.shape, *geometry),
        conv_weight_gradient(y, x, w.shape, *geometry),
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_bits_depend_on_threads_only_where_that_is_allowed(deterministic):
    rng = np.random.default_rng(0)
    x, w, b = (
        rng.normal(size=s).astype("float32")
        for s in ((32, 16, 16, 16), (16, 16, 3, 3), 16)
    )
    before, found = threads.get_num_threads(), []
    determinism.use_deterministic_algorithms(deterministic)
    try:
        with alone(1 << 17, 1 << 16):
            for count in (1, 2, 3, 2):
                threads.set_num_threads(count)
                found.append(gradients(x, w, b))
    finally:
        determinism.use_deterministic_algorithms(False)
        threads.set_num_threads(before)
    for first, second in zip(found[1], found[3], strict=True):  # equal threads
        np.testing.assert_array_equal(first, second)
    for other in found[1:]:
        for first, second in zip(found[0], other, strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-2)
        exact = 3 if deterministic else 2  # a weight gradient is a sum of parts
        for first, second in zip(found[0][:exact], other, strict=False):
            np.testing.assert_array_equal(first, second)


def test_small_batches_and_points_stay_as_they_are():
    geometry = ((1, 1), (0, 0), (1, 1), 1)
    with mock.patch.object(rows, "compiler", NONE):
        few, many = np.zeros((4, 3, 8, 8)), np.zeros((16, 3, 8, 8))
        assert not rows.serves(few, (5, 3, 3, 3))
        assert not rows.serves(many, (5, 3, 1, 1))
        assert rows.serves(by_rows(many), (5, 3, 1, 1))
        assert rows.serves(many, (5, 3, 3, 3))
        assert not rows.serves(many, (5, 3, 3, 3), many)
        assert rows.serves(many, (5, 3, 3, 3), by_rows(many))
    assert not tiles.serves(
        many, (16, 16, 3, 3), (16, 16, 6, 6), *geometry
    )  # of float64


@pytest.mark.parametrize("laid", [np.ascontiguousarray, innermost, by_rows])
def test_sums_over_channels(laid):
    rng = np.random.default_rng(3)
    gy, y = (rng.normal(size=(9, 4, 5, 6)).astype("float32") for _ in range(2))
    with alone():
        gb = conv_bias_gradient(laid(gy))
        g, both = conv_rectified_gradient(laid(gy), by_rows(y))
    np.testing.assert_allclose(gb, gy.sum((0, 2, 3), dtype=float), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(g, np.where(y <= 0, 0, gy))
    want = np.where(y <= 0, 0, gy).sum((0, 2, 3), dtype=float)
    np.testing.assert_allclose(both, want, rtol=1e-5, atol=1e-5)


def test_loops_of_a_compiler_go_first():
    if swept("convolve", np.dtype("float32")) is None:
        pytest.skip("no compiler")
    x, w = np.ones((16, 3, 8, 8), "float32"), np.ones((4, 3, 3, 3), "float32")
    y = conv_forward(x, w, None, (1, 1), (1, 1), (1, 1), 1)
    assert y.flags.c_contiguous
    assert not rows.serves(np.ones((16, 3, 8, 8, 8)), (4, 3, 3, 3, 3))
