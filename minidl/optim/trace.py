"""One weight's step, number by number."""

from types import SimpleNamespace

from minidl.autograd.tensor import Tensor


class Trace(SimpleNamespace):
    """The numbers of one weight in one step; prints as a table, a number a line."""

    def __str__(self) -> str:
        width = max(map(len, vars(self)))
        return "\n".join(f"{k:<{width}}  {v:.9g}" for k, v in vars(self).items())

    __repr__ = __str__


def trace(optimizer, param: Tensor, index) -> Trace:
    """Run the rule itself on copies of one element; `Optimizer.trace` says more."""
    for group in optimizer.param_groups:
        if any(p is param for p in group["params"]):
            break
    else:
        raise ValueError("this optimizer does not train that parameter")
    if param.grad is None:
        raise RuntimeError("there is no gradient to trace: call backward first")

    def cell(array):
        one = array[index] if isinstance(index, tuple) else array.reshape(-1)[index]
        if one.size != 1:
            raise IndexError(f"{index} is not the index of one weight")
        return one.reshape(1).copy()

    held = optimizer.state[param]
    state = {name: held[name] for name in optimizer.counters}
    optimizer.advance(group, state)
    names = optimizer.kernel(group).outputs[1:]
    weight, g = cell(param.data), cell(param.grad.data)
    old = weight.item()
    buffers = [cell(held[name].data) for name in names]
    optimizer.update(group, state, weight, g, buffers)
    values = {k: v.item() for k, v in zip(names, buffers, strict=True)}
    return Trace(
        step=state["step"],
        weight=old,
        g=g.item(),
        **optimizer.explain(group, state, values),
        update=weight.item() - old,
        new_weight=weight.item(),
    )
