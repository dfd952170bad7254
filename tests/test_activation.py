"""Activations and the softmax family, against formulas in NumPy."""

from math import erf, sqrt

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import minidl as md
import minidl.nn.functional as F

phi = np.vectorize(lambda x: 0.5 * (1 + erf(x / sqrt(2))), otypes=[np.float64])
softplus = lambda x: np.logaddexp(0, x)  # noqa: E731
sigmoid = lambda x: np.exp(-softplus(-x))  # noqa: E731
FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: (
        1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))
    ),
    "celu": lambda x: np.maximum(0, x) + np.minimum(0, np.expm1(x)),
    "gelu": lambda x: x * phi(x),
    "silu": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "softplus": lambda x: np.where(x > 20, x, softplus(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "logsigmoid": lambda x: -softplus(-x),
    "tanhshrink": lambda x: x - np.tanh(x),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
}
OPTIONS = [
    ("leaky_relu", (0.3,), lambda x: np.where(x > 0, x, 0.3 * x)),
    ("elu", (2.0,), lambda x: np.where(x > 0, x, 2 * np.expm1(x))),
    ("celu", (0.5,), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x / 0.5))),
    ("softplus", (2.0, 1.0), lambda x: np.where(2 * x > 1, x, softplus(2 * x) / 2)),
    ("hardtanh", (-0.5, 2.0), lambda x: np.clip(x, -0.5, 2)),
    ("threshold", (0.3, -2.0), lambda x: np.where(x > 0.3, x, -2)),
    (
        "gelu",
        ("tanh",),
        lambda x: 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
]
CASES = [(name, (), formula) for name, formula in FORMULAS.items()] + OPTIONS
floats = st.floats(-30, 30, width=32)


@pytest.mark.parametrize(("name", "options", "formula"), CASES)
def test_values(name, options, formula, xp):
    x = np.linspace(-30, 30, 121).reshape(11, 11).astype(np.float32)
    y = getattr(F, name)(md.tensor(xp.asarray(x)), *options)
    assert y.dtype == np.float32
    np.testing.assert_allclose(
        y.numpy(), formula(x.astype(np.float64)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("name", "options", "formula"), CASES)
def test_gradients_of_two_orders(name, options, formula):
    x = np.array([-7.3, -2.2, -0.7, -0.2, 0.15, 0.8, 1.9, 5.2, 8.1])  # off the kinks
    check_gradients(lambda t: getattr(F, name)(t, *options), x)


@pytest.mark.parametrize("name", FORMULAS)
def test_nan_infinity_empty_and_0d(name):
    function = getattr(F, name)
    with np.errstate(all="ignore"):
        y = function(md.tensor([np.nan, -np.inf])).numpy()
    assert np.isnan(y[0])
    if name not in ("gelu", "silu", "mish", "softsign"):  # inf times 0 there
        with np.errstate(all="ignore"):
            expected = FORMULAS[name](np.array(-np.inf))
        if not np.isnan(expected):
            np.testing.assert_allclose(y[1], expected, rtol=1e-6)
    assert function(md.tensor(np.empty((2, 0), np.float32))).shape == (2, 0)
    assert function(md.tensor(0.5)).shape == ()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", FORMULAS)
def test_number_types(name, dtype):
    kind = getattr(md, dtype)
    if kind is None:
        pytest.skip("ml_dtypes is not installed")
    x = md.tensor(np.linspace(-4, 4, 17).astype(kind), requires_grad=True)
    y = getattr(F, name)(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == np.dtype(kind)
    expected = FORMULAS[name](x.numpy().astype(np.float64))
    accuracy = 1e-12 if dtype == "float64" else 0.02
    np.testing.assert_allclose(
        y.numpy().astype(np.float64), expected, rtol=accuracy, atol=accuracy
    )


def test_integers_stay_integers_where_pytorch_keeps_them():
    x = md.tensor([-3, 2, 9])
    assert F.relu(x).tolist() == [0, 2, 9]
    assert F.relu6(x).tolist() == [0, 2, 6] and F.relu6(x).dtype == np.int64
    assert F.threshold(x, 2, -1).tolist() == [-1, -1, 9]


def test_gradients_at_the_kinks_are_pytorch_s():
    x = md.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 6.0], requires_grad=True)
    for name, expected in {
        "relu": [0, 0, 0, 1, 1, 1],
        "relu6": [0, 0, 0, 1, 1, 0],
        "hardtanh": [0, 0, 1, 0, 0, 0],
        "hardsigmoid": [0, 1 / 6, 1 / 6, 1 / 6, 0, 0],
        "leaky_relu": [0.01, 0.01, 0.01, 1, 1, 1],
    }.items():
        (g,) = md.autograd.grad(getattr(F, name)(x).sum(), x)
        np.testing.assert_allclose(g.numpy(), expected, rtol=1e-6, err_msg=name)


@pytest.mark.usefixtures("interpreted")
def test_prelu_takes_one_slope_or_one_a_channel():
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    w = np.array([0.1, 0.2, 0.3])
    for weight, slope in ((w, w[:, None]), (w[:1], w[0]), (w[0], w[0])):
        y = F.prelu(md.tensor(x), md.tensor(weight))
        np.testing.assert_allclose(y.numpy(), np.where(x > 0, x, slope * x))
        check_gradients(F.prelu, x, weight)
    with pytest.raises(RuntimeError, match="1 element or 3"):
        F.prelu(md.tensor(x), md.tensor([0.1, 0.2]))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_glu(dim):
    x = np.random.default_rng(0).standard_normal((4, 6, 2))
    a, b = np.split(x, 2, dim)
    y = F.glu(md.tensor(x), dim)
    np.testing.assert_allclose(y.numpy(), a * sigmoid(b))
    check_gradients(lambda t: F.glu(t, dim), x)


def test_refusals():
    x = md.tensor([1.0, 2.0, 3.0])
    with pytest.raises(RuntimeError, match="must be even"):
        F.glu(x)
    with pytest.raises(RuntimeError, match="'none' or 'tanh'"):
        F.gelu(x, approximate="exact")
    with pytest.raises(ValueError, match="is above max_val"):
        F.hardtanh(x, 1.0, -1.0)
    with pytest.raises(IndexError, match="out of range"):
        F.softmax(x, 1)
    with pytest.raises(RuntimeError, match="floating point"):
        F.softmax(md.tensor([1, 2]), 0)


@given(
    arrays(
        np.float32, array_shapes(min_dims=1, max_dims=4, max_side=4), elements=floats
    ),
    st.data(),
)
def test_softmax(x, data):
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    wide = x.astype(np.float64)
    shifted = wide - wide.max(axis=dim, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))
    np.testing.assert_allclose(
        F.softmax(md.tensor(x), dim).numpy(), np.exp(logs), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        F.log_softmax(md.tensor(x), dim).numpy(), logs, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_softmax_edges(function, xp):
    x = np.random.default_rng(0).standard_normal((3, 4))
    for dim in (0, 1, -1):
        check_gradients(lambda t, dim=dim: function(t, dim), x)
    assert function(md.tensor(xp.zeros((), "f4")), 0).shape == ()
    assert function(md.tensor(xp.zeros((2, 0), "f4")), 1).shape == (2, 0)
    assert (
        function(md.tensor(xp.zeros(3, "f4")), 0, dtype=md.float64).dtype == np.float64
    )
    huge = function(md.tensor(xp.asarray([1e4, -1e4, 1e4], "f4")), 0)
    assert np.isfinite(huge.numpy()).all()
    apart = function(md.tensor(xp.asarray([1e4, 1e4 + 1], "f4")), 0).numpy()
    first = 1 / (1 + np.e) if function is F.softmax else -np.log(1 + np.e)
    np.testing.assert_allclose(apart[0], first, rtol=1e-6)
    half = function(md.tensor(xp.zeros(4000, "f2")), 0)
    assert half.dtype == np.float16
    expected = 1 / 4000 if function is F.softmax else -np.log(4000)
    np.testing.assert_allclose(half.numpy(), expected, rtol=1e-3)
