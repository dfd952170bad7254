"""Where CuPy answers otherwise than NumPy: NumPy that pretends to be so."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

import minidl as md
from minidl.array.device import bfloat16
from minidl.ops import elementwise, order

pytestmark = pytest.mark.skipif(bfloat16 is None, reason="ml_dtypes is not installed")


def test_where_keeps_bfloat16_though_cupy_widens_it():
    def where(condition, a, b):
        return np.where(condition, a, b).astype(np.float32)

    x = md.tensor(np.arange(4).astype(bfloat16), requires_grad=True)
    cupy = SimpleNamespace(where=where)
    with mock.patch.object(elementwise, "array_module", lambda *arrays: cupy):
        y = elementwise.where(x > 1, x, 0.0)
        y.sum().backward()
    assert y.dtype == bfloat16 and y.tolist() == [0, 0, 2, 3]
    assert x.grad.dtype == bfloat16 and x.grad.tolist() == [0, 0, 1, 1]


def test_clamp_does_without_clip():
    cupy = SimpleNamespace(maximum=np.maximum, minimum=np.minimum)
    x = md.tensor(np.array([-2, 0, 2, np.nan]).astype(bfloat16))
    with mock.patch.object(elementwise, "array_module", lambda *arrays: cupy):
        for low, high, wanted in [
            (-1, None, [-1, 0, 2, np.nan]),
            (None, 1, [-2, 0, 1, np.nan]),
            (3, 1, [1, 1, 1, np.nan]),
        ]:
            y = elementwise.clamp(x, low, high)
            assert y.dtype == bfloat16
            np.testing.assert_array_equal(y.numpy().astype(float), wanted)


def test_bfloat16_is_sorted_as_float32():
    def argsort(x, axis, kind):
        assert x.dtype == np.float32
        return np.argsort(x, axis=axis, kind=kind)

    cupy = SimpleNamespace(argsort=argsort, flip=np.flip)
    x = md.tensor(np.array([3, -1, 2]).astype(bfloat16))
    with mock.patch.object(order, "array_module", lambda *arrays: cupy):
        assert order.order(x, 0, False).tolist() == [1, 2, 0]
        assert order.order(x, 0, True).tolist() == [0, 2, 1]
