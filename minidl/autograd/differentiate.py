"""What is asked of the walk back: `backward` fills `grad`, `grad` returns gradients."""

from minidl.array.device import array_module
from minidl.autograd.tensor import Tensor
from minidl.autograd.walk import Walk


def backward(
    tensors,
    grad_tensors=None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs=None,
    on_grad_ready=None,
) -> None:
    """Add the gradients of `tensors`, weighted by `grad_tensors`, to `grad` of the
    leaves they depend on; see `Tensor.backward`."""
    tensors = listed(tensors)
    walk = Walk(tensors, weights(grad_tensors, tensors), retain_graph, create_graph)
    walk.on_ready = on_grad_ready
    if inputs is None:
        walk.run()
        return
    inputs = list(dict.fromkeys(listed(inputs)))
    check_inputs(inputs)
    walk.accumulating = True
    for x, g in zip(inputs, walk.collect(inputs), strict=True):
        if g is not None and not x.is_leaf:
            x.accumulate(g)


def grad(
    outputs,
    inputs,
    grad_outputs=None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    materialize_grads: bool = False,
) -> tuple:
    """The sum of the gradients of `outputs` with respect to each of `inputs`.

    Nothing is added to any `grad`. An input that the outputs do not depend on raises
    a RuntimeError, or gives None with `allow_unused`, or zeros with
    `materialize_grads`.
    """
    outputs, inputs = listed(outputs), listed(inputs)
    if materialize_grads and allow_unused is False:
        raise ValueError("materialize_grads=True means allow_unused=True, got False")
    check_inputs(inputs)
    grad_outputs = weights(grad_outputs, outputs)
    result = Walk(outputs, grad_outputs, retain_graph, create_graph).collect(inputs)
    for position, (x, g) in enumerate(zip(inputs, result, strict=True)):
        if g is None and materialize_grads:
            result[position] = Tensor(array_module(x.data).zeros_like(x.data))
        elif g is None and not allow_unused:
            raise RuntimeError(
                f"the outputs do not depend on input {position}, of shape {x.shape}; "
                "allow_unused=True gives None for it"
            )
    return tuple(result)


def tensor_backward(
    self: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs=None,
    on_grad_ready=None,
) -> None:
    """Add the gradient of this tensor to `grad` of every leaf it depends on.

    `gradient` (same shape; 1 where it is omitted, for a scalar only) is the
    gradient of whatever is being differentiated with respect to this tensor.
    `retain_graph` keeps what a second backward through the same graph needs,
    `create_graph` records the backward itself. `inputs` limits the leaves.
    `on_grad_ready(leaf)` is called as soon as the last consumer of a leaf has
    contributed to its gradient, while the rest of backward is still to come.
    """
    backward(self, gradient, retain_graph, create_graph, inputs, on_grad_ready)


Tensor.backward = tensor_backward


def listed(tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def weights(gradients, roots: list[Tensor]) -> list:
    """A gradient, or None, for each root."""
    if gradients is None:
        return [None] * len(roots)
    gradients = gradients if isinstance(gradients, (list, tuple)) else [gradients]
    if len(gradients) != len(roots):
        raise RuntimeError(
            f"got {len(gradients)} gradients for {len(roots)} tensors: one for each "
            "is needed"
        )
    return gradients


def check_inputs(inputs: list[Tensor]) -> None:
    if not inputs:
        raise RuntimeError("inputs is empty: name a tensor to differentiate by")
    for x in inputs:
        if not x.requires_grad:
            raise RuntimeError(
                f"one of the inputs, of shape {x.shape}, does not require a gradient"
            )
