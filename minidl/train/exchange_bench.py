"""`minidl bench --exchange`: how much of communication hides behind backward."""

from time import perf_counter

import numpy as np

from minidl.array.device import synchronize, use_device
from minidl.array.errors import UsageError
from minidl.array.random import manual_seed
from minidl.distributed import Alone, Communicator, DataParallel, init
from minidl.nn import MLP
from minidl.nn import functional as F
from minidl.nn.init import kaiming_normal_
from minidl.ops.creation import tensor
from minidl.optim import Adam
from minidl.train.output import tell
from minidl.train.step import train_step

WIDTH, LAYERS = 707, 50  # 25,027,800 parameters in 100 arrays
SHARE = 64  # samples of a rank, unless told otherwise
WAYS = {"none": {}, "naive": {"overlap": False}, "bucketed": {}}


def run(arguments) -> None:
    """Train with and without each exchange, in turn, and print what they cost."""
    communicator = init(timeout=arguments.timeout)
    if communicator.size == 1:
        raise UsageError(
            "one rank has nobody to exchange with: mpirun -n 2 minidl bench --exchange"
        )
    share = -(-(arguments.batch_size or SHARE * communicator.size) // communicator.size)
    device = communicator.place(arguments.device)
    with use_device(device):
        times = measured(communicator, device, share, arguments.rounds)
    tell("\n".join(table(communicator, share, times)))


def measured(communicator: Communicator, device: str, share: int, rounds: int) -> dict:
    """Seconds of each round, of the slowest rank: (way, "step" or "alone") -> array.

    The ways take turns, so that what else runs on the machine meets all alike.
    """
    runs = {}
    for way, options in WAYS.items():
        model, step = trainee(way, options, communicator, device, share)
        runs[way, "step"] = step
        if way != "none":
            runs[way, "alone"] = lambda model=model: model.exchange.wait(1.0)
    times = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, function in runs.items():
            synchronize()
            communicator.barrier()
            start = perf_counter()
            function()
            synchronize()
            times[name].append(perf_counter() - start)
    return {
        name: communicator.all_reduce(np.array(seconds[1:]), "max")
        for name, seconds in times.items()
    }


def trainee(way: str, options: dict, communicator, device: str, share: int):
    """A DataParallel of a model of its own, and a step of it; "none" is on its own."""
    manual_seed(0)
    model = MLP((WIDTH,) * (LAYERS + 1)).to(device)
    for p in model.parameters():
        if p.ndim == 2:
            kaiming_normal_(p, nonlinearity="relu")  # or gradients would vanish
    optimizer = Adam(model.parameters(), lr=1e-5)
    ranks = Alone() if way == "none" else communicator
    parallel = DataParallel(model, ranks, **options)
    rng = np.random.default_rng(communicator.rank)
    inputs = tensor(rng.standard_normal((share, WIDTH), np.float32), device=device)
    labels = tensor(rng.integers(0, WIDTH, share), device=device)

    def step():
        train_step(parallel, F.cross_entropy, optimizer, inputs, labels)

    return parallel, step


def exposed(times: dict, way: str) -> np.ndarray:
    """The share of communication that a step waits for, in per cent, in each round.

    100 (step with exchange - step without) / time of the communication alone, which
    is that of the same exchange when nothing is computed beside it, its median.
    """
    more = times[way, "step"] - times["none", "step"]
    return 100 * more / np.median(times[way, "alone"])


def table(communicator: Communicator, share: int, times: dict) -> list[str]:
    """Medians over the rounds, and in brackets the middle half of them."""
    parameters = WIDTH * (WIDTH + 1) * LAYERS
    lines = [
        f"{parameters:,} parameters, {4e-6 * parameters:.3g} MB of gradients; "
        f"{communicator.size} ranks, {communicator.backend}, {share} samples each",
        f"{len(times['none', 'step'])} rounds: median (middle half)",
        f"{'exchange':<10} {'step ms':>22} {'alone ms':>22} {'exposed %':>20}",
        f"{'none':<10} {cell(1e3 * times['none', 'step'], 1):>22}",
    ]
    for way in ("naive", "bucketed"):
        lines.append(
            f"{way:<10} {cell(1e3 * times[way, 'step'], 1):>22} "
            f"{cell(1e3 * times[way, 'alone'], 1):>22} "
            f"{cell(exposed(times, way), 0):>20}"
        )
    gain = times["naive", "step"] / times["bucketed", "step"]
    return [*lines, f"naive step / bucketed step {cell(gain, 2)}"]


def cell(values, digits: int) -> str:
    """median (first quartile to third)"""
    low, median, high = (f"{v:.{digits}f}" for v in np.percentile(values, (25, 50, 75)))
    return f"{median} ({low} to {high})"
