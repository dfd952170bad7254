"""Pooling's CUDA kernels give what the CPU gives."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl.array import pooling
from minidl.array.device import bfloat16

pytest.importorskip("cupy", reason="CuPy is not installed")

HALF = bfloat16 or "float16"
once = settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WINDOWS = st.sampled_from(  # kernel, stride, padding, dilation
    [
        ((2, 2), (2, 2), (0, 0), (1, 1)),
        ((5, 4), (1, 3), (2, 1), (1, 1)),
        ((3, 2), (1, 2), (1, 1), (2, 1)),
        ((3, 3), (2, 1), (1, 0), (1, 3)),
        ((3,), (2,), (1,), (1,)),
        ((2,), (1,), (1,), (3,)),
        ((2, 3, 2), (1, 2, 2), (1, 1, 0), (1, 1, 2)),
    ]
)


@pytest.fixture
def cupy(stand_in):
    return stand_in.cupy


def launched(stand_in, function, *args):
    """What it returns; one launch, and nothing is waited for."""
    stand_in.reset()
    result = function(*args)
    assert len(stand_in.launches) == 1
    assert not stand_in.syncs and not stand_in.uploads
    return result


def there(cupy, array, last):
    """On the device, with channels last in memory or first."""
    if not last:
        return cupy.asarray(array)
    return cupy.asarray(np.ascontiguousarray(np.moveaxis(array, 1, -1))).transpose(
        0, -1, *range(1, array.ndim - 1)
    )


def same(got, want, dtype):
    assert got.dtype == dtype == want.dtype and got.shape == want.shape
    if np.dtype(dtype).itemsize > 2:
        np.testing.assert_array_equal(got.get(), want)
    else:
        wide = np.float32
        np.testing.assert_allclose(
            got.get().astype(wide), want.astype(wide), rtol=2e-2, atol=2e-2
        )


@pytest.mark.slow
@once
@given(
    WINDOWS,
    st.sampled_from(["float32", "float64", HALF]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([7, 8]),
)
def test_max_pooling(stand_in, cupy, window, dtype, last, ceil, size):
    draw = np.random.default_rng(size)
    x = draw.integers(-9, 9, (2, 3, *[size + d for d in range(len(window[0]))]))
    x = x.astype(dtype)
    x.reshape(-1)[::37] = np.nan
    x.reshape(-1)[1::41] = -np.inf
    with np.errstate(invalid="ignore"):
        y, where = pooling.max_pool_forward(x, *window, ceil)
    gy = draw.normal(size=y.shape).astype(dtype)
    gx = pooling.max_pool_backward(gy, where, x.shape, *window)
    forward, backward = pooling.max_pool_forward, pooling.max_pool_backward
    got = launched(stand_in, forward, there(cupy, x, last), *window, ceil)
    same(got[0], y, dtype)
    same(got[1], where, "int32")
    gradient = there(cupy, gy, last)
    same(launched(stand_in, backward, gradient, got[1], x.shape, *window), gx, dtype)
    assert backward(cupy.asarray(gy), got[1], x.shape, *window).shape == x.shape


@pytest.mark.slow
@once
@given(
    WINDOWS,
    st.sampled_from(["float32", "float64", HALF]),
    st.booleans(),
    st.sampled_from([(True, None), (False, None), (True, 5)]),
    st.sampled_from([7, 8]),
)
def test_average_pooling(stand_in, cupy, window, dtype, last, how, size):
    draw = np.random.default_rng(size)
    x = draw.normal(size=(2, 3, *[size + d for d in range(len(window[0]))]))
    x, window = x.astype(dtype), window[:3]
    forward, backward = pooling.avg_pool_forward, pooling.avg_pool_backward
    y = forward(x, *window, True, *how)
    gy = draw.normal(size=y.shape).astype(dtype)
    gx = backward(gy, x.shape, *window, *how)
    got = launched(stand_in, forward, there(cupy, x, last), *window, True, *how)
    same(got, y, dtype)
    gradient = there(cupy, gy, last)
    same(launched(stand_in, backward, gradient, x.shape, *window, *how), gx, dtype)


def test_what_is_empty_or_whole(cupy):
    window = ((2,), (2,), (0,), (1,))
    y, where = pooling.max_pool_forward(cupy.empty((0, 3, 4), "float32"), *window)
    assert y.shape == where.shape == (0, 3, 2)
    y, _ = pooling.max_pool_forward(cupy.asarray([[[3, 1, 4, 1]]]), *window)
    assert y.get().tolist() == [[[3, 4]]]
    with pytest.raises(ValueError, match="zero"):
        pooling.avg_pool_forward(cupy.ones((1, 1, 4)), *window[:3], False, True, 0)
