"""Memory for time: checkpointed functions give the same gradients, to the bit."""

import gc
import weakref

import numpy as np
import pytest
from gradients import check_gradients, families, leaf, ready_in_order

import minidl as md
from minidl.array.random import bernoulli, default_generator
from minidl.autograd import Tensor, checkpoint, grad


def test_checkpoint_gives_the_same_bits(xp):
    labels = Tensor(xp.asarray([1, 4]))
    tensors = [leaf(*s, xp=xp) for s in ((2, 3, 8, 8), (5, 16), (4, 3, 3, 3))]
    expected = grad(families(*tensors, labels), tensors)
    checkpointed = checkpoint(families, *tensors, labels)
    for a, b in zip(expected, grad(checkpointed, tensors), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_checkpoint_keeps_nothing_and_runs_twice():
    x, arrays, calls = leaf(1000), [], []

    def function(x):
        calls.append(md.is_grad_enabled())
        y = x.exp()
        arrays.append(weakref.ref(y.data))
        return (y * y).tanh().sum()

    y = checkpoint(function, x)
    assert arrays[0]() is None and len(calls) == 1
    y.backward()
    assert arrays[1]() is None and calls == [True, True]
    expected = grad(function(x), x)[0]
    np.testing.assert_array_equal(x.grad.numpy(), expected.numpy())
    with pytest.raises(RuntimeError, match="a second time"):
        y.backward()


def test_checkpoint_with_retained_graph_and_freed_segment(without_collector):
    x = leaf(3)
    y = checkpoint(lambda x, k: (x**k).exp(), x, k=3)
    y.sum().backward(retain_graph=True)
    once = x.grad.numpy().copy()
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * once)
    array = weakref.ref(x.data)
    del x, y
    assert array() is None and gc.collect() == 0


def test_checkpoint_finds_parameters_used_inside_and_counts_their_consumers():
    w, x = leaf(3, 3), leaf(2, 3, seed=1)

    def block(h):
        return (h @ w).tanh()

    def loss(wrap):
        return (wrap(block, wrap(block, x)) @ w).sum()

    expected = grad(loss(lambda f, h: f(h)), [w, x])
    order, seen = ready_in_order(loss(checkpoint), [w, x])
    assert sorted(order) == [0, 1]
    for i, g in zip(order, seen, strict=True):
        np.testing.assert_array_equal(g, expected[i].numpy())


def test_checkpoint_replays_random_numbers():
    masks = []

    def dropped(x):
        mask = bernoulli(x.shape, 0.5, x.dtype)
        masks.append(mask)
        return (x * Tensor(mask)).exp()

    x = leaf(50)
    md.manual_seed(3)
    y = checkpoint(dropped, x)
    md.manual_seed(8)
    state = default_generator().state
    y.sum().backward()
    np.testing.assert_array_equal(*masks)
    assert default_generator().state == state
    np.testing.assert_allclose(x.grad.numpy(), y.numpy() * masks[0])


def test_checkpoint_has_every_order_of_derivative():
    w = leaf(4, 3, seed=1)

    def block(x, w):
        return (x @ w).tanh().exp()

    check_gradients(
        lambda x, w: checkpoint(block, checkpoint(block, x, w) @ w.t(), w),
        leaf(2, 4).numpy(),
        w.numpy(),
    )


def test_checkpoint_inside_checkpoint():
    x = leaf(4)

    def inner(x):
        return (x * x).tanh()

    def outer(x):
        return checkpoint(inner, x.exp()) * x

    check_gradients(lambda x: checkpoint(outer, x), x.numpy())


def test_checkpoint_without_recording_is_a_call():
    x = leaf(3)
    with md.no_grad():
        assert not checkpoint(lambda x: x * x, x).requires_grad
    plain = checkpoint(lambda x: x * x, x.detach())
    assert not plain.requires_grad


def test_checkpoint_refuses():
    x, calls = leaf(3), []

    def fickle(x):
        calls.append(None)
        return x.exp() if len(calls) == 1 else (x * x).exp()

    with pytest.raises(ValueError, match="use_reentrant=False"):
        checkpoint(fickle, x, use_reentrant=True)
    y = checkpoint(fickle, x)
    with pytest.raises(RuntimeError, match="something else .* 1 operations .* 2 the"):
        y.sum().backward()
    assert md.is_grad_enabled() and x.grad is None
