"""Convolution and pooling of raw arrays against direct loops in float64."""

from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl.array import convolution_columns as columns
from minidl.array import (
    convolution_cpu,
    convolution_plans,
    convolution_sweep,
    convolution_tiles,
    pool_loops,
    pooling,
    threads,
    window_loops,
)
from minidl.array.convolution import (
    conv_bias_gradient,
    conv_forward,
    conv_input_gradient,
    conv_rectified_gradient,
    conv_weight_gradient,
    output_shape,
)
from minidl.array.device import array_module
from minidl.array.pooling import (
    avg_pool_backward,
    avg_pool_forward,
    max_pool_backward,
    max_pool_forward,
    max_pool_gather,
)
from minidl.array.windows import col2im, im2col, output_size

with_xp = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 2e-2}


def host(a):
    return a.get() if hasattr(a, "get") else np.asarray(a)


def by_columns(x, w, b, *geometry):
    """The textbook's convolution."""
    shape = output_shape(x.shape, w.shape, *geometry)
    return columns.forward(x, w, b, shape, *geometry)


def weights_by_columns(gy, x, w_shape, *geometry):
    gw = array_module(gy).full(w_shape, np.nan, gy.dtype)
    columns.weight_gradient(gy, x, gw, *geometry)
    return gw


def assert_near(got, want, dtype="float64"):
    assert got.shape == want.shape and got.dtype == dtype
    scale = np.abs(want).max(initial=1)
    assert np.abs(host(got) - want).max(initial=0) <= TOLERANCE[dtype] * scale


# The reference: one window after the other.


def padded(x, padding, value=0.0):
    widths = [(0, 0), (0, 0), *((p, p) for p in padding)]
    return np.pad(x.astype(float), widths, constant_values=value)


def windows_of(out, kernel, stride, dilation):
    for place in np.ndindex(*out):
        yield (
            place,
            tuple(
                slice(o * s, o * s + d * (k - 1) + 1, d)
                for o, k, s, d in zip(place, kernel, stride, dilation, strict=True)
            ),
        )


def direct(x, w, b, gy, stride, padding, dilation, groups):
    """y, gx and gw of a convolution; gy may be a function of y's shape."""
    images = padded(x, padding)
    (k, c, *kernel), size = w.shape, images.shape[2:]
    out = [
        (n - d * (m - 1) - 1) // s + 1
        for n, m, s, d in zip(size, kernel, stride, dilation, strict=True)
    ]
    y, gw = np.zeros((len(x), k, *out)), np.zeros(w.shape)
    gimages, gy = np.zeros(images.shape), gy((len(x), k, *out))
    for place, window in windows_of(out, kernel, stride, dilation):
        for n, m in np.ndindex(len(x), k):
            group = slice(m // (k // groups) * c, (m // (k // groups) + 1) * c)
            at, here = (n, group, *window), (n, m, *place)
            y[here] = (images[at] * w[m]).sum() + b[m]
            gimages[at] += w[m] * gy[here]
            gw[m] += images[at] * gy[here]
    inner = (slice(p, p + n) for p, n in zip(padding, x.shape[2:], strict=True))
    return y, gimages[(..., *inner)], gw, gy


FEW_IMAGES = st.integers(0, 3)


@st.composite
def convolutions(draw, batch=FEW_IMAGES):
    """Random numbers for x, w, b, and stride, padding, dilation, groups."""
    dims = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.integers(1, 3))
    filters = groups * draw(st.integers(1, 3))
    kernel, dilation, padding = each(1, 3), each(1, 2), each(0, 2)
    stride = draw(st.sampled_from([(1,) * dims, each(1, 3)]))
    size = tuple(
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 6))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.normal(size=(draw(batch), channels, *size))
    w = rng.normal(size=(filters, channels // groups, *kernel))
    return x, w, rng.normal(size=filters), (stride, padding, dilation, groups)


@st.composite
def poolings(draw):
    """A random x without ties, and kernel, stride, padding, dilation, ceil_mode."""
    dims = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation, size = each(1, 3), each(1, 3), each(1, 2), each(5, 8)
    if draw(st.booleans()):
        stride = kernel
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (draw(st.integers(0, 3)), draw(st.integers(1, 3)), *size)
    x = rng.permutation(np.prod(shape, dtype=int)).reshape(shape).astype(float)
    return x, (kernel, stride, padding, dilation, draw(st.booleans()))


@contextmanager
def cut(block, work, shift):
    """Make blocks, threads, parts and row shifts appear in small examples."""
    blocks = {"BLOCK_BYTES": block, "BATCH_BYTES": block}
    with (
        mock.patch.multiple(
            convolution_cpu, **blocks, SERIAL_WORK=work, SHIFT_CHANNELS=shift
        ),
        mock.patch.object(convolution_plans, "SERIAL_WORK", work),
        mock.patch.object(convolution_sweep, "PART_WORK", max(1, work)),
    ):
        yield


@contextmanager
def compiled(wanted):
    """With the compiled loops that are named, where there is a compiler: "sweep" for
    all, "blocks" for those that NumPy's blocks call; the rest in NumPy alone."""

    def none(name, dtype):
        return None

    with ExitStack() as stack:
        if wanted != "sweep":
            stack.enter_context(mock.patch.object(convolution_sweep, "_function", none))
        if wanted == "numpy":
            for module in (window_loops, pool_loops):
                stack.enter_context(mock.patch.object(module, "_function", none))
        yield


@contextmanager
def tiles():
    """Winograd's tiles for every convolution that they can do."""
    with (
        mock.patch.object(convolution_tiles, "CHANNELS", 1),
        mock.patch.object(convolution_sweep, "TILE_PIXELS", 1),
    ):
        yield


def normal(shape):
    return np.random.default_rng(5).normal(size=shape)


@with_xp
@given(
    convolutions(),
    st.sampled_from([1, 2000, 1 << 20]),
    st.sampled_from([0, 1 << 20]),
    st.sampled_from([1, 48]),
    st.sampled_from(["float64", "float32", "float16"]),
    st.sampled_from(["sweep", "blocks", "numpy"]),
)
def test_convolution_is_the_direct_sum(xp, case, block, work, shift, dtype, loops):
    x, w, b, geometry = case
    x, w, b = (a.astype(dtype) for a in (x, w, b))
    y, gx, gw, gy = direct(
        x, w, b, lambda shape: normal(shape).astype(dtype), *geometry
    )
    dx, dw, db, dgy = map(xp.asarray, (x, w, b, gy))
    with cut(block, work, shift), compiled(loops):
        got, relu = (conv_forward(dx, dw, db, *geometry, relu=r) for r in (False, True))
        assert_near(got, y, dtype)
        np.testing.assert_array_equal(host(relu), np.maximum(host(got), 0))
        assert_near(conv_input_gradient(dgy, dw, x.shape, *geometry), gx, dtype)
        out = xp.full(w.shape, xp.nan, dtype)
        got = conv_weight_gradient(dgy, dx, w.shape, *geometry, out=out)
        assert got is out
        assert_near(out, gw, dtype)
        assert_near(conv_weight_gradient(dgy, dx, w.shape, *geometry), gw, dtype)


@with_xp
@given(convolutions(), st.sampled_from([1, 2000, 1 << 20]))
def test_textbook_lowering_is_the_direct_sum(xp, case, block):
    x, w, b, geometry = case
    y, gx, gw, gy = direct(x, w, b, normal, *geometry)
    dx, dw, db, dgy = map(xp.asarray, (x, w, b, gy))
    with mock.patch.object(columns, "COLUMN_BYTES", block):
        assert_near(by_columns(dx, dw, db, *geometry), y)
        got = columns.input_gradient(dgy, dw, x.shape, *geometry)
        assert_near(got, gx)
        assert_near(weights_by_columns(dgy, dx, w.shape, *geometry), gw)


@given(
    convolutions(),
    st.sampled_from([1, 2000, 1 << 20]),
    st.sampled_from(["blocks", "numpy"]),
)
def test_blocks_for_numpy_are_the_textbook_lowering(case, block, loops):
    x, w, _, geometry = case
    gy = normal(output_shape(x.shape, w.shape, *geometry))
    with cut(block, 0, 1), compiled(loops):
        got = convolution_cpu.input_gradient(gy, w, x.shape, *geometry)
    assert_near(got, columns.input_gradient(gy, w, x.shape, *geometry))


@with_xp
@given(convolutions())
def test_gradients_are_adjoint(xp, case):
    x, w, _, geometry = case
    x, w = xp.asarray(x), xp.asarray(w)
    y = conv_forward(x, w, None, *geometry)
    gy = xp.asarray(normal(y.shape))
    inner = float((y * gy).sum())
    gx = conv_input_gradient(gy, w, x.shape, *geometry)
    gw = conv_weight_gradient(gy, x, w.shape, *geometry)
    assert float((x * gx).sum()) == pytest.approx(inner, rel=1e-9, abs=1e-9)
    assert float((w * gw).sum()) == pytest.approx(inner, rel=1e-9, abs=1e-9)


@with_xp
@given(convolutions())
def test_im2col_lays_windows_out_as_unfold(xp, case):
    x, w, _, (stride, padding, dilation, _) = case
    kernel = w.shape[2:]
    geometry = (kernel, stride, padding, dilation)
    out = output_size(x.shape[2:], *geometry)
    images = padded(x, padding)
    want = np.zeros((len(x), x.shape[1] * np.prod(kernel), np.prod(out, dtype=int)))
    for column, (_, window) in enumerate(windows_of(out, kernel, stride, dilation)):
        want[..., column] = images[(..., *window)].reshape(len(x), want.shape[1])
    columns = im2col(xp.asarray(x), *geometry)
    np.testing.assert_array_equal(host(columns), want)
    other = xp.asarray(normal(want.shape))
    back = col2im(other, x.shape, *geometry)
    assert back.shape == x.shape
    inner = float((columns * other).sum())
    assert float((back * xp.asarray(x)).sum()) == pytest.approx(inner, abs=1e-9)


def test_arrays_in_any_memory_order():
    x, w = normal((3, 5, 6, 4)), normal((3, 3, 7, 4))
    geometry = ((1, 2), (1, 0), (1, 1), 1)
    xs, ws = x.transpose(1, 3, 2, 0), w[::-1].transpose(2, 3, 0, 1)[..., ::-1]
    y = conv_forward(xs, ws, None, *geometry)
    np.testing.assert_array_equal(
        y, conv_forward(xs.copy(), ws.copy(), None, *geometry)
    )
    gy = normal(y.shape[::-1]).transpose()
    for function, other in ((conv_input_gradient, ws), (conv_weight_gradient, xs)):
        shape = xs.shape if other is ws else ws.shape
        np.testing.assert_allclose(
            function(gy, other, shape, *geometry),
            function(gy.copy(), other.copy(), shape, *geometry),
            rtol=1e-12,
            atol=1e-12,
        )


@given(convolutions(), poolings(), st.sampled_from(["float32", "float64"]))
def test_compiled_loops_give_the_bits_of_numpy(conv, pool, dtype):
    x, w, _, geometry = conv
    images, window = pool
    gy = normal(output_shape(x.shape, w.shape, *geometry)).astype(dtype)
    x, w, images = (a.astype(dtype) for a in (x, w, images % 5))
    results = []
    for loops in ("blocks", "numpy"):
        with compiled(loops):
            y, indices = max_pool_forward(images, *window)
            back = max_pool_backward(
                normal(y.shape).astype(dtype), indices, images.shape, *window[:4]
            )
            gx = convolution_cpu.input_gradient(gy, w, x.shape, *geometry)
            results.append([y, indices, back, gx, conv_forward(x, w, None, *geometry)])
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


# x's shape, w's, and stride, padding, dilation, groups: more than one block of filters,
# several tiles of positions, lines longer and shorter than a vector
SWEEPS = [
    ((3, 17, 9, 21), (19, 17, 3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    ((2, 8, 33, 34), (70, 8, 3, 3), ((1, 1), (2, 0), (1, 1), 1)),
    ((5, 3, 14, 14), (32, 3, 5, 5), ((1, 1), (2, 2), (1, 1), 1)),
    ((2, 32, 8, 8), (40, 32, 1, 1), ((1, 1), (0, 0), (1, 1), 1)),
    ((4, 12, 17, 15), (24, 6, 3, 3), ((2, 2), (1, 1), (1, 1), 2)),
    ((2, 5, 20, 19), (9, 5, 3, 2), ((1, 3), (3, 0), (3, 2), 1)),
    ((1, 16, 16, 16), (33, 16, 1, 1), ((2, 2), (0, 0), (1, 1), 1)),
    ((9, 16, 30), (16, 16, 4), ((2,), (3,), (1,), 1)),
]


def pairs_of(x_shape, w_shape, geometry, dtype):
    """(got, wanted in float64) of y, gx, gw and gb of random arrays."""
    x, w, b = (normal(s) for s in (x_shape, w_shape, w_shape[:1]))
    gy = normal(output_shape(x_shape, w_shape, *geometry)) + 1
    x, w, b, gy = (a.astype(dtype) for a in (x, w, b, gy))
    exact = [a.astype("float64") for a in (x, w, b, gy)]
    gw = np.full(w.shape, np.nan, dtype)
    y, want = conv_forward(x, w, b, *geometry), by_columns(*exact[:3], *geometry)
    yield y, want
    relu = conv_forward(x, w, b, *geometry, relu=True)
    np.testing.assert_array_equal(relu, np.maximum(y, 0))
    yield (
        conv_input_gradient(gy, w, x.shape, *geometry),
        columns.input_gradient(exact[3], exact[1], x.shape, *geometry),
    )
    yield (
        conv_weight_gradient(gy, x, w.shape, *geometry, out=gw),
        weights_by_columns(exact[3], exact[0], w.shape, *geometry),
    )
    images = (0, *range(2, gy.ndim))
    yield conv_bias_gradient(gy), exact[3].sum(images)
    g, gb = conv_rectified_gradient(gy, y)
    masked = np.where(y <= 0, 0, gy)
    np.testing.assert_array_equal(g, masked)
    yield gb, masked.sum(images, dtype="float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("x", "w", "geometry"), SWEEPS)
def test_sweeps_are_the_textbook_lowering(x, w, geometry, dtype):
    with cut(1 << 20, 0, 48):
        for got, want in pairs_of(x, w, geometry, dtype):
            assert_near(got, want, dtype)


@given(
    st.tuples(
        st.integers(1, 3), st.integers(1, 20), st.integers(3, 36), st.integers(3, 36)
    ),
    st.integers(1, 35),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_tiles_are_the_textbook_lowering(x, filters, padding):
    geometry = ((1, 1), padding, (1, 1), 1)
    with tiles(), cut(1 << 20, 1 << 12, 48):
        for got, want in pairs_of(x, (filters, x[1], 3, 3), geometry, "float32"):
            # a product of tiles adds and subtracts before it multiplies
            assert np.abs(got - want).max() <= 5e-6 * np.abs(want).max()


def test_tiles_are_left_out_where_they_cannot_serve():
    with tiles():
        for padding, dilation in (((3, 0), (1, 1)), ((1, 1), (2, 1))):
            geometry = ((1, 1), padding, dilation, 1)
            for got, want in pairs_of((2, 4, 9, 9), (4, 4, 3, 3), geometry, "float32"):
                assert_near(got, want, "float32")


@pytest.mark.parametrize("with_tiles", [True, False])
def test_any_threads_same_bits(with_tiles):
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    before, results = threads.get_num_threads(), []
    try:
        with cut(1 << 20, 0, 48), tiles() if with_tiles else nullcontext():
            for count in (1, 2, 3, 5):
                threads.set_num_threads(count)
                pairs = pairs_of((7, 16, 12, 12), (24, 16, 3, 3), geometry, "float32")
                results.append([got for got, _ in pairs])
                one = pairs_of((1, 16, 12, 12), (24, 16, 3, 3), geometry, "float32")
                results[-1] += [got for got, _ in one]
    finally:
        threads.set_num_threads(before)
    if convolution_sweep._function("convolve", np.dtype("float32")) is None:
        pytest.skip("no compiler: blocks are cut by the number of threads")
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_same_threads_same_bits(count):
    x = normal((7, 16, 9, 9)).astype("float32")
    w = normal((8, 16, 3, 3)).astype("float32")
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    before = threads.get_num_threads()
    threads.set_num_threads(count)
    try:
        with cut(1 << 15, 0, 48), compiled("blocks"):
            y = conv_forward(x, w, None, *geometry)
            gx = conv_input_gradient(y, w, x.shape, *geometry)
            gw = conv_weight_gradient(y, x, w.shape, *geometry)
            for _ in range(5):
                again = conv_forward(x, w, None, *geometry)
                assert np.array_equal(again, y)
                again = conv_input_gradient(y, w, x.shape, *geometry)
                assert np.array_equal(again, gx)
                again = conv_weight_gradient(y, x, w.shape, *geometry)
                assert np.array_equal(again, gw)
        want = by_columns(x, w, None, *geometry)
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    finally:
        threads.set_num_threads(before)


@pytest.mark.parametrize(
    ("x", "w", "geometry", "message"),
    [
        ((2, 3, 4, 4), (5, 3, 5, 5), ((1, 1), (0, 0), (1, 1), 1), "larger than"),
        ((2, 3, 4, 4), (5, 3, 3, 3), ((1, 1), (0, 0), (2, 2), 1), "larger than"),
        ((2, 3, 4, 4), (5, 2, 3, 3), ((1, 1), (0, 0), (1, 1), 1), "2 input channels"),
        ((2, 4, 4, 4), (5, 2, 3, 3), ((1, 1), (0, 0), (1, 1), 2), "groups=2"),
        ((2, 3, 4), (5, 3, 3, 3), ((1, 1), (0, 0), (1, 1), 1), "spatial dimensions"),
        ((2, 3, 4, 4), (5, 3, 3, 3), ((0, 1), (0, 0), (1, 1), 1), "stride"),
        ((2, 3, 4, 4), (5, 3, 3, 3), ((1, 1), (-1, 0), (1, 1), 1), "padding"),
        ((2, 3, 4, 4), (5, 3, 3, 3), ((1, 1), (0, 0), (1,), 1), "dilation"),
    ],
)
def test_shapes_that_do_not_fit(x, w, geometry, message):
    with pytest.raises(ValueError, match=message):
        output_shape(x, w, *geometry)
    with pytest.raises(ValueError, match=message):
        conv_forward(np.zeros(x), np.zeros(w), None, *geometry)


def test_gradients_and_buffers_that_do_not_fit():
    x, w, geometry = np.zeros((1, 1, 5)), np.zeros((1, 1, 3)), ((1,), (0,), (1,), 1)
    with pytest.raises(ValueError, match="gradient of shape"):
        conv_input_gradient(np.zeros((1, 1, 4)), w, x.shape, *geometry)
    with pytest.raises(ValueError, match="gradient of shape"):
        conv_weight_gradient(np.zeros((2, 1, 3)), x, w.shape, *geometry)
    with pytest.raises(ValueError, match="out has shape"):
        conv_weight_gradient(np.zeros((1, 1, 3)), x, w.shape, *geometry, out=w[0])
    with pytest.raises(ValueError, match="bias of shape"):
        conv_forward(x, w, np.zeros(2), *geometry)
    with pytest.raises(TypeError, match="float64 and float32"):
        conv_forward(x, w.astype("float32"), None, *geometry)
    with pytest.raises(ValueError, match="columns of shape"):
        col2im(np.zeros((1, 2, 3)), x.shape, (3,), (1,), (0,), (1,))


# Pooling.


def direct_windows(x, kernel, stride, padding, dilation, ceil_mode):
    """For each output place: the slices of x that its window covers."""
    out = []
    for n, k, s, p, d in zip(
        x.shape[2:], kernel, stride, padding, dilation, strict=True
    ):
        count = 0
        while True:
            start = count * s - p
            fits = start + d * (k - 1) < n + p
            # one more where the overhanging window starts in the input or before it
            before = start - s + d * (k - 1) < n + p - 1
            if not fits and not (ceil_mode and before and start < n):
                break
            count += 1
        out.append(count)
    for place in np.ndindex(*out):
        covered = [
            [o * s - p + t * d for t in range(k) if 0 <= o * s - p + t * d < n]
            for o, n, k, s, p, d in zip(
                place, x.shape[2:], kernel, stride, padding, dilation, strict=True
            )
        ]
        yield tuple(out), place, covered


def direct_max(x, *geometry):
    y = where = None
    for out, place, covered in direct_windows(x, *geometry):
        if y is None:
            y, where = np.zeros((*x.shape[:2], *out)), np.zeros((*x.shape[:2], *out))
        for n, c in np.ndindex(*x.shape[:2]):
            best, position = -np.inf, None
            for at in np.ndindex(*map(len, covered)):
                spot = tuple(line[i] for line, i in zip(covered, at, strict=True))
                value = x[(n, c, *spot)]
                if position is None or value > best or np.isnan(value):
                    best = value
                    position = np.ravel_multi_index(spot, x.shape[2:])
            y[(n, c, *place)], where[(n, c, *place)] = best, position
    return y, where


@contextmanager
def cut_pooling(block):
    serial = 0 if block < 1 << 18 else block
    with mock.patch.multiple(pooling, BLOCK_BYTES=block, SERIAL_BYTES=serial):
        yield


@with_xp
@given(
    poolings(),
    st.sampled_from(["distinct", "ties", "nan", "-inf"]),
    st.sampled_from([1, 2000, 1 << 18]),
    st.sampled_from(["float64", "float32", "float16"]),
    st.sampled_from(["blocks", "numpy"]),
)
def test_max_pool_is_the_direct_maximum(xp, case, kind, block, dtype, loops):
    x, geometry = case
    if kind != "distinct":
        x = x % 3
    if kind in ("nan", "-inf"):
        x[x == 2] = float(kind)
    y, where = direct_max(x, *geometry)
    with cut_pooling(block), compiled(loops):
        got, indices = max_pool_forward(xp.asarray(x.astype(dtype)), *geometry)
        assert got.dtype == dtype
        np.testing.assert_array_equal(host(got), y)
        np.testing.assert_array_equal(host(indices), where)
        np.testing.assert_array_equal(
            host(max_pool_gather(xp.asarray(x.astype(dtype)), indices)), y
        )
        gy = normal(y.shape)
        want = np.zeros((*x.shape[:2], int(np.prod(x.shape[2:]))))
        for n, c, *place in np.ndindex(*y.shape):
            here = (n, c, *place)
            want[n, c, int(where[here])] += gy[here]
        gx = max_pool_backward(xp.asarray(gy), indices, x.shape, *geometry[:4])
        assert_near(gx, want.reshape(x.shape))


@with_xp
@given(
    poolings(),
    st.booleans(),
    st.sampled_from([None, None, 3, -2]),
    st.sampled_from([1, 2000, 1 << 18]),
    st.sampled_from(["float64", "float32", "float16"]),
)
def test_avg_pool_is_the_direct_mean(xp, case, count_pad, override, block, dtype):
    x, (kernel, stride, padding, _, ceil_mode) = case
    ones = (1,) * len(kernel)
    x = (x / max(1, x.size)).astype(dtype)
    y = gx = None
    for out, place, covered in direct_windows(
        x, kernel, stride, padding, ones, ceil_mode
    ):
        if y is None:
            y, gx = np.zeros((*x.shape[:2], *out)), np.zeros(x.shape)
            gy = normal(y.shape).astype(dtype)
        number = override or int(np.prod([len(line) for line in covered]))
        if count_pad and not override:
            number = int(
                np.prod(
                    [
                        min(o * s - p + k, n + p) - (o * s - p)
                        for o, s, p, k, n in zip(
                            place, stride, padding, kernel, x.shape[2:], strict=True
                        )
                    ]
                )
            )
        window = (slice(None), slice(None), *np.ix_(*covered))
        spatial = tuple(range(2, x.ndim))
        y[(..., *place)] = x.astype(float)[window].sum(spatial) / number
        share = gy[(..., *place)].astype(float) / number
        gx[window] += share[(..., *(None for _ in spatial))]
    how = (count_pad, override)
    with cut_pooling(block):
        got = avg_pool_forward(xp.asarray(x), kernel, stride, padding, ceil_mode, *how)
        assert_near(got, y, dtype)
        got = avg_pool_backward(xp.asarray(gy), x.shape, kernel, stride, padding, *how)
        assert_near(got, gx, dtype)


def test_poolings_that_do_not_fit():
    x = np.zeros((1, 1, 4, 4))
    one = (1, 1)
    with pytest.raises(ValueError, match="at most half"):
        max_pool_forward(x, (2, 2), (2, 2), (2, 0), one)
    with pytest.raises(ValueError, match="larger than"):
        avg_pool_forward(x, (5, 5), one, (0, 0))
    with pytest.raises(ValueError, match="divisor_override"):
        avg_pool_forward(x, (2, 2), one, (0, 0), divisor_override=0)
    with pytest.raises(ValueError, match="indices"):
        max_pool_backward(x, x[:, :, :2], x.shape, one, one, (0, 0), one)
