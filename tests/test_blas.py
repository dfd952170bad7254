"""Products of two matrices that are shared out to threads, against float64."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidl.array import blas, memory, threads
from minidl.array.matmul import bias_gradient, linear, matmul


@pytest.fixture
def two_threads():
    before = threads.get_num_threads()
    threads.set_num_threads(2)
    with mock.patch.object(blas, "SERIAL_WORK", 1):
        yield
    threads.set_num_threads(before)


def lying(array, order):
    """The same numbers in rows, in columns, or as a part of a larger array."""
    if order == "part":
        whole = np.full((array.shape[0] + 2, array.shape[1] + 3), np.nan, array.dtype)
        whole[1:-1, 2:-1] = array
        return whole[1:-1, 2:-1]
    return np.asarray(array, order=order)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shared_products_are_products(two_threads, dtype):
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    size, order = st.integers(1, 70), st.sampled_from(["C", "F", "part"])

    @given(size, size, size, order, order, st.booleans())
    def check(m, n, k, first, second, given_out):
        rng = np.random.default_rng(m + 71 * n)
        a, b = rng.normal(size=(m, k)), rng.normal(size=(k, n))
        a, b = lying(a.astype(dtype), first), lying(b.astype(dtype), second)
        out = np.full((m, n), np.nan, dtype) if given_out else None
        y = matmul(a, b, out)
        assert (y is out or not given_out) and y.dtype == dtype
        want = a.astype(float) @ b.astype(float)
        assert np.abs(y - want).max() <= tolerance * (1 + np.abs(want).max())
        np.testing.assert_array_equal(matmul(a, b), y)

    check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_products_and_a_bias(two_threads, dtype):
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    size = st.integers(1, 40)

    @given(st.integers(1, 4), size, size, st.integers(1, 600), st.booleans())
    def check(stacks, m, n, k, turned):
        rng = np.random.default_rng(m + 41 * n)
        a, b = rng.normal(size=(stacks, m, k)), rng.normal(size=(stacks, k, n))
        a, b, bias = (x.astype(dtype) for x in (a, b, rng.normal(size=n)))
        if turned:
            a, b = (x.swapaxes(1, 2).copy().swapaxes(1, 2) for x in (a, b))
        y = blas.sum_of_products(a, b, None, bias)
        want = np.einsum("smk,skn->mn", a.astype(float), b.astype(float)) + bias
        if y is None:
            assert blas._function("multiply", np.dtype(dtype)) is None
        else:
            assert y.dtype == dtype
            assert np.abs(y - want).max() <= tolerance * (1 + np.abs(want).max())

    check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m, k, n", [(3, 40, 20), (130, 1100, 67), (1100, 130, 99)])
def test_a_relu_in_the_product_is_a_relu_after_it(two_threads, m, k, n, dtype):
    rng = np.random.default_rng(k)
    x, w, b = (rng.normal(size=s).astype(dtype) for s in ((m, k), (n, k), (n,)))
    x[0] = np.nan
    for bias in (b, None):
        y = linear(x, w, bias)
        np.testing.assert_array_equal(linear(x, w, bias, True), np.maximum(y, 0))


@pytest.mark.parametrize("m, k, n", [(3, 40, 2000), (200, 1200, 17), (5000, 7, 33)])
def test_large_products_are_cut_and_put_together(two_threads, m, k, n):
    rng = np.random.default_rng(k)
    a, b, bias = (rng.normal(size=s) for s in ((m, k), (k, n), (n,)))
    np.testing.assert_allclose(linear(a, b.T, bias), a @ b + bias, rtol=1e-11)
    results = []
    for count in (1, 2, 3):
        threads.set_num_threads(count)
        results.append(linear(a, b.T, bias))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n, k", [(1, 5), (37, 10), (300, 513)])
def test_the_gradient_of_a_bias_is_a_sum_of_rows(two_threads, n, k, dtype):
    rng = np.random.default_rng(n)
    g, y = rng.normal(size=(2, n, k)).astype(dtype)
    g[0, 1], y[0, 2] = np.inf, np.nan
    tolerance = {"float16": 3e-3, "float32": 1e-5, "float64": 1e-13}[dtype]
    for order in "CF":
        given = np.asarray(g, order=order)
        for kept, mask in ((g, None), (np.where(y <= 0, 0, g).astype(dtype), y)):
            made, sums = bias_gradient(given, mask)
            np.testing.assert_array_equal(made, kept)
            assert made.dtype == sums.dtype == dtype
            want = kept.astype(float).sum(0)
            np.testing.assert_allclose(sums, want, tolerance, tolerance * n)


def test_sums_of_rows_are_the_same_on_any_number_of_threads(two_threads):
    g = np.random.default_rng(1).normal(size=(700, 600)).astype(np.float32)
    results = []
    for count in (1, 2, 3):
        threads.set_num_threads(count)
        results.append(bias_gradient(g, g)[1])
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_stacks_are_shared_out_too(two_threads):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5, 4, 6)), rng.normal(size=(3, 5, 6, 2))
    want = np.einsum("ijkl,ijlm->ijkm", a, b)
    np.testing.assert_allclose(matmul(a, b), want, rtol=1e-12, atol=1e-12)
    out = np.empty(want.shape)
    assert matmul(a[0], b[0], out[0]) is not None
    np.testing.assert_allclose(out[0], want[0], rtol=1e-12, atol=1e-12)


def test_what_cannot_be_shared_out_is_left_to_numpy(two_threads):
    a = np.arange(12.0).reshape(3, 4)
    bytewise = np.ndarray((4, 3), buffer=bytearray(200), offset=3, strides=(33, 8))
    for left, right in ((a.astype(int), a.T), (a, bytewise), (a, a.T.astype("f4"))):
        np.testing.assert_array_equal(matmul(left, right), left @ right)
    square = np.arange(9.0).reshape(3, 3)
    want = square @ square
    matmul(square, square, square)
    np.testing.assert_array_equal(square, want)


def test_one_thread_for_blas_stays_whatever_is_set(two_threads):
    matmul(np.ones((2, 2)), np.ones((2, 2)))
    with mock.patch.object(threads, "blas_threads") as setter:
        threads.set_num_threads(1)
        threads.set_num_threads(2)
        assert not setter.called


def test_keeping_freed_memory_says_whether_it_is_done():
    assert memory.keep_freed() in (True, False)
