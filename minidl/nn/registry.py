"""What a Module holds, by name: parameters, buffers and modules, in their order."""

from minidl.autograd.tensor import Tensor
from minidl.nn.parameter import Parameter


class Registry:
    """Parameters and modules that are assigned as attributes are registered, and so
    is whatever replaces something registered, at its place in the order."""

    def __init__(self):
        self.__dict__.update(training=True, _parameters={}, _buffers={}, _modules={})
        self.__dict__["_transient"] = {}  # names of buffers that are not saved

    def __setattr__(self, name: str, value) -> None:
        tables = self._tables(name)
        if isinstance(value, Parameter):
            kind = "_parameters"
        elif isinstance(value, Registry):
            kind = "_modules"
        else:
            kind = next((k for k, table in tables.items() if name in table), None)
        if kind is None:
            object.__setattr__(self, name, value)
            return
        check_kind(kind, name, value)
        for other, table in tables.items():
            if other != kind:
                table.pop(name, None)
        self.__dict__.pop(name, None)
        tables[kind][name] = value

    def _tables(self, name: str) -> dict[str, dict]:
        if "_modules" not in self.__dict__:
            raise AttributeError(
                f"{type(self).__name__}: call super().__init__() before setting "
                f"{name!r}"
            )
        return {kind: self.__dict__[kind] for kind in KINDS}

    def __getattr__(self, name: str):
        for kind in KINDS:
            table = self.__dict__.get(kind, {})
            if name in table:
                return table[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for table in self._tables(name).values():
            if name in table:
                del table[name]
                self._transient.pop(name, None)
                return
        object.__delattr__(self, name)

    def __dir__(self):
        tables = self._tables("").values()
        return [*super().__dir__(), *(name for table in tables for name in table)]

    def register_buffer(
        self, name: str, tensor: Tensor | None, persistent=True
    ) -> None:
        """Keep a Tensor that is part of the state but is not trained.

        One that is not persistent is not in the state_dict.
        """
        self._register("_buffers", name, tensor)
        self._transient.pop(name, None)
        if not persistent:
            self._transient[name] = None

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Register a parameter by name; None holds the place of one that is absent."""
        self._register("_parameters", name, param)

    def register_module(self, name: str, module: "Registry | None") -> None:
        """Register a module by name."""
        self._register("_modules", name, module)

    add_module = register_module

    def _register(self, kind: str, name: str, value) -> None:
        table = self._tables(name)[kind]
        check_kind(kind, name, value)
        if "." in name or not name:
            raise KeyError(f"a name must not be empty or contain a dot, got {name!r}")
        if name not in table and hasattr(self, name):
            raise KeyError(f"{type(self).__name__} has an attribute {name!r} already")
        table[name] = value


KINDS = {
    "_parameters": ("Parameter", Parameter),
    "_buffers": ("Tensor", Tensor),
    "_modules": ("Module", Registry),
}


def check_kind(kind: str, name: str, value) -> None:
    title, wanted = KINDS[kind]
    if value is not None and not isinstance(value, wanted):
        raise TypeError(
            f"{name!r} must be a {title} or None, got {type(value).__name__}"
        )
