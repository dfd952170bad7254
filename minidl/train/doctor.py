"""`minidl doctor`: what every rank has to compute with, and what is wrong with it."""

import faulthandler
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import minidl
from minidl.array.device import to_device, use_device
from minidl.array.errors import DependencyError, DistributedError, MinidlError
from minidl.array.inventory import (
    blas,
    cache_facts,
    compiler_facts,
    cores,
    device_facts,
    package_version,
    versions,
)
from minidl.array.threads import get_num_threads, why_threads
from minidl.distributed import Communicator, init, launched
from minidl.distributed.launch import Launch, code_digest, sharing_wanted
from minidl.distributed.library import mpi_facts
from minidl.train.collective_bench import timed
from minidl.train.findings import PACKAGES, hints, problems
from minidl.train.flags import add_device, add_timeout
from minidl.train.output import Aside, leading, tell

SIZES = [8, 4096, 262144, 4 << 20]  # bytes
SECONDS = 60.0  # until a doctor that waits gives up


def add_command(commands) -> None:
    """`minidl doctor` and its flags."""
    command = commands.add_parser(
        "doctor", help="what each rank has to compute with, and what is wrong with it"
    )
    command.set_defaults(run=run)
    add_device(command)
    command.add_argument(
        "--json", action="store_true", help="print it all as one JSON object"
    )
    add_timeout(command, SECONDS, "how long to wait for ranks and devices")


def run(arguments) -> int:
    """Examine all ranks and print; the exit status, 1 where there is a problem."""
    communicator, refused = None, []
    try:
        communicator = init(timeout=arguments.timeout)
    except (DependencyError, DistributedError) as error:  # each rank for itself, then
        refused = [str(error)]
        if isinstance(error, DependencyError) and not leading():
            Aside().write(f"problem: {error}\n")  # rank 0 waits for this one
    with ending_after(arguments.timeout):
        own = facts(communicator, arguments.device)
    everyone, curve = [own], []
    if communicator is not None:
        everyone = communicator.all_gather_object(own)
    wrong = refused + problems(everyone)
    if communicator is not None and communicator.size > 1 and not wrong:
        with ending_after(arguments.timeout):
            curve = bandwidth(communicator, own["device"]["name"])
    report = {
        "ranks": everyone,
        "all_reduce": curve,
        "problems": wrong,
        "hints": hints(everyone),
        "usable": not wrong,
    }
    tell(json.dumps(report, indent=1) if arguments.json else written(report))
    return 1 if wrong else 0


@contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """End the process where a driver or a device does not answer, saying where."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def facts(communicator: Communicator | None, device: str) -> dict:
    """What this rank is and has."""
    launch = launched() or Launch("", 0, 1)
    rank, size = launch.rank, launch.size
    if communicator is not None:
        rank, size = communicator.rank, communicator.size
    compiler, no_compiler = compiler_facts()
    cache, no_cache = cache_facts()
    package = Path(minidl.__file__).parent
    mpi = mpi_facts()
    return {
        "rank": rank,
        "size": size,
        "launcher": launch.launcher or None,
        "backend": communicator.backend if communicator is not None else None,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": chosen_device(communicator, device),
        "may_share": sharing_wanted(),
        "versions": {
            "minidl": f"{minidl.__version__} ({code_digest(package)})",
            **versions(),
            "MPI": mpi.get("MPI"),
            "mpi4py": mpi.get("mpi4py", package_version("mpi4py")),
        },
        "cuda_aware": mpi.get("CUDA-aware"),
        "compiler": compiler,
        "compiler_problem": no_compiler,
        "blas": blas(),
        "threads": get_num_threads(),
        "why_threads": why_threads(),
        "cores": cores(),
        "cache": cache,
        "cache_problem": no_cache,
        "missing": [name for name in PACKAGES if find_spec(name) is None],
        "mpirun": shutil.which("mpirun") or shutil.which("mpiexec"),
    }


def chosen_device(communicator: Communicator | None, device: str) -> dict:
    """The facts of the device that `minidl train --device` would use here.

    Without them a "problem", in a sentence.
    """
    try:
        if communicator is None:
            return device_facts("cpu")
        return device_facts(communicator.place(device, share=True))  # told later
    except (MinidlError, RuntimeError) as error:  # the latter: CUDA's
        return {"name": None, "problem": str(error)}


def bandwidth(communicator: Communicator, device: str) -> list[dict]:
    """The time of all-reduces of a few sizes, on the ranks' devices."""
    curve = []
    with use_device(device):
        for nbytes in SIZES:
            array = to_device(np.ones(nbytes // 4, np.float32), device)
            seconds = timed(communicator, communicator.all_reduce, array, 0.05)
            curve.append(
                {
                    "bytes": nbytes,
                    "us": 1e6 * seconds,
                    "gb_per_s": nbytes / seconds / 1e9,
                }
            )
    return curve


# As text --------------------------------------------------------------------------


def written(report: dict) -> str:
    """The report for a reader: ranks, what they have, the curve, what is wrong."""
    lines = [*rank_lines(report["ranks"]), "", *shared_lines(report["ranks"])]
    if report["all_reduce"]:
        lines += ["", f"{'all-reduce':>10} {'us':>10} {'GB/s':>8}"]
        lines += [
            f"{row['bytes']:10d} {row['us']:10.1f} {row['gb_per_s']:8.3f}"
            for row in report["all_reduce"]
        ]
    lines.append("")
    lines += [f"problem: {sentence}" for sentence in report["problems"]]
    lines += [f"hint: {sentence}" for sentence in report["hints"]]
    if report["usable"]:
        lines.append("minidl can be used as it is")
    return "\n".join(lines)


def rank_lines(everyone: list[dict]) -> list[str]:
    """A table, a line a rank."""
    rows = [("rank", "host", "process", "threads", "free/total GiB", "device")]
    for own in everyone:
        device = own["device"]
        name = " ".join(filter(None, (device["name"], device.get("model"))))
        at = f" at {device['address']}" if "address" in device else ""
        memory = (device.get("free"), device.get("total"))
        known = None not in memory
        rows.append(
            (
                str(own["rank"]),
                own["host"],
                str(own["process"]),
                str(own["threads"]),
                "/".join(f"{n / 2**30:.1f}" for n in memory) if known else "-",
                f"{name}{at}" if name else "none",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def shared_lines(everyone: list[dict]) -> list[str]:
    """A line for what is the same on all ranks, several for what is not."""
    lines = []
    every = [own["rank"] for own in everyone]
    for name in described(everyone[0]):
        found: dict[str, list[int]] = {}
        for own in everyone:
            found.setdefault(described(own)[name], []).append(own["rank"])
        for text, ranks in found.items():
            where = "" if ranks == every else f"  (rank {', '.join(map(str, ranks))})"
            lines.append(f"{name:<14}  {text}{where}")
    return lines


def described(own: dict) -> dict[str, str]:
    """What a rank has, by what it is called."""
    texts = {name: text or "-" for name, text in own["versions"].items()}
    if own["cuda_aware"] is not None:
        texts["MPI"] += f" ({'' if own['cuda_aware'] else 'not '}CUDA-aware)"
    texts["launcher"] = own["launcher"] or "-"
    texts["C++ compiler"] = own["compiler"]
    texts["BLAS"] = own["blas"]
    texts["threads"] = f"{own['threads']}: {own['why_threads']}"
    texts["cache"] = own["cache"]
    return texts
