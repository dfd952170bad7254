"""Peers of minidl that compile for long, torch.compile and JAX, for gpu_check.

Each network has a process of its own. It gets ready while nothing is measured, then
waits, and measures when it is asked to:
`python scripts/gpu_peers.py FOLDER LIBRARY NETWORK PRECISION cpu|cuda [--quick]`
leaves NAME.ready in the folder, and, once NAME.go is there, its time in NAME.ms.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import numpy as np  # noqa: E402
from gpu_benchmarks import milliseconds, tf32_in  # noqa: E402
from gpu_networks import LOWERED, NETWORKS, cases, work_of  # noqa: E402
from gpu_tests import end  # noqa: E402

FOLDER = "MINIDL_GPU_PEERS"  # where those are that have been started
SECONDS = 120  # to get ready in: so long do the sections take that measure nothing
WARMUP = 5  # steps; CUDA graphs are recorded in the first ones
ENVIRONMENT = {
    "TORCHINDUCTOR_COMPILE_THREADS": "2",  # of each, and there are many
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX would take most of the memory
    "JAX_TRACEBACK_FILTERING": "off",  # so that the error is said last
}


class Peer(NamedTuple):
    library: str
    network: str
    precision: str = "fp32"

    def file(self, folder: str | Path, suffix: str) -> Path:
        name = "-".join(self).replace(" ", "-").replace(",", "")
        return Path(folder, f"{name}.{suffix}")


def installed() -> Iterator[Peer]:
    """Those that gpu_steps asks, in its order; JAX in float32 alone."""
    if find_spec("torch") is not None:
        yield from (Peer("torch", name, precision) for precision, name in cases())
    if find_spec("jax") is not None:
        yield from (Peer("jax", name) for name in filter(NETWORKS.get, LOWERED))


class Peers:
    """Starts them on entering, ends them on leaving."""

    def __init__(self, peers: list[Peer], device: str = "cuda", quick: bool = False):
        self.peers, self.options = peers, [device, *["--quick"] * quick]
        self.processes: dict[Peer, subprocess.Popen] = {}

    def __enter__(self) -> "Peers":
        self.temporary = TemporaryDirectory()
        self.folder = os.environ[FOLDER] = self.temporary.name
        self.until = time.monotonic() + SECONDS
        for peer in self.peers:
            with peer.file(self.folder, "log").open("wb") as log:
                self.processes[peer] = subprocess.Popen(
                    [sys.executable, __file__, self.folder, *peer, *self.options],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=os.environ | ENVIRONMENT,
                    start_new_session=True,  # so that its children end with it
                )
        return self

    def settle(self) -> None:
        """Return when all are ready or gone; those that are too slow are ended."""
        while late := [p for p in self.peers if self.prepares(p)]:
            if time.monotonic() > self.until:
                for peer in late:
                    end(self.processes[peer])
            time.sleep(0.05)

    def prepares(self, peer: Peer) -> bool:
        ready = peer.file(self.folder, "ready").exists()
        return not ready and self.processes[peer].poll() is None

    def __exit__(self, *exception) -> None:
        for process in self.processes.values():
            end(process)
        del os.environ[FOLDER]
        self.temporary.cleanup()


def ask(peer: Peer, seconds: float) -> float:
    """Milliseconds a step; RuntimeError if it is not ready, TimeoutError if late."""
    folder = os.environ.get(FOLDER)
    if folder is None or not peer.file(folder, "log").exists():
        raise RuntimeError("it was not started")
    if not peer.file(folder, "ready").exists():
        said = peer.file(folder, "log").read_text(errors="replace").splitlines()
        raise RuntimeError("\n".join(said[-3:]) or f"not ready after {SECONDS} s")
    peer.file(folder, "go").touch()
    answer, until = peer.file(folder, "ms"), time.monotonic() + seconds
    while not answer.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"not done after {seconds:.0f} s")
        time.sleep(0.01)
    text = answer.read_text()
    try:
        return float(text)
    except ValueError:
        raise RuntimeError(text) from None


# --- a peer


def torch_ready(peer: Peer, device: str, quick: bool) -> Callable[[], float]:
    import torch
    from gpu_torch import compiled_step

    from minidl.array.device import cupy_module

    xp = np if device == "cpu" else cupy_module()
    *data, inner = work_of(xp, quick, peer.network)
    step = compiled_step(torch, device, *data, peer.precision)

    def measured(**calls) -> float:
        with tf32_in(torch, peer.precision == "tf32"):
            return milliseconds(xp, step, **calls)

    measured(inner=1, repeats=1, warmup=WARMUP)
    return lambda: measured(inner=inner)


def jax_ready(peer: Peer, device: str, quick: bool) -> Callable[[], float]:
    import gpu_jax

    # without CuPy, for JAX brings CUDA's libraries itself
    *data, inner = work_of(np if device == "cpu" else None, quick, peer.network)
    steps = gpu_jax.steps_of(device, peer.network, *data, inner)
    steps()
    return lambda: milliseconds(np, steps, inner=1) / inner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("library", choices=("torch", "jax"))
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("precision")
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true")
    options, parent = parser.parse_args(), os.getppid()
    os.nice(5)  # what is checked meanwhile comes first
    peer = Peer(options.library, options.network, options.precision)
    get_ready = {"torch": torch_ready, "jax": jax_ready}[peer.library]
    measure = get_ready(peer, options.device, options.quick)
    peer.file(options.folder, "ready").touch()
    while not peer.file(options.folder, "go").exists():
        if os.getppid() != parent:
            return  # nobody is left to ask
        time.sleep(0.01)
    try:
        answer = str(measure())
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    part = peer.file(options.folder, "part")
    part.write_text(answer)
    part.rename(peer.file(options.folder, "ms"))


if __name__ == "__main__":
    main()
