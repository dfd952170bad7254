"""Indexing, gathering and scattering, against NumPy and plain loops."""

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.array.scatter import add_rows

rng = np.random.default_rng(0)
X = rng.standard_normal((3, 4, 5))
INDICES = [
    1,
    slice(1, None),
    slice(None, None, -2),
    (slice(None), -1),
    (..., 2),
    None,
    (0, None, slice(1, 3)),
    (0, 1, 2),
    ...,
    (),
    [0, 2, 2],
    [],
    (slice(None), [1, 1, -1]),
    (slice(0, 2), np.array([0, -1]), slice(1, 4)),
    (np.array([0, 2]), np.array([[1], [3]])),
    ([0, 1], slice(None), [1, 2]),
    ([0, 1], None, [1, 2]),
    ([[0, 1], [2, 0]],),
    (..., [0, 0, 3]),
    X > 0,
    X[..., 0] > 9,
    (slice(None), X[0] > 0),
    (..., np.array([True, False, True, True, False])),
    ([True, False, True], slice(None), [0, 4]),
    ([0, 2], np.array([True, False, True, False])),
    True,
    False,
    np.int64(2),
    (np.array(1), slice(None), slice(2)),
]


@pytest.mark.parametrize("index", INDICES, ids=range(len(INDICES)))
def test_getitem(xp, index):
    y = md.Tensor(xp.asarray(X))[index]
    np.testing.assert_array_equal(y.numpy(), X[index])
    assert y.shape == X[index].shape


@pytest.mark.parametrize("index", INDICES, ids=range(len(INDICES)))
def test_gradients_of_getitem(index):
    check_gradients(lambda x: x[index], X)


@pytest.mark.parametrize("index", INDICES, ids=range(len(INDICES)))
def test_setitem(xp, index):
    x, expected = md.Tensor(xp.array(X)), X.copy()
    x[index] = 7.0
    expected[index] = 7.0
    np.testing.assert_array_equal(x.numpy(), expected)


def test_what_can_be_assigned(xp):
    x, row = md.Tensor(xp.array(X)), [1, 2, 3, 4, 5]
    mask = md.Tensor(xp.asarray(X > 0))
    for place in (1, (slice(2), 3), [0, 2], (..., [1, 2, 1, 0, 3], slice(None))):
        for value in (row, np.array(row), md.tensor(row), md.Tensor(xp.asarray(row))):
            expected = X.copy()
            expected[place] = row
            x[place] = value
            np.testing.assert_array_equal(x[place].numpy(), expected[place])
    for value in (np.float32(2.5), np.array(2.5), md.tensor(2.5), True, 3):
        x[mask] = value
        assert (x[mask] == float(value)).all()
    with pytest.raises(RuntimeError, match=r"\(2,\) and \(4, 5\) do not broadcast"):
        x[0] = [1, 2]
    with pytest.raises(RuntimeError, match="do not broadcast"):
        x[mask] = md.Tensor(xp.ones(2))
    with pytest.raises(RuntimeError, match="share memory"):
        md.Tensor(xp.ones((1, 3))).expand(2, 3)[0] = 1.0
    for wrong in (None, "a", [1, None]):
        with pytest.raises(TypeError, match="expected a Tensor or numbers"):
            x[0] = wrong


def test_a_tensor_may_be_assigned_to_itself(xp):
    rows = np.arange(600.0).reshape(200, 3)
    for place, source in (
        (np.arange(1, 200), slice(-1)),
        (np.arange(199), slice(1, None)),
        (slice(1, None), slice(-1)),
        (slice(None, None, -1), slice(None)),
    ):
        x, expected = md.Tensor(xp.array(rows)), rows.copy()
        x[place] = x[source]
        expected[place] = rows[source]
        np.testing.assert_array_equal(x.numpy(), expected)


def test_an_integer_is_taken_before_arrays():
    """As in PyTorch; NumPy would move the dimension of the list to the front."""
    np.testing.assert_array_equal(md.tensor(X)[0, :, [1, 2]].numpy(), X[0][:, [1, 2]])
    index = md.tensor(0), slice(None), md.tensor([1, 2])
    np.testing.assert_array_equal(md.tensor(X)[index].numpy(), X[0][:, [1, 2]])
    check_gradients(lambda x: x[0, :, [1, 1]], X)


def test_tensors_as_indices():
    x, i, mask = md.tensor(X), md.tensor([2, 0]), md.tensor(X > 0)
    np.testing.assert_array_equal(x[i].numpy(), X[[2, 0]])
    np.testing.assert_array_equal(x[:, i, i].numpy(), X[:, [2, 0], [2, 0]])
    np.testing.assert_array_equal(x[mask].numpy(), X[X > 0])
    np.testing.assert_array_equal(x[md.tensor(1) :].numpy(), X[1:])
    x[mask] = md.tensor(0.0)
    assert not (x.numpy() > 0).any()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64"])
def test_equal_places_add_up(xp, dtype):
    pytest.importorskip("ml_dtypes")
    rows = rng.integers(0, 7, 1000)
    values = rng.integers(-2, 3, (1000, 3)).astype(dtype)
    target = xp.zeros((7, 3), values.dtype)
    add_rows(target, xp.asarray(rows), xp.asarray(values))
    expected = np.zeros((7, 3))
    for row, value in zip(rows, values, strict=True):
        expected[row] += value.astype(float)
    np.testing.assert_array_equal(md.Tensor(target).numpy().astype(float), expected)


def test_nothing_is_added_beside_the_target(xp):
    target, rows = xp.zeros((4, 3), "f4"), xp.asarray([0, 5, -2, 7 * 10**8, -(10**9)])
    if xp is np:
        with pytest.raises(IndexError):
            add_rows(target, rows, xp.ones((5, 3), "f4"))
    else:
        add_rows(target, rows, xp.ones((5, 3), "f4"))
        assert target.sum(axis=1).tolist() == [9, 3, 3, 0]


def test_sums_repeat_bit_for_bit(xp):
    rows = xp.asarray(rng.integers(0, 3, 2000))
    values = xp.asarray(rng.standard_normal((2000, 5)).astype("f4"))
    sums = []
    for _ in range(3):
        target = xp.zeros((3, 5), "f4")
        add_rows(target, rows, values)
        sums.append(md.Tensor(target).numpy().tobytes())
    assert sums[0] == sums[1] == sums[2]


def loop_gather(x, dim, index):
    y = np.empty(index.shape)
    for place in np.ndindex(*index.shape):
        source = list(place)
        source[dim] = index[place]
        y[place] = x[tuple(source)]
    return y


@st.composite
def gathers(draw):
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    sizes = [draw(st.integers(0, n)) for n in shape]
    sizes[dim] = draw(st.integers(0, 5))
    seed = np.random.default_rng(draw(st.integers(0, 99)))
    index = seed.integers(0, shape[dim], sizes)
    return seed.standard_normal(shape), dim, index


@given(gathers())
def test_gather_and_scatter_add(case):
    x, dim, index = case
    y = md.gather(md.tensor(x), dim, md.tensor(index))
    np.testing.assert_array_equal(y.numpy(), loop_gather(x, dim, index))
    src = np.random.default_rng(0).standard_normal(index.shape)
    expected = x.copy()
    for place in np.ndindex(*index.shape):
        target = list(place)
        target[dim] = index[place]
        expected[tuple(target)] += src[place]
    y = md.scatter_add(md.tensor(x), dim, md.tensor(index), md.tensor(src))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_gather_and_scatter_on(xp):
    x, index = X[0], rng.permuted(np.tile(np.arange(5), (4, 1)), axis=1)[:, :3]
    on = md.Tensor(xp.asarray(x)), md.Tensor(xp.asarray(index))
    np.testing.assert_array_equal(
        on[0].gather(1, on[1]).numpy(), np.take_along_axis(x, index, 1)
    )
    src, expected = rng.standard_normal((4, 3)), x.copy()
    np.put_along_axis(expected, index, src, 1)
    y = on[0].scatter(1, on[1], md.Tensor(xp.asarray(src)))
    np.testing.assert_array_equal(y.numpy(), expected)
    np.put_along_axis(expected, index, 2.5, 1)
    y = on[0].scatter(1, on[1], 2.5)
    np.testing.assert_array_equal(y.numpy(), expected)
    np.testing.assert_array_equal(on[0].scatter(1, on[1], value=2.5).numpy(), y.numpy())


def test_gradients_along_a_dimension():
    x, repeated = X[0], np.array([[0, 0, 3, 1], [2, 2, 2, 2]])
    distinct, src = np.array([[0, 1, 3, 2]]), rng.standard_normal((2, 4))
    check_gradients(lambda x, i: x.gather(1, i), x, repeated)
    check_gradients(lambda x, i: x.gather(0, i), x, distinct)
    check_gradients(lambda x, i: x.index_select(1, i), x, np.array([3, 0, 3]))
    check_gradients(lambda x, i: md.take_along_dim(x, i), x, repeated)
    check_gradients(lambda x, i: md.take_along_dim(x, i, 0), x, np.array([[1], [-1]]))
    check_gradients(lambda x, i, s: x.scatter(0, i, s), x, distinct, src)
    check_gradients(lambda x, i: x.scatter(0, i, 2.0), x, distinct)
    check_gradients(lambda x, i, s: x.scatter_add(1, i, s), x, repeated, src)
    check_gradients(lambda x, m: x.masked_fill(m, 3.0), x, x > 0)
    check_gradients(lambda x, m, v: x.masked_fill(m, v), x, x > 0, np.array(2.0))


def test_take_along_dim_broadcasts_and_counts_from_the_end():
    x, i = X[0], np.array([[1], [-1]])
    y = md.take_along_dim(md.tensor(x), md.tensor(i), 0)
    np.testing.assert_array_equal(y.numpy(), x[[1, -1]])
    y = md.take_along_dim(md.tensor(x), md.tensor([3, -1]))
    np.testing.assert_array_equal(y.numpy(), x.ravel()[[3, -1]])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32"])
def test_narrow_indices_reach_far(dtype):
    index = md.tensor(np.array([99, 3, 99], dtype))
    x = md.tensor(rng.standard_normal((300, 200)), requires_grad=True)
    rows, along = index.numpy().astype(int), md.stack([index] * 3)
    for y, expected in (
        (x[index], x.numpy()[rows]),
        (x.index_select(1, index), x.numpy()[:, rows]),
        (x.gather(1, along), x.numpy()[:3, rows]),
        (md.take_along_dim(x[:3], along, 1), x.numpy()[:3, rows]),
    ):
        np.testing.assert_array_equal(y.numpy(), expected)
        y.sum().backward()
    assert x.grad.numpy()[99].max() == 2 + 2  # from x[index], and from the columns


def test_masked_fill_keeps_the_type():
    y = md.arange(4).masked_fill(md.tensor([True, False, True, False]), 9)
    assert y.dtype == np.int64 and y.tolist() == [9, 1, 9, 3]
    y = md.ones(3).masked_fill(md.tensor([[True], [False]]), -float("inf"))
    assert y.dtype == np.float32 and y.shape == (2, 3)


def test_assignment_is_refused_where_a_gradient_would_be_lost():
    x = md.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="not recorded"):
        x[0] = 1.0
    y = md.ones(3)
    with pytest.raises(RuntimeError, match="not recorded"):
        y[0] = x[1]


@pytest.mark.parametrize(
    "error, wrong",
    [
        (IndexError, lambda x: x[3]),
        (IndexError, lambda x: x[[7]]),
        (IndexError, lambda x: x[0, 0, 0, 0]),
        (IndexError, lambda x: x[1.5]),
        (IndexError, lambda x: x["a"]),
        (IndexError, lambda x: x[X[0] > 0]),
        (IndexError, lambda x: x[md.tensor([1.0])]),
        (IndexError, lambda x: x.index_select(0, md.tensor([9]))),
        (IndexError, lambda x: x.index_select(0, md.tensor([[0]]))),
        (RuntimeError, lambda x: x.gather(0, md.full((1, 1, 1), 9))),
        (RuntimeError, lambda x: x.gather(0, md.full((1, 1), 0))),
        (RuntimeError, lambda x: x.gather(0, md.full((1, 9, 1), 0))),
        (RuntimeError, lambda x: x.gather(0, md.ones(1, 1, 1))),
        (RuntimeError, lambda x: x.scatter(0, md.full((1, 1, 1), 0), md.ones(1, 1, 1))),
        (RuntimeError, lambda x: x.scatter(0, md.full((1, 1, 1), 0), 1, reduce="max")),
        (RuntimeError, lambda x: x.masked_fill(x, 1.0)),
        (RuntimeError, lambda x: x.masked_fill(x > 0, md.ones(4))),
    ],
)
def test_what_is_refused(error, wrong):
    with pytest.raises(error):
        wrong(md.tensor(X))
