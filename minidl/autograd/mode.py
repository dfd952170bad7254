"""Whether operations are recorded: one flag, of each thread its own."""

from contextvars import ContextVar
from functools import wraps
from inspect import isgeneratorfunction

# False; True; or, which counts as True, what is told of every node that saves arrays
recording: ContextVar = ContextVar("recording", default=True)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return bool(recording.get())


class no_grad:  # noqa: N801 - PyTorch's name
    """Record nothing, inside a `with` block or a decorated function.

    A decorated generator is switched while it runs, not while it waits at a `yield`.
    """

    mode = False

    def __new__(cls, function=None):
        self = super().__new__(cls)
        self.before = []  # a stack: the same object may be entered again inside
        return self if function is None else self(function)

    def __enter__(self):
        before = recording.get()
        self.before.append(before)
        recording.set(self.mode and (before or True))
        return self

    def __exit__(self, *error):
        recording.set(self.before.pop())

    def again(self) -> "no_grad":
        """Another such context: two threads may be inside one decorated function."""
        return type(self)()

    def __call__(self, function):
        if isgeneratorfunction(function):

            @wraps(function)
            def inside(*args, **options):
                return (yield from resumed(function(*args, **options), self.again))

        else:

            @wraps(function)
            def inside(*args, **options):
                with self.again():
                    return function(*args, **options)

        return inside


def resumed(generator, context):
    """What the generator yields, its own code running inside `context()`."""
    resume, value = generator.send, None
    while True:
        try:
            with context():
                result = resume(value)
        except StopIteration as end:
            return end.value
        try:
            resume, value = generator.send, (yield result)
        except GeneratorExit:
            with context():
                generator.close()
            raise
        except BaseException as error:  # thrown in by the caller: for the generator
            resume, value = generator.throw, error


class enable_grad(no_grad):  # noqa: N801 - PyTorch's name
    """Record again, inside `no_grad`."""

    mode = True


class set_grad_enabled(no_grad):  # noqa: N801 - PyTorch's name
    """Switch recording to `mode` at once; as a `with` block, back at its end."""

    def __new__(cls, mode: bool):
        self = super().__new__(cls)
        self.mode = bool(mode)
        super().__enter__(self)
        self.switched = True
        return self

    def __enter__(self):
        if not self.switched:
            return super().__enter__()
        self.switched = False  # done when it was made
        return self

    def again(self) -> no_grad:
        return enable_grad() if self.mode else no_grad()

    def __call__(self, function):
        if self.switched:  # to decorate is not to enter
            self.switched = False
            self.__exit__()
        return super().__call__(function)
