"""minidl at the work of the benchmark."""

import os
import platform
from collections.abc import Callable

import numpy as np

import minidl as md
from benchmark import torch_like, work
from benchmark.work import LEARNING_RATE, Work
from minidl import distributed, nn, optim
from minidl.array.compiler import compiler
from minidl.nn import functional as F


def versions() -> str:
    command = compiler()
    by = f"compiler {os.path.basename(command[0])}" if command else "no compiler"
    python = platform.python_version()
    return f"minidl {md.__version__}, {by}, NumPy {np.__version__}, Python {python}"


def build(job: Work) -> Callable[[], list]:
    """A function that makes one step and returns what it computed."""
    builders = {"train": train, "conv": conv, "adam": adam, "chain": chain}
    return builders[job.kind](job)


def train(job: Work) -> Callable[[], list]:
    rank = distributed.init().rank if job.ranks > 1 else 0
    network = torch_like.model(nn, job.layers)
    weights = work.weights(job.layers)
    for parameter, weight in zip(network.parameters(), weights, strict=True):
        parameter.data[...] = weight
    optimizer = optim.Adam(network.parameters(), lr=LEARNING_RATE)
    backward = md.Tensor.backward
    if job.ranks > 1:
        backward = distributed.DataParallel(network).backward
    data = [(md.Tensor(x), md.Tensor(t)) for x, t in work.batches(job, rank)]
    return torch_like.train_step(network, optimizer, F.cross_entropy, data, backward)


def conv(job: Work) -> Callable[[], list]:
    *arrays, gradient = work.conv_arrays(job)
    inputs = [md.Tensor(a).requires_grad_() for a in arrays]
    return torch_like.conv_step(F.conv2d, job, *inputs, md.Tensor(gradient))


def adam(job: Work) -> Callable[[], list]:
    parameters = [nn.Parameter(np.zeros(s, np.float32)) for s in job.shapes]
    optimizer = optim.Adam(parameters, lr=LEARNING_RATE)
    for parameter, gradient in zip(parameters, work.gradients(job), strict=True):
        parameter.grad = md.Tensor(gradient)
    return torch_like.adam_step(optimizer.step, parameters)


def chain(job: Work) -> Callable[[], list]:
    x, b = (md.Tensor(a) for a in work.chain_arrays())
    return torch_like.chain_step(job, x.requires_grad_(), b)


def wait(result: list) -> None:
    """A step is over when it returns."""


def to_numpy(job: Work, result: list) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in result]
