"""The walk back: from a result to the leaves it depends on.

Operations are numbered as they run, so whatever consumed an output has a higher
number than the operation that made it: going through the reachable operations from
the highest number down, each is met when all of its consumers are done. A leaf is
ready when its last consumer has contributed (`on_grad_ready`), wherever in the walk
that is.

Gradients that are to be differentiated again travel as Tensors, others as bare arrays.
"""

from collections import Counter
from operator import attrgetter

from minidl.array.device import array_module
from minidl.autograd.function import FREED, Op
from minidl.autograd.mode import set_grad_enabled
from minidl.autograd.structure import Add, Cast, SumTo, check_sum_to
from minidl.autograd.tensor import Tensor, as_array, ndarray


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
        elif gradient.device != root.device:
            raise RuntimeError(
                f"gradient is on {gradient.device}, the result on {root.device}"
            )
        elif gradient.dtype != root.dtype:
            gradient = Cast.apply(gradient, root.dtype)
        self.roots.append((root, gradient if self.create_graph else gradient.data))

    def collect(self, inputs: list[Tensor]) -> list[Tensor | None]:
        """The gradients of `inputs`, touching no `grad`."""
        self.collecting = True
        keys = [(x.creator, x.output_index) if x.creator else x for x in inputs]
        self.wanted = dict.fromkeys(keys)
        self.run()
        return [None if g is None else as_tensor(g) for g in map(self.wanted.get, keys)]

    def run(self) -> None:
        order = self.reachable()
        if self.collecting:
            order = self.leading_to_wanted(order)
        for node in order:
            if node.saved is FREED:
                node.saved_tensors  # noqa: B018 - raises, before anything is changed
        self.watched = self.on_ready is not None or self.accumulating
        self.writing = not (self.create_graph or self.collecting)
        if self.watched:
            self.pending = self.consumers(order)
        with set_grad_enabled(self.create_graph):
            for root, gradient in self.roots:
                if root.creator is None:
                    self.reach(root, gradient)
                else:
                    self.arrive(root.creator, root.output_index, gradient)
            while order:
                self.visit(order.pop())

    def consumers(self, order: list[Op]) -> dict[Tensor, int]:
        """How often each leaf is used, as a root or by an operation of these."""
        pending = Counter(root for root, _ in self.roots if root.creator is None)
        for node in order:
            for edge in node.edges:
                if edge is not None and not isinstance(edge[0], Op):
                    pending[edge[0]] += 1
        return pending

    def reachable(self) -> list[Op]:
        """All operations behind the roots, in the order in which they ran."""
        found = dict.fromkeys(r.creator for r, _ in self.roots if r.creator is not None)
        todo = list(found)
        while todo:
            for edge in todo.pop().edges:
                if edge is not None:
                    target = edge[0]
                    if target not in found and isinstance(target, Op):
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

    def visit(self, node: Op) -> None:
        """Pass the gradients of a node's outputs on to its inputs."""
        outputs = self.arrived.pop(node, None)
        if self.collecting and outputs is not None:
            for index, g in enumerate(outputs):
                if (node, index) in self.wanted:
                    self.wanted[node, index] = g
            if node not in self.behind:
                return
        edges = node.edges
        if outputs is None:
            gradients = [None] * len(edges)
        else:
            gradients = node.gradients(outputs, self.writing)
        if node.saved and not self.retain:
            node.saved = FREED
        for position, g in enumerate(gradients):
            edge = edges[position]
            if edge is None:
                continue
            target, index, shape, dtype = edge
            if g is not None:
                if type(g) is not ndarray:
                    g = self.carried(g)
                if g.shape != shape or g.dtype is not dtype:
                    g = self.fitted(g, edge, type(node).__name__)
            if not isinstance(target, Op):
                self.reach(target, g, node.fresh)
            elif g is not None:
                if target.outputs is None and target not in self.arrived:
                    self.arrived[target] = [g]  # mostly there is one gradient to come
                else:
                    self.arrive(target, index, g)

    def carried(self, g):
        """A gradient in the form in which it travels."""
        if self.create_graph:
            return g
        return as_array(g.data if isinstance(g, Tensor) else g)

    def fitted(self, g, edge: tuple, name: str):
        """A gradient that broadcasting made larger, or of another number type, as the
        input has it; for a leaf, `reach` sees to the type."""
        target, _, shape, dtype = edge
        if g.shape != shape:
            check_sum_to(g.shape, shape, name)
            g = SumTo.apply(g, shape)
        if g.dtype != dtype and isinstance(target, Op):
            g = Cast.apply(g, dtype)
        return self.carried(g)

    def arrive(self, node: Op, index: int, g) -> None:
        """Add a gradient to what an output of an operation has received already."""
        slots = self.arrived.get(node)
        if slots is not None:
            slots[index] = self.added(slots[index], g)
        elif node.outputs is None:
            self.arrived[node] = [g]
        else:
            slots = self.arrived[node] = [None] * len(node.outputs)
            slots[index] = g

    def reach(self, leaf: Tensor, g, fresh: bool = False) -> None:
        """Give a leaf a consumer's gradient, if any; it is ready after the last one."""
        if g is not None:
            if g.dtype is not leaf.data.dtype:  # a copy's, under autocast
                g = self.carried(Cast.apply(g, leaf.data.dtype))
            if not self.collecting:
                leaf.accumulate(as_tensor(g), fresh)
            elif leaf in self.wanted:
                self.wanted[leaf] = self.added(self.wanted[leaf], g)
        if not self.watched:
            return
        self.pending[leaf] -= 1
        if self.pending[leaf] or self.collecting and leaf not in self.wanted:
            return
        if self.accumulating and self.wanted[leaf] is not None:
            leaf.accumulate(as_tensor(self.wanted[leaf]))
        if self.on_ready:
            self.on_ready(leaf)

    def added(self, before, g):
        """The sum of two gradients, the first of which may be missing."""
        return g if before is None else self.carried(Add.apply(before, g))


def as_tensor(g) -> Tensor:
    return g if isinstance(g, Tensor) else Tensor(g)
