"""How near Adam comes to the speed of a copy, on its own and with all it can do."""

from collections.abc import Iterator

import numpy as np
from gpu_benchmarks import (
    copy_rate,
    device_of,
    free_memory,
    milliseconds,
    per_second,
    torch_or_none,
)
from gpu_checks import largest_error, verdict

from minidl import nn, optim
from minidl.array import euclid
from minidl.array.device import bfloat16, to_numpy
from minidl.array.random import normal
from minidl.autograd import Tensor

ADAM_BYTES = 28  # a parameter: g, p, m, v are read, p, m, v written, 4 bytes each


def adam(xp, quick: bool) -> Iterator[dict]:
    """Adam on flat storage against a copy and against PyTorch's fused Adam."""
    copy = copy_rate(xp, quick)
    yield {"name": "device-to-device copy", "ok": None, "gb_per_s": copy}
    for name, sizes in parameter_sizes(xp, quick).items():
        n = sum(sizes)
        if free_memory(xp) < 28 * n + (1 << 30):
            note = f"passed over: needs {28 * n / 2**30:.0f} GiB of free memory"
            yield {"name": name, "ok": None, "note": note}
            continue
        optimizer, error = minidl_adam(xp, sizes)
        yield verdict(f"{name}: the last ones, against NumPy", error, 2e-5)
        ms = milliseconds(xp, optimizer.step)
        row = {"name": name, "ok": None, **per_second(ADAM_BYTES * n, ms, copy)}
        torch = torch_or_none(xp)
        if torch is not None:
            free_memory(xp)
            row["torch_ms"] = torch_adam(xp, torch, sizes)
            row["times_torch"] = row["torch_ms"] / ms
        yield row
        if len(sizes) == 1 and n < 50_000_000:
            yield from adam_and_all(xp, optimizer, n, copy)


def parameter_sizes(xp, quick: bool) -> dict[str, list[int]]:
    """Of each measurement, the elements of every parameter."""
    if xp is np:
        return {"Adam, 100,003 parameters": [100_003]}
    sizes = [25_000_000] if quick else [25_000_000, 100_000_000, 1_000_000_000]
    found = {f"Adam, {n:,} parameters": [n] for n in sizes}
    return {"Adam, 25,000,000 in 160 arrays": [512, 311_988] * 80, **found}


def minidl_adam(xp, sizes: list[int]) -> tuple[optim.Adam, float]:
    """An Adam after its first step, and how far that is from NumPy's, at the end."""
    device = device_of(xp)
    params = [nn.Parameter(normal((n,), device=device)) for n in sizes]
    optimizer = optim.Adam(params)
    for p in params:
        p.grad = Tensor(normal(p.shape, std=1e-2, device=device))
    tail = slice(-min(sizes[-1], 10_000), None)
    small = nn.Parameter(to_numpy(params[-1].data[tail]).copy())
    reference = optim.Adam([small])
    small.grad = Tensor(to_numpy(params[-1].grad.data[tail]))
    optimizer.step()
    reference.step()
    return optimizer, largest_error(to_numpy(params[-1].data[tail]), small.data)


def adam_and_all(xp, optimizer, n: int, copy: float) -> Iterator[dict]:
    """The same launch with all that it can do besides; and the norm by itself."""
    params = optimizer.param_groups[0]["params"]
    grads = [params[0].storage.grad]
    rates = per_second(4 * n, milliseconds(xp, lambda: euclid.norm(grads)), copy)
    yield {"name": f"norm of {n:,} gradients", "ok": None, **rates}
    ms = milliseconds(xp, lambda: optim.clip_grad_norm_(params, 1e9))
    rates = per_second(12 * n, ms, copy)
    yield {"name": f"clip_grad_norm_, {n:,} gradients", "ok": None, **rates}
    optimizer.grad_scale, optimizer.found_inf = xp.ones(1), xp.zeros(1)
    ms = milliseconds(xp, optimizer.step)
    name = f"Adam, {n:,}: unscale and skip"
    yield {"name": name, "ok": None, **per_second(ADAM_BYTES * n, ms, copy)}
    if bfloat16 is not None:
        params[0].storage.keep_low(bfloat16)
        ms = milliseconds(xp, optimizer.step)
        rates = per_second((ADAM_BYTES + 2) * n, ms, copy)
        yield {"name": f"{name}, bfloat16 copy", "ok": None, **rates}


def torch_adam(xp, torch, sizes: list[int]) -> float:
    device = device_of(xp)
    params = [torch.nn.Parameter(torch.randn(n, device=device)) for n in sizes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-2
    optimizer = torch.optim.Adam(params, fused=True)
    ms = milliseconds(xp, optimizer.step)
    del params, optimizer, p
    torch.cuda.empty_cache()
    return ms
