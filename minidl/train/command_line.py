"""The command `minidl`: train and evaluate, on one rank or under mpirun on many."""

import argparse
import sys
from math import isfinite
from pathlib import Path

from minidl import __version__
from minidl.array.errors import MinidlError, UsageError
from minidl.distributed import TIMEOUT, init, is_initialized, launched
from minidl.train.recipe import Settings, evaluate_checkpoint, train
from minidl.train.resume import Stopped

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


def parser() -> Parser:
    """All commands and their flags."""
    top = Parser(prog="minidl", description="Train and evaluate small networks.")
    top.add_argument("--version", action="version", version=f"minidl {__version__}")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)

    command = commands.add_parser(
        "train", help="train a classifier; under mpirun data parallel"
    )
    command.set_defaults(run=run_train)
    add_data(command, "digits")
    command.add_argument("--model", choices=("cnn", "mlp"), default="cnn")
    command.add_argument(
        "--optimizer", choices=("adam", "adamw", "sgd"), default="adam"
    )
    command.add_argument(
        "--lr",
        type=number(float, 0, above=True),
        metavar="X",
        help="learning rate at the start; it falls to 0 along a cosine "
        "(adam, adamw: 0.002, for digits 0.004; sgd: 0.05)",
    )
    command.add_argument(
        "--weight-decay", type=number(float, 0), default=0.0, metavar="X"
    )
    add_batch_size(command)
    command.add_argument(
        "--epochs",
        type=number(int, 0, above=True),
        metavar="N",
        help="(digits: 30, mnist: 6, fashion_mnist: 10)",
    )
    command.add_argument("--seed", type=number(int, 0), default=0, metavar="N")
    add_device(command)
    command.add_argument(
        "--out",
        metavar="DIR",
        help="where results go, replacing earlier ones (runs/DATASET-MODEL)",
    )
    add_resuming(command)
    add_timeout(command)

    command = commands.add_parser(
        "evaluate", help="loss and accuracy of a checkpoint on the whole test set"
    )
    command.set_defaults(run=run_evaluate)
    command.add_argument("--checkpoint", required=True, metavar="FILE")
    add_data(command, None)
    add_batch_size(command)
    add_device(command)
    add_timeout(command)
    return top


def add_data(command, dataset: str | None) -> None:
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


def add_resuming(command) -> None:
    every = {"type": number(int, 0, above=True), "metavar": "K"}
    command.add_argument(
        "--resume",
        metavar="auto|PATH",
        help="go on from a checkpoint, or a directory's last one that is whole; "
        "auto: from that in --out, if there is one",
    )
    command.add_argument(
        "--save-every", **every, help="steps between checkpoints (each epoch)"
    )
    command.add_argument(
        "--keep", **every, default=3, help="how many checkpoints are kept (3)"
    )
    command.add_argument(
        "--check-every",
        **every,
        help="steps between checks that all ranks hold the same weights (each epoch)",
    )


def add_timeout(command) -> None:
    command.add_argument(
        "--timeout",
        type=number(float, 0, above=True),
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"how long ranks wait for one that does not come ({TIMEOUT:.0f})",
    )


def settings_of(arguments) -> Settings:
    """The flags that are settings; those that make no sense together are refused."""
    known = Settings.__dataclass_fields__
    given = {k: v for k, v in vars(arguments).items() if k in known}
    data = given.get("data")
    if data is not None and not Path(data).is_dir():
        raise UsageError(f"--data {data}: there is no such directory")
    return Settings(**given)


def run_train(arguments) -> None:
    communicator = init(timeout=arguments.timeout)
    settings = settings_of(arguments).filled()
    try:
        train(settings, communicator)
    except Stopped as stopped:
        if communicator.rank == 0:
            print(stopped)
        return
    if communicator.rank == 0:
        print(f"checkpoint  {Path(settings.out, 'model.safetensors')}")
        print(f"curves      {Path(settings.out, 'curves.png')}")


def run_evaluate(arguments) -> None:
    communicator = init(timeout=arguments.timeout)
    loss, accuracy, samples = evaluate_checkpoint(
        arguments.checkpoint, settings_of(arguments), communicator
    )
    if communicator.rank == 0:
        right = round(accuracy * samples)
        print(
            f"test loss {loss:.6f}  test accuracy {100 * accuracy:.2f} % "
            f"({right} of {samples})"
        )


def main(argv: list[str] | None = None) -> int:
    """The entry point; the exit status.

    0, also where SIGTERM or SIGUSR1 has ended a training that is saved; 2 for
    impossible flags; 130 after Ctrl-C; 1 otherwise.
    """
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except MinidlError as error:
        if launched() and is_initialized():
            raise  # all ranks end, and one of them speaks
        say(f"minidl {arguments.command}: {error}")
        return error.status
    except KeyboardInterrupt:
        if launched() and is_initialized():
            raise
        say(f"minidl {arguments.command}: interrupted")
        return 130
    return 0
