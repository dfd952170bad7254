"""Matrix products and einsum, against NumPy in float64."""

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
import minidl.nn.functional as F
from minidl.array.matmul import matmul as raw_matmul
from minidl.nn.parameter import FlatStorage, Parameter

rng = np.random.default_rng(0)
SHAPES = [
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3, 4)),
    ((5, 2, 3), (3,)),
    ((2, 3), (5, 3, 4)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (1, 3, 4)),
    ((6, 1, 2, 3), (5, 3, 4)),
    ((0, 3), (3, 4)),
    ((2, 0), (0, 4)),
    ((5, 0, 3), (3, 2)),
    ((0, 2, 3), (0, 3, 4)),
]


def values(*shape):
    return rng.standard_normal(shape)


@pytest.mark.parametrize("a, b", SHAPES)
def test_matmul(xp, a, b):
    a, b = values(*a), values(*b)
    y = md.matmul(md.Tensor(xp.asarray(a)), md.Tensor(xp.asarray(b)))
    np.testing.assert_allclose(y.numpy(), a @ b, rtol=1e-12, atol=1e-12)
    assert y.shape == (a @ b).shape


@pytest.mark.parametrize("a, b", SHAPES)
def test_gradients_of_matmul(a, b):
    check_gradients(md.matmul, values(*a), values(*b))


def test_the_other_products():
    m, n, v, w = values(2, 3), values(3, 4), values(3), values(4)
    s, t = values(5, 2, 3), values(5, 3, 4)
    for ours, theirs, arrays in [
        (md.mm, np.matmul, (m, n)),
        (md.bmm, np.matmul, (s, t)),
        (md.mv, np.matmul, (m, v)),
        (md.dot, np.dot, (v, v + 1)),
        (md.outer, np.outer, (v, w)),
    ]:
        y = ours(*[md.tensor(x) for x in arrays])
        np.testing.assert_allclose(y.numpy(), theirs(*arrays), rtol=1e-12)
        check_gradients(ours, *arrays)


@pytest.mark.parametrize("beta, alpha", [(1, 1), (0.5, 2), (2, 1), (0, 3)])
def test_addmm_and_baddbmm(beta, alpha):
    def ours(function):
        return lambda *xs: function(*xs, beta=beta, alpha=alpha)

    c, m, n = values(4), values(2, 3), values(3, 4)
    y = ours(md.addmm)(*[md.tensor(x) for x in (c, m, n)])
    np.testing.assert_allclose(y.numpy(), beta * c + alpha * (m @ n), rtol=1e-12)
    s, t = values(5, 2, 3), values(5, 3, 4)
    y = ours(md.baddbmm)(*[md.tensor(x) for x in (c, s, t)])
    np.testing.assert_allclose(y.numpy(), beta * c + alpha * (s @ t), rtol=1e-12)
    if beta:
        check_gradients(ours(md.addmm), c, m, n)
        check_gradients(ours(md.baddbmm), c, s, t)


def test_beta_zero_hides_even_nan():
    c = md.full((2, 2), float("nan"))
    assert np.isfinite(md.addmm(c, md.ones(2, 3), md.ones(3, 2), beta=0).numpy()).all()


EINSUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("bij,bjk->bik", (5, 2, 3), (5, 3, 4)),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("ij->", (2, 3)),
    ("ji", (2, 3)),
    ("ii", (3, 3)),
    ("ii->i", (3, 3)),
    ("iji->j", (3, 4, 3)),
    ("iij,jk->k", (3, 3, 4), (4, 2)),
    ("i,i->i", (3,), (3,)),
    ("bi,bi->b", (2, 3), (2, 3)),
    ("i,j,k->kji", (2,), (3,), (4,)),
    ("ij,jk,kl,lm->im", (2, 3), (3, 4), (4, 5), (5, 2)),
    ("...ij,...jk->...ik", (5, 1, 2, 3), (4, 3, 2)),
    ("...i,i...->...", (2, 3), (3, 2)),
    ("...", (2, 3)),
    ("b...i,oi->b...o", (2, 3, 4), (5, 4)),
    ("ij,kl->", (2, 3), (4, 5)),
    ("aij,b->bj", (2, 3, 4), (5,)),
    ("Aa,aB", (2, 3), (3, 4)),
    ("ij,ij,ij->j", (2, 3), (2, 3), (2, 3)),
    ("ij,jk->ik", (0, 3), (3, 2)),
    ("ij,jk->ik", (2, 0), (0, 2)),
]


@pytest.mark.parametrize("equation, shapes", [(e, s) for e, *s in EINSUMS])
def test_einsum(xp, equation, shapes):
    arrays = [values(*shape) for shape in shapes]
    y = md.einsum(equation, *[md.Tensor(xp.asarray(a)) for a in arrays])
    expected = np.einsum(equation, *arrays)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10, atol=1e-12)
    assert y.shape == expected.shape


@pytest.mark.parametrize("equation, shapes", [(e, s) for e, *s in EINSUMS])
def test_gradients_of_einsum(equation, shapes):
    check_gradients(
        lambda *xs: md.einsum(equation, *xs), *[values(*shape) for shape in shapes]
    )


def test_einsum_broadcasts_size_one_and_takes_lists():
    a, b = values(2, 1), values(3, 4)
    y = md.einsum("ij,jk->ik", md.tensor(a), md.tensor(b))
    np.testing.assert_allclose(y.numpy(), a @ b.sum(0, keepdims=True), rtol=1e-12)
    c = values(2, 3)
    y = md.einsum(md.tensor(c), [0, 1], md.tensor(b), [1, 2], [2, 0])
    np.testing.assert_allclose(y.numpy(), (c @ b).T, rtol=1e-12)


@st.composite
def contractions(draw):
    """Terms over a few labels, with an output."""
    size = {label: draw(st.integers(1, 3)) for label in "abcd"}
    labels = st.lists(st.sampled_from("abcd"), max_size=3).map("".join)
    terms = draw(st.lists(labels, min_size=1, max_size=3))
    used = sorted(set("".join(terms)))
    output = draw(st.permutations(used))[: draw(st.integers(0, len(used)))]
    shapes = [tuple(size[label] for label in term) for term in terms]
    return ",".join(terms) + "->" + "".join(output), shapes


@given(contractions())
def test_any_einsum(case):
    equation, shapes = case
    arrays = [values(*shape) for shape in shapes]
    y = md.einsum(equation, *[md.tensor(a) for a in arrays])
    np.testing.assert_allclose(
        y.numpy(), np.einsum(equation, *arrays), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("dims", [0, 1, 2, ([0], [1]), ([1, 0], [0, 1]), ([-1], [0])])
def test_tensordot(dims):
    a, b = values(3, 3), values(3, 3)
    y = md.tensordot(md.tensor(a), md.tensor(b), dims)
    np.testing.assert_allclose(y.numpy(), np.tensordot(a, b, dims), rtol=1e-12)
    check_gradients(lambda x, y: md.tensordot(x, y, dims), a, b)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3), (0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias):
    x, w, b = values(*shape), values(5, 3), values(5)
    arguments = (x, w, b) if bias else (x, w)
    y = F.linear(*[md.tensor(a) for a in arguments])
    np.testing.assert_allclose(y.numpy(), x @ w.T + (b if bias else 0), rtol=1e-12)
    check_gradients(F.linear, *arguments)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_are_summed_in_float32(xp, dtype):
    pytest.importorskip("ml_dtypes")
    a, b = (values(*s).astype(dtype) for s in [(4, 3, 64), (4, 64, 5)])
    y = raw_matmul(xp.asarray(a), xp.asarray(b))
    y = md.Tensor(y).numpy()
    assert y.dtype == a.dtype
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(y.astype(np.float64), exact, rtol=1e-2, atol=1e-2)


def test_gradients_are_written_into_flat_storage():
    x = md.tensor(values(4, 3).astype("f4"))
    w = Parameter(md.tensor(values(3, 2).astype("f4")))
    storage = FlatStorage([w])
    (x @ w).sum().backward()
    assert np.shares_memory(w.grad.data, storage.grad)
    np.testing.assert_allclose(
        w.grad.numpy(), x.numpy().T @ np.ones((4, 2)), rtol=1e-5, atol=1e-6
    )
    (x @ w).sum().backward()
    np.testing.assert_allclose(
        w.grad.numpy(), 2 * x.numpy().T @ np.ones((4, 2)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: md.ones(2, 3) @ md.ones(2, 3),
        lambda: md.ones(2, 3) @ md.tensor(1.0),
        lambda: md.mm(md.ones(1, 2, 3), md.ones(3, 4)),
        lambda: md.bmm(md.ones(1, 2, 3), md.ones(2, 3, 4)),
        lambda: md.ones(2, 2, 3) @ md.ones(3, 3, 4),
        lambda: md.ones(2, 3) @ md.ones(3, 4, dtype="float64"),
        lambda: md.addmm(md.ones(5), md.ones(2, 3), md.ones(3, 4)),
        lambda: md.einsum("ij,jk", md.ones(2, 3)),
        lambda: md.einsum("ij->k", md.ones(2, 3)),
        lambda: md.einsum("ijk", md.ones(2, 3)),
        lambda: md.einsum("ij,jk", md.ones(2, 3), md.ones(2, 3)),
        lambda: md.einsum("i1", md.ones(2, 3)),
        lambda: md.tensordot(md.ones(2, 3), md.ones(2, 3), 1),
        lambda: F.linear(md.ones(2, 3), md.ones(4, 2)),
    ],
)
def test_operands_that_do_not_fit(wrong):
    with pytest.raises(RuntimeError):
        wrong()


def test_products_with_what_is_no_tensor():
    x = md.ones(2, 2)
    two = np.ones((2, 2), np.float32)
    for y in (x @ two, two @ x, md.matmul(two, x)):
        assert isinstance(y, md.Tensor) and np.array_equal(y.numpy(), 2 * two)
    with pytest.raises(RuntimeError, match="needs operands of at least 1 dimensions"):
        x @ 3
    with pytest.raises(TypeError, match="linear takes a Tensor, got list"):
        md.nn.Linear(2, 3)([1.0, 2.0])
    with pytest.raises(TypeError, match="takes a Module, got NoneType"):
        md.distributed.DataParallel(None)
