"""Collectives with gradients: the sum over all ranks, differentiated by differences."""

import numpy as np
import pytest

import minidl as md
from minidl.autograd import grad
from minidl.distributed import Alone, Simulated
from minidl.distributed import functional as D

OPERATIONS = {
    "all_reduce": lambda x: D.all_reduce(x),
    "all_reduce avg": lambda x: D.all_reduce(x, "avg"),
    "all_gather": lambda x: D.all_gather(x),
    "reduce_scatter": lambda x: D.reduce_scatter(x),
    "reduce_scatter avg": lambda x: D.reduce_scatter(x, "avg"),
    "broadcast": lambda x: D.broadcast(x, 1),
    "transposed": lambda x: D.all_reduce(x.transpose(0, 1)),
}
EXPECTED = {  # of the inputs of all ranks, and the rank
    "all_reduce": lambda x, rank: x.sum(0),
    "all_reduce avg": lambda x, rank: x.mean(0),
    "all_gather": lambda x, rank: np.concatenate(x),
    "reduce_scatter": lambda x, rank: np.split(x.sum(0), len(x))[rank],
    "reduce_scatter avg": lambda x, rank: np.split(x.mean(0), len(x))[rank],
    "broadcast": lambda x, rank: x[1],
    "transposed": lambda x, rank: x.sum(0).T,
}


def inputs(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 2 * n, 3))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_values(n, name):
    x = inputs(n)
    kept = x.copy()
    found = Simulated(n).run(lambda c: OPERATIONS[name](md.tensor(x[c.rank])).numpy())
    for rank, y in enumerate(found):
        np.testing.assert_allclose(y, EXPECTED[name](x, rank), rtol=1e-12)
    assert np.array_equal(x, kept)


def randomly(shape, rank):
    return np.random.default_rng(rank).standard_normal(shape)


def check(n, function, eps=1e-5):
    """With f = the sum over ranks of v . function(x), compare with differences.

    `function(x, rank)` is of Tensors and differentiable; x is moved on all ranks.
    """
    x, u = inputs(n), inputs(n, 1)

    def analytic(communicator):
        rank = communicator.rank
        t = md.tensor(x[rank], requires_grad=True)
        y = function(t, rank)
        (g,) = grad(y, [t], md.tensor(randomly(y.shape, rank)))
        return (g.numpy() * u[rank]).sum()

    def value(communicator, sign):
        rank = communicator.rank
        y = function(
            md.tensor(x[rank] + sign * eps * u[rank], requires_grad=True), rank
        )
        return (y.numpy() * randomly(y.shape, rank)).sum()

    ranks = Simulated(n)
    numeric = sum(ranks.run(value, 1)) - sum(ranks.run(value, -1))
    np.testing.assert_allclose(
        sum(ranks.run(analytic)), numeric / (2 * eps), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_gradients(n, name):
    def function(x, rank):
        return OPERATIONS[name](x.sin() * (rank + 1)) ** 2

    check(n, function)


@pytest.mark.parametrize("name", OPERATIONS)
def test_second_derivatives(name):
    def gradient(x, rank):
        y = OPERATIONS[name](x**3) ** 2
        v = md.tensor(randomly(y.shape, rank + 9))
        return grad(y, [x], v, create_graph=True)[0]

    check(3, gradient)


@pytest.mark.parametrize("name", OPERATIONS)
def test_alone_is_the_identity(name):
    x = md.tensor(inputs(1)[0], requires_grad=True)
    y = OPERATIONS[name](x) if name != "broadcast" else D.broadcast(x)
    y.backward(md.ones_like(y))
    assert np.array_equal(y.numpy(), x.numpy().T if name == "transposed" else x.numpy())
    assert (x.grad.numpy() == 1).all()


def test_what_is_refused():
    x = md.ones(3, 2)
    with pytest.raises(TypeError, match="takes a Tensor, not ndarray"):
        D.all_reduce(x.data)
    with pytest.raises(TypeError, match="takes floats, not int64"):
        D.broadcast(md.tensor([1, 2]))
    with pytest.raises(ValueError, match="not \"max\"|not 'max'"):
        D.all_reduce(x, "max")
    with pytest.raises(ValueError, match="1 dimension or more"):
        D.all_gather(md.tensor(1.0), Alone())

    def uneven(communicator):
        with pytest.raises(ValueError, match="that they divide"):
            D.reduce_scatter(x)

    Simulated(2).run(uneven)
