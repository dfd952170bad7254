"""An optimizer's state as a dict by parameter name, and back."""

from minidl.array.device import to_device
from minidl.autograd.tensor import Tensor


def settings(group: dict) -> dict:
    """The settings of a group, without its parameters."""
    return {k: v for k, v in group.items() if k != "params"}


def collect(optimizer) -> dict:
    """What `Optimizer.state_dict` returns; its Tensors are the state itself."""
    names = optimizer.names
    counts = counted(optimizer)
    return {
        "state": {
            names[p]: {**values, **counts[p]} for p, values in optimizer.state.items()
        },
        "param_groups": [
            {**settings(group), "params": [names[p] for p in group["params"]]}
            for group in optimizer.param_groups
        ],
    }


def counted(optimizer) -> dict[Tensor, dict]:
    """What each parameter's state counts, as numbers; a clock is read once."""
    kinds = {name: type(start) for name, start in optimizer.counters.items()}
    counts = {}
    for flat in sum(optimizer.flat, []):
        read = {clock: clock.values() for clock in dict.fromkeys(flat.clocks.values())}
        for p, clock in flat.clocks.items():
            pairs = zip(kinds.items(), read[clock], strict=True)
            counts[p] = {name: kind(value) for (name, kind), value in pairs}
    return counts


def load(optimizer, state_dict: dict) -> None:
    """Copy a state in, after everything about it was found to fit."""
    groups, values = state_dict["param_groups"], state_dict["state"]
    names = optimizer.names
    own = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    if own != [list(group["params"]) for group in groups]:
        raise ValueError("the optimizer's state has other parameters or groups")
    merged = [
        {**group, **settings(given)}
        for group, given in zip(optimizer.param_groups, groups, strict=True)
    ]
    for group in merged:
        optimizer.check(group)
        for p in group["params"]:
            check(optimizer, group, names[p], p.shape, values.get(names[p], {}))
    for group, new, flats in zip(
        optimizer.param_groups, merged, optimizer.flat, strict=True
    ):
        group.update(new)
        for flat in flats:
            optimizer.buffers(group, flat)
            flat.set_counts({p: values[names[p]] for p in flat.parameters})
        for p in group["params"]:
            given = values[names[p]]
            for key, value in optimizer.state[p].items():
                if key not in optimizer.counters and key in given:
                    value.data[...] = to_device(array_of(given[key]), p.device)


def check(optimizer, group: dict, name: str, shape: tuple, given: dict) -> None:
    """Raise ValueError unless `given` is a state of a parameter of this shape."""
    for key in (*optimizer.counters, *optimizer.rule(group).state):
        if key not in given:
            raise ValueError(f"the state of {name!r} lacks {key!r}")
        if key not in optimizer.counters and tuple(given[key].shape) != shape:
            raise ValueError(
                f"the state {key!r} of {name!r} has shape {tuple(given[key].shape)}, "
                f"expected {shape}"
            )


def array_of(value):
    return value.data if isinstance(value, Tensor) else value
