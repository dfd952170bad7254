"""The measurement of whole training steps, for gpu_check: minidl's as they are and as
one CUDA graph, and PyTorch's and JAX's where they are installed."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from gpu_benchmarks import (
    device_of,
    free_memory,
    milliseconds,
    tf32_in,
    torch_or_none,
)
from gpu_networks import LOWERED, NETWORKS, cases, model_of, work_of
from gpu_peers import Peer, ask
from gpu_report import attempt
from gpu_torch import best_layout, layouts, step_of

import minidl
from minidl import optim
from minidl.distributed import Alone, DataParallel
from minidl.train import CapturedStep, train_step
from minidl.train.precision import Precision

SECONDS, GRACE = 80, 15  # no peer is asked later than that; what it then has left


def steps(xp, quick: bool) -> Iterator[dict]:
    """Forward, backward and Adam: milliseconds a step, in each way and precision.

    What depends on peers in processes of their own comes last: those that are not
    ready, or take too long, then cost themselves alone.
    """
    end = time.monotonic() + SECONDS
    known = {(precision, name): {} for precision, name in cases()}
    for (precision, name), times in known.items():
        yield from attempt(name, measured(xp, quick, precision, name, times))
    for name in NETWORKS:
        times = known["fp32", name]
        yield from attempt(name, compiled(xp, quick, "fp32", name, times, end))
    for name in filter(NETWORKS.get, LOWERED):
        if has_jax(xp):
            images = work_of(xp, quick, name)[1]
            yield asked(Peer("jax", name), images, "JAX, jit", end)
    for (precision, name), times in known.items():
        if precision != "fp32":
            yield from attempt(name, compiled(xp, quick, precision, name, times, end))


def measured(xp, quick, precision: str, name: str, times: dict) -> Iterator[dict]:
    """A network's rows, but for those of compiled ones; adds to `times`, by way.

    In the lower precisions only in the ways that are the fastest.
    """
    data = work_of(xp, quick, name)
    ours = {
        way: partial(minidl_time, xp, step, *data, precision)
        for way, step in minidl_ways(xp).items()
    }
    theirs = {
        way: partial(torch_time, xp, torch, *data, layout, precision)
        for torch in filter(None, [torch_or_none(xp)])
        for way, layout in layouts(torch).items()
    }
    if precision != "fp32":
        ours = dict([*ours.items()][-1:])
        theirs = dict([*theirs.items()][best_layout(data[1]) :][:1])
    plain, *captured = ours.items()
    for way, job in (plain, *theirs.items(), *captured):  # the last may well fail
        free_memory(xp)
        times[way] = job()
        yield row_of(name, data[1], named(way, precision), ms=times[way])


def compiled(
    xp, quick, precision: str, name: str, times: dict, end: float
) -> Iterator[dict]:
    """What torch.compile makes of it, with CUDA graphs; minidl's beside the best."""
    torch = torch_or_none(xp)
    if torch is None:
        return
    images = work_of(xp, quick, name)[1]
    way = [*layouts(torch)][best_layout(images)]
    text = named(f"{way}, reduce-overhead", precision)
    row = asked(Peer("torch", name, precision), images, text, end)
    yield row
    theirs = [ms for way, ms in times.items() if way.startswith("PyTorch")]
    best = min([*theirs, row.get("ms", np.inf)])
    for way in filter(times.get, minidl_ways(xp)) if np.isfinite(best) else ():
        text = f"{named(way, precision)}, beside PyTorch's best"
        row = row_of(name, images, text, ms=times[way])
        yield row | {"torch_ms": best, "times_torch": best / times[way]}


def asked(peer: Peer, images, way: str, end: float) -> dict:
    """A row of what may be missing (a C compiler, Triton, JAX for GPUs), or one that
    says why it is not there: not minidl's failure."""
    left = end - time.monotonic()
    try:
        if left < 0:
            raise TimeoutError("no time is left")
        return row_of(peer.network, images, way, ms=ask(peer, left + GRACE))
    except Exception as error:
        note = " ".join(f"passed over: {type(error).__name__}: {error}".split())
        return row_of(peer.network, images, way, note=note[:300])


def named(way: str, precision: str) -> str:
    return way if precision == "fp32" else f"{way}, {precision}"


def row_of(name: str, images, way: str, **found) -> dict:
    return {"name": f"{name}, batch {len(images)}: {way}", "ok": None, **found}


def minidl_ways(xp) -> dict[str, Callable]:
    """A step as it is and, on a GPU, captured."""
    captured = {} if xp is np else {"minidl, captured": CapturedStep(required=True)}
    return {"minidl": train_step} | captured


def minidl_time(xp, step, build, images, labels, inner, name: str = "fp32") -> float:
    """Milliseconds a step, in the precision of this name."""
    device = device_of(xp)
    x, y = (minidl.tensor(array, device=device) for array in (images, labels))
    module = model_of(build).to(device)
    precision = Precision(name, device)
    precision.apply(module)
    model = DataParallel(module, Alone())
    optimizer = optim.Adam(model.parameters())
    precision.keep_low(model)

    def run():
        return step(model, precision.loss_fn, optimizer, x, y)

    with precision.in_force():
        return milliseconds(xp, run, inner, warmup=5)


def torch_time(
    xp, torch, build, images, labels, inner, layout, precision: str = "fp32"
) -> float:
    """Eager."""
    data = device_of(xp), build, images, labels, layout, precision
    with tf32_in(torch, precision == "tf32"):
        return milliseconds(xp, step_of(torch, *data), inner, warmup=5)


def has_jax(xp) -> bool:
    return xp is not np and importlib.util.find_spec("jax") is not None
