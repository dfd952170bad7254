"""Shapes, pieces and diagonals, against NumPy."""

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

import minidl as md

X = np.random.default_rng(0).standard_normal((2, 3, 4))

# name: (the function of a Tensor, the same in NumPy)
SAME = {
    "reshape": (lambda x: x.reshape(4, -1), lambda x: x.reshape(4, -1)),
    "reshape by keyword": (
        lambda x: md.reshape(x, shape=(6, 4)),
        lambda x: x.reshape(6, 4),
    ),
    "view": (
        lambda x: x.permute(2, 0, 1).view(24),
        lambda x: x.transpose(2, 0, 1).ravel(),
    ),
    "permute": (lambda x: x.permute(2, 0, -2), lambda x: x.transpose(2, 0, 1)),
    "transpose": (lambda x: x.transpose(-1, 0), lambda x: x.swapaxes(2, 0)),
    "T": (lambda x: x.T, lambda x: x.T),
    "mT": (lambda x: x.mT, lambda x: x.swapaxes(1, 2)),
    "t": (lambda x: x[0].t(), lambda x: x[0].T),
    "movedim": (lambda x: x.movedim(0, -1), lambda x: np.moveaxis(x, 0, -1)),
    "movedims": (
        lambda x: md.movedim(x, (0, 2), (1, 0)),
        lambda x: np.moveaxis(x, (0, 2), (1, 0)),
    ),
    "flatten": (lambda x: x.flatten(1), lambda x: x.reshape(2, 12)),
    "squeeze": (lambda x: x[:, :1].squeeze(1), lambda x: x[:, 0]),
    "squeeze all": (lambda x: x[:1, :1].squeeze(), lambda x: x[0, 0]),
    "squeeze none": (lambda x: x.squeeze((0, 1)), lambda x: x),
    "unsqueeze": (lambda x: x.unsqueeze(-1), lambda x: x[..., None]),
    "expand": (
        lambda x: x[:, :1].expand(5, -1, 3, 4),
        lambda x: np.broadcast_to(x[:, :1], (5, 2, 3, 4)),
    ),
    "broadcast_to": (
        lambda x: md.broadcast_to(x, (2, 2, 3, 4)),
        lambda x: np.broadcast_to(x, (2, 2, 3, 4)),
    ),
    "repeat": (lambda x: x.repeat(2, 1, 3, 2), lambda x: np.tile(x, (2, 1, 3, 2))),
    "repeat none": (lambda x: x.repeat(1, 0, 1), lambda x: np.tile(x, (1, 0, 1))),
    "tile": (lambda x: x.tile(2, 3), lambda x: np.tile(x, (2, 3))),
    "flip": (lambda x: x.flip(0, -1), lambda x: np.flip(x, (0, 2))),
    "roll": (lambda x: x.roll(2), lambda x: np.roll(x, 2)),
    "roll dims": (
        lambda x: x.roll((1, -2), (0, 2)),
        lambda x: np.roll(x, (1, -2), (0, 2)),
    ),
    "clone": (lambda x: x.clone(), lambda x: x.copy()),
    "contiguous": (lambda x: x.mT.contiguous(), lambda x: x.swapaxes(1, 2)),
    "narrow": (lambda x: x.narrow(-1, -3, 2), lambda x: x[..., 1:3]),
    "diagonal": (lambda x: x.diagonal(), lambda x: np.diagonal(x)),
    "diagonal below": (
        lambda x: x.diagonal(-1, 2, 1),
        lambda x: np.diagonal(x, -1, 2, 1),
    ),
    "diagonal outside": (lambda x: x.diagonal(9), lambda x: np.zeros((4, 0))),
    "tril": (lambda x: x.tril(-1), lambda x: np.tril(x, -1)),
    "triu": (lambda x: md.triu(x, diagonal=1), lambda x: np.triu(x, 1)),
    "cat": (
        lambda x: md.cat([x, x[:, :2]], 1),
        lambda x: np.concatenate([x, x[:, :2]], 1),
    ),
    "cat with empty": (
        lambda x: md.cat([md.zeros(0, dtype="f8", device=x.device), x]),
        lambda x: x,
    ),
    "stack": (lambda x: md.stack([x, x * 2], -1), lambda x: np.stack([x, x * 2], -1)),
    "unbind": (lambda x: x.unbind(1), lambda x: tuple(x.swapaxes(0, 1))),
    "split": (lambda x: x.split(3, -1), lambda x: (x[..., :3], x[..., 3:])),
    "split sizes": (
        lambda x: x.split([1, 0, 2], 1),
        lambda x: (x[:, :1], x[:, 1:1], x[:, 1:]),
    ),
    "chunk": (lambda x: x.chunk(3, 2), lambda x: (x[..., :2], x[..., 2:])),
    "iteration": (lambda x: tuple(x), lambda x: tuple(x)),
}


@pytest.mark.parametrize("name", SAME)
def test_as_numpy(xp, name):
    ours, theirs = SAME[name]
    got, expected = ours(md.Tensor(xp.asarray(X))), theirs(X)
    if not isinstance(got, tuple):
        got, expected = (got,), (expected,)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a.numpy(), b)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "uint8", "bool"])
def test_triangles_keep_their_type(xp, dtype):
    pytest.importorskip("ml_dtypes")
    x = md.Tensor(xp.ones((2, 3), dtype))
    assert x.tril().dtype == x.triu(1).dtype == x.dtype
    assert x.tril().double().tolist() == [[1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("name", SAME)
def test_gradients(name):
    check_gradients(SAME[name][0], X)


@pytest.mark.parametrize("dtype", ["float16", "int32", "bool"])
@pytest.mark.parametrize(
    "name", [n for n in SAME if n not in ("stack", "cat with empty")]
)
def test_types_stay(name, dtype):
    y = SAME[name][0](md.tensor((X > 0).astype(dtype)))
    for part in y if isinstance(y, tuple) else (y,):
        assert part.dtype == dtype


@given(array_shapes(max_dims=4, max_side=3), st.data())
def test_round_trips(shape, data):
    x = md.tensor(np.arange(np.prod(shape)).reshape(shape))
    order = data.draw(st.permutations(range(len(shape))))
    back = [order.index(d) for d in range(len(shape))]
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = data.draw(st.integers(1, 4))
    shift = data.draw(st.integers(-5, 5))
    for y in (
        x.permute(order).permute(back),
        x.movedim(dim, 0).movedim(0, dim),
        md.cat(x.split(size, dim), dim),
        md.cat(x.chunk(size, dim), dim),
        md.stack(x.unbind(dim), dim),
        x.flip(dim).flip(dim),
        x.roll(shift, dim).roll(-shift, dim),
        x.unsqueeze(dim).squeeze(dim - 1 if dim < 0 else dim).reshape(shape),
        x.repeat([2] * len(shape))[tuple(slice(n) for n in shape)],
        x.flatten().view(*shape),
    ):
        assert y.shape == shape
        np.testing.assert_array_equal(y.numpy(), x.numpy())


def test_zero_dimensions():
    x = md.tensor(2.0)
    assert x.flatten().shape == x.reshape(-1).shape == x.unsqueeze(0).shape == (1,)
    for y in (
        x.squeeze(),
        x.squeeze(0),
        x.permute(),
        x.T,
        x.transpose(0, -1),
        x.roll(1),
    ):
        assert y.shape == ()
    assert md.stack([x, x]).tolist() == [2.0, 2.0]


def test_views_share_memory_and_copies_do_not():
    x = md.tensor(X)
    for y in (
        *(x.T, x.mT, x[0], x[:, None], x.flatten(), x.unsqueeze(0), x.movedim(0, 1)),
        *(x.split(2)[0], x.unbind(1)[1], x.narrow(0, 1, 1), x.expand(5, 2, 3, 4)),
        *(x.diagonal(), x.contiguous(), x.detach()),
    ):
        assert np.shares_memory(y.data, x.data)
    for y in (x.clone(), x.repeat(1, 1, 1), x.flip(0), x.T.contiguous(), md.cat([x])):
        assert not np.shares_memory(y.data, x.data)


def test_cat_promotes():
    y = md.cat([md.ones(2).long(), md.ones(1)])
    assert y.dtype == np.float32 and y.tolist() == [1, 1, 1]


def test_a_piece_that_is_not_used_gets_zeros():
    x = md.tensor(X, requires_grad=True)
    x.unbind(0)[1].sum().backward()
    np.testing.assert_array_equal(x.grad.numpy()[0], np.zeros((3, 4)))
    np.testing.assert_array_equal(x.grad.numpy()[1], np.ones((3, 4)))


@pytest.mark.parametrize(
    "error, wrong",
    [
        (RuntimeError, lambda x: x.reshape(7)),
        (RuntimeError, lambda x: x.reshape(-1, -1)),
        (RuntimeError, lambda x: x.permute(0, 1)),
        (RuntimeError, lambda x: x.permute(0, 1, 1)),
        (IndexError, lambda x: x.transpose(0, 3)),
        (RuntimeError, lambda x: x.t()),
        (RuntimeError, lambda x: x[0, 0].mT),
        (RuntimeError, lambda x: x.movedim((0, 1), (0,))),
        (RuntimeError, lambda x: x.flatten(2, 1)),
        (IndexError, lambda x: x.squeeze(4)),
        (IndexError, lambda x: x.unsqueeze(4)),
        (RuntimeError, lambda x: x.expand(2, 3)),
        (RuntimeError, lambda x: x.expand(2, 3, 5)),
        (RuntimeError, lambda x: x.expand(-1, 2, 3, 4)),
        (RuntimeError, lambda x: x.repeat(2)),
        (RuntimeError, lambda x: x.flip(0, 0)),
        (RuntimeError, lambda x: x.roll((1, 2), (0,))),
        (ValueError, lambda x: md.cat([])),
        (RuntimeError, lambda x: md.cat([x, x[0]])),
        (RuntimeError, lambda x: md.cat([x[0, 0, 0], x[0, 0, 0]])),
        (RuntimeError, lambda x: md.stack([x, x[0]])),
        (RuntimeError, lambda x: x.split([1, 2])),
        (RuntimeError, lambda x: x.split(0)),
        (RuntimeError, lambda x: x.chunk(0)),
        (IndexError, lambda x: x[0, 0, 0].unbind()),
        (RuntimeError, lambda x: x.narrow(0, 1, 2)),
        (IndexError, lambda x: x.narrow(0, 3, 1)),
        (RuntimeError, lambda x: x.diagonal(0, 1, 1)),
        (RuntimeError, lambda x: x[0, 0].tril()),
    ],
)
def test_what_is_refused(error, wrong):
    with pytest.raises(error):
        wrong(md.tensor(X))
