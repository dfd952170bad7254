"""Padding, interpolation, windows as columns and pixels as channels."""

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minidl as md
import minidl.nn.functional as F
from minidl import nn
from minidl.array.device import to_numpy
from minidl.ops.resample import Table

rng = np.random.default_rng(0)
with_xp = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def numbers(*shape):
    return rng.standard_normal(shape)


def tensor(x, xp):
    return md.tensor(xp.asarray(x))


@with_xp
@given(st.integers(0, 5), st.integers(0, 6), st.integers(0, 99))
def test_a_table_is_its_matrix(xp, inputs, outputs, seed):
    random = np.random.default_rng(seed)
    matrix = random.integers(-2, 3, (outputs, inputs)) * 0.5
    table = Table.of_matrix(matrix)
    x, y = random.standard_normal((2, inputs, 3)), random.standard_normal((outputs, 2))
    expected = np.einsum("oi,nij->noj", matrix, x)
    there = to_numpy(table(xp.asarray(x), 1))
    np.testing.assert_allclose(there, expected, atol=1e-12)
    back = to_numpy(table.transposed(xp.asarray(y), 0))
    np.testing.assert_allclose(back, matrix.T @ y, atol=1e-12)


# Padding

NUMPY = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@with_xp
@given(
    st.sampled_from(["constant", *NUMPY]),
    st.lists(st.tuples(st.integers(-2, 3), st.integers(-2, 3)), min_size=1, max_size=3),
    st.booleans(),
)
def test_pad(xp, mode, ends, batched):
    x = numbers(*[2] * (1 + batched), *[6] * len(ends))
    y = F.pad(tensor(x, xp), [p for pair in reversed(ends) for p in pair], mode)
    cuts = [slice(max(-a, 0), 6 - max(-b, 0)) for a, b in ends]
    whole = [(0, 0)] * (1 + batched)
    more = whole + [(max(a, 0), max(b, 0)) for a, b in ends]
    cut = x[(..., *cuts)]
    if mode in ("reflect", "replicate"):  # these see what is cut off elsewhere
        padded = np.pad(x, more, NUMPY[mode])
        cuts = [
            slice(max(-a, 0), padded.shape[d - len(ends)] - max(-b, 0))
            for d, (a, b) in enumerate(ends)
        ]
        expected = padded[(..., *cuts)]
    else:
        expected = np.pad(cut, more, NUMPY.get(mode, "constant"))
    np.testing.assert_array_equal(y.numpy(), expected)


def test_pad_with_a_value_keeps_the_type(xp):
    y = F.pad(tensor(np.arange(3), xp), (1, 2), value=7)
    assert y.tolist() == [7, 0, 1, 2, 7, 7] and y.dtype == np.int64
    y = F.pad(tensor(np.ones(1, bool), xp), (1, 0))
    assert y.tolist() == [False, True]


@pytest.mark.parametrize("mode", ["constant", *NUMPY])
def test_gradients_of_pad(mode):
    check_gradients(lambda x: F.pad(x, (2, -1, -1, 3), mode) ** 2, numbers(2, 2, 4, 4))


@pytest.mark.parametrize(
    "shape, pad, options, error",
    [
        ((2, 3), (1,), {}, RuntimeError),
        ((3,), (1, 1, 1, 1), {}, RuntimeError),
        ((2, 3), (-2, -2), {}, RuntimeError),
        ((2, 2, 3), (3, 0), {"mode": "reflect"}, RuntimeError),
        ((2, 2, 3), (4, 0), {"mode": "circular"}, RuntimeError),
        ((2, 2, 3), (1, 1), {"mode": "reflect", "value": 1.0}, RuntimeError),
        ((2, 2, 3), (1, 1), {"mode": "mirror"}, NotImplementedError),
        ((2,), (1, 1), {"mode": "reflect"}, NotImplementedError),
        ((2, 2, 2, 3), (1, 1), {"mode": "replicate"}, NotImplementedError),
    ],
)
def test_pad_refuses(shape, pad, options, error):
    with pytest.raises(error):
        F.pad(md.tensor(np.ones(shape)), pad, **options)


# Interpolation

MODES = {
    "nearest": 3,
    "nearest-exact": 3,
    "area": 3,
    "linear": 1,
    "bilinear": 2,
    "bicubic": 2,
    "trilinear": 3,
}
LINEAR = ["linear", "bilinear", "trilinear"]


@pytest.mark.parametrize("mode", MODES)
def test_interpolation_keeps_what_is_constant_or_of_the_same_size(xp, mode):
    x = numbers(2, 2, *[5] * MODES[mode])
    y = F.interpolate(tensor(x, xp), size=5, mode=mode)
    np.testing.assert_allclose(y.numpy(), x, atol=1e-12)
    for size in (1, 3, 9):
        ones = tensor(np.ones_like(x), xp)
        y = F.interpolate(ones, size=size, mode=mode).numpy()
        assert y.shape == (2, 2, *[size] * MODES[mode])
        np.testing.assert_allclose(y, 1, atol=1e-12)


@pytest.mark.parametrize("mode", LINEAR)
def test_linear_modes_carry_on_a_slope(xp, mode):
    n = MODES[mode]
    ramp = np.arange(6.0) + np.zeros((1, 1, *[6] * n))
    y = F.interpolate(tensor(ramp, xp), size=11, mode=mode, align_corners=True)
    inner = np.linspace(0, 5, 11)[3:-3]
    np.testing.assert_allclose(y.numpy()[..., 3:-3][(0,) * (n + 1)], inner, atol=1e-12)
    y = F.interpolate(tensor(ramp, xp), scale_factor=2, mode=mode)
    inner = np.arange(12)[4:-4] / 2 - 0.25
    np.testing.assert_allclose(y.numpy()[..., 4:-4][(0,) * (n + 1)], inner, atol=1e-12)


@pytest.mark.parametrize("align", [False, True])
def test_bicubic(xp, align):
    x, m = numbers(5), 8
    rows = np.broadcast_to(x, (1, 1, 3, 5)).copy()
    options = {"size": (3, m), "mode": "bicubic", "align_corners": align}
    y = F.interpolate(tensor(rows, xp), **options).numpy()
    for i in range(m):
        place = i * 4 / (m - 1) if align else (i + 0.5) * 5 / m - 0.5
        left, total = int(np.floor(place)), 0.0
        for j in range(left - 1, left + 3):
            d = abs(place - j)
            near = 1.25 * d**3 - 2.25 * d**2 + 1
            far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            total += (near if d <= 1 else far) * x[min(max(j, 0), 4)]
        np.testing.assert_allclose(y[0, 0, :, i], total, atol=1e-12)


@given(st.integers(1, 9), st.integers(1, 20))
def test_nearest(n, m):
    x = md.tensor(np.arange(n).reshape(1, 1, n))
    assert F.interpolate(x, size=m).tolist()[0][0] == [i * n // m for i in range(m)]
    found = F.interpolate(x, size=m, mode="nearest-exact").tolist()[0][0]
    exact = [(2 * i + 1) * n / (2 * m) for i in range(m)]
    for ours, place in zip(found, exact, strict=True):
        assert ours == int(place) or abs(place - round(place)) < 1e-5


def test_area_is_the_mean_of_each_window():
    x = md.tensor(numbers(1, 2, 7, 5))
    y = F.interpolate(x, size=(3, 4), mode="area")
    expected = F.adaptive_avg_pool2d(x, (3, 4))
    np.testing.assert_array_equal(y.numpy(), expected.numpy())


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_interpolate(mode):
    x = numbers(1, 2, *[4, 3, 2][: MODES[mode]])
    check_gradients(lambda x: F.interpolate(x, scale_factor=1.6, mode=mode) ** 2, x)
    check_gradients(lambda x: F.interpolate(x, size=2, mode=mode) ** 2, x)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 4), (11, 5)])
@pytest.mark.parametrize("align", [False, True])
def test_antialias_is_that_of_pytorch(mode, size, align):
    torch = pytest.importorskip("torch")
    x = numbers(1, 2, 8, 9)
    options = {"size": size, "mode": mode, "align_corners": align, "antialias": True}
    expected = torch.nn.functional.interpolate(torch.tensor(x), **options)
    y = F.interpolate(md.tensor(x), **options)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), atol=1e-12)


def test_nan_and_infinity_reach_their_neighbours_alone(xp):
    x = np.zeros((1, 1, 9))
    x[0, 0, 2], x[0, 0, 8] = np.inf, np.nan
    x = tensor(x, xp).requires_grad_()
    y = F.interpolate(x, size=18, mode="linear")
    assert np.isfinite(y.numpy()[0, 0, 7:14]).all()
    g = np.zeros((1, 1, 18))
    g[0, 0, 0] = np.nan
    (gx,) = md.autograd.grad(y, x, tensor(g, xp))
    assert np.isfinite(gx.numpy()[0, 0, 2:]).all()


X = numbers(1, 1, 4, 4)


@pytest.mark.parametrize(
    "x, options, error",
    [
        (X, {}, ValueError),
        (X, {"size": 2, "scale_factor": 2}, ValueError),
        (X, {"size": (2, 2, 2)}, ValueError),
        (X, {"size": 2, "align_corners": True}, ValueError),
        (X, {"size": 2, "recompute_scale_factor": True}, ValueError),
        (X, {"size": 2, "antialias": True}, ValueError),
        (X, {"size": 2, "mode": "linear"}, NotImplementedError),
        (X, {"size": 2, "mode": "cubic"}, NotImplementedError),
        (X.astype(int), {"size": 2, "mode": "bilinear"}, NotImplementedError),
        (X, {"size": 2.5}, TypeError),
        (X, {"size": 0}, RuntimeError),
        (X, {"scale_factor": 0.1}, RuntimeError),
        (X[:, :, :0], {"size": 2}, RuntimeError),
    ],
)
def test_interpolate_refuses(x, options, error):
    with pytest.raises(error):
        F.interpolate(md.tensor(x), **options)


# Columns and pixels


@with_xp
@given(*[st.tuples(st.integers(1, 2), st.integers(1, 3))] * 2, st.integers(0, 1))
def test_unfold_and_fold(xp, kernel, stride, padding):
    x = numbers(2, 3, 5, 6)
    options = {"stride": stride, "padding": padding, "dilation": (2, 1)}
    columns = F.unfold(tensor(x, xp), kernel, **options)
    w = numbers(4, 3, *kernel)
    flat = np.einsum("ki,nil->nkl", w.reshape(4, -1), columns.numpy())
    y = F.conv2d(tensor(x, xp), tensor(w, xp), None, stride, padding, (2, 1))
    np.testing.assert_allclose(flat.reshape(y.shape), y.numpy(), atol=1e-11)
    # fold is the transpose of unfold
    other = numbers(*columns.shape)
    back = F.fold(tensor(other, xp), (5, 6), kernel, **options)
    np.testing.assert_allclose(
        (columns.numpy() * other).sum(), (x * back.numpy()).sum(), atol=1e-10
    )


def test_gradients_of_unfold_and_fold():
    check_gradients(lambda x: F.unfold(x, 2, padding=1) ** 2, numbers(2, 2, 3, 4))
    check_gradients(lambda x: F.fold(x, (3, 4), 2) ** 2, numbers(2, 8, 6))
    check_gradients(lambda x: F.pixel_shuffle(x, 2) ** 2, numbers(1, 4, 2, 3))


@pytest.mark.parametrize(
    "shape", [(8, 3, 2), (2, 8, 3, 2), (2, 1, 8, 3, 2), (0, 4, 1, 1)]
)
def test_pixel_shuffle(xp, shape):
    x = numbers(*shape)
    y = F.pixel_shuffle(tensor(x, xp), 2)
    for i in range(2):
        for j in range(2):
            expected = x[..., 2 * i + j :: 4, :, :]
            np.testing.assert_array_equal(y.numpy()[..., i::2, j::2], expected)
    if x.size:
        np.testing.assert_array_equal(F.pixel_unshuffle(y, 2).numpy(), x)


@pytest.mark.parametrize(
    "function, shape, arguments",
    [
        (F.unfold, (3, 3), (2,)),
        (F.unfold, (1, 1, 3, 3), (4,)),
        (F.unfold, (1, 1, 3, 3), (0,)),
        (F.fold, (1, 4, 5), ((3, 3), 2)),
        (F.fold, (1, 5, 4), ((3, 3), 2)),
        (F.fold, (1, 4, 4), ((3, 3), 0)),
        (F.pixel_shuffle, (1, 6, 2, 2), (2,)),
        (F.pixel_shuffle, (4, 4), (2,)),
        (F.pixel_shuffle, (1, 4, 2, 2), (0,)),
        (F.pixel_unshuffle, (1, 1, 3, 2), (2,)),
    ],
)
def test_refusals(function, shape, arguments):
    with pytest.raises(RuntimeError):
        function(md.tensor(np.ones(shape)), *arguments)


def test_layers():
    x = md.tensor(numbers(1, 4, 6, 6))
    assert nn.Upsample(scale_factor=2, mode="bilinear")(x).shape == (1, 4, 12, 12)
    assert nn.PixelShuffle(2)(x).shape == (1, 1, 12, 12)
    assert nn.PixelUnshuffle(3)(x).shape == (1, 36, 2, 2)
    columns = nn.Unfold(3, padding=1)(x)
    assert columns.shape == (1, 36, 36)
    y = nn.Fold((6, 6), 3, padding=1)(columns)
    np.testing.assert_allclose(
        y.numpy()[..., 1:-1, 1:-1], 9 * x.numpy()[..., 1:-1, 1:-1]
    )
    assert nn.Flatten()(x).shape == (1, 144) and nn.Flatten(0, 1)(x).shape == (4, 6, 6)
