"""Modules that hold modules."""

from minidl.nn.activation import ReLU
from minidl.nn.convolution import Conv
from minidl.nn.layers import Linear
from minidl.nn.module import Module


class Sequential(Module):
    """Modules one after the other; a dict gives them names.

    A linear layer or a convolution with a ReLU after it computes both at once.
    """

    def __init__(self, *modules):
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], dict):
            named = modules[0].items()
        else:
            named = ((str(i), m) for i, m in enumerate(modules))
        for name, module in named:
            self.register_module(name, module)

    def forward(self, input):
        waiting = None  # a layer that may compute the module after it too
        for module in self.children():
            if waiting is not None:
                relu = type(module) is ReLU
                input = waiting(input, relu=relu)
                waiting = None
                if relu:
                    continue
            if type(module).forward in (Conv.forward, Linear.forward):
                waiting = module
            else:
                input = module(input)
        return input if waiting is None else waiting(input)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self):
        return iter(self._modules.values())

    def __getitem__(self, index):
        if isinstance(index, slice):
            return type(self)(dict(list(self._modules.items())[index]))
        return list(self._modules.values())[index]

    def append(self, module: Module) -> "Sequential":
        """Add one at the end."""
        self.register_module(str(len(self)), module)
        return self


class ModuleList(Module):
    """Modules in a list, registered under their positions."""

    def __init__(self, modules=None):
        super().__init__()
        self.extend(() if modules is None else modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self):
        return iter(self._modules.values())

    def __contains__(self, module) -> bool:
        return any(module is own for own in self)

    def __getitem__(self, index):
        found = list(self)[index]
        return type(self)(found) if isinstance(index, slice) else found

    def __setitem__(self, index: int, module: Module) -> None:
        self.register_module(str(range(len(self))[index]), module)

    def __delitem__(self, index) -> None:
        kept = list(self)
        del kept[index]
        self._modules.clear()
        self.extend(kept)

    def __add__(self, other) -> "ModuleList":
        return type(self)([*self, *other])

    def __iadd__(self, modules) -> "ModuleList":
        return self.extend(modules)

    def append(self, module: Module) -> "ModuleList":
        """Add one at the end."""
        self.register_module(str(len(self)), module)
        return self

    def extend(self, modules) -> "ModuleList":
        """Add several at the end."""
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Put one before the position."""
        modules = list(self)
        modules.insert(index, module)
        self._modules.clear()
        self.extend(modules)

    def pop(self, index: int = -1) -> Module:
        """Take one out."""
        module = self[index]
        del self[index]
        return module
