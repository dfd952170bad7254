"""What all optimizers share: groups of parameters, their flat state, and the step.

A rule (SGD, Adam, ...) is written once, for one flat vector. `step` calls it on the
longest runs of flat storage whose parameters all have a gradient and have always
stepped together: in training, that is once a group.
"""

from minidl.array import euclid
from minidl.array.device import Array, device_of, is_array, on_gpu, to_device
from minidl.autograd.mode import enable_grad
from minidl.autograd.tensor import Tensor
from minidl.optim import groups, state
from minidl.optim.clip import gradients
from minidl.optim.clock import Clock
from minidl.optim.flat import FlatState, gathered, runs
from minidl.optim.rule import Rule
from minidl.optim.trace import Trace, trace

NOT_NEGATIVE = (
    "lr eps weight_decay momentum alpha lr_decay momentum_decay "
    "initial_accumulator_value"
).split()


class Optimizer:
    """Base of the rules.

    `params` are parameters, (name, parameter) pairs, or dicts with "params" and
    settings of their own. Parameters that lie in no flat storage yet are moved into
    one, a storage a group; those that do stay where they are. Plain leaf Tensors are
    trained too, each by a launch of its own.

    The next steps divide the gradients by `grad_scale`; where `found_inf` is over 0,
    they change nothing. Both may be one-element arrays: a GradScaler sets them. With a
    `max_norm` each step clips as `clip_grad_norm_` does, without a pass over the
    gradients, which stay as they are; a norm that is not finite leaves out the step.

    On a GPU a step waits for nothing, and is launches alone: it can be captured in a
    CUDA graph. `refresh` says what is to be done before such a step is replayed.

    A subclass defines `rule`.
    """

    counters: dict = {"step": 0}  # what a parameter's state counts besides its arrays
    overflow: bool | None = None  # what all ranks know of gradients; None: look there
    grad_scale: float | Array | None = None
    found_inf: float | Array | None = None
    max_norm: float | None = None

    def __init__(self, params, defaults: dict):
        if isinstance(params, Tensor):
            raise TypeError("params must be a list of parameters, got one Tensor")
        self.defaults = defaults
        self.param_groups: list[dict] = []
        self.state: dict[Tensor, dict] = {}  # counters, and Tensors on the flat state
        self.names: dict[Tensor, str] = {}
        self.flat: list[list[FlatState]] = []  # of each group, a number type each
        if hasattr(params, "parameters"):
            raise TypeError(
                "an optimizer takes model.parameters(), not the model: got "
                f"{type(params).__name__}"
            )
        given = list(params)
        if not given:
            raise ValueError("the optimizer got an empty list of parameters")
        for group in given if isinstance(given[0], dict) else [{"params": given}]:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters with settings of their own, to be trained from now on."""
        named = groups.named(param_group["params"])
        group = {**self.defaults, **param_group, "params": [p for _, p in named]}
        self.check(group)
        groups.admit(named, self.state)
        taken = dict.fromkeys(self.names.values())
        for name, p in named:
            self.names[p] = groups.unique(name or f"param{len(taken)}", taken)
            self.state[p] = {}
        self.param_groups.append(group)
        kinds = gathered(group["params"])
        self.flat.append([FlatState(k, self.counters, self.state) for k in kinds])
        for flat in self.flat[-1]:
            self.buffers(group, flat)

    def buffers(self, group: dict, flat: FlatState) -> list:
        """The flat state that the group's rule works on; what is missing is made."""
        names = self.rule(group).state
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

    def rule(self, group: dict) -> Rule:
        """The rule for these settings."""
        raise NotImplementedError

    def settings(self, group: dict) -> dict:
        """The settings that the group's rule knows by name, each a number."""
        values = {"decoupled_weight_decay": False, **group}
        values["max_norm"] = 1 if self.max_norm is None else self.max_norm
        if "betas" in group:
            values["beta1"], values["beta2"] = group["betas"]
        return {name: values[name] for name in self.rule(group).settings}

    def initial(self, group: dict, name: str) -> float:
        """What a new state is filled with."""
        return 0.0

    def explain(self, group: dict, state: dict, values: dict) -> dict:
        """What `trace` shows of a weight's new state, by name.

        `state` are the counters and the rule's numbers.
        """
        return values

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
        self.refresh()
        known = self.known()
        for group, flats in zip(self.param_groups, self.flat, strict=True):
            for flat in flats:
                self.step_flat(group, flat, known)
        return loss

    def refresh(self) -> None:
        """Bring settings that the host has changed since the last step to the device.

        `step` does this itself. A captured step does not see what Python does: call
        `refresh` before each replay, on the stream of the replay. It launches one
        kernel for each number that has changed, and waits for nothing.
        """
        for group, flats in zip(self.param_groups, self.flat, strict=True):
            for flat in flats:
                flat.settings.refresh(self.settings(group))

    def known(self) -> dict:
        """What this step knows of the gradients, for every rule alike."""
        return {
            "divisor": 1.0 if self.grad_scale is None else self.grad_scale,
            "found": 0.0 if self.found_inf is None else self.found_inf,
            "norm": 0.0 if self.max_norm is None else self.gradient_norm()[0],
        }

    def gradient_norm(self) -> tuple:
        """The norm of all gradients as they are, and whether it is not finite."""
        return euclid.norm(gradients(self.state))

    def advance(self, group: dict, flat: FlatState, clock: Clock, known: dict) -> dict:
        """Count a step; the numbers that the rule needs in it."""
        given = dict(flat.settings)
        for name, value in known.items():
            given[name] = value if type(value) is float else placed(value, flat.like)
        return clock.advance(self.rule(group), given, flat.compute)

    def step_flat(self, group: dict, flat: FlatState, known: dict) -> None:
        rule, buffers = self.rule(group), self.buffers(group, flat)
        flat.part_ways()
        numbers: dict[Clock, dict] = {}
        for run in runs(flat.parameters, flat.together):
            clock = flat.clocks[run.first]
            if clock not in numbers:
                numbers[clock] = self.advance(group, flat, clock, known)
            parts = [flat.part(buffer, run) for buffer in buffers]
            rule(run.grad, run.data, parts, numbers[clock], run.low)

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
        settings = "; ".join(
            ", ".join(f"{k}={v}" for k, v in state.settings(group).items())
            for group in self.param_groups
        )
        return f"{type(self).__name__}({settings})"


def placed(value, like: Array) -> float | Array:
    """A number, or a one-element array on the device of an array; on a CPU a number."""
    if on_gpu(value):
        value = to_device(value, device_of(like))
    return value if on_gpu(value) else float(value.item() if is_array(value) else value)
