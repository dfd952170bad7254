"""`minidl compare`: optimizers, or numbers of ranks, on one data set."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

from minidl.array.errors import UsageError
from minidl.distributed import Communicator, Simulated, init
from minidl.train.files import make_directory, replace_file
from minidl.train.flags import (
    OPTIMIZERS,
    add_batch_size,
    add_data,
    add_device,
    add_epochs,
    add_model,
    add_timeout,
    add_weight_decay,
    check_data,
    number,
)
from minidl.train.output import tell
from minidl.train.recipe import Settings, require_packages, train
from minidl.train.resume import Stopped
from minidl.train.side_by_side import Run, as_csv, draw, table

NOT_THEIR_SPEED = (
    "ranks simulated in one process have the numbers of real ones, not their speed"
)


def add_command(commands) -> None:
    """`minidl compare` and its flags."""
    command = commands.add_parser(
        "compare", help="optimizers or numbers of ranks on one data set, side by side"
    )
    command.set_defaults(run=run)
    add_data(command, "digits")
    add_model(command)
    command.add_argument(
        "--optimizers",
        type=listed(optimizer),
        default=["adam"],
        metavar="NAME,...",
        help=f"of {', '.join(OPTIMIZERS)}, each with its own learning rate (adam)",
    )
    command.add_argument(
        "--ranks",
        type=listed(number(int, 0, above=True)),
        metavar="N,...",
        help="simulated in one process; under mpirun they are its own (1)",
    )
    command.add_argument(
        "--seeds",
        type=listed(number(int, 0, most=2**64 - 1)),
        default=[0],
        metavar="N,...",
        help="with several, means and ranges over them are told (0)",
    )
    add_weight_decay(command)
    add_batch_size(command)
    add_epochs(command)
    add_device(command)
    command.add_argument(
        "--out",
        metavar="DIR",
        help="where results go, replacing earlier ones (runs/compare-DATASET-MODEL)",
    )
    add_timeout(command)


def listed(kind: Callable) -> Callable:
    """A type for argparse: values of a kind with commas between, each once."""

    def parse(text: str) -> list:
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))

    return parse


def optimizer(name: str) -> str:
    if name not in OPTIMIZERS:
        raise argparse.ArgumentTypeError(
            f"no optimizer is called {name!r}; known: {', '.join(OPTIMIZERS)}"
        )
    return name


def run(arguments) -> None:
    """Train every combination; a table, compare.csv and compare.png."""
    communicator = init(timeout=arguments.timeout)
    job = communicator.size
    ranks = arguments.ranks or [job]
    if job > 1 and ranks != [job]:
        raise UsageError(
            f"--ranks {','.join(map(str, ranks))}: mpirun has started {job}"
        )
    check_data(arguments.data)
    settings = Settings(
        dataset=arguments.dataset,
        data=arguments.data,
        model=arguments.model,
        weight_decay=arguments.weight_decay,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        device=arguments.device,
    )
    out = Path(arguments.out or f"runs/compare-{settings.dataset}-{settings.model}")
    if communicator.rank == 0:
        require_packages()
        make_directory(out)
    planned = [
        Run(*choice) for choice in product(arguments.optimizers, ranks, arguments.seeds)
    ]
    done: list[Run] = []
    for one in planned:
        tell(f"training    {out / str(one)}")
        try:
            done.append(trained(one, settings, out, communicator))
        except Stopped as stopped:
            tell(str(stopped))
            break
        if communicator.rank == 0:  # whatever comes of the next
            replace_file(out / "compare.csv", as_csv(done))
    if communicator.rank == 0 and done:
        draw(done, out / "compare.png", f"{settings.model} on {settings.dataset}")
    if done:
        simulated = job == 1 and max(one.ranks for one in done) > 1
        tell("\n".join(["", *table(done), *[NOT_THEIR_SPEED] * simulated, ""]))
        tell(f"table       {out / 'compare.csv'}\ncurves      {out / 'compare.png'}")


def trained(one: Run, settings: Settings, out: Path, communicator: Communicator) -> Run:
    """Train on the ranks of this job, or on simulated ones."""
    settings = replace(
        settings, optimizer=one.optimizer, seed=one.seed, out=str(out / str(one))
    )
    if one.ranks == communicator.size:
        history = train(settings, communicator)
    else:
        history, *_ = Simulated(one.ranks).run(lambda c: train(settings, c))
    return replace(one, history=tuple(history))
