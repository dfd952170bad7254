"""The command `minidl`, on one rank or under mpirun on many."""

from pathlib import Path

from minidl import __version__
from minidl.array.errors import MinidlError
from minidl.distributed import init, launched
from minidl.distributed.failing import OUT_OF_MEMORY, out_of_memory
from minidl.train import collective_bench, comparison, doctor, verification
from minidl.train.evaluation import evaluate_checkpoint
from minidl.train.flags import (
    OPTIMIZERS,
    Parser,
    add_batch_size,
    add_data,
    add_device,
    add_epochs,
    add_graph,
    add_model,
    add_precision,
    add_profile,
    add_seed,
    add_timeout,
    add_weight_decay,
    check_data,
    number,
)
from minidl.train.output import ReaderGoneError, open_closed, say, tell
from minidl.train.recipe import Settings, train
from minidl.train.resume import Stopped


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
    add_model(command)
    command.add_argument("--optimizer", choices=OPTIMIZERS, default="adam")
    command.add_argument(
        "--lr",
        type=number(float, 0, above=True),
        metavar="X",
        help="learning rate at the start; it falls to 0 along a cosine "
        "(adam, adamw: 0.002, for digits 0.004; sgd: 0.05)",
    )
    add_weight_decay(command)
    add_batch_size(command)
    add_epochs(command)
    add_seed(command)
    add_device(command)
    add_precision(command)
    add_graph(command)
    add_profile(command)
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
    add_precision(command)
    add_timeout(command)

    comparison.add_command(commands)
    verification.add_command(commands)
    collective_bench.add_command(commands)
    doctor.add_command(commands)
    return top


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


def settings_of(arguments) -> Settings:
    """The flags that are settings; those that make no sense together are refused."""
    known = Settings.__dataclass_fields__
    given = {k: v for k, v in vars(arguments).items() if k in known}
    check_data(given.get("data"))
    return Settings(**given)


def run_train(arguments) -> None:
    communicator = init(timeout=arguments.timeout)
    settings = settings_of(arguments).filled()
    try:
        train(settings, communicator)
    except Stopped as stopped:
        tell(str(stopped))
        return
    tell(f"checkpoint  {Path(settings.out, 'model.safetensors')}")
    tell(f"curves      {Path(settings.out, 'curves.png')}")


def run_evaluate(arguments) -> None:
    communicator = init(timeout=arguments.timeout)
    loss, accuracy, samples = evaluate_checkpoint(
        arguments.checkpoint, settings_of(arguments), communicator
    )
    right = round(accuracy * samples)
    tell(
        f"test loss {loss:.6f}  test accuracy {100 * accuracy:.2f} % "
        f"({right} of {samples})"
    )


def main(argv: list[str] | None = None) -> int:
    """The entry point; the exit status.

    0, also where SIGTERM or SIGUSR1 has ended a training that is saved; 2 for
    impossible flags; 130 after Ctrl-C; 141 where nobody reads the output any more;
    1 otherwise.
    """
    command = "minidl"
    open_closed()
    try:
        arguments = parser().parse_args(argv)
        command = f"minidl {arguments.command}"
        return arguments.run(arguments) or 0
    except MinidlError as error:
        if launched():
            raise  # all ranks end, and one of them speaks
        if not isinstance(error, ReaderGoneError):
            say(f"{command}: {error}")
        return error.status
    except KeyboardInterrupt:
        if launched():
            raise
        say(f"{command}: interrupted")
        return 130
    except Exception as error:
        if launched() or not out_of_memory(error):
            raise
        say(f"{command}: {OUT_OF_MEMORY} ({error})")
        return 1
