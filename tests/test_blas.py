"""Products of two matrices that are shared out to threads, against float64."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidl.array import blas, memory, threads
from minidl.array.matmul import matmul


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
    for left, right in ((a[::-1], a.T), (a, a.T[:, ::2]), (a.astype(int), a.T)):
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
