"""The engine: the walk back, its order, what it frees, and what it refuses."""

import gc
import threading
import weakref

import numpy as np
import pytest
from gradients import check_gradients, families, leaf, ready_in_order
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.autograd import Function, Tensor, backward, grad
from minidl.autograd.function import FREED
from minidl.nn import functional as F

# --- The gradient ---------------------------------------------------------------------


def test_gradients_of_a_shared_tensor_add_up(xp):
    x = leaf(3, 4, xp=xp)
    y = x * x
    (y * x + y + x).sum().backward()
    np.testing.assert_allclose(
        x.grad.numpy(), 3 * x.numpy() ** 2 + 2 * x.numpy() + 1, rtol=1e-14
    )


def test_broadcasting_is_undone(xp):
    x, y = leaf(3, 1, 4, xp=xp), leaf(2, 1, seed=1, xp=xp)
    weights = leaf(3, 2, 4, seed=2, xp=xp).detach()
    (x * y * weights).sum().backward()
    product = weights.numpy() * y.numpy()
    np.testing.assert_allclose(x.grad.numpy(), product.sum(1, keepdims=True))
    product = weights.numpy() * x.numpy()
    np.testing.assert_allclose(y.grad.numpy(), product.sum(axis=(0, 2))[:, None])


def test_gradient_has_the_type_of_its_input():
    x, y = leaf(3), leaf(3, seed=1, dtype=np.float16)
    product = x * y
    assert product.dtype == np.float64
    product.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (np.float64, np.float16)
    np.testing.assert_allclose(y.grad.numpy(), x.numpy().astype(np.float16))


def test_zero_dimensional_leaf():
    x = md.tensor(2.0, requires_grad=True)
    (x**3).backward()
    assert x.grad.shape == () and x.grad.item() == 12
    (x * 5).backward()
    assert x.grad.item() == 17, "gradients add up until they are set to None"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_every_gradient_on_the_way_is_an_array_of_its_inputs_type(dtype, xp):
    x = md.Tensor(xp.asarray(0.3, dtype)).requires_grad_()
    curve(x).backward()
    (wanted,) = grad(curve(x), [x], create_graph=True)
    assert type(x.grad.data) is type(x.data) and x.grad.dtype == x.dtype
    assert x.grad.item() == wanted.item()


def curve(x):
    h = x * x
    return -((h * 2 + x).tanh() - h).sigmoid()


def test_backward_with_a_gradient_of_its_own():
    x = leaf(2, 3)
    (x * 2).backward(md.tensor(np.arange(6, dtype=np.float32).reshape(2, 3)))
    assert x.grad.dtype == np.float64
    np.testing.assert_array_equal(x.grad.numpy(), 2.0 * np.arange(6).reshape(2, 3))
    y = leaf(2)
    y.backward(md.tensor([1.0, 2.0]))
    assert y.grad.dtype == np.float64 and y.grad.tolist() == [1, 2]


def test_backward_from_a_leaf():
    x = md.tensor([1.0], requires_grad=True)
    ready = []
    x.backward(on_grad_ready=ready.append)
    assert x.grad.item() == 1 and len(ready) == 1


def test_backward_of_several_tensors():
    x = leaf(3)
    y = x * x
    ready = []
    backward([y, x, x], [Tensor(np.ones(3))] * 3, on_grad_ready=ready.append)
    np.testing.assert_allclose(x.grad.numpy(), 2 * x.numpy() + 2)
    assert len(ready) == 1


def test_gradient_does_not_alias_what_was_passed_in():
    x = leaf(3)
    given_gradient = Tensor(np.ones(3))
    (x + 0).backward(given_gradient)
    x.grad.data[...] = 7
    assert (given_gradient.numpy() == 1).all()


def test_stride_0_and_transposed_gradients_become_plain_arrays():
    x, y = leaf(3, 4), leaf(3, 4)
    (x.sum() + y.t().sum()).backward()
    x.grad.data[0, 0] = 5
    assert x.grad.numpy().sum() == 16
    assert x.grad.data.flags.c_contiguous and y.grad.data.flags.writeable


def test_grad_can_be_read_assigned_and_forgotten():
    x = leaf(3)
    assert x.grad is None
    x.grad = Tensor(np.ones(3))
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 3 * np.ones(3))
    x.grad = None
    assert x.grad is None
    with pytest.raises(TypeError, match="must be a Tensor or None, got ndarray"):
        x.grad = np.ones(3)
    with pytest.raises(RuntimeError, match=r"shape \(2,\)"):
        x.grad = Tensor(np.ones(2))
    with pytest.raises(RuntimeError, match="float32"):
        x.grad = Tensor(np.ones(3, np.float32))


# --- grad -----------------------------------------------------------------------------


def test_grad_of_several_outputs_touches_no_grad():
    x, y = leaf(3), leaf(3, seed=1)
    gx, gy = grad([(x * y).sum(), x.sum()], [x, y])
    np.testing.assert_allclose(gx.numpy(), y.numpy() + 1)
    np.testing.assert_allclose(gy.numpy(), x.numpy())
    assert x.grad is None and y.grad is None


def test_grad_of_inputs_inside_the_graph_and_of_the_output_itself():
    x = leaf(3)
    h = x * 3
    y = (h * h).sum()
    gh, gy, gx, again = grad(y, [h, y, x, h])
    np.testing.assert_allclose(gh.numpy(), 2 * h.numpy())
    np.testing.assert_allclose(again.numpy(), 2 * h.numpy())
    assert gy.item() == 1
    np.testing.assert_allclose(gx.numpy(), 18 * x.numpy())


def test_grad_goes_no_further_back_than_its_inputs():
    class Never(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            raise AssertionError("nobody asked for this gradient")

    h = Never.apply(leaf(3))
    (g,) = grad((h * 2).sum(), h)
    assert g.tolist() == [2, 2, 2]


def test_grad_of_unused_inputs():
    x, y = leaf(2), leaf(3)
    with pytest.raises(
        RuntimeError, match=r"do not depend on input 1, of shape \(3,\)"
    ):
        grad(x.sum(), [x, y])
    assert grad(x.sum(), [x, y], allow_unused=True)[1] is None
    zeros = grad(x.sum(), [x, y], materialize_grads=True)[1]
    assert zeros.shape == (3,) and not zeros.numpy().any()
    with pytest.raises(ValueError, match="allow_unused"):
        grad(x.sum(), [x, y], allow_unused=False, materialize_grads=True)


def test_grad_refuses_what_it_cannot_do():
    x, constant = leaf(2), Tensor(np.ones(2))
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        grad((x * constant).sum(), [constant])
    with pytest.raises(RuntimeError, match="inputs is empty"):
        grad(x.sum(), [])
    with pytest.raises(RuntimeError, match="got 1 gradients for 2 tensors"):
        grad([x.sum(), x.sum()], x, [Tensor(np.ones(()))])


def test_backward_limited_to_inputs(without_collector):
    x, y = leaf(3), leaf(3, seed=1)
    h = x * 2
    ready = []

    def on_grad_ready(t):
        assert t.grad is not None
        ready.append(t)

    (h * y + x).sum().backward(inputs=[x, h, x], on_grad_ready=on_grad_ready)
    np.testing.assert_allclose(x.grad.numpy(), 2 * y.numpy() + 1)
    np.testing.assert_allclose(h.grad.numpy(), y.numpy())
    assert y.grad is None
    assert len(ready) == 1 and ready[0] is x
    array = weakref.ref(h.data)
    del h
    assert array() is None and gc.collect() == 0


# --- When a leaf is ready -------------------------------------------------------------


def test_leaves_become_ready_from_the_last_used_to_the_first():
    w = [leaf(3, 3, seed=i) for i in range(4)]
    x = Tensor(np.ones((2, 3)))
    for weight in w:
        x = (x @ weight).tanh()
    assert ready_in_order(x.sum(), w)[0] == [3, 2, 1, 0]


def test_shared_leaf_is_ready_after_its_last_consumer():
    shared, other = leaf(3), leaf(3, seed=1)
    y = (shared * 2).tanh()  # early: walked last
    loss = (y * other * shared).sum()
    order, seen = ready_in_order(loss, [shared, other])
    assert order == [1, 0]
    np.testing.assert_array_equal(seen[1], shared.grad.numpy())


def test_consumer_without_a_gradient_to_give_still_counts():
    class First(Function):
        """The first argument; the second gets no gradient."""

        @staticmethod
        def forward(ctx, a, b):
            return a * 1

        @staticmethod
        def backward(ctx, g):
            return g, None

    a, b = leaf(3), leaf(3, seed=1)
    order, seen = ready_in_order(First.apply(a, b).sum(), [a, b])
    assert sorted(order) == [0, 1] and b.grad is None
    # an operation whose output never receives a gradient
    c = leaf(3, seed=2)
    order, _ = ready_in_order(First.apply(a, (b * c).exp()).sum(), [a, b, c])
    assert sorted(order) == [0, 1, 2] and c.grad is None


def random_graph(leaves, seed, size):
    rng = np.random.default_rng(seed)
    pool = list(leaves)
    for _ in range(size):
        a, b = (pool[rng.integers(len(pool))] for _ in range(2))
        pool.append(a + b if rng.integers(2) else (a * b).tanh())
    return pool[-1].sum()


@given(st.integers(0, 10**6), st.integers(2, 30))
def test_every_reachable_leaf_is_ready_once_with_its_whole_gradient(seed, size):
    leaves = [leaf(2, seed=i) for i in range(4)]
    assert md.autograd.gradcheck(lambda *x: random_graph(x, seed, size), leaves)
    loss = random_graph(leaves, seed, size)
    expected = grad(loss, leaves, retain_graph=True, allow_unused=True)
    order, seen = ready_in_order(loss, leaves)
    assert sorted(order) == [i for i, g in enumerate(expected) if g is not None]
    for i, g in zip(order, seen, strict=True):
        np.testing.assert_array_equal(g, leaves[i].grad.numpy())
        np.testing.assert_allclose(g, expected[i].numpy(), rtol=1e-12)


# --- Graphs that are kept, and derivatives of derivatives -----------------------------


def test_third_derivative(xp):
    x = leaf(4, xp=xp)
    derivative = (x**4).sum()
    for _ in range(3):
        (derivative,) = grad(derivative.sum(), x, create_graph=True)
    np.testing.assert_allclose(derivative.numpy(), 24 * x.numpy(), rtol=1e-13)


def test_create_graph_makes_grad_differentiable():
    x = leaf(3)
    (x**3).sum().backward(create_graph=True)
    assert x.grad.requires_grad
    np.testing.assert_allclose(x.grad.numpy(), 3 * x.numpy() ** 2)
    (penalty,) = grad((x.grad * x.grad).sum(), x)
    np.testing.assert_allclose(penalty.numpy(), 36 * x.numpy() ** 3)
    x.grad = None  # the graph that it holds leads back to x: this opens the circle


def test_without_create_graph_nothing_is_recorded():
    x = leaf(3)
    (g,) = grad((x**3).sum(), x)
    assert not g.requires_grad and g.is_leaf


def test_second_backward_needs_retain_graph():
    x = leaf(3)
    loss = (x * x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    np.testing.assert_allclose(x.grad.numpy(), 4 * x.numpy())
    before = x.grad.numpy().copy()
    with pytest.raises(RuntimeError, match="Mul: backward a second time .* retain_gra"):
        loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), before)


def test_second_backward_through_a_shared_part_changes_nothing():
    x, w = leaf(3), leaf(3, seed=1)
    h = x * x
    h.sum().backward()
    x.grad = None
    with pytest.raises(RuntimeError, match="a second time"):
        (h + w).sum().backward()
    assert w.grad is None and x.grad is None


def test_saved_arrays_are_freed_after_backward():
    x = leaf(3)
    y = (x * 2).exp()
    loss = (y * y).sum()
    saved = weakref.ref(y.data)
    node = loss.creator.edges[0][0]
    del y
    assert saved() is not None
    loss.backward()
    assert saved() is None and node.saved is FREED


def test_only_what_backward_needs_is_saved():
    x, w = leaf(2, 3), leaf(3, 4)
    product = x.detach() @ w  # the gradient of w needs x, not w
    assert [s is None for s in product.creator.saved] == [False, True]
    product = x @ w.detach()
    assert [s is None for s in product.creator.saved] == [True, False]


# --- What is not recorded -------------------------------------------------------------


def test_no_grad_and_enable_grad():
    x = leaf(2)
    with md.no_grad():
        assert not md.is_grad_enabled() and not (x * 2).requires_grad
        with md.enable_grad():
            assert (x * 2).requires_grad
            with md.no_grad():
                assert not (x * 2).requires_grad
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert md.is_grad_enabled()


def test_mode_is_restored_after_an_exception():
    with pytest.raises(KeyError), md.no_grad():
        raise KeyError
    assert md.is_grad_enabled()


@pytest.mark.parametrize("decorator", [md.no_grad, md.no_grad()])
def test_mode_decorates_functions_that_call_themselves(decorator):
    @decorator
    def depth(n):
        """Doc."""
        inner = depth(n - 1) if n else []
        return [md.is_grad_enabled(), *inner]

    assert depth(2) == [False] * 3 and depth.__name__ == "depth"
    assert md.is_grad_enabled()


def test_set_grad_enabled_in_its_three_uses():
    switch = md.autograd.set_grad_enabled
    try:
        switch(False)
        assert not md.is_grad_enabled()
    finally:
        switch(True)
    with switch(False):
        assert not md.is_grad_enabled()
    assert md.is_grad_enabled()

    @switch(False)
    def depth(n):
        return [md.is_grad_enabled(), *(depth(n - 1) if n else [])]

    assert md.is_grad_enabled(), "to decorate is not to switch"
    assert depth(3) == [False] * 4 and depth(0) == [False]
    assert md.is_grad_enabled()


def test_mode_of_a_generator_ends_at_its_yield():
    @md.no_grad()
    def numbers():
        try:
            received = yield md.is_grad_enabled()
            yield received, md.is_grad_enabled()
        except KeyError:
            yield "caught", md.is_grad_enabled()
        finally:
            closed.append(md.is_grad_enabled())
        return "end"

    closed = []
    generator = numbers()
    assert next(generator) is False and md.is_grad_enabled()
    assert generator.send(5) == (5, False) and md.is_grad_enabled()
    assert generator.throw(KeyError()) == ("caught", False) and md.is_grad_enabled()
    with pytest.raises(StopIteration, match="end"):
        next(generator)
    generator = numbers()
    next(generator)
    generator.close()
    assert closed == [False, False] and md.is_grad_enabled()


def test_each_thread_has_a_mode_of_its_own():
    seen, both_inside, first_left = {}, threading.Event(), threading.Event()

    @md.no_grad()
    def inside(action):
        action()
        return md.is_grad_enabled()

    def second():
        with md.no_grad():
            inside(lambda: (both_inside.set(), first_left.wait(timeout=10)))
            seen["second"] = md.is_grad_enabled()

    def first():
        seen["at the start"] = md.is_grad_enabled()
        other = threading.Thread(target=second)
        inside(lambda: (other.start(), both_inside.wait(timeout=10)))
        seen["first"] = md.is_grad_enabled()
        first_left.set()
        other.join()

    with md.no_grad():
        thread = threading.Thread(target=first)
        thread.start()
        thread.join()
        assert not md.is_grad_enabled()
    assert seen == {"at the start": True, "first": True, "second": False}


def test_threads_walk_their_own_graphs():
    results = {}

    def run(i):
        x = leaf(8, seed=i)
        y = x
        for _ in range(50):
            y = (y * 1.01).tanh()
        (g,) = grad(y.sum(), x)
        results[i] = g.numpy()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threaded = dict(results)
    for i in range(4):
        run(i)
        np.testing.assert_array_equal(results[i], threaded[i])


# --- Refusals -------------------------------------------------------------------------


def test_backward_refuses_with_a_sentence():
    x = leaf(2, 3)
    with pytest.raises(
        RuntimeError, match=r"scalars only, and this has shape \(2, 3\)"
    ):
        (x * 2).backward()
    with pytest.raises(RuntimeError, match=r"shape \(3,\), the result has \(2, 3\)"):
        (x * 2).backward(Tensor(np.ones(3)))
    with pytest.raises(TypeError, match="must be a Tensor or None, got ndarray"):
        (x * 2).backward(np.ones((2, 3)))
    with pytest.raises(RuntimeError, match="nothing to differentiate"):
        Tensor(np.ones(())).backward()
    with pytest.raises(RuntimeError, match="only floating-point tensors"):
        Tensor(np.arange(3)).requires_grad_()
    with pytest.raises(RuntimeError, match="leaves only"):
        (x * 2).requires_grad_(False)
    assert x.grad is None


@pytest.mark.parametrize("data", ["a", [1.0, 2.0], None, Tensor(np.ones(2))])
def test_a_tensor_wraps_an_array_and_nothing_else(data):
    with pytest.raises(TypeError, match=f"got {type(data).__name__}: tensor"):
        Tensor(data)


# --- Memory ---------------------------------------------------------------------------


def chain(n):
    x = Tensor(np.ones(4), requires_grad=True)
    y = x
    for _ in range(n):
        y = y * 1.00001
    return x, y


@pytest.mark.slow
def test_chain_of_100_000_operations(without_collector):
    x, y = chain(100_000)
    y.sum().backward()
    first = weakref.ref(y.creator)
    del y
    assert first() is None and gc.collect() == 0
    np.testing.assert_allclose(x.grad.numpy(), 1.00001**100_000)
    x, y = chain(100_000)  # dropped without backward
    first = weakref.ref(y.creator)
    del y
    assert first() is None and gc.collect() == 0


def test_a_step_is_freed_by_reference_counting(without_collector):
    x, w, kernel = leaf(2, 3, 8, 8), leaf(5, 16), leaf(4, 3, 3, 3)
    labels = Tensor(np.array([1, 4]))
    loss = families(x, w, kernel, labels)
    nodes, todo = [], [loss.creator]
    while todo:
        node = todo.pop()
        nodes.append(weakref.ref(node))
        todo += [e[0] for e in node.edges if e is not None and e[0].__class__ != Tensor]
    del node
    loss.backward()
    del loss
    assert len(nodes) > 15 and not any(node() is not None for node in nodes)
    assert gc.collect() == 0
    gx, gw = grad(families(x, w, kernel, labels), [x, w], create_graph=True)
    ((gx * gx).sum() + (gw * gw).sum()).backward()
    del gx, gw
    assert gc.collect() == 0


def test_all_families_have_their_second_derivatives():
    x, w, kernel = leaf(2, 3, 4, 4), leaf(5, 4), leaf(4, 3, 3, 3)
    labels = np.array([1, 4])
    check_gradients(families, x.numpy(), w.numpy(), kernel.numpy(), labels)


def test_a_gradient_shares_memory_with_nothing():
    rng = np.random.default_rng(0)
    x, w = (md.tensor(rng.normal(size=s)) for s in ((2, 3, 4, 4), (5, 3, 1, 1)))
    a, b = (md.tensor(rng.normal(size=(3, 3))) for _ in "ab")
    shift = md.tensor(rng.normal(size=(3, 3)))
    for inputs, function in (
        ((x, w), lambda: F.conv2d(x, w)),
        ((a, b), lambda: F.linear(a, b)),
        ((a, b), lambda: a @ b),
        ((a,), lambda: a @ a),
        ((a, shift), lambda: a + shift),
    ):
        for tensor in inputs:
            tensor.requires_grad_()
            tensor.grad = None
        y = function()
        g = md.Tensor(np.ones(y.shape))
        y.backward(g)
        gradients = [tensor.grad.data for tensor in inputs]
        others = [y.data, g.data, *[tensor.data for tensor in inputs]]
        for i, gradient in enumerate(gradients):
            for other in [*others, *gradients[:i]]:
                assert not np.shares_memory(gradient, other)
