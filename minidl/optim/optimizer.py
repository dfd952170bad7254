"""What all optimizers share: groups of parameters, flat state, and the step.

A rule (SGD, Adam, ...) is written once, for one flat vector. `step` calls it on the
longest stretches of flat storage whose parameters all have a gradient and have made
the same number of steps: in training, that is once a group.
"""

from minidl.array.device import to_device
from minidl.autograd.mode import enable_grad
from minidl.autograd.tensor import Tensor
from minidl.nn.parameter import FlatStorage, Parameter, flat_storages


class Optimizer:
    """Base of the rules.

    `params` are parameters, (name, parameter) pairs, or dicts with "params" and
    settings of their own. Building an optimizer moves each group's parameters into
    flat storage. A subclass names its state `buffers` and defines `update`.
    """

    buffers: tuple[str, ...] = ()

    def __init__(self, params, defaults: dict):
        self.defaults = defaults
        self.param_groups: list[dict] = []
        self.state: dict[Parameter, dict] = {}  # views of the flat buffers, and steps
        self.names: dict[Parameter, str] = {}
        self.flat: list[list] = []  # a group's [(storage, its flat buffers)]
        groups = list(params)
        if not groups:
            raise ValueError("the optimizer got an empty list of parameters")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters with settings of their own, to be trained from now on."""
        members = param_group["params"]
        members = [members] if isinstance(members, Tensor) else list(members)
        named = [m if isinstance(m, tuple) else (m.name, m) for m in members]
        unknown = [k for k in param_group if k not in (*self.defaults, "params")]
        if unknown:
            raise ValueError(f"{type(self).__name__} has no setting {unknown[0]!r}")
        for name, p in named:
            if not isinstance(p, Parameter):
                raise TypeError(
                    "an optimizer trains nn.Parameters, got "
                    f"{type(p).__name__}: wrap it, nn.Parameter(x)"
                )
            if p in self.state:
                raise ValueError(f"parameter {name!r} is in more than one group")
            self.state[p] = {}
            self.names[p] = name or f"param{len(self.names)}"
        group = {**self.defaults, **param_group, "params": [p for _, p in named]}
        self.check(group)
        self.param_groups.append(group)
        storages = flat_storages(group["params"])
        self.flat.append([(s, self.add_state(s, group)) for s in storages])

    def add_state(self, storage: FlatStorage, group: dict) -> dict:
        """Flat buffers with the layout of the storage, and each parameter's views."""
        flat = {name: storage.zeros() for name in self.buffers_of(group)}
        for p in storage.parameters:
            self.state[p] = {
                name: storage.view(buffer, p.offset, p.shape)
                for name, buffer in flat.items()
            }
            self.state[p].update(step=0)
        return flat

    def buffers_of(self, group: dict) -> tuple[str, ...]:
        """The names of the state that a group needs."""
        return self.buffers

    def check(self, group: dict) -> None:
        """Refuse settings that cannot be."""
        if not float(group["lr"]) >= 0:
            raise ValueError(f"lr must be 0 or more, got {group['lr']}")
        if not group.get("weight_decay", 0) >= 0:
            raise ValueError(
                f"weight_decay must be 0 or more, got {group['weight_decay']}"
            )

    def update(self, group: dict, step: int, p, g, **buffers) -> None:
        """The rule: change p and the buffers in place, given the gradient g."""
        raise NotImplementedError

    def step(self, closure=None):
        """Change the parameters by their gradients; those without one stay.

        `closure`, if given, computes the loss and its gradients, and is returned.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for group, storages in zip(self.param_groups, self.flat, strict=True):
            for storage, flat in storages:
                for start, stop, step in self.stretches(storage):
                    part = slice(start, stop)
                    buffers = {name: buffer[part] for name, buffer in flat.items()}
                    data, grad = storage.data[part], storage.grad[part]
                    self.update(group, step, data, grad, **buffers)
        return loss

    def stretches(self, storage: FlatStorage):
        """(start, stop, step) of neighbours with gradients and equal step counts."""
        start = stop = step = None
        for p in storage.parameters:
            if p.storage is not storage:
                raise RuntimeError(
                    f"parameter {self.names[p]!r} has left the storage of this "
                    "optimizer: build optimizers after moving or sharing a model"
                )
            if p.grad is None:
                continue
            state = self.state[p]
            state["step"] += 1
            if stop is not None and (p.offset != stop or state["step"] != step):
                yield start, stop, step
                start = None
            if start is None:
                start, step = p.offset, state["step"]
            stop = storage.end(p)
        if start is not None:
            yield start, stop, step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with set_to_none=False they become zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or p.grad is None:
                    p.grad = None
                else:
                    p.grad.data[...] = 0

    def state_dict(self) -> dict:
        """The state by parameter name, and each group's settings.

        {"state": {name: {buffer: Tensor, "step": int}}, "param_groups": [{setting:
        value, "params": [names]}]}; PyTorch numbers the parameters instead.
        """
        state = {
            self.names[p]: {
                k: v if k == "step" else Tensor(v) for k, v in values.items()
            }
            for p, values in self.state.items()
        }
        groups = [
            {**settings(group), "params": [self.names[p] for p in group["params"]]}
            for group in self.param_groups
        ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a state; raises ValueError, changing nothing, if it does not fit."""
        groups, state = state_dict["param_groups"], state_dict["state"]
        own = [[self.names[p] for p in group["params"]] for group in self.param_groups]
        if own != [list(group["params"]) for group in groups]:
            raise ValueError("the optimizer's state has other parameters or groups")
        for p, values in self.state.items():
            given = state.get(self.names[p], {})
            for key, value in values.items():
                if key not in given:
                    raise ValueError(f"the state of {self.names[p]!r} lacks {key!r}")
                if key != "step" and tuple(given[key].shape) != value.shape:
                    raise ValueError(
                        f"the state {key!r} of {self.names[p]!r} has shape "
                        f"{tuple(given[key].shape)}, expected {value.shape}"
                    )
        for p, values in self.state.items():
            given = state[self.names[p]]
            for key, value in values.items():
                if key == "step":
                    values[key] = int(given[key])
                else:
                    array = getattr(given[key], "data", given[key])
                    value[...] = to_device(array, p.device)
        for group, given in zip(self.param_groups, groups, strict=True):
            group.update(settings(given))

    def __repr__(self) -> str:
        groups = "; ".join(
            ", ".join(f"{k}={v}" for k, v in settings(group).items())
            for group in self.param_groups
        )
        return f"{type(self).__name__}({groups})"


def settings(group: dict) -> dict:
    """The settings of a group, without its parameters."""
    return {k: v for k, v in group.items() if k != "params"}
