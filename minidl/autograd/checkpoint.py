"""Memory for time: forward keeps nothing for backward, and backward runs it again.

The graph is the one that the function would have made anyway, so parameters used
inside are seen and every consumer is counted; only what its nodes saved is missing.
The first of them that is asked for it runs the function once more and hands each node
what its twin has saved.

Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

from contextvars import copy_context
from weakref import ref

from minidl.array.random import default_generator
from minidl.autograd.mode import recording


def checkpoint(
    function,
    *args,
    use_reentrant: bool = False,
    preserve_rng_state: bool = True,
    **kwargs,
):
    """function(*args, **kwargs), computed a second time in backward.

    Random numbers drawn from the default generator are the same both times, unless
    `preserve_rng_state` is False. What else the function changes, such as running
    statistics, it changes twice. Raises ValueError for `use_reentrant=True`, which
    is not offered, and RuntimeError in backward if the function does something else
    the second time.
    """
    if use_reentrant:
        raise ValueError("checkpoint offers use_reentrant=False only")
    if not recording.get():
        return function(*args, **kwargs)
    segment = Segment(function, args, kwargs, preserve_rng_state)
    before = recording.get()
    recording.set(segment)
    try:
        return function(*args, **kwargs)
    finally:
        recording.set(before)


class Segment:
    """One call of a checkpointed function."""

    def __init__(self, function, args, kwargs, preserve_rng_state):
        self.function, self.args, self.kwargs = function, args, kwargs
        self.context = copy_context()  # as autocast, which may have ended by then
        self.state = default_generator().state if preserve_rng_state else None
        self.kept: list = []  # in the order of the nodes; weak, for they know us
        self.kinds: list[type] = []

    def keep(self, node) -> None:
        """Forget what a node has saved."""
        node.saved = Later(self)
        self.kept.append(ref(node.saved))
        self.kinds.append(type(node))

    def recompute(self) -> None:
        """Run the function again and hand out what its nodes save."""
        twins = Twins()
        generator = default_generator()
        state = generator.state
        try:
            if self.state is not None:
                generator.state = self.state
            self.context.run(self.run, twins)
        finally:
            if self.state is not None:
                generator.state = state
        if twins.kinds != self.kinds:
            raise RuntimeError(
                "a checkpointed function did something else when it was run again: "
                f"{len(self.kinds)} operations saved arrays the first time, "
                f"{len(twins.kinds)} the second, or others did"
            )
        for kept, saved in zip(self.kept, twins.saved, strict=True):
            later = kept()
            if later is not None:
                later.saved, later.segment = saved, None

    def run(self, twins: "Twins") -> None:
        recording.set(twins)
        self.function(*self.args, **self.kwargs)


class Twins:
    """What the nodes of the second run have saved."""

    def __init__(self):
        self.saved: list[list] = []
        self.kinds: list[type] = []

    def keep(self, node) -> None:
        self.saved.append(node.saved)
        self.kinds.append(type(node))


class Later:
    """What a node has saved, once somebody asks."""

    def __init__(self, segment: Segment):
        self.segment = segment
        self.saved = None

    def __iter__(self):
        if self.saved is None:
            self.segment.recompute()
        return iter(self.saved)
