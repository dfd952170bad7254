"""The measurement of whole training steps, for gpu_check: minidl's as they are and as
one CUDA graph, and PyTorch's and JAX's where they are installed."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from gpu_benchmarks import (
    allow_tf32,
    device_of,
    free_memory,
    milliseconds,
    torch_or_none,
)
from gpu_networks import NETWORKS, model_of, work_of
from gpu_report import attempt

import minidl
from minidl import optim
from minidl.array.device import bfloat16
from minidl.distributed import Alone, DataParallel
from minidl.train import CapturedStep, train_step
from minidl.train.precision import Precision

SECONDS, GRACE = 80, 15  # no peer compiles later than that; what JAX then has left
LOWERED = ("MNIST CNN", "ResNet18, CIFAR")  # measured by JAX and in bf16 and TF32 too


def steps(xp, quick: bool) -> Iterator[dict]:
    """Forward, backward and Adam: milliseconds a step, in each way and precision.

    What a peer has to compile for long comes last: a time limit then costs only that.
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
            job = partial(jax_time, xp, quick, name, end)
            yield optional(name, images, "JAX, jit", job, end)
    for (precision, name), times in known.items():
        if precision != "fp32":
            yield from attempt(name, compiled(xp, quick, precision, name, times, end))


def cases() -> Iterator[tuple[str, str]]:
    """(precision, network)"""
    yield from (("fp32", name) for name in NETWORKS)
    lower = ("tf32",) if bfloat16 is None else ("bf16", "tf32")
    for precision in lower:
        yield from ((precision, name) for name in filter(NETWORKS.get, LOWERED))


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
        way: partial(torch_time, xp, torch, *data, layout, None, precision)
        for torch in filter(None, [torch_or_none(xp)])
        for way, layout in torch_layouts(torch).items()
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
    data = work_of(xp, quick, name)
    images = data[1]
    way, layout = [*torch_layouts(torch).items()][best_layout(images)]
    mode = "reduce-overhead"
    job = partial(torch_time, xp, torch, *data, layout, mode, precision)
    free_memory(xp)
    row = optional(name, images, named(f"{way}, {mode}", precision), job, end)
    yield row
    theirs = [ms for way, ms in times.items() if way.startswith("PyTorch")]
    best = min([*theirs, row.get("ms", np.inf)])
    for way in filter(times.get, minidl_ways(xp)) if np.isfinite(best) else ():
        text = f"{named(way, precision)}, beside PyTorch's best"
        row = row_of(name, images, text, ms=times[way])
        yield row | {"torch_ms": best, "times_torch": best / times[way]}


def optional(name: str, images, way: str, job: Callable, end: float) -> dict:
    """A row of what may be missing (a C compiler, Triton, JAX for GPUs), or one that
    says why it is not there: not minidl's failure."""
    try:
        if time.monotonic() > end:
            raise TimeoutError("no time is left")
        return row_of(name, images, way, ms=job())
    except Exception as error:
        note = " ".join(f"passed over: {type(error).__name__}: {error}".split())
        return row_of(name, images, way, note=note[:300])


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


def torch_layouts(torch) -> dict[str, dict]:
    last = {"memory_format": torch.channels_last}
    return {"PyTorch": {}, "PyTorch, channels last": last}


def best_layout(images) -> int:
    """Its place in `torch_layouts`: channels last, where there is more than one."""
    return int(images.shape[1] > 1)


def torch_time(
    xp, torch, build, images, labels, inner, layout, mode, precision: str = "fp32"
) -> float:
    """With the fused Adam; `mode` is torch.compile's, None for eager."""
    device = device_of(xp)
    model = build(torch.nn)
    state = model_of(build).state_dict().items()
    model.load_state_dict({k: torch.from_numpy(v.numpy()) for k, v in state})
    model = model.to(device, **layout)
    x = torch.from_numpy(images).to(device, **layout)
    y = torch.from_numpy(labels).to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    low = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    def loss_of(x, y):
        return torch.nn.functional.cross_entropy(model(x), y)

    forward = loss_of
    if mode is not None:
        torch.compiler.reset()  # it gives up on code that it has compiled too often
        forward = torch.compile(loss_of, mode=mode)

    def step():
        optimizer.zero_grad()
        with low:
            loss = forward(x, y)
        loss.backward()
        optimizer.step()

    allow_tf32(torch, precision == "tf32")
    try:
        return milliseconds(xp, step, inner, warmup=5)
    finally:
        allow_tf32(torch, False)


def has_jax(xp) -> bool:
    return xp is not np and importlib.util.find_spec("jax") is not None


def jax_time(xp, quick: bool, name: str, end: float) -> float:
    """In a process of its own: JAX brings libraries of its own, and takes memory."""
    file = Path(__file__).with_name("gpu_jax.py")
    line = [sys.executable, str(file), name, device_of(xp)] + ["--quick"] * quick
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_TRACEBACK_FILTERING": "off",  # so that the error is said last
    }
    seconds = end - time.monotonic() + GRACE
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"not done after {seconds:.0f} s") from error
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-3:]))
    return float(done.stdout.splitlines()[-1])
