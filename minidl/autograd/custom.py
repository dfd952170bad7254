"""Operations of a user's own, in PyTorch's form."""

from minidl.autograd.function import Op
from minidl.autograd.mode import no_grad
from minidl.autograd.tensor import Tensor


class Function(Op):
    """A differentiable operation of your own, written with Tensors as in PyTorch.

    `forward(ctx, *inputs)` and `backward(ctx, *gradients)` are static methods that
    receive and return Tensors; call it as `MyFunction.apply(x, ...)`.
    `ctx.save_for_backward(*tensors)`, `ctx.saved_tensors`, `ctx.needs_input_grad` and
    `ctx.set_materialize_grads(value)` mean what they mean in PyTorch. The separate
    `setup_context(ctx, inputs, output)` is understood too.
    """

    setup_context = None
    wants_tensors = True

    def run(self, inputs):
        """forward's arrays."""
        cls = type(self)
        with no_grad():
            if cls.setup_context is None:
                result = cls.forward(self, *inputs)
            else:
                result = cls.forward(*inputs)
                cls.setup_context(self, inputs, result)
        if isinstance(result, (tuple, list)):
            return tuple([self.array(x) for x in result])
        return self.array(result)

    def array(self, result):
        if isinstance(result, Tensor):
            return result.data
        raise TypeError(
            f"{type(self).__name__}.forward must return a Tensor or several, got "
            f"{type(result).__name__}"
        )

    def gradients(self, outputs: list, writing: bool) -> tuple:
        result = type(self).backward(self, *self.as_tensors(outputs))
        result = result if type(result) is tuple else (result,)
        if len(result) != len(self.edges):
            raise RuntimeError(
                f"{type(self).__name__}.backward must return {len(self.edges)} "
                f"gradients, one for each argument of forward, got {len(result)}"
            )
        for g in result:
            if g is not None and not isinstance(g, Tensor):
                raise TypeError(
                    f"{type(self).__name__}.backward must return Tensors or None, got "
                    f"{type(g).__name__}"
                )
        return result

    def save_for_backward(self, *tensors) -> None:
        self.saved = [x.data if isinstance(x, Tensor) else x for x in tensors]

    def set_materialize_grads(self, value: bool) -> None:
        """Whether a missing gradient of an output comes as zeros (True) or as None."""
        self.materialize_grads = value

    def mark_non_differentiable(self, *tensors) -> None:
        """These outputs carry no gradient (integers carry none anyway)."""
        self.undifferentiable = [x.data for x in tensors]
