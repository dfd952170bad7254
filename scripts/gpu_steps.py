"""The measurement of whole training steps, for gpu_check: minidl's as they are and as
one CUDA graph, and PyTorch's where it is installed."""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import numpy as np
from benchmark import torch_like, work
from gpu_benchmarks import device_of, free_memory, milliseconds, torch_or_none
from gpu_report import attempt

import minidl
from minidl import nn, optim
from minidl.distributed import Alone, DataParallel
from minidl.nn import functional as F
from minidl.train import CapturedStep, train_step

NETWORKS: dict[str, tuple[Callable, tuple[int, ...]]] = {  # (builder, shape of a batch)
    "digits CNN": (lambda nn: torch_like.model(nn, work.DIGITS), (64, 1, 8, 8)),
    "MNIST CNN": (lambda nn: torch_like.model(nn, work.MNIST), (128, 1, 28, 28)),
    "residual CNN": (lambda nn: torch_like.model(nn, work.RESIDUAL), (64, 3, 32, 32)),
    "ResNet18, CIFAR": (lambda nn: resnet18(nn), (128, 3, 32, 32)),
}


def resnet18(nn: ModuleType):
    """ResNet-18 of the CIFAR form, of the modules of minidl or PyTorch."""

    def normed(inputs, outputs, kernel, stride):
        padding = kernel // 2
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.first = normed(inputs, outputs, 3, stride)
            self.second = normed(outputs, outputs, 3, 1)
            same = stride == 1 and inputs == outputs
            self.short = nn.Sequential() if same else normed(inputs, outputs, 1, stride)
            self.relu = nn.ReLU()

        def forward(self, x):
            y = self.second(self.relu(self.first(x)))
            return self.relu(y + self.short(x))

    widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
    blocks = [
        Block(*sizes)
        for inputs, outputs, stride in widths
        for sizes in ((inputs, outputs, stride), (outputs, outputs, 1))
    ]
    stem = (normed(3, 64, 3, 1), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return nn.Sequential(*stem, *blocks, *head)


def steps(xp, quick: bool) -> Iterator[dict]:
    """Forward, backward and Adam in float32: milliseconds a step, in each way.

    What PyTorch has to compile for long comes last: a time limit then costs only that.
    """
    known: dict[str, dict[str, float]] = {name: {} for name in NETWORKS}
    for ways in (measured, compiled):
        for name, times in known.items():
            yield from attempt(name, ways(xp, quick, name, times))


def measured(xp, quick: bool, name: str, times: dict) -> Iterator[dict]:
    """A network's rows, but for those of compiled ones; adds to `times`, by way."""
    data = work_of(xp, quick, name)
    plain, *captured = (
        {way: partial(minidl_time, xp, step, *data)}
        for way, step in minidl_ways(xp).items()
    )
    theirs = {
        way: partial(torch_time, xp, torch, *data, layout, None)
        for torch in filter(None, [torch_or_none(xp)])
        for way, layout in torch_layouts(torch).items()
    }
    for jobs in (plain, theirs, *captured):  # the last is the likeliest to fail
        for way, job in jobs.items():
            free_memory(xp)
            times[way] = job()
            yield row_of(name, data[1], way, times[way])


def compiled(xp, quick: bool, name: str, times: dict) -> Iterator[dict]:
    """What torch.compile makes of it, with CUDA graphs; minidl's beside the best."""
    torch = torch_or_none(xp)
    if torch is None:
        return
    data = work_of(xp, quick, name)
    images = data[1]
    # networks on images of one channel as they are, larger ones channels last
    way, layout = list(torch_layouts(torch).items())[images.shape[1] > 1]
    free_memory(xp)
    try:
        mode = "reduce-overhead"
        times[f"{way}, {mode}"] = ms = torch_time(xp, torch, *data, layout, mode)
        yield row_of(name, images, f"{way}, {mode}", ms)
    except Exception as error:  # no C compiler, no Triton: not minidl's failure
        note = f"not compiled: {type(error).__name__}: {error}"[:300]
        yield {"name": f"{name}: {way}, {mode}", "ok": None, "note": note}
    best = min(ms for way, ms in times.items() if way.startswith("PyTorch"))
    for way in filter(times.get, minidl_ways(xp)):
        row = row_of(name, images, f"{way}, beside PyTorch's best", times[way])
        yield row | {"torch_ms": best, "times_torch": best / times[way]}


def work_of(xp, quick: bool, name: str) -> tuple:
    """(builder, images, labels, calls to measure at a time)"""
    build, shape = NETWORKS[name]
    shape = (2, *shape[1:]) if xp is np else shape
    rng = np.random.default_rng(0)
    images = rng.normal(size=shape).astype("f4")
    inner = 1 if xp is np else 10 if quick else 30
    return build, images, rng.integers(0, 10, shape[0]), inner


def row_of(name: str, images, way: str, ms: float) -> dict:
    return {"name": f"{name}, batch {len(images)}: {way}", "ok": None, "ms": ms}


def minidl_ways(xp) -> dict[str, Callable]:
    """A step as it is and, on a GPU, captured."""
    captured = {} if xp is np else {"minidl, captured": CapturedStep(required=True)}
    return {"minidl": train_step} | captured


def minidl_time(xp, step, build, images, labels, inner: int) -> float:
    """Milliseconds a step."""
    device = device_of(xp)
    x, y = (minidl.tensor(array, device=device) for array in (images, labels))
    minidl.manual_seed(0)
    model = DataParallel(build(nn).to(device), Alone())
    optimizer = optim.Adam(model.parameters())
    return milliseconds(
        xp, lambda: step(model, F.cross_entropy, optimizer, x, y), inner, warmup=5
    )


def torch_layouts(torch) -> dict[str, dict]:
    last = {"memory_format": torch.channels_last}
    return {"PyTorch": {}, "PyTorch, channels last": last}


def torch_time(xp, torch, build, images, labels, inner, layout, mode) -> float:
    """With the fused Adam; `mode` is torch.compile's, None for eager."""
    device = device_of(xp)
    model = build(torch.nn).to(device, **layout)
    x = torch.from_numpy(images).to(device, **layout)
    y = torch.from_numpy(labels).to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def loss_of(x, y):
        return torch.nn.functional.cross_entropy(model(x), y)

    forward = loss_of if mode is None else torch.compile(loss_of, mode=mode)

    def step():
        optimizer.zero_grad()
        forward(x, y).backward()
        optimizer.step()

    return milliseconds(xp, step, inner, warmup=5)
