"""Trainings side by side: a table, a CSV file and a picture."""

import csv
from collections.abc import Callable
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path

import numpy as np

from minidl.train.progress import Metrics
from minidl.train.report import picture


@dataclass(frozen=True)
class Run:
    """One training, and what came of it."""

    optimizer: str
    ranks: int
    seed: int
    history: tuple[Metrics, ...] = ()

    def __str__(self) -> str:
        return f"{self.optimizer}-ranks{self.ranks}-seed{self.seed}"


def grouped(runs: list[Run]) -> dict[tuple[str, int], list[Run]]:
    """By optimizer and ranks, the runs of all seeds."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for one in runs:
        groups.setdefault((one.optimizer, one.ranks), []).append(one)
    return groups


def as_csv(runs: list[Run]) -> bytes:
    """A line an epoch of each run."""
    text = StringIO()
    names = [field.name for field in fields(Metrics)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["optimizer", "ranks", "seed", *names])
    for one in runs:
        for metrics in one.history:
            values = metrics.as_dict()
            writer.writerow([one.optimizer, one.ranks, one.seed, *values.values()])
    return text.getvalue().encode()


def table(runs: list[Run]) -> list[str]:
    """A line for each optimizer and number of ranks, after the last epoch.

    Means over the seeds, and of the accuracy the range.
    """
    lines = [
        f"{'optimizer':<9} {'ranks':>5} {'seeds':>5} {'train loss':>10} "
        f"{'test loss':>10} {'test accuracy %':>24} {'samples/s':>11}"
    ]
    for (name, ranks), some in grouped(runs).items():
        last = [one.history[-1] for one in some]
        accuracy = [100 * metrics.test_accuracy for metrics in last]
        cell = f"{np.mean(accuracy):.2f}"
        if len(some) > 1:
            cell += f" ({min(accuracy):.2f} to {max(accuracy):.2f})"
        speed = np.mean([metrics.samples_per_second for metrics in last])
        lines.append(
            f"{name:<9} {ranks:5d} {len(some):5d} "
            f"{np.mean([metrics.train_loss for metrics in last]):10.4f} "
            f"{np.mean([metrics.test_loss for metrics in last]):10.4f} "
            f"{cell:>24} {speed:11,.0f}"
        )
    return lines


def draw(runs: list[Run], path: Path, title: str) -> None:
    """Test loss and accuracy over the epochs; over several seeds, mean and range."""
    with picture(path, title) as (left, right):
        for (name, ranks), some in grouped(runs).items():
            label = name if ranks == 1 else f"{name}, {ranks} ranks"
            draw_range(left, some, lambda m: m.test_loss, label)
            draw_range(right, some, lambda m: 100 * m.test_accuracy, label)
        left.set(ylabel="test loss", yscale="log")
        right.set(ylabel="test accuracy (%)")
        left.legend()


def draw_range(plot, some: list[Run], of: Callable, label: str) -> None:
    """What `of` tells of the metrics of each epoch: its mean and its range."""
    epochs = [metrics.epoch for metrics in some[0].history]
    values = np.array([[of(metrics) for metrics in one.history] for one in some])
    (line,) = plot.plot(epochs, values.mean(0), marker="o", label=label)
    if len(some) > 1:
        low, high = values.min(0), values.max(0)
        plot.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2)
