"""`minidl verify`: whether several ranks train this model as one rank does."""

from minidl.array.device import use_device
from minidl.array.errors import UsageError
from minidl.data import Standardize, load
from minidl.distributed import init, verify
from minidl.distributed.faults import FAULTS
from minidl.nn import functional as F
from minidl.train.flags import (
    add_batch_size,
    add_data,
    add_device,
    add_model,
    add_seed,
    add_timeout,
    check_data,
    number,
)
from minidl.train.output import tell
from minidl.train.recipe import Settings, build_model


def add_command(commands) -> None:
    """`minidl verify` and its flags."""
    command = commands.add_parser(
        "verify",
        help="show that several ranks train as one, or where and why they do not",
    )
    command.set_defaults(run=run)
    add_data(command, "digits")
    add_model(command)
    add_batch_size(command)
    command.add_argument(
        "--steps",
        type=number(int, 0, above=True),
        metavar="N",
        help="(one epoch of 4 full batches and an uneven one, and 2 steps more)",
    )
    command.add_argument(
        "--ranks",
        type=number(int, 2),
        metavar="N",
        help="simulated in one process; under mpirun they are its own (2)",
    )
    add_seed(command)
    command.add_argument(
        "--plant",
        choices=FAULTS,
        metavar="NAME",
        help=f"plant a fault, to see it found: {', '.join(FAULTS)}",
    )
    add_device(command)
    add_timeout(command)


def run(arguments) -> int:
    """Verify, print the report, and return the exit status: 1 if ranks disagree."""
    communicator = init(timeout=arguments.timeout)
    job = communicator.size
    if job > 1 and arguments.ranks not in (None, job):
        raise UsageError(f"--ranks {arguments.ranks}: mpirun has started {job}")
    ranks = job if job > 1 else arguments.ranks or 2
    check_data(arguments.data)
    settings = Settings(dataset=arguments.dataset, batch_size=arguments.batch_size)
    batch_size = settings.filled().batch_size
    training, _ = load(arguments.dataset, arguments.data)
    scaling = Standardize().fit(training.images)
    samples = 4 * batch_size + uneven(batch_size, ranks)
    inputs = scaling(training.images[:samples])
    labels = training.labels[:samples].astype("int64")
    device = communicator.place(arguments.device)

    def make_model():
        shape, classes = training.images.shape[1:], len(training.classes)
        return build_model(arguments.model, shape, classes).to(device)

    with use_device(device):
        report = verify(
            make_model,
            F.cross_entropy,
            (inputs, labels),
            batch_size,
            arguments.steps,
            ranks,
            seed=arguments.seed,
            plant=arguments.plant,
        )
    if arguments.plant and report.agrees:
        raise UsageError(
            f"--plant {arguments.plant} does not show with --steps {report.steps}: "
            "take more steps"
        )
    tell(str(report))
    return 0 if report.agrees else 1


def uneven(batch_size: int, ranks: int) -> int:
    """About half of a batch, such that ranks cannot share it equally."""
    half = batch_size // 2
    return half + (half % ranks == 0)
