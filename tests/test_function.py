"""Operations of one's own, written as in PyTorch."""

import numpy as np
import pytest
from gradients import check_gradients, leaf

import minidl as md
from minidl.autograd import Function, Tensor
from minidl.autograd.function import Op


class Cube(Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        ctx.scale = scale
        ctx.needed = ctx.needs_input_grad
        return x * x * x * scale

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 3 * x * x * ctx.scale, None


class SinCos(Function):
    """Two outputs, saved outputs, and the separate setup_context."""

    @staticmethod
    def forward(x):
        return x.sin(), x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*output)
        assert len(inputs) == 1

    @staticmethod
    def backward(ctx, g_sin, g_cos):
        sin, cos = ctx.saved_tensors
        return g_sin * cos - g_cos * sin


def test_function_with_options_and_double_backward():
    x = leaf(3)
    y = Cube.apply(x, 2.0)
    assert y.creator.needed == (True, False)
    check_gradients(lambda x: Cube.apply(x, 2.0), x.numpy())
    np.testing.assert_array_equal(y.numpy(), x.numpy() * x.numpy() * x.numpy() * 2)
    assert Cube.apply(x.detach(), 2.0).is_leaf


def test_function_with_setup_context_and_two_outputs():
    x = leaf(3)
    check_gradients(SinCos.apply, x.numpy())
    _, cos = SinCos.apply(x)  # the other output gets zeros
    cos.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), -np.sin(x.numpy()))


def test_function_may_ask_for_none_in_place_of_zeros():
    class Split(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x * 2, x * 3

        @staticmethod
        def backward(ctx, a, b):
            assert b is None
            return a * 2

    x = leaf(3)
    Split.apply(x)[0].sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 2, 2])


def test_function_with_outputs_that_carry_no_gradient():
    class Largest(Function):
        @staticmethod
        def forward(ctx, x):
            index, rest = x.argmax(), x * 0
            ctx.mark_non_differentiable(rest)
            ctx.save_for_backward(index)
            return x[index], index, rest

        @staticmethod
        def backward(ctx, g, _, __):
            (index,) = ctx.saved_tensors
            return g * Tensor((np.arange(3) == index.item()) * 1.0)

    x = leaf(3)
    value, index, rest = Largest.apply(x)
    assert value.requires_grad
    assert not index.requires_grad and not rest.requires_grad
    value.backward()
    assert x.grad.numpy().argmax() == x.numpy().argmax() and x.grad.numpy().sum() == 1


@pytest.mark.parametrize(
    ("result", "error", "sentence"),
    [
        (lambda g: g, RuntimeError, "must return 2 gradients, .* got 1"),
        (lambda g: (g, g, g), RuntimeError, "must return 2 gradients, .* got 3"),
        (lambda g: (g.numpy(), g), TypeError, "Tensors or None, got ndarray"),
        (
            lambda g: (g[:2], g),
            RuntimeError,
            r"shape \(2,\) for an input of shape \(3,",
        ),
    ],
)
def test_function_with_wrong_gradients(result, error, sentence):
    class Wrong(Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, g):
            return result(g)

    loss = Wrong.apply(leaf(3), leaf(3)).sum()
    with pytest.raises(error, match=f"Wrong.backward .*{sentence}"):
        loss.backward()


def test_function_must_return_tensors():
    class Wrong(Function):
        @staticmethod
        def forward(ctx, x):
            return x.numpy()

    with pytest.raises(TypeError, match="Wrong.forward must return a Tensor"):
        Wrong.apply(leaf(3))


def test_exceptions_leave_the_state_clean():
    class Fails(Function):
        @staticmethod
        def forward(ctx, x, fail):
            if fail:
                raise KeyError("forward")
            return x * 1

        @staticmethod
        def backward(ctx, g):
            raise KeyError("backward")

    x = leaf(3)
    with pytest.raises(KeyError, match="forward"):
        Fails.apply(x, True)
    assert md.is_grad_enabled()
    loss = Fails.apply(x, False).sum()
    with md.no_grad(), pytest.raises(KeyError, match="backward"):
        loss.backward(create_graph=True)
    assert md.is_grad_enabled()
    with pytest.raises(KeyError, match="callback"):
        (x * 2).sum().backward(on_grad_ready=fail_in_callback)
    assert md.is_grad_enabled()


def fail_in_callback(x):
    raise KeyError("callback")


class Mean(Op):
    """The mean and the count, which is kept for backward and has no gradient."""

    materialize_grads = False

    def forward(self, x):
        count = np.asarray(float(x.size))
        self.undifferentiable = (count,)
        self.save_for_backward(count)
        self.shape = x.shape
        return x.sum() / count, count

    def backward(self, g, _):
        (count,) = self.saved_tensors
        assert not count.requires_grad
        return (g / count).expand(self.shape)


def test_a_kept_output_without_a_gradient_stays_so():
    check_gradients(lambda x: Mean.apply(x * x)[0], np.arange(3.0))
