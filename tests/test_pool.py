"""Pooling as functions and layers, window by window in float64."""

from itertools import product

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import minidl as md
import minidl.nn.functional as F
from minidl import nn

rng = np.random.default_rng(0)
MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}
with_xp = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def shuffled(*shape):
    """Whole numbers in any order: no ties, and far apart for differences."""
    return rng.permutation(np.prod(shape, dtype=int)).reshape(shape) / 4


def tensor(x, xp):
    return md.tensor(xp.asarray(x))


def windows(size, kernel, stride, padding, dilation, ceil_mode):
    """(output, the places of its window inside the input, elements with padding)"""
    axes = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        free = n + 2 * p - d * (k - 1) - 1
        out = (-(-free // s) if ceil_mode else free // s) + 1
        if ceil_mode and (out - 1) * s >= n + p:
            out -= 1
        axes.append(
            [
                (
                    [i for i in range(o * s - p, o * s - p + d * k, d) if 0 <= i < n],
                    sum(i < n + p for i in range(o * s - p, o * s - p + d * k, d)),
                )
                for o in range(out)
            ]
        )
    for o in product(*(range(len(axis)) for axis in axes)):
        chosen = [axis[i] for axis, i in zip(axes, o, strict=True)]
        places = np.ix_(*(inside for inside, _ in chosen))
        yield o, places, int(np.prod([count for _, count in chosen]))


def largest(x, out, cells):
    y, where = np.zeros((*x.shape[:2], *out)), np.zeros((*x.shape[:2], *out), int)
    numbers = np.arange(np.prod(x.shape[2:], dtype=int)).reshape(x.shape[2:])
    for o, places, _ in cells:
        for n, c in np.ndindex(x.shape[:2]):
            window = x[n, c][places]
            first = np.argmax(window)
            y[(n, c, *o)] = window.ravel()[first]
            where[(n, c, *o)] = numbers[places].ravel()[first]
    return y, where


@st.composite
def geometries(draw):
    n = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(n)]
    return {
        "n": n,
        "size": [draw(st.integers(3, 6)) for _ in range(n)],
        "kernel": kernel,
        "stride": [draw(st.integers(1, 3)) for _ in range(n)],
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
        "dilation": [1 if k == 3 else draw(st.integers(1, 2)) for k in kernel],
        "ceil_mode": draw(st.booleans()),
        "include": draw(st.booleans()),
        "ties": draw(st.booleans()),
    }


@with_xp
@given(geometries())
def test_max_pool(xp, g):
    geometry = g["kernel"], g["stride"], g["padding"], g["dilation"], g["ceil_mode"]
    x = shuffled(2, 2, *g["size"])
    x = x % 3 if g["ties"] else x
    cells = list(windows(g["size"], *geometry))
    y, where = MAX[g["n"]](tensor(x, xp), *geometry, return_indices=True)
    expected = largest(x, np.add(cells[-1][0], 1), cells)
    np.testing.assert_array_equal(y.numpy(), expected[0])
    np.testing.assert_array_equal(where.numpy(), expected[1])
    assert where.dtype == np.int64


@with_xp
@given(geometries())
def test_avg_pool(xp, g):
    window = g["kernel"], g["stride"], g["padding"]
    x = shuffled(2, 2, *g["size"])
    cells = list(windows(g["size"], *window, [1] * g["n"], g["ceil_mode"]))
    y = AVG[g["n"]](tensor(x, xp), *window, g["ceil_mode"], g["include"])
    axes = tuple(range(2, 2 + g["n"]))
    for o, places, count in cells:
        inside = x[(slice(None), slice(None), *places)]
        total = inside.sum(axes)
        count = count if g["include"] else inside[0, 0].size
        np.testing.assert_allclose(y.numpy()[(..., *o)], total / count)
    assert y.shape[2:] == tuple(np.add(cells[-1][0], 1))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_gradients(n):
    x = shuffled(2, 2, *[5, 4, 3][:n])
    check_gradients(lambda x: MAX[n](x, 2, 1, 1) ** 2, x)
    check_gradients(lambda x: AVG[n](x, 3, 2, 1, True, False) ** 2, x)
    check_gradients(lambda x: MAX[n](x, 2, return_indices=True)[0] ** 2, x)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_gradients_of_adaptive_pools(size):
    x = shuffled(2, 2, 6, 5)
    check_gradients(lambda x: F.adaptive_avg_pool2d(x, size) ** 2, x)
    check_gradients(lambda x: F.adaptive_max_pool2d(x, size) ** 2, x)


@with_xp
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 8)), min_size=1, max_size=2)
)
@example([(1, 0), (2, 1)])
def test_adaptive_pools(xp, sizes):
    n = len(sizes)
    inputs, outputs = [a for a, _ in sizes], [b for _, b in sizes]
    x = shuffled(2, 3, *inputs) % 5
    y = ADAPTIVE[n](tensor(x, xp), outputs).numpy()
    assert y.shape == (2, 3, *outputs)
    cells = []
    for o in np.ndindex(*outputs):
        spans = [
            range(i * a // b, -(-(i + 1) * a // b))
            for i, (a, b) in zip(o, sizes, strict=True)
        ]
        cells.append((o, np.ix_(*spans), 0))
    for o, places, _ in cells:
        mean = x[(slice(None), slice(None), *places)].mean(tuple(range(2, 2 + n)))
        np.testing.assert_allclose(y[(..., *o)], mean)
    if n == 2:
        found = F.adaptive_max_pool2d(tensor(x, xp), outputs, return_indices=True)
        for ours, expected in zip(found, largest(x, outputs, cells), strict=True):
            np.testing.assert_array_equal(ours.numpy(), expected)


def test_adaptive_sizes_that_stay():
    x = md.tensor(shuffled(1, 2, 6, 4))
    assert F.adaptive_avg_pool2d(x, (None, 2)).shape == (1, 2, 6, 2)
    assert F.adaptive_max_pool2d(x, (3, None)).shape == (1, 2, 3, 4)
    assert F.adaptive_avg_pool2d(x, 3).shape == (1, 2, 3, 3)


def test_infinities_and_nan_stay_in_their_windows(xp):
    x = np.zeros((1, 1, 5, 5))
    x[0, 0, 0, 0], x[0, 0, 4, 4] = np.inf, np.nan
    for function in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        y = function(tensor(x, xp), 3).numpy()[0, 0]
        assert y[0, 0] == np.inf and np.isnan(y[2, 2])
        assert np.isfinite(y).sum() == 7
    y = F.max_pool2d(tensor(x, xp), 2, padding=1).numpy()[0, 0]
    assert y[0, 0] == np.inf and np.isnan(y[2, 2]) and np.isfinite(y).sum() == 7


def test_the_gradient_of_a_tie_goes_to_the_first():
    x = md.tensor(np.zeros((1, 1, 2, 2), "float32"), requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy()[0, 0], [[1, 0], [0, 0]])


def test_a_divisor_of_ones_own(xp):
    x = tensor(shuffled(1, 1, 4, 4), xp)
    a, b = F.avg_pool2d(x, 2, divisor_override=1), F.avg_pool2d(x, 2)
    np.testing.assert_allclose(a.numpy(), 4 * b.numpy())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_single_images_and_empty_batches(xp, n):
    x = shuffled(2, *[4] * n)
    for function in (MAX[n], AVG[n]):
        alone = function(tensor(x, xp), 2)
        batch = function(tensor(x[None], xp), 2)
        np.testing.assert_array_equal(alone.numpy(), batch.numpy()[0])
        none = tensor(np.zeros((0, 2, *[4] * n), "float32"), xp).requires_grad_()
        y = function(none, 2)
        assert y.shape == (0, 2, *[2] * n) and y.dtype == np.float32
        y.sum().backward()
        assert none.grad.shape == none.shape


X = shuffled(1, 2, 6, 6)
REFUSED = [
    (F.max_pool2d, X[0, 0], {"kernel_size": 2}, "dimensions"),
    (F.max_pool2d, X[:, :0], {"kernel_size": 2}, "empty"),
    (F.max_pool2d, X, {"kernel_size": 9}, "larger than the padded input"),
    (F.max_pool2d, X, {"kernel_size": 2, "padding": 2}, "at most half"),
    (F.max_pool2d, X, {"kernel_size": 2, "stride": 0}, "stride"),
    (F.avg_pool2d, X, {"kernel_size": 0}, "kernel size"),
    (F.avg_pool2d, X, {"kernel_size": 2, "divisor_override": 0}, "divisor_override"),
    (F.avg_pool2d, X, {"kernel_size": (1, 2, 3)}, "kernel_size must be an int or 2"),
    (F.adaptive_avg_pool2d, X, {"output_size": -1}, "output_size"),
    (F.adaptive_avg_pool2d, X[..., :0], {"output_size": 1}, "empty"),
    (F.adaptive_max_pool2d, X, {"output_size": (1, 2, 3)}, "output_size"),
    (F.adaptive_max_pool2d, X[0, 0], {"output_size": 1}, "dimensions"),
]


@pytest.mark.parametrize("function, x, options, words", REFUSED)
def test_refusals(function, x, options, words):
    with pytest.raises(RuntimeError, match=words):
        function(md.tensor(x), **options)


LAYERS = [
    ("MaxPool1d", (3, 2, 1, 1, False, True), (2, 3, 7)),
    ("MaxPool2d", (3,), (2, 3, 7, 6)),
    ("MaxPool3d", (2, 1), (2, 3, 4, 3, 4)),
    ("AvgPool1d", (3, 2, 1, True, False), (2, 3, 7)),
    ("AvgPool2d", (3, 2, 1, True, False, 5), (2, 3, 7, 6)),
    ("AvgPool3d", ((2, 1, 2),), (2, 3, 4, 3, 4)),
    ("AdaptiveAvgPool1d", (3,), (2, 3, 7)),
    ("AdaptiveAvgPool2d", ((3, None),), (2, 3, 7, 6)),
    ("AdaptiveMaxPool2d", (4,), (2, 3, 7, 6)),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, arguments, shape", LAYERS)
def test_layers_are_those_of_pytorch(name, arguments, shape):
    torch = pytest.importorskip("torch")
    x = shuffled(*shape).astype("float32")
    ours = getattr(nn, name)(*arguments)(md.tensor(x))
    theirs = getattr(torch.nn, name)(*arguments)(torch.tensor(x))
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)
