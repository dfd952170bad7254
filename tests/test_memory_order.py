"""NumPy alone on arrays in any order of memory: the results of C-contiguous ones."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidl as md
import minidl.nn.functional as F
from minidl.array import channel_sums, choice, layout, pooling, standardize_blocks
from minidl.array.kernel import Kernel

FEW = settings(deadline=None, max_examples=25)
ORDERS = st.sampled_from([(2, 1, 3, 0), (1, 2, 3, 0), (0, 2, 3, 1), (3, 0, 1, 2)])


def laid(array, order):
    """The same array with its axes in this order in memory."""
    back = sorted(range(array.ndim), key=order.__getitem__)
    return np.ascontiguousarray(array.transpose(order)).transpose(back)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@FEW
@given(
    ORDERS,
    st.sampled_from([(2, 2, 0, 1), (3, 2, 1, 1), (2, 1, 1, 2), (3, 1, 0, 1)]),
    st.booleans(),
    st.sampled_from([1, 1 << 22]),
)
def test_poolings(order, window, ceil, block):
    x = np.round(random(8, 3, 7, 6) * 2)  # with ties
    x[3, 1, 2, 2] = np.nan
    geometry = tuple((n, n) for n in window)
    alone = mock.patch.multiple(
        pooling,
        compiler=SimpleNamespace(compiler=lambda: None),
        pool_loops=SimpleNamespace(max_pool=lambda *a: False),
        BLOCK_BYTES=block,
        SERIAL_BYTES=block,
    )
    with alone:
        y, where = pooling.max_pool_forward(laid(x, order), *geometry, ceil)
        gy = random(*y.shape, seed=1)
        gx = pooling.max_pool_backward(laid(gy, order), where, x.shape, *geometry)
        mean = pooling.avg_pool_forward(laid(x, order), *geometry[:3], ceil)
    assert layout.memory_order(y) == order or 1 in y.shape  # for the next layer
    expected, places = pooling.max_pool_forward(x, *geometry, ceil)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(where, places)
    want = pooling.max_pool_backward(gy, places, x.shape, *geometry)
    np.testing.assert_allclose(gx, want, rtol=1e-6, atol=1e-6)
    want = pooling.avg_pool_forward(x, *geometry[:3], ceil)
    np.testing.assert_allclose(mean, want, rtol=1e-6, atol=1e-6)


@FEW
@given(
    ORDERS,
    st.sampled_from([(0, 2, 3), (1, 2, 3), (3,), (2, 3)]),
    st.booleans(),
    st.sampled_from([(1, 5, 1, 1), (5, 1, 1), (6,), None]),
    st.sampled_from([1, 1 << 18]),
)
def test_standardisation(order, dims, centred, shape, block):
    x, g = random(4, 5, 3, 6) + 3, random(4, 5, 3, 6, seed=1)
    w, b = (None, None) if shape is None else (random(*shape), random(*shape, seed=2))
    x64, g64 = x.astype(float), g.astype(float)
    mean = x64.mean(dims, keepdims=True) if centred else 0
    var = ((x64 - mean) ** 2).mean(dims, keepdims=True)
    xhat, h = (x64 - mean) / np.sqrt(var + 1e-5), g64 if w is None else g64 * w
    gx = h - xhat * (h * xhat).mean(dims, keepdims=True)
    gx = (gx - (h.mean(dims, keepdims=True) if centred else 0)) / np.sqrt(var + 1e-5)
    y = xhat if w is None else xhat * w + b
    with mock.patch.object(standardize_blocks, "BLOCK", block):
        how = (dims, 1e-5, centred)
        got = standardize_blocks.forward(laid(x, order), w, b, *how)
        back = standardize_blocks.backward(
            laid(g, order), laid(x, order), w, *got[1:], *how
        )
    assert layout.memory_order(got[0]) == order
    np.testing.assert_allclose(got[0], y, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(got[2], var, rtol=1e-5)
    np.testing.assert_allclose(back[0], gx, rtol=1e-4, atol=1e-4)
    if w is not None:
        for found, terms in ((back[1], g64 * xhat), (back[2], g64)):
            for axis in range(x.ndim):  # what is not summed to w's shape yet
                if ((1,) * (4 - w.ndim) + w.shape)[axis] == 1:
                    found = found.sum(axis, keepdims=True)
                    terms = terms.sum(axis, keepdims=True)
            np.testing.assert_allclose(found, terms, rtol=1e-4, atol=1e-4)


@FEW
@given(ORDERS, ORDERS, st.sampled_from([1, 1 << 18]))
def test_sums_of_a_rectified_gradient(order, other, block):
    gy, y = random(4, 5, 3, 6), random(4, 5, 3, 6, seed=1)
    y[0, 0, 0, 0] = np.nan
    with mock.patch.multiple(channel_sums, BLOCK=block, PARTED_FROM=0):
        g, gb = channel_sums.bias_gradient(laid(gy, order), laid(y, other))
    want = np.where(y <= 0, 0, gy)
    np.testing.assert_array_equal(g, want)
    np.testing.assert_allclose(gb, want.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)


@FEW
@given(ORDERS, st.sampled_from([(4, 90), (4, 5, 18), (4, 15, -1), (-1, 6), (360,)]))
def test_reshaped(order, shape):
    x = random(4, 5, 3, 6)
    got = layout.reshaped(laid(x, order), shape)
    np.testing.assert_array_equal(got, x.reshape(shape))
    if order[-1] == 0 and shape[0] == 4:
        assert got.strides[0] == got.itemsize


def test_results_lie_as_the_arguments_do():
    x, b = laid(random(4, 5, 3, 6), (2, 1, 3, 0)), random(5, 1, 1)
    y = Kernel("sum_in_order", "x b", "y", body="y = x + b;")(x, b)
    np.testing.assert_array_equal(y, x + b)
    assert layout.memory_order(y) == (2, 1, 3, 0)


def test_the_gradient_of_a_linear_layers_input_lies_as_the_input_does():
    x, w, g = random(6, 4), random(3, 4, seed=1), random(6, 3, seed=2)
    for order in ("C", "F"):
        a = md.Tensor(np.array(x, order=order)).requires_grad_()
        p = md.Tensor(w).requires_grad_()
        y = F.linear(a, p)
        ga, gp = md.autograd.grad(y, [a, p], md.Tensor(g), create_graph=True)
        assert ga.data.flags[f"{order}_CONTIGUOUS"]
        np.testing.assert_allclose(ga.data, g @ w, rtol=1e-5)
        np.testing.assert_allclose(gp.data, g.T @ x, rtol=1e-5, atol=1e-6)
        (second,) = md.autograd.grad(ga.sum(), [p])
        np.testing.assert_allclose(second.data, [[s] * 4 for s in g.sum(0)], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble"])
def test_kept(dtype):
    x = np.array([1, -0.0, np.inf, np.nan, 5, 6], dtype)
    where = np.array([1, 1, 0, 0, 1, 0], bool)
    want = np.where(where, x, 0)
    out = np.full((6, 2), 7, dtype)[:, 0]
    for got in (choice.kept(where, x), choice.kept(where, x, out), out):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == dtype
