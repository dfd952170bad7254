"""What one sees of a training: a progress bar, a line an epoch, a file, a picture."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minidl.array.errors import DependencyError
from minidl.train.files import replace_file
from minidl.train.output import Aside, tell


class Reporter:
    """Hears of a training and says nothing; what others do more is their own."""

    def begin(self, epoch: int, steps: int, done: int) -> None:
        """An epoch of so many steps begins, or goes on after those already done."""

    def step(self, loss: float) -> None:
        """A step is done; `loss` is this rank's mean so far."""

    def epoch(self, metrics) -> None:
        """An epoch is done."""

    def end(self) -> None:
        """The training is over, be it by an exception."""


class Console(Reporter):
    """A progress bar on standard error, a line an epoch on standard output."""

    def __init__(self, epochs: int):
        self.tqdm, self.epochs, self.bar = require_tqdm(), epochs, None

    def begin(self, epoch: int, steps: int, done: int) -> None:
        self.bar = self.tqdm(
            total=steps,
            file=Aside(),
            initial=done,
            desc=f"epoch {epoch}/{self.epochs}",
            unit="step",
            leave=False,
            ncols=79,  # under mpirun the terminal's width is not known
            mininterval=0.2,
        )

    def step(self, loss: float) -> None:
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self.bar.update()

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def epoch(self, metrics) -> None:
        self.end()
        tell(
            f"epoch {metrics.epoch:3d}  train loss {metrics.train_loss:.4f}  "
            f"test loss {metrics.test_loss:.4f}  "
            f"test accuracy {100 * metrics.test_accuracy:6.2f} %  "
            f"{metrics.samples_per_second:,.0f} samples/s"
        )


class MetricsFile(Reporter):
    """metrics.jsonl: one JSON object an epoch; `history` is of those before."""

    def __init__(self, path: Path, history: Sequence = ()):
        self.path, self.lines = path, [json.dumps(m.as_dict()) for m in history]

    def epoch(self, metrics) -> None:
        self.lines.append(json.dumps(metrics.as_dict()))
        replace_file(self.path, "\n".join(self.lines).encode() + b"\n")


def require_tqdm():
    """The progress bar's class; raises DependencyError where it is missing."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise DependencyError(
            "the progress bar needs tqdm: pip install tqdm"
        ) from error
    return tqdm


def require_matplotlib() -> None:
    """Raise DependencyError where the curves could not be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            'the picture of the curves needs matplotlib: pip install "minidl[plot]"'
        ) from error


@contextmanager
def picture(path: Path, title: str) -> Iterator[tuple]:
    """Two plots over the epochs, drawn inside, and then written to a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(1, 2)
    yield tuple(plots)
    for plot in plots:
        plot.set_xlabel("epoch")
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.grid(alpha=0.3)
    figure.suptitle(title)
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=120))


def draw_curves(history: list, path: Path, title: str) -> None:
    """A picture of losses and accuracy over the epochs."""
    epochs = [metrics.epoch for metrics in history]
    marker = "o" if len(epochs) < 30 else None
    with picture(path, title) as (left, right):
        for label, losses in (
            ("training", [m.train_loss for m in history]),
            ("test", [m.test_loss for m in history]),
        ):
            left.plot(epochs, losses, marker=marker, label=label)
        left.set(ylabel="loss", yscale="log")
        left.legend()
        accuracy = [100 * m.test_accuracy for m in history]
        right.plot(epochs, accuracy, marker=marker, color="tab:green")
        right.set(
            ylabel="test accuracy (%)",
            title=f"{accuracy[-1]:.2f} % after {epochs[-1]} epochs",
        )
