"""Module: a tree of parameters and buffers with a forward."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from minidl.array.device import canonical_device, is_array, to_device
from minidl.array.dtypes import is_floating_point
from minidl.autograd.tensor import Tensor
from minidl.nn.parameter import Parameter
from minidl.nn.registry import Registry


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(strict=False)` did not find, and did not know."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module(Registry):
    """Base of all layers and models, as in PyTorch.

    Parameters, buffers and modules that are assigned as attributes are registered,
    in the order of assignment, which is the order of everything: names, flat storage,
    buckets and files.
    """

    training: bool

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs, **options):
        return self.forward(*inputs, **options)

    # The tree ---------------------------------------------------------------------

    def named_modules(self, memo=None, prefix: str = "") -> Iterator:
        """This module and all below it, each once, with its dotted name."""
        memo = {} if memo is None else memo
        if id(self) in memo:
            return
        memo[id(self)] = self
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(memo, join(prefix, name))

    def modules(self) -> Iterator["Module"]:
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator:
        return ((n, m) for n, m in self._modules.items() if m is not None)

    def children(self) -> Iterator["Module"]:
        return (module for _, module in self.named_children())

    def _named(self, kind: str, prefix: str, recurse: bool, once: bool) -> Iterator:
        seen: dict = {}
        found = self.named_modules(prefix=prefix) if recurse else [(prefix, self)]
        for path, module in found:
            for name, value in module.__dict__[kind].items():
                if value is not None and not (once and id(value) in seen):
                    seen[id(value)] = value
                    yield join(path, name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their dotted names, in order, a shared one once."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters, in order; each is told its name on the way."""
        for name, p in self.named_parameters(recurse=recurse):
            p.name = name
            yield p

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    # The state --------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """All parameters and persistent buffers by name, as Tensors on their arrays."""
        state = {}
        for name, p in self._parameters.items():
            if p is not None:
                state[prefix + name] = p.detach()
        for name, buffer in self._buffers.items():
            if buffer is not None and name not in self._transient:
                state[prefix + name] = buffer.detach()
        for name, module in self.named_children():
            state.update(module.state_dict(f"{prefix}{name}."))
        return state

    def load_state_dict(self, state_dict, strict: bool = True) -> IncompatibleKeys:
        """Copy values (Tensors or arrays) in by name.

        Raises RuntimeError, before anything is changed, for shapes that differ and,
        if `strict`, for names that are missing or unknown.
        """
        own = self.state_dict()
        given = {name: array_of(value) for name, value in state_dict.items()}
        missing = [name for name in own if name not in given]
        unexpected = [name for name in given if name not in own]
        wrong = [
            f"{name} has shape {own[name].shape} here and {given[name].shape} there"
            for name in own
            if name in given and own[name].shape != given[name].shape
        ]
        if strict:
            wrong += [f"{name} is missing" for name in missing]
            wrong += [f"{name} is unknown here" for name in unexpected]
        if wrong:
            raise RuntimeError(
                f"the state does not fit {type(self).__name__}: {'; '.join(wrong)}"
            )
        for name, tensor in own.items():
            if name in given:
                tensor.data[...] = to_device(given[name], tensor.device)
        for storage in dict.fromkeys(p.storage for p in self.parameters()):
            if storage is not None:
                storage.renew_low()
        return IncompatibleKeys(missing, unexpected)

    # The mode, the place, the type ------------------------------------------------

    def train(self, mode: bool = True) -> "Module":
        """Behave as in training (dropout, batch statistics), or not."""
        for module in self.modules():
            module.__dict__["training"] = bool(mode)
        return self

    def eval(self) -> "Module":
        """Behave as in evaluation."""
        return self.train(False)

    def apply(self, fn: Callable[["Module"], None]) -> "Module":
        """Call fn on every module, children first."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or set them to zero."""
        for p in self.parameters():
            if set_to_none or p.grad is None:
                p.grad = None
            else:
                p.grad.data[...] = 0

    def requires_grad_(self, requires_grad: bool = True) -> "Module":
        """Whether the parameters are trained."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def to(self, device=None, dtype=None) -> "Module":
        """Move to a device, cast floating-point values to a type; returns the module.

        Do this before building an optimizer: parameters leave their flat storage.
        """
        if device is not None and not isinstance(device, str):
            device, dtype = None, device
        place = None if device is None else canonical_device(device)
        for tensor in [*self.parameters(), *self.buffers()]:
            array = tensor.data if place is None else to_device(tensor.data, place)
            if dtype is not None and is_floating_point(array.dtype):
                array = array.astype(dtype, copy=False)
            if array is not tensor.data:
                tensor.move(array)
        return self

    def __repr__(self) -> str:
        name, extra = type(self).__name__, self.extra_repr()
        children = [f"({key}): {module!r}" for key, module in self.named_children()]
        if not children:
            return f"{name}({extra})"
        body = "\n".join(filter(None, [extra, *children])).replace("\n", "\n  ")
        return f"{name}(\n  {body}\n)"

    def extra_repr(self) -> str:
        """The settings of a layer, for its representation."""
        return ""


def array_of(value):
    """The array of a Tensor, an array itself, or what NumPy makes of anything else."""
    value = value.data if isinstance(value, Tensor) else value
    return value if is_array(value) else np.asarray(value)


def join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
