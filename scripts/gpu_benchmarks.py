"""The measurements of gpu_check: rows whose `ok` is None, times as medians.

PyTorch is measured beside minidl where it is installed, in the same process on the
same stream. With NumPy in CuPy's place the same code measures the CPU.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np

from minidl.array.device import bfloat16
from minidl.array.kernel import Kernel
from minidl.array.random import normal

STREAMED = ("relu", "relu_gradient", "gelu", "tanh", "sgd")  # by Kernel.registry


def device_of(xp) -> str:
    return "cpu" if xp is np else "cuda"


def milliseconds(
    xp, function: Callable, inner: int = 10, repeats: int = 11, warmup: int = 3
) -> float:
    """The median time of one call, of `repeats` measurements of `inner` calls each.

    Between events on the device: several calls, so that launches are queued and the
    time is the device's wherever that is the slower side. One more comes before, for
    the device to do while the host prepares the first.
    """
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        if xp is np:
            start = time.perf_counter()
            for _ in range(inner):
                function()
            times.append((time.perf_counter() - start) * 1e3 / inner)
            continue
        start, stop = xp.cuda.Event(), xp.cuda.Event()
        xp.cuda.get_current_stream().synchronize()
        function()
        start.record()
        for _ in range(inner):
            function()
        stop.record()
        stop.synchronize()
        times.append(xp.cuda.get_elapsed_time(start, stop) / inner)
    return median(times)


def torch_or_none(xp):
    """PyTorch, where it is installed and sees the device."""
    if xp is np or importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch if torch.cuda.is_available() else None


@contextmanager
def tf32_in(torch, allowed: bool):
    """Whether PyTorch rounds float32 in convolutions and products to TF32, as minidl's
    one switch has it: by default it does so in convolutions alone."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, allowed
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            yield
    finally:
        products.allow_tf32 = before


def free_memory(xp) -> int:
    """Bytes, after the pool has given back what it does not use."""
    if xp is np:
        return 2 << 30
    xp.get_default_memory_pool().free_all_blocks()
    return xp.cuda.runtime.memGetInfo()[0]


def copy_rate(xp, quick: bool) -> float:
    """GB/s of a device-to-device copy, bytes read and bytes written both counted."""
    count = (1 << 20) if xp is np else (1 << 26 if quick else 1 << 29)
    source = normal((count,), device=device_of(xp))
    target = xp.empty_like(source)

    def copy():
        target[...] = source

    return 2 * source.nbytes / milliseconds(xp, copy) / 1e6


def per_second(count: float, ms: float, copy: float) -> dict:
    rate = count / ms / 1e6
    return {"ms": ms, "gb_per_s": rate, "share_of_copy": rate / copy}


# --- elementwise kernels


def elementwise(xp, quick: bool) -> Iterator[dict]:
    """Bandwidth of a few kernels: inputs and outputs each once through memory."""
    copy = copy_rate(xp, quick)
    yield {"name": "device-to-device copy", "ok": None, "gb_per_s": copy}
    n = 100_000 if xp is np else 1 << 27
    for dtype in ("float32",) if bfloat16 is None else ("float32", bfloat16):
        for name in STREAMED:
            kernel = Kernel.registry.get(name)
            if kernel is None:
                continue
            arrays = [normal((n,), device=device_of(xp)) for _ in kernel.names]
            arrays = [array.astype(dtype, copy=False) for array in arrays]
            first = len(kernel.inputs)
            inputs, outs = arrays[:first], tuple(arrays[first:])
            scalars = dict.fromkeys(kernel.scalars, 0.5)
            passes = len(kernel.names) + len(kernel.body.reads)

            def run(kernel=kernel, inputs=inputs, outs=outs, scalars=scalars):
                kernel(*inputs, out=outs, **scalars)

            count = passes * arrays[0].nbytes
            rates = per_second(count, milliseconds(xp, run), copy)
            yield {"name": f"{name} {np.dtype(dtype)}", "ok": None, **rates}
