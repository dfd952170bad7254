"""The networks that gpu_check trains, by minidl and its peers: the same in all."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
from benchmark import torch_like, work

import minidl
from minidl import nn
from minidl.array.device import bfloat16

NETWORKS: dict[str, tuple[Callable, tuple[int, ...]]] = {  # (builder, shape of a batch)
    "digits CNN": (lambda nn: torch_like.model(nn, work.DIGITS), (64, 1, 8, 8)),
    "MNIST CNN": (lambda nn: torch_like.model(nn, work.MNIST), (128, 1, 28, 28)),
    "residual CNN": (lambda nn: torch_like.model(nn, work.RESIDUAL), (64, 3, 32, 32)),
    "ResNet18, CIFAR": (lambda nn: resnet18(nn), (128, 3, 32, 32)),
}
LOWERED = ("MNIST CNN", "ResNet18, CIFAR")  # measured by JAX and in bf16 and TF32 too


def cases() -> Iterator[tuple[str, str]]:
    """(precision, network)"""
    yield from (("fp32", name) for name in NETWORKS)
    lower = ("tf32",) if bfloat16 is None else ("bf16", "tf32")
    for precision in lower:
        yield from ((precision, name) for name in filter(NETWORKS.get, LOWERED))


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


def work_of(xp, quick: bool, name: str) -> tuple:
    """(builder, images, labels, calls to measure at a time)"""
    build, shape = NETWORKS[name]
    shape = (2, *shape[1:]) if xp is np else shape
    rng = np.random.default_rng(0)
    images = rng.normal(size=shape).astype("f4")
    few = quick or images.size > 1 << 18  # such a step is long
    inner = 1 if xp is np else 10 if few else 30
    return build, images, rng.integers(0, 10, shape[0]), inner


def model_of(build: Callable) -> nn.Module:
    """minidl's, on the host: its weights are everyone's."""
    minidl.manual_seed(0)
    return build(nn)
