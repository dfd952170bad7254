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

from minidl.array.device import array_module, check_devices
from minidl.array.dtypes import is_floating_point
from minidl.autograd.mode import recording
from minidl.autograd.tensor import Tensor

next_sequence = count().__next__
FREED = object()


def pack(saved, inputs, result) -> list:
    """What to keep of saved arrays: the input Tensor that one came from, so that it
    can be differentiated again; of an output the pair (array, index), since a Tensor
    would know its creator and close a cycle; or the array."""
    kept = []
    for array in saved:
        if array is result:
            array = (array, 0)
        elif array is not None:
            for x in inputs:
                if isinstance(x, Tensor) and x.data is array:
                    array = x
                    break
            else:
                outputs = result if type(result) is tuple else ()
                array = next(
                    ((y, i) for i, y in enumerate(outputs) if y is array), array
                )
        kept.append(array)
    return kept


def explain(error: Exception, name: str, arrays) -> None:
    """Say in PyTorch's type of error, and in one sentence, what did not fit: devices,
    which are asked about only here so that what works does not wait for it, or shapes.
    """
    check_devices(name, *arrays)
    message = str(error) if isinstance(error, ValueError) else ""
    if "broadcast" in message or "shapes do not fit" in message:
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
    fresh = False  # whether backward gives arrays of its own, that nobody else has
    wants_tensors = False  # whether forward takes Tensors, in `run`
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
                    source = x if x.creator is None else x.creator
                    edge = (source, x.output_index, data.shape, data.dtype)
                    needed = True
                x = data
            arrays.append(x)
            edges.append(edge)
        try:
            result = node.run(inputs) if node.wants_tensors else node.forward(*arrays)
        except Exception as error:
            explain(error, cls.__name__, arrays)
            raise
        several = type(result) is tuple
        if not needed:
            return tuple([Tensor(y) for y in result]) if several else Tensor(result)
        node.sequence = next_sequence()
        if node.saved:
            node.saved = pack(node.saved, inputs, result)
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
        tensors = []
        for x in self.saved:
            if isinstance(x, tuple) and self.is_differentiable(x[0]):
                x = Tensor(x[0], True, self, x[1])
            elif isinstance(x, tuple):
                x = Tensor(x[0])
            elif not (x is None or isinstance(x, (Tensor, int, float))):
                x = Tensor(x)
            tensors.append(x)
        return tuple(tensors)

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

    def as_tensors(self, outputs: list) -> list:
        """The gradients of the outputs as Tensors, missing ones as zeros."""
        outputs = [
            g if g is None or isinstance(g, Tensor) else Tensor(g) for g in outputs
        ]
        if self.outputs is not None and self.materialize_grads:
            xp = array_module(*[g.data for g in outputs if g is not None])
            for index, (shape, dtype) in enumerate(self.outputs):
                if outputs[index] is None and is_floating_point(dtype):
                    outputs[index] = Tensor(xp.zeros(shape, dtype))
        return outputs

    def gradients(self, outputs: list, writing: bool) -> tuple:
        """Run backward on the gradients of the outputs: one gradient an edge.

        `writing` says whether they may go straight to where they are accumulated.
        """
        self.writes_gradients = writing
        result = self.backward(*self.as_tensors(outputs))
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


class Arithmetic(Op):
    """An operation with one output, and a backward whose arithmetic fits bare arrays as
    well as Tensors: where nothing is to be differentiated again, it is spared these."""

    __slots__ = ()

    def gradients(self, outputs: list, writing: bool) -> tuple:
        self.writes_gradients = writing
        result = self.backward(outputs[0])
        return result if type(result) is tuple else (result,)

    def saved_like(self, g) -> tuple | list:
        """What was saved, as Tensors where g is one, otherwise as bare arrays."""
        if isinstance(g, Tensor):
            return self.saved_tensors
        values = []
        for x in self.saved:
            if x is not None:
                if isinstance(x, Tensor):
                    x = x.data
                elif isinstance(x, tuple):
                    x = x[0]
            values.append(x)
        return values
