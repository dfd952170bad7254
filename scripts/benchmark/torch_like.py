"""The program that minidl and PyTorch both run: their names are the same."""

from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any

from benchmark.work import Layers, Work


def model(nn: Any, layers: Layers) -> Any:
    """The layers as a module of `nn`."""

    class Residual(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.body = model(nn, layers)

        def forward(self, x):
            return x + self.body(x)

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    def conv(inputs, outputs, stride, bias):
        return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)

    make: dict[str, Callable] = {
        "conv": conv,
        "norm": lambda features: nn.BatchNorm2d(features),
        "relu": nn.ReLU,
        "pool": lambda: nn.MaxPool2d(2),
        "mean": Mean,
        "linear": nn.Linear,
        "residual": Residual,
    }
    modules: list[Any] = []
    for kind, *sizes in layers:
        if modules and isinstance(modules[-1], nn.MaxPool2d):
            modules.append(nn.Flatten())
        modules.append(make[kind](*sizes))
    return nn.Sequential(*modules)


def train_step(network, optimizer, cross_entropy, data: Iterable, backward) -> Callable:
    """A step of training on the next of the batches; `backward` takes the loss."""
    batches = cycle(data)

    def step():
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = cross_entropy(network(images), labels)
        backward(loss)
        optimizer.step()
        return [loss]

    return step


def conv_step(conv2d: Callable, work: Work, x, w, b, gradient) -> Callable:
    """A convolution with the gradients of its three arguments."""
    kernel, stride = work.conv[-2:]

    def step():
        x.grad = w.grad = b.grad = None
        y = conv2d(x, w, b, stride, kernel // 2)
        y.backward(gradient)
        return [y, x.grad, w.grad, b.grad]

    return step


def adam_step(update: Callable, parameters: list) -> Callable:
    """Adam's step on the gradients that are there."""

    def step():
        update()
        return parameters

    return step


def chain_step(work: Work, x, b) -> Callable:
    """Tiny operations, each on the result of the one before."""

    def step():
        x.grad = None
        y = x
        for _ in range(work.length // 4):
            y = -((y * b + b).tanh())
        y.backward(b)
        return [y, x.grad]

    return step
