"""Layers without weights: a function of `functional` and its settings."""

import inspect

from minidl.nn.module import Module

REQUIRED = inspect.Parameter.empty


class Applied(Module):
    """Base of a layer that calls a function with settings.

    `class ELU(Applied, function=F.elu, alpha=1.0)` is a layer `ELU(alpha=1.0)` whose
    forward is `F.elu(input, alpha=layer.alpha)`: the settings are the arguments of
    the constructor, in this order and with these defaults, and attributes.
    """

    signature = inspect.Signature()
    function = None
    buffers_named: tuple[str, ...] = ()  # settings that are part of the state

    def __init_subclass__(cls, function=None, **settings):
        super().__init_subclass__()
        if function is None:
            return
        cls.function = staticmethod(function)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        cls.signature = inspect.Signature(
            [inspect.Parameter(n, kind, default=v) for n, v in settings.items()]
        )
        cls.__signature__ = cls.signature

    def __init__(self, *args, **kwargs):
        super().__init__()
        try:
            settings = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}{self.signature}: {error}") from None
        settings.apply_defaults()
        for name, value in settings.arguments.items():
            if name in self.buffers_named:
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def settings(self) -> dict:
        """The settings by name, as they are now."""
        return {name: getattr(self, name) for name in self.signature.parameters}

    def forward(self, *inputs):
        return self.function(*inputs, **self.settings())

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value!r}"
            for name, value in self.settings().items()
            if name != "inplace" or value
        )
