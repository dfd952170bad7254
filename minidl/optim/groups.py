"""What may be given to an optimizer to train, and under which names."""

from collections.abc import Iterable

from minidl.autograd.tensor import Tensor


def named(given: Tensor | Iterable) -> list[tuple[str, Tensor]]:
    """Parameters, or (name, parameter) pairs, all as pairs; "" is no name."""
    given = [given] if isinstance(given, Tensor) else list(given)
    return [m if isinstance(m, tuple) else (getattr(m, "name", ""), m) for m in given]


def admit(pairs: list[tuple[str, Tensor]], known: Iterable[Tensor]) -> None:
    """Raise TypeError or ValueError for what cannot be trained beside those known."""
    known = dict.fromkeys(known)
    for name, p in pairs:
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


def unique(name: str, taken: dict) -> str:
    """The name, or name@2, name@3, ... where it is taken; it is taken from now on."""
    choice, number = name, 1
    while choice in taken:
        number += 1
        choice = f"{name}@{number}"
    taken[choice] = None
    return choice
