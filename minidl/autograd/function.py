"""What an operation is: a forward, and beside it a backward.

A call of `apply` makes one object of the class. It serves `forward` as the place to
keep what `backward` will need, and it is the graph's node. Its `edges`, one an input,
say where the input's gradient goes and in what form: (the Op that made the input, or
the leaf Tensor itself; which of that Op's outputs it is; shape; number type), or None
where no gradient is needed. A node knows its predecessors, never its outputs, so
a graph has no cycles and is freed by reference counting as soon as nobody holds its
end.
"""

from itertools import count
from typing import NamedTuple

from minidl.array.device import array_module
from minidl.array.dtypes import is_floating_point
from minidl.autograd.mode import no_grad, recording
from minidl.autograd.tensor import Tensor

next_sequence = count().__next__
FREED = object()


class SavedOutput(NamedTuple):
    """An output that its own node keeps: the bare array, since a Tensor would know
    its creator and close a cycle."""

    array: object
    index: int


def pack(array, inputs, arrays, outputs):
    """What to keep of a saved array: the input Tensor it came from, so that it can
    be differentiated again, the fact that it is an output, or the array."""
    for x, data in zip(inputs, arrays, strict=True):
        if data is array:
            return x
    for index, output in enumerate(outputs):
        if output is array:
            return SavedOutput(array, index)
    return array


def refuse_shapes(error: ValueError, arrays) -> None:
    """Say in PyTorch's type of error, and in one sentence, what did not broadcast."""
    if "broadcast" in str(error) or "shapes do not fit" in str(error):
        shapes = " and ".join(str(x.shape) for x in arrays if hasattr(x, "shape"))
        raise RuntimeError(f"shapes {shapes} do not broadcast") from None


class Op:
    """An operation on raw arrays; `backward` is written with operations on Tensors.

    A subclass defines `forward(self, *arrays_and_options)`, which returns an array or
    a tuple of arrays, and `backward(self, *gradients)`, which returns the gradient of
    each positional argument of forward (missing ones at the end count as None). The
    engine sums a gradient over the dimensions that broadcasting added and casts it
    to its input's type, so that backward need not.
    """

    __slots__ = (
        "edges",
        "saved",
        "sequence",
        "outputs",
        "writes_gradients",
        "__dict__",
    )
    materialize_grads = True
    undifferentiable: tuple | list = ()

    @classmethod
    def apply(cls, *inputs):
        """Run forward on the inputs and, where a gradient is needed, record it."""
        node = cls()
        node.saved = ()
        node.edges = edges = []
        arrays = []
        needed = False
        record = recording.get()
        for x in inputs:
            edge = None
            if isinstance(x, Tensor):
                data = x.data
                if record and x.requires_grad:
                    edge = (x.creator or x, x.output_index, data.shape, data.dtype)
                    needed = True
                arrays.append(data)
            else:
                arrays.append(x)
            edges.append(edge)
        try:
            result = node.run(inputs, arrays)
        except ValueError as error:
            refuse_shapes(error, arrays)
            raise
        several = type(result) is tuple
        if not needed:
            return tuple([Tensor(y) for y in result]) if several else Tensor(result)
        node.sequence = next_sequence()
        if node.saved:
            outputs = result if several else (result,)
            node.saved = [
                None if x is None else pack(x, inputs, arrays, outputs)
                for x in node.saved
            ]
            if record is not True:
                record.keep(node)
        if not several:
            node.outputs = None
            return Tensor(result, True, node)
        node.outputs = [(y.shape, y.dtype) for y in result]
        return tuple(
            [
                Tensor(y, True, node, i) if node.is_differentiable(y) else Tensor(y)
                for i, y in enumerate(result)
            ]
        )

    def run(self, inputs, arrays):
        """Call forward with what it expects: raw arrays."""
        return self.forward(*arrays)

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """For each input of forward, whether backward must give its gradient."""
        return tuple([edge is not None for edge in self.edges])

    def save_for_backward(self, *arrays) -> None:
        """Keep inputs, outputs or other arrays until backward has run."""
        self.saved = arrays

    def is_differentiable(self, output) -> bool:
        return is_floating_point(output.dtype) and not any(
            output is array for array in self.undifferentiable
        )

    @property
    def saved_tensors(self) -> tuple:
        """What was saved, in the same order; numbers and None as they are."""
        if self.saved is FREED:
            raise RuntimeError(
                f"{type(self).__name__}: backward a second time through a graph whose "
                "saved arrays are freed: pass retain_graph=True to the first backward"
            )
        return tuple(
            [
                x if x is None or isinstance(x, Tensor) else self.unpack(x)
                for x in self.saved
            ]
        )

    def unpack(self, x):
        if isinstance(x, (int, float)):
            return x
        if isinstance(x, SavedOutput):
            return Tensor(x.array, True, self, x.index)
        return Tensor(x)

    def gradient_buffer(self, position: int):
        """The array in flat storage that waits for the gradient of this input, or None.

        A matrix product may write its result there and return it as a Tensor: it then
        has arrived without a copy. None where the gradient must be added to another,
        is not for a parameter in flat storage, or is itself to be differentiated.
        """
        leaf = self.only_leaf(position)
        return None if leaf is None else leaf.empty_gradient()

    def gradient_sum(self, position: int):
        """As `gradient_buffer`, of an input that has a gradient: what to add to it."""
        leaf = self.only_leaf(position)
        return None if leaf is None else leaf.begun_gradient()

    def only_leaf(self, position: int):
        """The leaf that this input is, and no other; None where its gradient must
        first be returned."""
        if not self.writes_gradients or self.edges[position] is None:
            return None
        target = self.edges[position][0]
        if isinstance(target, Op):
            return None
        if sum(edge is not None and edge[0] is target for edge in self.edges) > 1:
            return None
        return target

    def materialized(self, outputs: list) -> list:
        """The gradients of the outputs, missing ones as zeros."""
        if self.outputs is not None and self.materialize_grads:
            xp = array_module(*[g.data for g in outputs if g is not None])
            for index, (shape, dtype) in enumerate(self.outputs):
                if outputs[index] is None and is_floating_point(dtype):
                    outputs[index] = Tensor(xp.zeros(shape, dtype))
        return outputs

    def gradients(self, outputs: list) -> tuple:
        """Run backward on the gradients of the outputs: one gradient an edge."""
        result = self.backward(*self.materialized(outputs))
        if type(result) is not tuple:
            result = (result,)
        missing = len(self.edges) - len(result)
        if not missing:
            return result
        if missing < 0 and any(g is not None for g in result[missing:]):
            raise RuntimeError(
                f"{type(self).__name__}.backward returned {len(result)} gradients for "
                f"{len(self.edges)} inputs of forward"
            )
        return result + (None,) * missing


class Function(Op):
    """A differentiable operation of your own, written with Tensors as in PyTorch.

    `forward(ctx, *inputs)` and `backward(ctx, *gradients)` are static methods that
    receive and return Tensors; call it as `MyFunction.apply(x, ...)`.
    `ctx.save_for_backward(*tensors)`, `ctx.saved_tensors`, `ctx.needs_input_grad` and
    `ctx.set_materialize_grads(value)` mean what they mean in PyTorch. The separate
    `setup_context(ctx, inputs, output)` is understood too.
    """

    setup_context = None

    def run(self, inputs, arrays):
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

    def gradients(self, outputs: list) -> tuple:
        result = type(self).backward(self, *self.materialized(outputs))
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
