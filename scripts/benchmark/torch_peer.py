"""PyTorch at the work of the benchmark, as it comes or with what makes it faster."""

import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmark import torch_like, work
from benchmark.work import LEARNING_RATE, Work


def versions() -> str:
    return f"PyTorch {torch.__version__}, Python {platform.python_version()}"


def build(
    job: Work, fused: bool = False, channels_last: bool = False, compile: bool = False
) -> Callable[[], list]:
    """A function that makes one step and returns what it computed.

    `fused` takes the fused Adam, `channels_last` that memory format for images and
    filters, `compile` torch.compile.
    """

    def laid_out(array):
        tensor = torch.from_numpy(array)
        if channels_last and tensor.ndim == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    faster = torch.compile if compile else lambda function: function
    if job.kind == "train":
        return train(job, fused, channels_last, laid_out, faster)
    if job.kind == "conv":
        return conv(job, laid_out, faster)
    if job.kind == "adam":
        return adam(job, fused, faster)
    if compile:
        raise NotImplementedError("a compiled program has no engine to measure")
    x, b = map(torch.from_numpy, work.chain_arrays())
    return torch_like.chain_step(job, x.requires_grad_(), b)


def train(job: Work, fused, channels_last, laid_out, faster) -> Callable[[], list]:
    rank = 0
    if job.ranks > 1:
        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
    network = torch_like.model(nn, job.layers)
    weights = work.weights(job.layers)
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(weight))
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=fused)
    if job.ranks > 1:
        network = nn.parallel.DistributedDataParallel(network)
    data = [(laid_out(x), laid_out(t)) for x, t in work.batches(job, rank)]
    return torch_like.train_step(
        faster(network), optimizer, F.cross_entropy, data, torch.Tensor.backward
    )


def conv(job: Work, laid_out, faster) -> Callable[[], list]:
    *inputs, gradient = map(laid_out, work.conv_arrays(job))
    inputs = [tensor.requires_grad_() for tensor in inputs]
    return torch_like.conv_step(faster(F.conv2d), job, *inputs, gradient)


def adam(job: Work, fused, faster) -> Callable[[], list]:
    parameters = [nn.Parameter(torch.zeros(s)) for s in job.shapes]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=fused)
    for parameter, gradient in zip(parameters, work.gradients(job), strict=True):
        parameter.grad = torch.from_numpy(gradient)
    return torch_like.adam_step(faster(optimizer.step), parameters)


def wait(result: list) -> None:
    """A step is over when it returns."""


def to_numpy(job: Work, result: list) -> list:
    return [tensor.detach().contiguous().numpy() for tensor in result]
