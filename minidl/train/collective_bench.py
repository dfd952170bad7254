"""`minidl bench --collectives`: what communication costs, and what it will cost."""

from collections.abc import Callable
from time import perf_counter

import numpy as np

from minidl.array.device import synchronize, to_device, use_device
from minidl.array.errors import UsageError
from minidl.array.random import manual_seed
from minidl.distributed import Alone, Communicator, DataParallel, cost, init
from minidl.distributed.algorithms import ALGORITHMS
from minidl.distributed.cost import Link
from minidl.nn import functional as F
from minidl.ops.creation import tensor
from minidl.optim import Adam
from minidl.train import exchange_bench
from minidl.train.flags import (
    add_batch_size,
    add_data,
    add_device,
    add_model,
    add_timeout,
    number,
)
from minidl.train.output import tell
from minidl.train.recipe import Settings, build_model
from minidl.train.step import train_step

SIZES = [8 * 8**k for k in range(8)]  # bytes: 8 to 16 MiB
RANKS = (8, 64, 512)
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28)}


def add_command(commands) -> None:
    """`minidl bench` and its flags."""
    command = commands.add_parser("bench", help="measure communication, under mpirun")
    command.set_defaults(run=run)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--collectives",
        action="store_true",
        help="latency and bandwidth, all-reduce as predicted and as measured, and "
        "the step on 8, 64 and 512 ranks",
    )
    what.add_argument(
        "--exchange",
        action="store_true",
        help="the step of a model of 25 million parameters without exchange, with the "
        "naive one and with buckets, and how much of communication it waits for",
    )
    add_data(command, "digits")
    add_model(command)
    add_batch_size(command)
    add_device(command)
    add_timeout(command)
    positive = {"type": number(float, 0, above=True), "metavar": "X"}
    command.add_argument(
        "--parameters", **positive, help="of another model, float32 (the model's)"
    )
    command.add_argument(
        "--step-ms", **positive, help="one rank's step of it (measured)"
    )
    command.add_argument(
        "--alpha-us", **positive, help="another link: microseconds a message"
    )
    command.add_argument(
        "--gb-per-s", **positive, help="another link: 1e9 bytes a second"
    )
    command.add_argument(
        "--rounds",
        type=number(int, 0, above=True),
        default=10,
        metavar="N",
        help="of --exchange (10)",
    )


def run(arguments) -> None:
    """Measure, fit, and print it beside what the model predicts."""
    if arguments.exchange:
        return exchange_bench.run(arguments)
    communicator = init(timeout=arguments.timeout)
    given = arguments.alpha_us, arguments.gb_per_s
    if None in given and given != (None, None):
        raise UsageError("--alpha-us and --gb-per-s describe a link together")
    if arguments.parameters and not arguments.step_ms:
        raise UsageError("--parameters is of another model: give its --step-ms too")
    if communicator.size == 1 and None in given:
        raise UsageError(
            "one rank has nobody to talk to: mpirun -n 2 minidl bench --collectives, "
            "or give a link by --alpha-us and --gb-per-s"
        )
    device = communicator.place(arguments.device)
    with use_device(device):
        if communicator.size > 1:
            lines, link = measured(communicator, device)
            tell("\n".join(lines))
        if None not in given:
            link = Link(1e-6 * arguments.alpha_us, 1e-9 / arguments.gb_per_s)
        manual_seed(0)
        model = build_model(arguments.model, SHAPES[arguments.dataset], 10).to(device)
        seconds = 1e-3 * (arguments.step_ms or 0) or step_seconds(model, arguments)
    own = sum(p.data.size for p in model.parameters())
    tell("\n".join(predicted(int(arguments.parameters or own), seconds, link)))


def measured(communicator: Communicator, device: str) -> tuple[list[str], Link]:
    """Messages, the line fitted to them, and every all-reduce against the model."""
    arrays = {n: to_device(np.ones(n // 4, np.float32), device) for n in SIZES}
    other = {n: array.copy() for n, array in arrays.items()}
    after = (communicator.rank + 1) % communicator.size
    before = (communicator.rank - 1) % communicator.size

    def shift(array):
        communicator.send_receive(array, after, other[array.nbytes], before)

    def add(array):
        array += other[array.nbytes]

    messages = [timed(communicator, shift, arrays[n]) for n in SIZES]
    adding = timed(communicator, add, arrays[SIZES[-1]])
    link = Link(*cost.fit(SIZES, messages), adding / SIZES[-1])
    lines = [
        f"{communicator.size} ranks, {communicator.backend}; all send to the next at "
        "once",
        f"{'bytes':>10} {'us':>10} {'fit us':>10} {'GB/s':>8}",
    ]
    for n, t in zip(SIZES, messages, strict=True):
        fitted = link.alpha + n * link.beta
        lines.append(f"{n:10d} {1e6 * t:10.1f} {1e6 * fitted:10.1f} {n / t / 1e9:8.3f}")
    lines += [describe(link), "", "all-reduce, us: measured (predicted)"]
    names = [*ALGORITHMS, communicator.backend]
    lines.append(f"{'bytes':>10} " + " ".join(f"{name:>22}" for name in names))
    for n in SIZES:
        cells = []
        for name in names:
            t = timed(communicator, reduction(communicator, name), arrays[n].copy())
            cells.append(f"{1e6 * t:10.1f} ({expected(name, communicator, n, link)})")
        lines.append(f"{n:10d} " + " ".join(f"{cell:>22}" for cell in cells))
    return lines, link


def describe(link: Link) -> str:
    """The link in a line."""
    gamma = f", gamma {1e9 * link.gamma:.3g} ns/byte" if link.gamma else ""
    return (
        f"alpha {1e6 * link.alpha:.3g} us, beta {1e9 * link.beta:.3g} ns/byte "
        f"({1e-9 / link.beta:.3g} GB/s){gamma}"
    )


def reduction(communicator: Communicator, name: str) -> Callable:
    """The all-reduce of this name, of an array."""
    if name not in ALGORITHMS:
        return communicator.all_reduce
    return lambda array: ALGORITHMS[name](communicator, array)


def expected(name: str, communicator: Communicator, nbytes: int, link: Link) -> str:
    """Microseconds by the model; of the backend's own, by the quickest model."""
    if name not in ALGORITHMS:
        return f"{1e6 * cost.best(communicator.size, nbytes, link):.1f}"
    return f"{1e6 * cost.MODELS[name](communicator.size, nbytes).seconds(link):.1f}"


def timed(communicator: Communicator, function: Callable, array, budget=0.1) -> float:
    """Seconds of the slowest rank, in the quickest of as many calls as `budget` holds.

    The quickest, since what else runs on the machine only adds.
    """
    function(array)  # what is done once only
    seconds, calls = [], 1
    while len(seconds) < calls:
        array[...] = 1  # sums of sums would overflow
        synchronize()
        communicator.barrier()
        start = perf_counter()
        function(array)
        synchronize()
        seconds.append(perf_counter() - start)
        if len(seconds) == 1:
            first = communicator.all_reduce(np.array(seconds), "max")
            calls = int(min(max(10, budget / first[0]), 500))
    return float(communicator.all_reduce(np.array(seconds), "max").min())


def step_seconds(model, arguments) -> float:
    """One rank's step on its share of a batch of noise."""
    settings = Settings(dataset=arguments.dataset, batch_size=arguments.batch_size)
    share = -(-settings.filled().batch_size // init().size)
    rng = np.random.default_rng(0)
    shape = (share, *SHAPES[arguments.dataset])
    device = next(model.parameters()).device
    images = tensor(rng.standard_normal(shape, dtype=np.float32), device=device)
    labels = tensor(rng.integers(0, 10, share), device=device)
    optimizer = Adam(model.parameters(), lr=1e-4)
    parallel = DataParallel(model, Alone())

    def step(_):
        train_step(parallel, F.cross_entropy, optimizer, images, labels)

    return timed(Alone(), step, np.ones(1), budget=0.5)


def predicted(parameters: int, seconds: float, link: Link) -> list[str]:
    """The step on many ranks: each with the samples that one rank has now."""
    lines = [
        "",
        f"{parameters:,} parameters, {4e-6 * parameters:.3g} MB of gradients; a step "
        f"of one rank takes {1e3 * seconds:.3g} ms",
        f"on a link of {describe(link)}",
        "with communication behind backward (and after it):",
        f"{'ranks':>6} {'all-reduce ms':>14} {'step ms':>20} {'efficiency %':>18}",
    ]
    for size in RANKS:
        together = cost.best(size, 4 * parameters, link)
        steps = cost.step_seconds(size, 4 * parameters, link, seconds)
        times = "{:.3g} ({:.3g})".format(*(1e3 * t for t in steps))
        shares = "{:.1f} ({:.1f})".format(*(100 * seconds / t for t in steps))
        lines.append(f"{size:6d} {1e3 * together:14.3g} {times:>20} {shares:>18}")
    return lines
