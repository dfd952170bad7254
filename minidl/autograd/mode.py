"""Whether operations are recorded: one flag, of each thread its own."""

from contextlib import ContextDecorator
from contextvars import ContextVar

recording: ContextVar[bool] = ContextVar("recording", default=True)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return recording.get()


class no_grad(ContextDecorator):  # noqa: N801 - PyTorch's name
    """Record nothing, inside a `with` block or a decorated function."""

    mode = False

    def __new__(cls, function=None):
        self = super().__new__(cls)
        self.before = []  # a stack: a decorated function may call itself
        return self if function is None else self(function)

    def __enter__(self):
        self.before.append(recording.get())
        recording.set(self.mode)
        return self

    def __exit__(self, *error):
        recording.set(self.before.pop())


class enable_grad(no_grad):  # noqa: N801 - PyTorch's name
    """Record again, inside `no_grad`."""

    mode = True


class set_grad_enabled(no_grad):  # noqa: N801 - PyTorch's name
    """Switch recording to `mode` at once; as a `with` block, back at its end."""

    def __new__(cls, mode: bool):
        self = super().__new__(cls)
        self.mode = bool(mode)
        self.__enter__()
        return self

    def __enter__(self):
        if not self.before:
            return super().__enter__()
        recording.set(self.mode)
        return self

    def __call__(self, function):
        self.__exit__()  # to decorate is not to enter
        return super().__call__(function)
