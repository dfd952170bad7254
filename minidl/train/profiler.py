"""What takes how long in a step: a trace of all ranks, and a table.

    with train.profile(record_shapes=True) as profile:
        for images, labels in batches:
            train_step(model, loss_fn, optimizer, images, labels)
            profile.step()
    print(profile.key_averages().table(row_limit=10))
    profile.export_chrome_trace("trace.json")

The names are torch.profiler's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from time import perf_counter_ns

from minidl.array.device import canonical_device
from minidl.array.errors import UsageError
from minidl.distributed import Alone, Communicator, init, is_initialized
from minidl.train import hooks
from minidl.train.captured import WARM_UP
from minidl.train.files import replace_file
from minidl.train.output import tell
from minidl.train.recorder import Recorder
from minidl.train.trace import Record, chrome_trace, clock_offset
from minidl.train.trace_table import Averages, exposed_sentence

TRACE = "trace.json"


class profile:  # noqa: N801 - PyTorch's name
    """Records what this thread does between `start` and `stop`, or in a `with`.

    Of `device` ("auto": a GPU where there is one) the GPU's own times are recorded too;
    NVIDIA's tools then see the same ranges (NVTX). `step()` ends a step. The ranks of
    `communicator` (those of `init()`, where it has been called) share one trace; each
    profiles the same steps. `record_shapes` adds the shapes of arguments. `clock` tells
    nanoseconds.

    RuntimeError where one profile begins within another.
    """

    def __init__(
        self,
        *,
        record_shapes: bool = False,
        device: str | None = "auto",
        communicator: Communicator | None = None,
        clock: Callable[[], int] = perf_counter_ns,
    ):
        self.record_shapes, self.clock = record_shapes, clock
        self.device = canonical_device(device)
        if communicator is None:
            communicator = init() if is_initialized() else Alone()
        self.communicator = communicator
        self.recorder: Recorder | None = None
        self.marks: list[tuple] = []  # between steps
        self.recording = False

    def start(self) -> None:
        """Forget what was recorded before, and record."""
        recorder = Recorder(self.device, self.record_shapes, self.clock)
        hooks.start(recorder)
        self.recorder, self.recording = recorder, True
        self.marks = [recorder.mark()]

    def step(self) -> None:
        """A step is over, and the next begins."""
        if self.recording:
            last = self.marks[-1]
            self.marks.append(self.recorder.mark())
            name = f"step {len(self.marks) - 1}"
            self.recorder.add(name, "step", last, self.marks[-1])

    def stop(self) -> None:
        """Record no more; without a call of `step`, all was one."""
        if self.recording:
            if len(self.marks) == 1:
                self.step()
            self.recording = False
            hooks.stop()
            self.recorder.finish()

    def __enter__(self) -> "profile":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def record(self) -> Record:
        """What this rank did; RuntimeError while, or before, it is recorded."""
        if self.recorder is None or self.recording:
            raise RuntimeError("a profile can be looked at when it is over: call stop")
        recorder, communicator = self.recorder, self.communicator
        return Record(
            communicator.rank,
            f"{communicator.host}, {self.device}",
            recorder.host,
            recorder.gpu,
            recorder.flights,
        )

    def records(self) -> list[Record]:
        """What all ranks did, by the clock of rank 0; every rank calls this."""
        offset = clock_offset(self.communicator, self.clock)
        return self.communicator.all_gather_object(self.record().moved(offset))

    def key_averages(self) -> Averages:
        """What this rank did, by name: on the GPU where there is one."""
        return Averages(self.record())

    def export_chrome_trace(self, path: str | Path) -> list[Record]:
        """Write what all ranks did, for chrome://tracing or ui.perfetto.dev.

        Every rank calls this; rank 0 writes the file, whole or not at all. Returns
        what is in it.
        """
        records = self.records()
        if self.communicator.rank == 0:
            replace_file(Path(path), chrome_trace(records))
        return records


class record_function:  # noqa: N801 - PyTorch's name
    """A range of that name in a profile, if there is one: a context or a decorator."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self):
        recorder = hooks.active.recorder
        self.range = recorder and recorder.range(self.name, "user")
        if self.range:
            self.range.__enter__()
        return self

    def __exit__(self, *_):
        if self.range:
            self.range.__exit__()

    def __call__(self, function: Callable) -> Callable:
        @wraps(function)
        def recorded(*inputs, **options):
            with record_function(self.name):
                return function(*inputs, **options)

        return recorded


class ProfiledStep:
    """The step, to be called like it, of which calls `first` + 1 to `last` are traced.

    `done` is called when the last of them is over.
    """

    def __init__(self, step: Callable, profile: profile, first: int, last: int, done):
        self.step, self.profile = step, profile
        self.first, self.last, self.done = first, last, done
        self.calls = 0

    def __call__(self, *batch):
        if self.calls == self.first:
            self.profile.start()
        loss = self.step(*batch)
        self.calls += 1
        self.profile.step()
        if self.calls == self.last:
            self.profile.stop()
            self.done()
        return loss


def graph_mode(settings) -> str:
    """What `--graph` means: in a replay one would see no operations."""
    return "off" if settings.profile and settings.graph == "auto" else settings.graph


def profiling(trainer, settings, steps: int, out: Path, device: str):
    """A context in which `--profile` of the trainer's steps are traced.

    One before them warms up; captured steps are traced when they are replayed. Raises
    UsageError, at once, where epochs of so many steps leave too few.
    """
    if settings.profile is None:
        return nullcontext()
    first = WARM_UP + 1 if settings.graph == "on" else 1
    last = first + settings.profile
    left = settings.epochs * steps - trainer.progress.total_steps
    if last > left:
        raise UsageError(
            f"--profile {settings.profile} takes {last} steps with those that warm up, "
            f"and {left} are left: profile fewer, or train for more epochs"
        )
    return tracing(trainer, first, last, out / TRACE, device)


@contextmanager
def tracing(trainer, first: int, last: int, path: Path, device: str) -> Iterator[None]:
    """Trace some of the trainer's steps; what they say is told at the end."""
    communicator = trainer.model.communicator
    traced = profile(record_shapes=True, device=device, communicator=communicator)
    found: list[str] = []

    def done() -> None:
        records = traced.export_chrome_trace(path)
        found.append(traced.key_averages().table(row_limit=12))
        found.append(exposed_sentence(records))

    trainer.step = ProfiledStep(trainer.step, traced, first, last, done)
    try:
        yield
    finally:
        traced.stop()
        trainer.step = trainer.step.step
    tell("\n".join([*found, f"trace       {path}"]))  # below the progress bar
