"""Reductions, extremes, sorting and norms against NumPy in float64."""

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import minidl as md

inf, nan = np.inf, np.nan


def logsumexp(x, axis, keepdims):
    return np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))


REDUCTIONS = {
    "sum": np.sum,
    "mean": np.mean,
    "var": lambda x, **options: np.var(x, ddof=1, **options),
    "std": lambda x, **options: np.std(x, ddof=1, **options),
    "amax": np.max,
    "amin": np.min,
    "logsumexp": logsumexp,
    "norm": lambda x, **options: np.sqrt(np.sum(x * x, **options)),
}


def drawn(*shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def close(result: md.Tensor, expected, tolerance: float = 1e-5) -> None:
    assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result.numpy(), expected, tolerance, tolerance)


@pytest.mark.parametrize("name", REDUCTIONS)
@given(st.data())
def test_reduction_agrees_with_numpy(name, data):
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=4, min_side=2))
    axes = st.integers(-len(shape), len(shape) - 1)
    unique = st.lists(axes, min_size=1, unique_by=lambda d: d % len(shape)).map(tuple)
    dim = data.draw(st.one_of(axes, unique))
    keepdim = data.draw(st.booleans())
    x = drawn(*shape)
    options = {"p": 2} if name == "norm" else {}
    result = getattr(md, name)(md.tensor(x), dim=dim, keepdim=keepdim, **options)
    close(result, REDUCTIONS[name](x, axis=dim, keepdims=keepdim))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_on_every_array_module(xp, name):
    x = drawn(3, 4).astype(np.float32)
    expected = REDUCTIONS[name](x.astype(np.float64), axis=(0, 1), keepdims=False)
    result = getattr(md.Tensor(xp.asarray(x)), name)(dim=(0, 1))
    assert result.dtype == np.float32
    close(result, expected)
    if name != "logsumexp":
        close(getattr(md.tensor(x), name)(), expected)


@pytest.mark.parametrize("name", [*REDUCTIONS, "prod", "cumsum"])
def test_gradients_of_reductions(name):
    function = getattr(md, name)
    for dim in (0, -1):
        check_gradients(lambda x, dim=dim: function(x, dim=dim), drawn(3, 5))
    if name not in ("prod", "cumsum"):
        check_gradients(lambda x: function(x, dim=(0, 2), keepdim=True), drawn(2, 3, 2))
    if name not in ("logsumexp", "cumsum"):
        check_gradients(function, drawn(7))


@np.errstate(all="ignore")
def test_numbers_and_nothing_are_reduced():
    number, nothing = md.tensor(2.0), md.tensor(np.zeros((0, 3), np.float32))
    for name in ("sum", "mean", "amax", "amin", "max", "min", "prod", "norm"):
        assert getattr(md, name)(number).item() == 2
    assert md.argmax(number).item() == md.sort(number).indices.item() == 0
    assert md.sum(nothing).item() == 0 and md.prod(nothing).item() == 1
    assert md.sum(nothing, 0).tolist() == [0, 0, 0]
    assert md.amax(nothing, 1).shape == (0,)
    assert md.logsumexp(nothing, 0).tolist() == [-inf] * 3
    assert np.isnan(md.mean(nothing).item())
    for function in (md.amax, md.max, md.min):
        with pytest.raises(RuntimeError, match="no elements"):
            function(nothing)
        with pytest.raises(IndexError, match="no elements"):
            function(nothing, 0)
    with pytest.raises(IndexError, match="no elements"):
        md.argmax(nothing)


def test_reduced_types():
    ints, bools = md.tensor([3, 4]), md.tensor([True, True])
    for function in (md.sum, md.prod, lambda x: md.cumsum(x, 0)):
        assert function(ints).dtype == function(bools).dtype == np.int64
    for dtype in (np.float32, np.int32, np.uint8):  # NumPy would widen the last two
        assert md.sum(ints, dtype=dtype).dtype == dtype
        assert md.prod(ints, dtype=dtype).dtype == dtype
        assert md.cumsum(ints, 0, dtype=dtype).dtype == dtype
    assert md.amax(ints).dtype == np.int64 and md.argmax(ints).dtype == np.int64
    half = md.tensor(np.full(5000, 30.0, np.float16))
    assert md.mean(half).dtype == np.float16 and md.mean(half).item() == 30
    for function in (md.mean, md.var, md.std, md.norm):
        with pytest.raises(RuntimeError, match="floating point"):
            function(ints)


def test_wrong_dimensions():
    x = md.tensor(drawn(2, 3))
    with pytest.raises(IndexError, match="out of range"):
        x.sum(2)
    with pytest.raises(RuntimeError, match="more than once"):
        x.sum((0, -2))


@pytest.mark.parametrize("correction", [0, 1, 2, 1.5])
def test_variance(correction):
    x = drawn(4, 5)
    expected = ((x - x.mean(1, keepdims=True)) ** 2).sum(1) / (5 - correction)
    close(md.var(md.tensor(x), 1, correction=correction), expected)
    close(md.std(md.tensor(x), 1, correction=correction), expected**0.5)
    check_gradients(lambda x: md.var(x, 1, correction=correction), x)
    close(md.var(md.tensor(x), False), x.var())
    close(md.std(md.tensor(x), 0, False, True), x.std(0, keepdims=True))


@np.errstate(all="ignore")
def test_deviation_of_equals_has_the_gradient_zero():
    x = md.tensor([[2.0, 2.0], [1.0, 3.0]], requires_grad=True)
    x.std(1).sum().backward()
    close(x.grad, [[0, 0], [-(2**-0.5), 2**-0.5]])
    assert np.isnan(md.tensor([1.0]).var().item())


@np.errstate(all="ignore")
def test_sums_of_exponentials_do_not_overflow():
    close(md.logsumexp(md.tensor([1000.0, 1000.0]), 0), 1000 + np.log(2))
    close(md.logsumexp(md.tensor([-inf, -inf]), 0), -inf)
    close(md.logsumexp(md.tensor([inf, 0.0]), 0), inf)
    x = md.tensor([-inf, 1.0], requires_grad=True)
    x.logsumexp(0).backward()
    close(x.grad, [0, 1])


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_gradient_of_a_product_with_zeros(zeros):
    x = drawn(5)
    x[:zeros] = 0
    y = md.tensor(x, requires_grad=True)
    y.prod().backward()
    close(y.grad, [np.prod(np.delete(x, i)) for i in range(5)])
    check_gradients(md.prod, x)


def test_equals_share_the_gradient_of_amax_and_one_gets_that_of_max():
    x = md.tensor([[3.0, 1.0, 3.0], [1.0, 3.0, 2.0]], requires_grad=True)
    (together,) = md.autograd.grad(md.amax(x), [x])
    close(together, np.array([[1, 0, 1], [0, 1, 0]]) / 3)
    (rows,) = md.autograd.grad(x.amax(1).sum(), [x])
    close(rows, [[0.5, 0, 0.5], [0, 1, 0]])
    values, indices = x.max(1)
    assert values.tolist() == [3, 3] and indices.tolist() == [0, 1]
    (first,) = md.autograd.grad(values.sum(), [x])
    close(first, [[1, 0, 0], [0, 1, 0]])
    smallest = x.min(dim=1, keepdim=True)
    assert smallest.values.shape == smallest.indices.shape == (2, 1)


def test_max_of_two_is_maximum():
    a, b = md.tensor([1.0, 4.0]), md.tensor([3.0, 2.0])
    assert md.max(a, b).tolist() == [3, 4] and md.min(a, b).tolist() == [1, 2]
    assert md.max(a, other=b).tolist() == [3, 4]
    assert a.min(other=b).tolist() == [1, 2]


def test_not_a_number_is_the_largest():
    x = md.tensor([1.0, nan, 2.0])
    assert np.isnan(md.max(x).item()) and md.argmax(x).item() == 1
    assert md.max(x, 0).indices.item() == md.min(x, 0).indices.item() == 1
    assert md.argsort(x).tolist() == [0, 2, 1]
    assert md.argsort(x, descending=True).tolist() == [1, 2, 0]


@given(
    arrays.arrays(
        np.float64,
        arrays.array_shapes(min_dims=1, max_dims=3, max_side=5),
        elements=st.integers(0, 3),
    ),
    st.booleans(),
)
def test_sorting_is_stable(x, descending):
    for dim in range(-x.ndim, x.ndim):
        values, indices = md.sort(md.tensor(x), dim, descending)
        expected = np.argsort(-x if descending else x, axis=dim, kind="stable")
        assert indices.tolist() == expected.tolist()
        close(values, np.take_along_axis(x, expected, dim))
        k = min(2, x.shape[dim])
        top = md.topk(md.tensor(x), k, dim, largest=descending)
        assert top.indices.tolist() == np.take(expected, range(k), dim).tolist()


def test_gradients_of_what_is_picked_out():
    x = drawn(3, 4)
    for dim in (0, -1):
        check_gradients(lambda x, dim=dim: md.sort(x, dim).values, x)
        check_gradients(lambda x, dim=dim: md.topk(x, 2, dim).values, x)
        check_gradients(lambda x, dim=dim: md.max(x, dim).values, x)
        check_gradients(lambda x, dim=dim: md.min(x * x, dim, True).values, x)
    with pytest.raises(RuntimeError, match="k is 5"):
        md.topk(md.tensor(x), 5)


def test_any_and_all():
    x = np.array([[0, 1, 2], [0, 0, 0], [1, 1, 1]])
    for name in ("any", "all"):
        function, expected = getattr(md, name), getattr(np, name)
        assert function(md.tensor(x)).item() == expected(x)
        for dim in (0, -1, (0, 1)):
            result = function(md.tensor(x), dim, keepdim=True)
            assert result.dtype == bool
            close(result, expected(x, axis=dim, keepdims=True))
        assert function(md.tensor(x.astype(np.uint8)), 0).dtype == np.uint8
        assert function(md.tensor(x), ()).shape == x.shape


@pytest.mark.parametrize("p", [-inf, -1, 0, 0.5, 1, 1.5, 2, 3, inf])
def test_norms_of_vectors(p):
    x = drawn(4, 5)
    expected = np.linalg.norm(x, p, axis=1) if p else (x != 0).sum(1)
    close(md.norm(md.tensor(x), p, 1), expected)
    if p > 0:
        check_gradients(lambda x: md.norm(x, p, 1), x)
        zero = md.tensor([0.0, 0.0], requires_grad=True)
        md.norm(zero, p).backward()
        assert zero.grad.tolist() == [0, 0]


def test_norms_of_matrices():
    for x in (drawn(2, 3, 4), drawn(2, 4, 3), drawn(2, 3, 3)):
        close(md.norm(md.tensor(x), "fro", (1, 2)), np.linalg.norm(x, "fro", (1, 2)))
        expected = np.linalg.norm(x, "nuc", (1, 2), keepdims=True)
        close(md.norm(md.tensor(x), "nuc", (1, 2), keepdim=True), expected)
        check_gradients(lambda x: md.norm(x, "nuc", (-2, -1)), x)
    close(md.norm(md.tensor(x), "nuc", (0, 2)), np.linalg.norm(x, "nuc", (0, 2)))
    with pytest.raises(RuntimeError, match="'fro' or 'nuc'"):
        md.norm(md.tensor(x), "nuke")
    with pytest.raises(RuntimeError, match="2 dimensions"):
        md.norm(md.tensor(x), "nuc")


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_gradients_of_singular_vectors(shape):
    """Through products that do not depend on the vectors' signs."""
    from minidl.ops.magnitude import SVD

    def products(a):
        u, s, vt = SVD.apply(a)
        return u * u * s.unsqueeze(0), vt * vt, u @ vt

    check_gradients(products, drawn(*shape))
