"""What all optimizers share: groups of parameters, their flat state, and the step.

A rule (SGD, Adam, ...) is written once, for one flat vector. `step` calls it on the
longest runs of flat storage whose parameters all have a gradient and have made the
same number of steps: in training, that is once a group.
"""

from minidl.array.kernel import Kernel
from minidl.autograd.mode import enable_grad
from minidl.autograd.tensor import Tensor
from minidl.optim import state
from minidl.optim.flat import FlatState, gathered, runs
from minidl.optim.trace import Trace, trace

NOT_NEGATIVE = (
    "lr eps weight_decay momentum alpha lr_decay momentum_decay "
    "initial_accumulator_value"
).split()


def rule(name: str, state: str, scalars: str, body: str) -> Kernel:
    """The kernel of a rule: `body` changes p and the state, given the descent d.

    d = g + weight_decay p, with -g for g when maximizing; with decoupled weight decay
    d = g, and p has already lost lr weight_decay p.
    """
    return Kernel(
        name,
        inputs="g",
        outputs=f"p {state}",
        scalars=f"sign decay fade {scalars}",
        body="auto d = sign * g + decay * p; p -= fade * p;" + body,
    )


class Optimizer:
    """Base of the rules.

    `params` are parameters, (name, parameter) pairs, or dicts with "params" and
    settings of their own. Parameters that lie in no flat storage yet are moved into
    one, a storage a group; those that do stay where they are. Plain leaf Tensors are
    trained too, each by a launch of its own.

    A subclass defines `kernel` and `scalars`.
    """

    counters: dict = {"step": 0}  # what a parameter's state counts besides its arrays
    overflow: bool | None = None  # what all ranks know of gradients; None: look there

    def __init__(self, params, defaults: dict):
        if isinstance(params, Tensor):
            raise TypeError("params must be a list of parameters, got one Tensor")
        self.defaults = defaults
        self.param_groups: list[dict] = []
        self.state: dict[Tensor, dict] = {}  # counters, and Tensors on the flat state
        self.names: dict[Tensor, str] = {}
        self.flat: list[list[FlatState]] = []  # of each group, a number type each
        groups = list(params)
        if not groups:
            raise ValueError("the optimizer got an empty list of parameters")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters with settings of their own, to be trained from now on."""
        given = param_group["params"]
        given = [given] if isinstance(given, Tensor) else list(given)
        named = [
            m if isinstance(m, tuple) else (getattr(m, "name", ""), m) for m in given
        ]
        group = {**self.defaults, **param_group, "params": [p for _, p in named]}
        self.check(group)
        known = dict.fromkeys(self.state)
        for name, p in named:
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"an optimizer trains Tensors, got {type(p).__name__}: "
                    "wrap it, nn.Parameter(x)"
                )
            if not p.is_leaf:
                raise ValueError("an optimizer cannot train the result of an operation")
            if p in known:
                raise ValueError(f"parameter {name!r} was given more than once")
            known[p] = None
        taken = dict.fromkeys(self.names.values())
        for name, p in named:
            self.names[p] = unique(name or f"param{len(taken)}", taken)
            self.state[p] = dict(self.counters)
        self.param_groups.append(group)
        self.flat.append(list(map(FlatState, gathered(group["params"]))))
        for flat in self.flat[-1]:
            self.buffers(group, flat)

    def buffers(self, group: dict, flat: FlatState) -> list:
        """The flat state that the group's rule works on; what is missing is made."""
        names = self.kernel(group).outputs[1:]
        for name in names:
            if name not in flat.buffers:
                flat.add(name, self.initial(group, name))
                for p in flat.parameters:
                    self.state[p][name] = Tensor(flat.view(name, p))
        return [flat.buffers[name] for name in names]

    def check(self, group: dict) -> None:
        """Refuse settings that cannot be."""
        for name in NOT_NEGATIVE:
            if name in group and not float(group[name]) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {group[name]}")
        if not all(0 <= beta < 1 for beta in group.get("betas", ())):
            raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")

    # The rule ---------------------------------------------------------------------

    def kernel(self, group: dict) -> Kernel:
        """The kernel for these settings; its outputs are p and the names of the state.

        Its scalars are numbers or one-element arrays.
        """
        raise NotImplementedError

    def scalars(self, group: dict, state: dict) -> dict:
        """The kernel's scalars in this step, without those that `rule` adds."""
        return {"lr": float(group["lr"])}

    def initial(self, group: dict, name: str) -> float:
        """What a new state is filled with."""
        return 0.0

    def advance(self, group: dict, state: dict) -> None:
        """Count a step of a parameter."""
        state["step"] += 1

    def explain(self, group: dict, state: dict, values: dict) -> dict:
        """What `trace` shows of a weight's new state, by name."""
        return values

    def update(self, group: dict, state: dict, p, g, buffers) -> None:
        """Change p and the buffers in place; arrays of one shape, in their order."""
        decay = group.get("weight_decay", 0)
        decoupled = group.get("decoupled_weight_decay", False)
        self.kernel(group)(
            g,
            out=(p, *buffers) if buffers else p,
            sign=-1.0 if group["maximize"] else 1.0,
            decay=0.0 if decoupled else decay,
            fade=float(group["lr"]) * decay if decoupled else 0.0,
            **self.scalars(group, state),
        )

    # The step ---------------------------------------------------------------------

    def step(self, closure=None):
        """Change the parameters by their gradients; those without one stay.

        `closure`, if given, computes the loss and its gradients, and is returned.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for flats in self.flat:
            for flat in flats:
                flat.check(self.names)
        for group, flats in zip(self.param_groups, self.flat, strict=True):
            for flat in flats:
                self.step_flat(group, flat)
        return loss

    def step_flat(self, group: dict, flat: FlatState) -> None:
        states, counters = self.state, list(self.counters)

        def alike(p, q):
            p_state, q_state = states[p], states[q]
            for name in counters:
                if p_state[name] != q_state[name]:
                    return False
            return flat.adjacent(p, q)

        buffers = self.buffers(group, flat)
        for p in flat.parameters:
            if p.grad is not None:
                self.advance(group, states[p])
        for run in runs(flat.parameters, alike):
            parts = [flat.part(buffer, run) for buffer in buffers]
            self.update(group, states[run.first], run.data, run.grad, parts)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with set_to_none=False those there become zeros."""
        if not set_to_none:
            for run in runs(self.state):  # one fill a run
                run.grad[...] = 0
            return
        for p in self.state:
            p.grad = None

    def trace(self, param: Tensor, index) -> Trace:
        """What `step` would now do to one weight; nothing is changed.

        `index` is a tuple, or an integer that counts the weights row by row. To be
        called between `backward` and `step`. The result prints as a table; its numbers
        are attributes: `step`, `weight`, `g`, the new state (of Adam `m v m_hat v_hat
        denominator`), `update`, `new_weight`.
        """
        return trace(self, param, index)

    # The state --------------------------------------------------------------------

    def state_dict(self) -> dict:
        """The state by parameter name, and each group's settings.

        {"state": {name: {buffer: Tensor, "step": int}}, "param_groups": [{setting:
        value, "params": [names]}]}; PyTorch numbers the parameters instead. A name that
        occurs again has "@2", "@3", ... appended.
        """
        return state.collect(self)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a state; raises ValueError, changing nothing, if it does not fit.

        Values may be Tensors or arrays, of any device.
        """
        state.load(self, state_dict)

    def __repr__(self) -> str:
        groups = "; ".join(
            ", ".join(f"{k}={v}" for k, v in state.settings(group).items())
            for group in self.param_groups
        )
        return f"{type(self).__name__}({groups})"


def unique(name: str, taken: dict) -> str:
    """The name, or name@2, name@3, ... where it is taken; it is taken from now on."""
    choice, number = name, 1
    while choice in taken:
        number += 1
        choice = f"{name}@{number}"
    taken[choice] = None
    return choice
