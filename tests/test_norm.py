"""Normalisation, against NumPy in float64: values, gradients, running statistics."""

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
import minidl.nn.functional as F
from minidl import nn
from minidl.autograd.mode import set_grad_enabled

pytestmark = pytest.mark.usefixtures("interpreted")
rng = np.random.default_rng(0)


def standard(x, axes, eps=1e-5):
    d = x - x.mean(axis=axes, keepdims=True)
    return d / np.sqrt((d * d).mean(axis=axes, keepdims=True) + eps)


def channels(w, ndim):
    return w.reshape(1, -1, *[1] * (ndim - 2))


SHAPES = [(4, 3), (5, 3, 2), (2, 3, 4, 2), (2, 3, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(shape, xp):
    x, w, b = rng.standard_normal(shape), rng.standard_normal(3), rng.standard_normal(3)
    axes = (0, *range(2, len(shape)))
    n = x.size // 3
    mean, var = md.tensor(xp.zeros(3)), md.tensor(xp.ones(3))
    y = F.batch_norm(*(md.tensor(xp.asarray(x)), mean, var), training=True)
    np.testing.assert_allclose(y.numpy(), standard(x, axes), atol=1e-12)
    np.testing.assert_allclose(mean.numpy(), 0.1 * x.mean(axes))
    unbiased = x.var(axes) * n / (n - 1)
    np.testing.assert_allclose(var.numpy(), 0.9 + 0.1 * unbiased)
    y = F.batch_norm(
        md.tensor(xp.asarray(x)), mean, var, *(md.tensor(xp.asarray(p)) for p in (w, b))
    )
    r, v = (channels(s.numpy(), len(shape)) for s in (mean, var))
    expected = (x - r) / np.sqrt(v + 1e-5)
    expected = expected * channels(w, len(shape)) + channels(b, len(shape))
    np.testing.assert_allclose(y.numpy(), expected)


def in_training(x, *parameters):
    return F.batch_norm(x, None, None, *parameters, training=True)


R = md.tensor(np.array([0.1, 0.2, 0.3])), md.tensor(np.array([0.5, 1.0, 2.0]))
FUNCTIONS = [  # function of (x, weight, bias), shape of x, shape of weight
    (in_training, (4, 3, 2), (3,)),
    (in_training, (4, 3), (3,)),
    (lambda x, *p: F.batch_norm(x, *(r.to(x.device) for r in R), *p), (2, 3, 4), (3,)),
    (lambda x, *p: F.layer_norm(x, (3, 2), *p), (4, 3, 2), (3, 2)),
    (lambda x, *p: F.layer_norm(x, 4, *p), (3, 4), (4,)),
    (lambda x, *p: F.layer_norm(x, 4, None, *p[:1]), (3, 4), (4,)),
    (lambda x, *p: F.group_norm(x, 2, *p), (2, 4, 3), (4,)),
    (lambda x, *p: F.instance_norm(x, None, None, *p), (2, 3, 4), (3,)),
    (lambda x, w=None, b=None: F.rms_norm(x, (4,), w), (3, 4), (4,)),
]


@pytest.mark.parametrize(("function", "shape", "width"), FUNCTIONS)
def test_gradients_of_two_orders(function, shape, width):
    x, w, b = (rng.standard_normal(s) for s in (shape, width, width))
    check_gradients(function, x)
    check_gradients(function, x, w)
    check_gradients(function, x, w, b)


@pytest.mark.parametrize(("function", "shape", "width"), FUNCTIONS)
def test_both_forms_of_the_gradient_agree(function, shape, width, xp):
    """The fast one, and the one that is recorded to be differentiated again."""
    arrays = [xp.asarray(rng.standard_normal(s)) for s in (shape, width, width)]
    g = md.tensor(xp.asarray(rng.standard_normal(shape)))
    found = []
    for create_graph in (False, True):
        inputs = [md.tensor(a, requires_grad=True) for a in arrays]
        found.append(
            md.autograd.grad(
                function(*inputs),
                inputs,
                g,
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    for fast, recorded in zip(*found, strict=True):
        assert (fast is None) == (recorded is None)
        if fast is not None:
            np.testing.assert_allclose(fast.numpy(), recorded.numpy(), atol=1e-10)


@given(st.data())
def test_the_others(data):
    seed = np.random.default_rng(data.draw(st.integers(0, 99)))
    n, groups, width = (data.draw(st.integers(1, 3)) for _ in range(3))
    rest = data.draw(st.sampled_from([(4,), (2, 3)]))
    x = seed.standard_normal((n, groups * width, *rest))
    w, b = seed.standard_normal((2, groups * width))
    tensors = [md.tensor(a) for a in (x, w, b)]
    shift = [channels(p, x.ndim) for p in (w, b)]
    expected = standard(x.reshape(n, groups, -1), 2).reshape(x.shape)
    np.testing.assert_allclose(
        F.group_norm(tensors[0], groups, *tensors[1:]).numpy(),
        expected * shift[0] + shift[1],
        atol=1e-10,
    )
    expected = standard(x, tuple(range(2, x.ndim)))
    np.testing.assert_allclose(
        F.instance_norm(tensors[0], None, None, *tensors[1:]).numpy(),
        expected * shift[0] + shift[1],
        atol=1e-10,
    )
    w, b = seed.standard_normal((2, *rest))
    axes = tuple(range(2, x.ndim))
    np.testing.assert_allclose(
        F.layer_norm(tensors[0], rest, md.tensor(w), md.tensor(b)).numpy(),
        standard(x, axes) * w + b,
        atol=1e-10,
    )
    size = np.sqrt((x * x).mean(axis=axes, keepdims=True) + 0.1)
    np.testing.assert_allclose(
        F.rms_norm(tensors[0], rest, md.tensor(w), 0.1).numpy(), x / size * w
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_local_response_norm(size):
    x = rng.standard_normal((2, 5, 3))
    total = np.zeros_like(x)
    for c in range(5):
        for other in range(c - size // 2, c + (size - 1) // 2 + 1):
            if 0 <= other < 5:
                total[:, c] += x[:, other] ** 2
    expected = x / (1.5 + 0.3 / size * total) ** 0.6
    y = F.local_response_norm(md.tensor(x), size, 0.3, 0.6, 1.5)
    np.testing.assert_allclose(y.numpy(), expected)
    check_gradients(lambda t: F.local_response_norm(t, size, 0.3, 0.6, 1.5), x)


def test_a_large_mean_costs_no_digits():
    x = (1e4 + rng.standard_normal((64, 2, 8))).astype(np.float32)
    y = in_training(md.tensor(x)).numpy()
    wide = standard(x.astype(np.float64), (0, 2))
    np.testing.assert_allclose(y, wide, atol=2e-3)
    assert y.dtype == np.float32


def test_half_precision_has_statistics_in_float32():
    x = (300 * rng.standard_normal((64, 2, 8))).astype(np.float16)  # x^2 overflows
    t = md.tensor(x, requires_grad=True)
    y = in_training(t)
    y.sum().backward()
    assert y.dtype == t.grad.dtype == np.float16
    np.testing.assert_allclose(
        y.numpy(), standard(x.astype(np.float64), (0, 2)), atol=5e-3
    )


def test_momentum_none_is_the_mean_over_all_batches():
    layer = nn.BatchNorm1d(2, momentum=None)
    batches = rng.standard_normal((3, 8, 2)).astype(np.float32)
    for batch in batches:
        layer(md.tensor(batch))
    np.testing.assert_allclose(
        layer.running_mean.numpy(), batches.mean(axis=(0, 1)), atol=1e-6
    )
    assert layer.num_batches_tracked.item() == 3
    layer.eval()
    layer(md.tensor(batches[0]))
    assert layer.num_batches_tracked.item() == 3


def test_evaluation_goes_back_by_the_statistics_that_it_went_forward_by():
    layer = nn.BatchNorm2d(3).eval()
    x = md.tensor(rng.standard_normal((2, 3, 4, 4)).astype("f2"), requires_grad=True)
    y = layer(x)
    layer.train()(x)
    assert not np.allclose(layer.running_var.numpy(), 1)
    y.sum().backward(create_graph=True)
    assert y.dtype == x.grad.dtype == np.float16
    np.testing.assert_allclose(x.grad.numpy(), 1 / np.sqrt(1 + 1e-5), rtol=1e-3)


def test_the_running_arrays_stay_the_same_objects():
    layer = nn.BatchNorm2d(3)
    arrays = [buffer.data for buffer in layer.buffers()]
    layer(md.tensor(rng.standard_normal((2, 3, 4, 4)).astype(np.float32)))
    assert all(a is b.data for a, b in zip(arrays, layer.buffers(), strict=True))


def test_empty_batches():
    for function, shape, width in FUNCTIONS:
        empty = np.zeros((0, *shape[1:]))
        inputs = [md.tensor(a, requires_grad=True) for a in (empty, np.ones(width))]
        y = function(*inputs, md.tensor(np.zeros(width)))
        assert y.shape == empty.shape
        y.sum().backward()
        assert not inputs[1].grad.numpy().any()


def test_refusals():
    x = md.tensor(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="more than 1 value"):
        in_training(x)
    with pytest.raises(ValueError, match="more than 1 value"):
        F.instance_norm(x.reshape(1, 3, 1))
    with pytest.raises(RuntimeError, match="evaluation needs running_mean"):
        F.batch_norm(x, None, None)
    with pytest.raises(RuntimeError, match="running_mean has shape"):
        F.batch_norm(x, md.tensor([1.0]), md.tensor([1.0]))
    with pytest.raises(RuntimeError, match="does not end with"):
        F.layer_norm(x, (2,))
    with pytest.raises(RuntimeError, match="do not fall into 2 groups"):
        F.group_norm(x, 2)
    with pytest.raises(ValueError, match="4 dimensions, got 2"):
        nn.BatchNorm2d(3)(x)
    with pytest.raises(ValueError, match="must divide"):
        nn.GroupNorm(2, 3)


def test_nothing_is_kept_without_recording():
    with set_grad_enabled(False):
        y = in_training(md.tensor(rng.standard_normal((4, 3))).requires_grad_())
    assert y.creator is None
