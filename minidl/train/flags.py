"""Flags that commands share, and how a mistake in them is told."""

import argparse
from math import inf, nan
from pathlib import Path

from minidl.array.errors import UsageError
from minidl.distributed import TIMEOUT, init
from minidl.train.output import say, tell
from minidl.train.precision import PRECISIONS

DATASETS = ("digits", "mnist", "fashion_mnist")
MODELS = ("cnn", "mlp")
GRAPH = ("on", "off", "auto")
OPTIMIZERS = ("adam", "adamw", "sgd")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says one sentence, or its help, on rank 0 only."""

    def _print_message(self, message: str, file=None):
        tell(message.rstrip())  # help and version; argparse would hide a full disk

    def error(self, message: str):
        sentence = f"{self.prog}: {message} (see {self.prog} --help)"
        # other ranks may have been told otherwise, and wait for this one
        init().failed(UsageError(sentence))
        say(sentence)
        raise SystemExit(2)


def number(kind, least, above: bool = False, most=inf):
    """A type for argparse: a finite number, at least (or above) a bound, at most one.

    Whole numbers are at most 2^63 - 1 unless `most` says more.
    """
    if kind is int and most == inf:
        most = 2**63 - 1

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = nan
        bounded = (value > least if above else value >= least) and value <= most
        if not bounded or value == inf:
            bound = f"above {least}" if above else f"of at least {least}"
            bound += f" and at most {most}" if value > most else ""
            what = "a whole number" if kind is int else "a finite number"
            raise argparse.ArgumentTypeError(
                f"expected {what} {bound}, got {shorten(text)!r}"
            )
        return value

    return parse


def shorten(text: str) -> str:
    return text if len(text) < 40 else f"{text[:36]}..."


def check_data(directory: str | None) -> None:
    """Refuse a --data that is no directory, or that one may not look into."""
    try:
        there = directory is None or Path(directory).is_dir()
    except OSError as error:  # a closed directory above it, for one
        raise UsageError(
            f"--data {directory} cannot be read: {error.strerror}"
        ) from error
    if not there:
        raise UsageError(f"--data {directory}: there is no such directory")


def add_seed(command) -> None:
    """The key of Philox is 64 bits."""
    command.add_argument(
        "--seed", type=number(int, 0, most=2**64 - 1), default=0, metavar="N"
    )


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


def add_model(command) -> None:
    command.add_argument("--model", choices=MODELS, default="cnn")


def add_batch_size(command) -> None:
    command.add_argument(
        "--batch-size",
        type=number(int, 0, above=True),
        metavar="N",
        help="samples a step, of all ranks together (digits: 32, others: 128)",
    )


def add_weight_decay(command) -> None:
    command.add_argument(
        "--weight-decay", type=number(float, 0), default=0.0, metavar="X"
    )


def add_epochs(command) -> None:
    command.add_argument(
        "--epochs",
        type=number(int, 0, above=True),
        metavar="N",
        help="(digits: 30, mnist: 6, fashion_mnist: 10)",
    )


def add_device(command) -> None:
    command.add_argument("--device", choices=("cpu", "gpu", "auto"), default="auto")


def add_graph(command) -> None:
    command.add_argument(
        "--graph",
        choices=GRAPH,
        default="auto",
        help="replay a step as a CUDA graph (auto: on a GPU, where it can be)",
    )


def add_profile(command) -> None:
    command.add_argument(
        "--profile",
        type=number(int, 0, above=True),
        metavar="N",
        help="trace N steps, after one that warms up, into trace.json in --out",
    )


def add_precision(command) -> None:
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="what products are computed in (train: fp32, evaluate: as trained)",
    )


def add_timeout(
    command,
    seconds: float = TIMEOUT,
    what: str = "how long ranks wait for one that does not come",
) -> None:
    command.add_argument(
        "--timeout",
        type=number(float, 0, above=True),
        default=seconds,
        metavar="SECONDS",
        help=f"{what} ({seconds:.0f})",
    )
