"""Embedding, dropout and attention."""

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
import minidl.nn.functional as F
from minidl import nn

pytestmark = pytest.mark.usefixtures("interpreted")
rng = np.random.default_rng(0)


def attention(q, k, v, mask=None, scale=None):
    scores = q @ np.swapaxes(k, -1, -2) * (scale or q.shape[-1] ** -0.5)
    scores = scores if mask is None else scores + mask
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.nan_to_num(e / e.sum(axis=-1, keepdims=True)) @ v


def random_inputs(heads=(), length=3, positions=5):
    shapes = [(*heads, length, 4), (*heads, positions, 4), (*heads, positions, 2)]
    return [rng.standard_normal(s) for s in shapes]


@given(st.data())
def test_attention(data):
    heads = data.draw(st.sampled_from([(), (2,), (2, 3)]))
    q, k, v = random_inputs(heads)
    seen = rng.random((3, 5)) < 0.6
    kind = data.draw(st.sampled_from(["none", "bool", "numbers", "causal"]))
    options, mask = {}, None
    if kind == "bool":
        options, mask = {"attn_mask": md.tensor(seen)}, np.where(seen, 0, -np.inf)
    elif kind == "numbers":
        mask = rng.standard_normal((3, 5))
        options = {"attn_mask": md.tensor(mask)}
    elif kind == "causal":
        options, mask = {"is_causal": True}, np.where(np.tri(3, 5), 0, -np.inf)
    scale = data.draw(st.sampled_from([None, 0.3]))
    y = F.scaled_dot_product_attention(
        *(md.tensor(a) for a in (q, k, v)), scale=scale, **options
    )
    np.testing.assert_allclose(y.numpy(), attention(q, k, v, mask, scale), atol=1e-12)


def test_gradients_of_attention():
    q, k, v = random_inputs((2,))
    function = F.scaled_dot_product_attention
    check_gradients(function, q, k, v)
    check_gradients(lambda *a: function(*a, is_causal=True), q, k, v)
    check_gradients(function, q, k, v, rng.standard_normal((3, 5)))


def test_a_position_that_sees_nothing_gives_zero_and_a_finite_gradient():
    q, k, v = (md.tensor(a, requires_grad=True) for a in random_inputs())
    mask = md.tensor(np.array([[True] * 5, [False] * 5, [True] * 5]))
    y = F.scaled_dot_product_attention(q, k, v, mask)
    assert not y.numpy()[1].any() and y.numpy()[0].any()
    y.sum().backward()
    assert all(np.isfinite(t.grad.numpy()).all() for t in (q, k, v))


def test_grouped_heads():
    q = rng.standard_normal((2, 6, 3, 4))
    k, v = rng.standard_normal((2, 2, 3, 5, 4))
    y = F.scaled_dot_product_attention(
        *(md.tensor(a) for a in (q, k[:, :2], v[:, :2])), enable_gqa=True
    )
    repeated = [np.repeat(a[:, :2], 3, axis=1) for a in (k, v)]
    np.testing.assert_allclose(y.numpy(), attention(q, *repeated))


def test_refusals_of_attention():
    q, k, v = (md.tensor(a) for a in random_inputs())
    with pytest.raises(RuntimeError, match="not both"):
        F.scaled_dot_product_attention(q, k, v, md.tensor(np.eye(3, 5)), is_causal=True)
    with pytest.raises(RuntimeError, match="last dimension"):
        F.scaled_dot_product_attention(q, v, v)
    with pytest.raises(ValueError, match="positive multiple"):
        nn.MultiheadAttention(5, 2)


def test_dropout(xp):
    x = md.tensor(xp.ones((200, 100), "f4"), requires_grad=True)
    md.manual_seed(3)
    y = F.dropout(x, 0.3)
    kept = y.numpy() != 0
    assert abs(kept.mean() - 0.7) < 0.01
    np.testing.assert_allclose(y.numpy()[kept], 1 / 0.7, rtol=1e-6)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
    md.manual_seed(3)
    np.testing.assert_array_equal(F.dropout(x, 0.3).numpy(), y.numpy())
    assert (F.dropout(x, 0.3).numpy() != y.numpy()).any()


def test_dropout_at_the_ends():
    x = md.tensor(rng.standard_normal((3, 4)))
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    assert not F.dropout(x, 1.0).numpy().any()
    for p in (-0.1, 1.5):
        with pytest.raises(ValueError, match="a probability"):
            F.dropout(x, p)
        with pytest.raises(ValueError, match="a probability"):
            nn.Dropout(p)


def test_integers_are_neither_dropped_nor_drawn_as_real_numbers(xp):
    x = md.Tensor(xp.arange(4))
    for wrong in (
        lambda: F.dropout(x),
        lambda: md.rand_like(x),
        lambda: md.randn_like(x),
        lambda: md.rand(3, dtype=bool),
    ):
        with pytest.raises(RuntimeError, match="floating point"):
            wrong()
    assert F.dropout(x, 0.0) is x


def test_dropout_can_be_differentiated_twice():
    def function(x):
        md.manual_seed(0)
        return F.dropout(x * x, 0.4)

    check_gradients(function, rng.standard_normal((4, 5)))


def test_embedding(xp):
    w, index = rng.standard_normal((6, 3)), np.array([[0, 5, 2], [2, 2, 1]])
    weight = md.tensor(xp.asarray(w), requires_grad=True)
    y = F.embedding(md.tensor(xp.asarray(index)), weight, padding_idx=1)
    np.testing.assert_array_equal(y.numpy(), w[index])
    g = rng.standard_normal((2, 3, 3))
    y.backward(md.tensor(xp.asarray(g)))
    expected = np.zeros((6, 3))
    np.add.at(expected, index, g)
    expected[1] = 0
    np.testing.assert_allclose(weight.grad.numpy(), expected)


@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": -4}, {"padding_idx": 0, "scale_grad_by_freq": True}]
)
def test_gradients_of_embedding(options):
    index = md.tensor([[0, 5, 2], [2, 2, 1]])
    w = rng.standard_normal((6, 3))
    scaled = bool(options)  # then the gradient is not the derivative, by intention
    function = lambda t: F.embedding(index, t, **options) ** 2  # noqa: E731
    if not scaled:
        check_gradients(function, w)
        return
    weight = md.tensor(w, requires_grad=True)
    y = function(weight)
    seed = md.tensor(rng.standard_normal(y.shape), requires_grad=True)
    (g,) = md.autograd.grad(y, weight, seed, create_graph=True)
    direction = rng.standard_normal(g.shape)
    (back,) = md.autograd.grad((g * md.tensor(direction)).sum(), seed)
    # <J^T s, d> is linear in s: its gradient times s is its value
    value = (g.numpy() * direction).sum()
    np.testing.assert_allclose((back.numpy() * seed.numpy()).sum(), value)


def test_the_gradient_of_embedding_goes_into_flat_storage():
    layer = nn.Embedding(6, 3)
    md.optim.SGD(layer.parameters(), lr=0.1)
    layer(md.tensor([1, 1, 4])).sum().backward()
    assert layer.weight.grad.data is layer.weight.gradient_view
    assert layer.weight.grad.numpy()[:, 0].tolist() == [0, 2, 0, 0, 1, 0]


def test_embedding_shortens_the_rows_that_are_named():
    layer = nn.Embedding(4, 3, max_norm=1.0)
    layer.weight.data[...] = 2
    layer(md.tensor([0, 2]))
    lengths = np.linalg.norm(layer.weight.numpy(), axis=1)
    np.testing.assert_allclose(lengths, [1, 12**0.5, 1, 12**0.5], rtol=1e-5)


def test_the_padding_row_starts_as_zero():
    layer = nn.Embedding(4, 3, padding_idx=-1)
    assert layer.padding_idx == 3
    assert not layer.weight.numpy()[3].any() and layer.weight.numpy()[:3].all()


def test_refusals_of_embedding():
    w = md.tensor(np.zeros((4, 3)))
    for index in (4, -1):
        with pytest.raises(IndexError, match=f"index {index} is out of range"):
            F.embedding(md.tensor([0, index]), w)
    with pytest.raises(RuntimeError, match="must be integers"):
        F.embedding(md.tensor([0.5]), w)
    with pytest.raises(ValueError, match="not offered"):
        F.embedding(md.tensor([0]), w, sparse=True)


def test_one_hot():
    index = np.array([[0, 2], [1, 1]])
    np.testing.assert_array_equal(F.one_hot(md.tensor(index)).numpy(), np.eye(3)[index])
    y = F.one_hot(md.tensor(index), 5)
    assert y.shape == (2, 2, 5) and y.dtype == np.int64
    assert F.one_hot(md.tensor(np.zeros((0,), int)), 3).shape == (0, 3)
    with pytest.raises(RuntimeError, match="do not fit 2 classes"):
        F.one_hot(md.tensor(index), 2)
