"""Convolutions as functions and layers, against sums in float64 written out."""

from itertools import product

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minidl as md
import minidl.nn.functional as F
from minidl import nn
from minidl.nn.parameter import FlatStorage

rng = np.random.default_rng(0)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BACK = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def numbers(*shape):
    return rng.standard_normal(shape)


def tensor(x, xp, dtype="float64"):
    return md.tensor(xp.asarray(x.astype(dtype)))


def links(size, out, kernel, stride, padding, dilation):
    """(window, tap, input) for all that meet inside the input."""
    for o in product(*map(range, out)):
        for t in product(*map(range, kernel)):
            i = tuple(
                a * s + b * d - p
                for a, s, b, d, p in zip(o, stride, t, dilation, padding, strict=True)
            )
            if all(0 <= k < n for k, n in zip(i, size, strict=True)):
                yield o, t, i


def in_groups(x, w, groups):
    """Channels of x and of w that belong together, one pair a group."""
    c, k = x.shape[1] // groups, len(w) // groups
    for g in range(groups):
        yield slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)


def convolved(x, w, stride, padding, dilation, groups):
    size, kernel = x.shape[2:], w.shape[2:]
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    y = np.zeros((len(x), len(w), *out))
    for o, t, i in links(size, out, kernel, stride, padding, dilation):
        for c, k in in_groups(x, w, groups):
            y[:, k][(..., *o)] += x[:, c][(..., *i)] @ w[k][(..., *t)].T
    return y


def convolved_back(y, w, stride, padding, more, groups, dilation):
    size = [
        (n - 1) * s - 2 * p + d * (k - 1) + m + 1
        for n, s, p, d, k, m in zip(
            y.shape[2:], stride, padding, dilation, w.shape[2:], more, strict=True
        )
    ]
    x = np.zeros((len(y), w.shape[1] * groups, *size))
    for o, t, i in links(size, y.shape[2:], w.shape[2:], stride, padding, dilation):
        for c, k in in_groups(x, w, groups):
            x[:, c][(..., *i)] += y[:, k][(..., *o)] @ w[k][(..., *t)]
    return x


@st.composite
def geometries(draw):
    n = draw(st.integers(1, 3))
    several = st.integers(1, 2 if n == 3 else 3)

    def each(strategy):
        return tuple(draw(strategy) for _ in range(n))

    return {
        "n": n,
        "kernel": each(several),
        "stride": each(several),
        "dilation": each(st.integers(1, 2)),
        "padding": each(st.integers(0, 2)),
        "groups": draw(st.integers(1, 2)),
        "batch": draw(st.integers(0, 2)),
    }


with_xp = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@with_xp
@given(geometries())
def test_conv(xp, g):
    n, groups = g["n"], g["groups"]
    size = [d * (k - 1) + 2 for d, k in zip(g["dilation"], g["kernel"], strict=True)]
    x = numbers(g["batch"], 2 * groups, *size)
    w, b = numbers(3 * groups, 2, *g["kernel"]), numbers(3 * groups)
    geometry = g["stride"], g["padding"], g["dilation"], groups
    y = CONV[n](*(tensor(a, xp) for a in (x, w, b)), *geometry)
    expected = convolved(x, w, *geometry) + b.reshape(-1, *[1] * n)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-11)


@with_xp
@given(geometries())
def test_conv_transpose(xp, g):
    n, groups = g["n"], g["groups"]
    limits = [max(s, d) for s, d in zip(g["stride"], g["dilation"], strict=True)]
    more = tuple(limit - 1 for limit in limits)
    padding = tuple(
        min(p, d * (k - 1) // 2)
        for p, d, k in zip(g["padding"], g["dilation"], g["kernel"], strict=True)
    )
    x = numbers(g["batch"], 2 * groups, *[2, 3, 2][:n])
    w, b = numbers(2 * groups, 3, *g["kernel"]), numbers(3 * groups)
    geometry = g["stride"], padding, more, groups, g["dilation"]
    y = TRANSPOSED[n](*(tensor(a, xp) for a in (x, w, b)), *geometry)
    expected = convolved_back(x, w, *geometry) + b.reshape(-1, *[1] * n)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1, "groups": 2}, {"dilation": 2, "padding": "same"}],
)
def test_gradients_of_conv(n, options):
    groups = options.get("groups", 1)
    x, w = numbers(2, 2 * groups, *[4, 3, 3][:n]), numbers(2 * groups, 2, *[2] * n)
    check_gradients(lambda *a: CONV[n](*a, **options), x, w, numbers(2 * groups))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        {"dilation": 2, "output_padding": 1},
    ],
)
def test_gradients_of_conv_transpose(n, options):
    groups = options.get("groups", 1)
    x, w = numbers(2, 2 * groups, *[3, 2, 2][:n]), numbers(2 * groups, 2, *[2] * n)
    check_gradients(lambda *a: TRANSPOSED[n](*a, **options), x, w, numbers(2 * groups))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_same_padding_puts_the_odd_one_at_the_end(n):
    x, w = md.tensor(numbers(1, 2, *[5] * n)), md.tensor(numbers(3, 2, *[4] * n))
    same = CONV[n](x, w, padding="same")
    assert same.shape == (1, 3, *[5] * n)
    padded = CONV[n](F.pad(x, (1, 2) * n), w, padding="valid")
    np.testing.assert_array_equal(same.numpy(), padded.numpy())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("functions", [CONV, TRANSPOSED])
def test_an_image_alone_is_a_batch_of_one(functions, n):
    x, w = md.tensor(numbers(2, *[4] * n)), md.tensor(numbers(2, 2, *[2] * n))
    alone, batch = functions[n](x, w), functions[n](x.unsqueeze(0), w)
    np.testing.assert_array_equal(alone.numpy(), batch.numpy()[0])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_number_types_stay(xp, dtype):
    x, w, b = numbers(1, 2, 5, 5), numbers(2, 2, 3, 3), numbers(2)
    for function in (F.conv2d, F.conv_transpose2d):
        leaves = [tensor(a, xp, dtype).requires_grad_() for a in (x, w, b)]
        y = function(*leaves)
        y.sum().backward()
        assert [str(t.dtype) for t in (y, *(p.grad for p in leaves))] == [dtype] * 4


def test_no_images_and_no_channels(xp):
    w, b = tensor(numbers(3, 2, 2, 2), xp), tensor(numbers(3), xp)
    for t in (w, b):
        t.requires_grad_()
    y = F.conv2d(tensor(numbers(0, 2, 4, 4), xp), w, b)
    assert y.shape == (0, 3, 3, 3)
    y.sum().backward()
    assert not w.grad.numpy().any() and not b.grad.numpy().any()
    x, w = tensor(numbers(2, 0, 4, 4), xp), tensor(numbers(3, 0, 2, 2), xp)
    y = F.conv2d(x.requires_grad_(), w.requires_grad_(), b)
    np.testing.assert_array_equal(
        y.numpy(), np.broadcast_to(b.numpy().reshape(-1, 1, 1), (2, 3, 3, 3))
    )
    y.sum().backward()
    assert x.grad.shape == x.shape and w.grad.shape == w.shape


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(2, 3, 3)])
def test_gradients_go_straight_into_flat_storage(layer):
    x = md.tensor(numbers(2, 2, 5, 5).astype("float32"))
    layer(x).square().sum().backward()
    expected = [p.grad.numpy().copy() for p in layer.parameters()]
    layer.zero_grad()
    storage = FlatStorage(list(layer.parameters()))
    for _ in range(2):
        layer(x).square().sum().backward()
    for p, g in zip(layer.parameters(), expected, strict=True):
        assert np.shares_memory(p.grad.data, storage.grad)
        np.testing.assert_allclose(p.grad.numpy(), 2 * g, rtol=1e-5)


X, W = numbers(1, 4, 5, 5), numbers(4, 4, 3, 3)
REFUSED = [
    (F.conv2d, (X[0, 0], W), {}, "dimensions"),
    (F.conv2d, (X, W[0]), {}, "weight of 4 dimensions"),
    (F.conv2d, (X, W[:, :3]), {}, "expects 3 input channels"),
    (F.conv2d, (X, W), {"groups": 3}, "groups=3"),
    (F.conv2d, (X, W, numbers(3)), {}, "bias of shape"),
    (F.conv2d, (X, W.astype("float32")), {}, "float32; cast"),
    (F.conv2d, (X, W), {"stride": 0}, "stride"),
    (F.conv2d, (X, W), {"padding": -1}, "padding"),
    (F.conv2d, (X, W), {"dilation": 4}, "larger than the padded input"),
    (F.conv2d, (X, W), {"stride": (1, 2, 3)}, "stride must be an int or 2"),
    (F.conv2d, (X, W), {"padding": "all"}, "'all'"),
    (F.conv2d, (X, W), {"padding": "same", "stride": 2}, "stride 1"),
    (F.conv_transpose2d, (X, W), {"output_padding": 1}, "output_padding"),
    (F.conv_transpose2d, (X, W[:3]), {}, "4 channels"),
    (F.conv_transpose2d, (X, W), {"groups": 3}, "groups=3"),
    (F.conv_transpose2d, (X, W), {"stride": 0}, "stride"),
    (F.conv_transpose2d, (X, W), {"padding": 9}, "the size"),
    (F.conv_transpose2d, (X, W, numbers(3)), {}, "bias of shape"),
]


@pytest.mark.parametrize("function, arrays, options, words", REFUSED)
def test_refusals(function, arrays, options, words):
    with pytest.raises(RuntimeError, match=words):
        function(*map(md.tensor, arrays), **options)


# Layers


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same"])
def test_padding_modes(n, mode, padding):
    layer = LAYERS[n](2, 3, 4, padding=padding, padding_mode=mode)
    x = md.tensor(numbers(2, 2, *[5] * n).astype("float32"))
    ends = (1, 2) if padding == "same" else (2, 2)
    names = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    padded = np.pad(x.numpy(), [(0, 0)] * 2 + [ends] * n, mode=names[mode])
    expected = CONV[n](md.tensor(padded), layer.weight, layer.bias)
    np.testing.assert_array_equal(layer(x).numpy(), expected.numpy())


def test_conv_transpose_to_a_chosen_size():
    layer = nn.ConvTranspose2d(2, 3, 3, stride=3)
    x = md.tensor(numbers(1, 2, 4, 4).astype("float32"))
    assert layer(x).shape == (1, 3, 12, 12)
    assert layer(x, output_size=(13, 14)).shape == (1, 3, 13, 14)
    assert layer(x, output_size=(1, 3, 12, 13)).shape == (1, 3, 12, 13)
    with pytest.raises(ValueError, match="possible are"):
        layer(x, output_size=(15, 12))


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 3},
        {"groups": 0},
        {"padding_mode": "edge"},
        {"padding": "whole"},
        {"padding": "same", "stride": 2},
    ],
)
def test_layers_refuse(options):
    with pytest.raises(ValueError):
        nn.Conv2d(4, 4, 3, **options)


def test_conv_transpose_takes_zero_padding_only():
    with pytest.raises(ValueError, match="padding_mode"):
        nn.ConvTranspose2d(4, 4, 3, padding_mode="reflect")


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("layers", [LAYERS, BACK])
def test_weights_of_pytorch_fit(layers, n):
    torch = pytest.importorskip("torch")
    options = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    ours = layers[n](4, 6, 3, **options)
    theirs = getattr(torch.nn, type(ours).__name__)(4, 6, 3, **options)
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x = numbers(2, 4, *[5] * n).astype("float32")
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours(md.tensor(x)).numpy(), expected, atol=1e-5)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["Conv", "Linear"])
def test_a_relu_in_a_layer_is_a_relu_after_it(xp, kind, bias):
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=bias)
    if kind == "Linear":
        layer = nn.Linear(6, 3, bias=bias)
    layer.to("cpu" if xp is np else "cuda", "float64")
    size = (2, 2, 5, 6) if kind == "Conv" else (7, 6)
    x = md.tensor(xp.asarray(np.random.default_rng(0).normal(size=size)))
    x.requires_grad_()
    leaves = [x, *layer.parameters()]
    fused, apart = nn.Sequential(layer, nn.ReLU())(x), F.relu(layer(x))
    assert type(fused.creator).__name__ == kind
    np.testing.assert_array_equal(fused.numpy(), apart.numpy())
    pairs = [
        md.autograd.grad((y * y).sum(), leaves, create_graph=True)
        for y in (fused, apart)
    ]
    for one, other in zip(*pairs, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-12, atol=1e-12)
    twice = [md.autograd.grad(sum((g * g).sum() for g in gs), leaves) for gs in pairs]
    for one, other in zip(*twice, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-10, atol=1e-12)
    alone = nn.Sequential(nn.Identity(), layer)
    np.testing.assert_array_equal(alone(x).numpy(), layer(x).numpy())
    special = md.tensor(xp.asarray(np.full(size, np.nan)))
    assert np.isnan(nn.Sequential(layer, nn.ReLU())(special).numpy()).all()
