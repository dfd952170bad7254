"""The measurement of whole training steps, for gpu_check: minidl's as they are and as
one CUDA graph, and PyTorch's where it is installed."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
from benchmark import torch_like, work
from gpu_benchmarks import device_of, free_memory, milliseconds, torch_or_none

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
    """Forward, backward and Adam in float32: milliseconds a step, in each way."""
    for name, (build, shape) in NETWORKS.items():
        shape = (2, *shape[1:]) if xp is np else shape
        rng = np.random.default_rng(0)
        images = rng.normal(size=shape).astype("f4")
        labels = rng.integers(0, 10, shape[0])
        inner = 1 if xp is np else 10 if quick else 30
        times = minidl_times(xp, build, images, labels, inner)
        torch = torch_or_none(xp)
        if torch is not None:
            free_memory(xp)
            times |= torch_times(xp, torch, build, images, labels, inner)
        ours = {way: ms for way, ms in times.items() if way.startswith("minidl")}
        rest = [ms for way, ms in times.items() if way not in ours]
        for way, ms in times.items():
            row = {"name": f"{name}, batch {shape[0]}: {way}", "ok": None, "ms": ms}
            if way in ours and rest:  # PyTorch's best against this
                row |= {"torch_ms": min(rest), "times_torch": min(rest) / ms}
            yield row


def minidl_times(xp, build, images, labels, inner: int) -> dict[str, float]:
    """Milliseconds a step as it is and, on a GPU, captured."""
    device = device_of(xp)
    x, y = (minidl.tensor(array, device=device) for array in (images, labels))
    ways = {"minidl": train_step}
    if xp is not np:
        ways["minidl, captured"] = CapturedStep(required=True)
    times = {}
    for way, step in ways.items():
        minidl.manual_seed(0)
        model = DataParallel(build(nn).to(device), Alone())
        optimizer = optim.Adam(model.parameters())

        def run(step=step, model=model, optimizer=optimizer):
            return step(model, F.cross_entropy, optimizer, x, y)

        times[way] = milliseconds(xp, run, inner, warmup=5)
    return times


def torch_times(xp, torch, build, images, labels, inner: int) -> dict[str, float]:
    """Milliseconds a step of PyTorch: eager in both layouts, and with CUDA graphs.

    To compile takes long: networks on images of one channel are compiled as they are,
    the larger ones in the layout that convolutions prefer.
    """
    last = {"memory_format": torch.channels_last}
    layout, name = (last, ", channels last") if images.shape[1] > 1 else ({}, "")
    ways: dict[str, tuple[dict, str | None]] = {
        "PyTorch": ({}, None),
        "PyTorch, channels last": (last, None),
        f"PyTorch, reduce-overhead{name}": (layout, "reduce-overhead"),
    }
    return {
        way: torch_time(xp, torch, build, images, labels, inner, layout, mode)
        for way, (layout, mode) in ways.items()
    }


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
