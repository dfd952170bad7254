"""The walk back: from a result to the leaves it depends on.

Operations are numbered as they run, so whatever consumed an output has a higher
number than the operation that made it: going through the reachable operations from
the highest number down, each is met when all of its consumers are done. A leaf is
ready when its last consumer has contributed (`on_grad_ready`), wherever in the walk
that is.
"""

from operator import attrgetter

from minidl.array.device import array_module
from minidl.autograd.function import FREED, Op
from minidl.autograd.mode import set_grad_enabled
from minidl.autograd.structure import Add, Cast, SumTo, check_sum_to
from minidl.autograd.tensor import Tensor


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


class Walk:
    """One walk back, with what it has on the way."""

    def __init__(self, roots, gradients, retain_graph, create_graph):
        self.create_graph = create_graph
        self.retain = create_graph if retain_graph is None else retain_graph
        self.arrived: dict[Op, list] = {}  # gradients of the outputs, by operation
        self.on_ready = None
        self.wanted: dict = {}  # (operation, output) or leaf -> gradient, for collect
        self.collecting = False
        self.accumulating = False  # what was collected goes to the leaves' grad
        self.roots = []
        for root, gradient in zip(roots, gradients, strict=True):
            self.start(root, gradient)

    def start(self, root: Tensor, gradient: Tensor | None) -> None:
        if not root.requires_grad:
            raise RuntimeError(
                "there is nothing to differentiate: the result depends on no tensor "
                "that requires a gradient, or was computed under no_grad()"
            )
        if gradient is None:
            if root.data.size != 1:
                raise RuntimeError(
                    f"a gradient is implied for scalars only, and this has shape "
                    f"{root.shape}: pass gradient, of that shape"
                )
            gradient = Tensor(array_module(root.data).ones_like(root.data))
        elif not isinstance(gradient, Tensor):
            raise TypeError(
                f"gradient must be a Tensor or None, got {type(gradient).__name__}"
            )
        elif gradient.shape != root.shape:
            raise RuntimeError(
                f"gradient has shape {gradient.shape}, the result has {root.shape}"
            )
        elif gradient.dtype != root.dtype:
            gradient = Cast.apply(gradient, root.dtype)
        self.roots.append((root, gradient))

    def collect(self, inputs: list[Tensor]) -> list[Tensor | None]:
        """The gradients of `inputs`, touching no `grad`."""
        self.collecting = True
        keys = [(x.creator, x.output_index) if x.creator else x for x in inputs]
        self.wanted = dict.fromkeys(keys)
        self.run()
        return [self.wanted[key] for key in keys]

    def run(self) -> None:
        order = self.reachable()
        if self.collecting:
            order = self.leading_to_wanted(order)
        pending: dict[Tensor, int] = {}  # consumers of a leaf that are still to come
        for node in order:
            if node.saved is FREED:
                node.saved_tensors  # noqa: B018 - raises, before anything is changed
            for edge in node.edges:
                if edge is not None and not isinstance(edge[0], Op):
                    pending[edge[0]] = pending.get(edge[0], 0) + 1
        leaves = [root for root, _ in self.roots if root.creator is None]
        for leaf in leaves:
            pending[leaf] = pending.get(leaf, 0) + 1
        with set_grad_enabled(self.create_graph):
            for root, gradient in self.roots:
                self.deliver(root.creator or root, root.output_index, gradient)
            for leaf in leaves:
                self.contributed(leaf, pending)
            while order:
                self.visit(order.pop(), pending)

    def contributed(self, leaf: Tensor, pending: dict[Tensor, int]) -> None:
        """Count a consumer of a leaf, which is ready when none is left."""
        pending[leaf] -= 1
        if pending[leaf] or self.collecting and leaf not in self.wanted:
            return
        if self.accumulating and self.wanted[leaf] is not None:
            leaf.accumulate(self.wanted[leaf])
        if self.on_ready:
            self.on_ready(leaf)

    def reachable(self) -> list[Op]:
        """All operations behind the roots, in the order in which they ran."""
        found = dict.fromkeys(r.creator for r, _ in self.roots if r.creator is not None)
        todo = list(found)
        while todo:
            for edge in todo.pop().edges:
                if edge is not None:
                    target = edge[0]
                    if isinstance(target, Op) and target not in found:
                        found[target] = None
                        todo.append(target)
        return sorted(found, key=attrgetter("sequence"))

    def leading_to_wanted(self, order: list[Op]) -> list[Op]:
        """Those that a wanted input lies behind, or is an output of."""
        ends = {key[0] if isinstance(key, tuple) else key for key in self.wanted}
        behind: set = set()
        for node in order:
            targets = [edge[0] for edge in node.edges if edge is not None]
            if any(t in behind or t in ends for t in targets):
                behind.add(node)
        self.behind = behind
        return [node for node in order if node in behind or node in ends]

    def visit(self, node: Op, pending: dict[Tensor, int]) -> None:
        """Pass the gradients of a node's outputs on to its inputs."""
        outputs = self.arrived.pop(node, None)
        if self.collecting and outputs is not None:
            for index, g in enumerate(outputs):
                if (node, index) in self.wanted:
                    self.wanted[node, index] = g
            if node not in self.behind:
                return
        if outputs is None:
            gradients = [None] * len(node.edges)
        else:
            node.writes_gradients = not (self.create_graph or self.collecting)
            gradients = node.gradients(outputs)
        if node.saved and not self.retain:
            node.saved = FREED
        for edge, g in zip(node.edges, gradients, strict=True):
            if edge is None:
                continue
            target, index, shape, dtype = edge
            if g is not None:
                if g.data.shape != shape:
                    check_sum_to(g.shape, shape, type(node).__name__)
                    g = SumTo.apply(g, shape)
                if g.data.dtype != dtype:
                    g = Cast.apply(g, dtype)
                self.deliver(target, index, g)
            if not isinstance(target, Op):
                self.contributed(target, pending)

    def deliver(self, target, index: int, g: Tensor) -> None:
        """Add a gradient to what its target has received already."""
        if not isinstance(target, Op):
            if not self.collecting:
                target.accumulate(g)
            elif target in self.wanted:
                before = self.wanted[target]
                self.wanted[target] = g if before is None else Add.apply(before, g)
            return
        slots = self.arrived.get(target)
        if slots is None:
            if target.outputs is None:
                self.arrived[target] = [g]
                return
            slots = self.arrived[target] = [None] * len(target.outputs)
        before = slots[index]
        slots[index] = g if before is None else Add.apply(before, g)
