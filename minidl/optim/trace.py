"""One weight's step, number by number."""

from types import SimpleNamespace

from minidl.array.device import is_array
from minidl.autograd.tensor import Tensor


class Trace(SimpleNamespace):
    """The numbers of one weight in one step; prints as a table, a number a line."""

    def __str__(self) -> str:
        width = max(map(len, vars(self)))
        return "\n".join(f"{k:<{width}}  {v:.9g}" for k, v in vars(self).items())

    __repr__ = __str__


def trace(optimizer, param: Tensor, index) -> Trace:
    """Run the rule itself on copies of one element; `Optimizer.trace` says more."""
    homes = zip(optimizer.param_groups, optimizer.flat, strict=True)
    own = [(g, flat) for g, flats in homes for flat in flats if param in flat.clocks]
    if not own:
        raise ValueError("this optimizer does not train that parameter")
    group, flat = own[0]
    if param.grad is None:
        raise RuntimeError("there is no gradient to trace: call backward first")

    def cell(array):
        one = array[index] if isinstance(index, tuple) else array.reshape(-1)[index]
        if one.size != 1:
            raise IndexError(f"{index} is not the index of one weight")
        return one.reshape(1).copy()

    rule, held = optimizer.rule(group), optimizer.state[param]
    weight, g = cell(param.data), cell(param.grad.data)
    old = weight.item()
    buffers = [cell(held[name].data) for name in rule.state]
    optimizer.refresh()
    clock = flat.clocks[param].split()
    numbers = optimizer.advance(group, flat, clock, optimizer.known())
    rule(g, weight, buffers, numbers)
    values = {k: v.item() for k, v in zip(rule.state, buffers, strict=True)}
    state = {k: v.item() if is_array(v) else v for k, v in numbers.items()}
    state |= zip(optimizer.counters, clock.values(), strict=True)
    return Trace(
        step=int(state["step"]),
        weight=old,
        g=g.item(),
        **optimizer.explain(group, state, values),
        update=weight.item() - old,
        new_weight=weight.item(),
    )
