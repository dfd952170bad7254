"""Flags that commands share, and how a mistake in them is told."""

import argparse
import sys
from math import isfinite

from minidl.distributed import TIMEOUT, launched

DATASETS = ("digits", "mnist", "fashion_mnist")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says one sentence, on rank 0 only."""

    def error(self, message: str):
        say(f"{self.prog}: {message} (see {self.prog} --help)")
        raise SystemExit(2)


def say(sentence: str) -> None:
    """Print on standard error, of several ranks on the first."""
    place = launched()
    if place is None or place.rank == 0:
        sys.stderr.write(f"{sentence}\n")


def number(kind, least, above: bool = False):
    """A type for argparse: a finite number, at least (or above) some bound."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if (
            value is None
            or not isfinite(value)
            or value < least + above * (kind is int)
        ):
            bound = f"above {least}" if above else f"of at least {least}"
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} {bound}, got {text!r}")
        if above and value == least:
            raise argparse.ArgumentTypeError(
                f"expected more than {least}, got {text!r}"
            )
        return value

    return parse


def add_data(command, dataset: str | None) -> None:
    """Which data set, and where it is."""
    trained = "" if dataset else " (what the checkpoint was trained on)"
    command.add_argument(
        "--dataset", choices=DATASETS, default=dataset, help=f"the data{trained}"
    )
    command.add_argument(
        "--data",
        metavar="DIR",
        help="a directory with the IDX files; without it they are downloaded once",
    )


def add_batch_size(command) -> None:
    command.add_argument(
        "--batch-size",
        type=number(int, 0, above=True),
        metavar="N",
        help="samples a step, of all ranks together (digits: 32, others: 128)",
    )


def add_device(command) -> None:
    command.add_argument("--device", choices=("cpu", "gpu", "auto"), default="auto")


def add_timeout(command) -> None:
    command.add_argument(
        "--timeout",
        type=number(float, 0, above=True),
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"how long ranks wait for one that does not come ({TIMEOUT:.0f})",
    )
