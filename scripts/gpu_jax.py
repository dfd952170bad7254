"""One measurement of gpu_steps in a process of its own: a training step of JAX.

`python scripts/gpu_jax.py NETWORK cpu|cuda` prints milliseconds. The step is one jitted
function whose arguments are donated; weights and batch are minidl's, and products of
float32 are float32, as they are in minidl unless it is told otherwise.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import jax  # noqa: E402
import numpy as np  # noqa: E402
from benchmark import jax_peer, work  # noqa: E402
from benchmark.work import RELU, Layers, normed  # noqa: E402
from gpu_benchmarks import milliseconds  # noqa: E402
from gpu_networks import model_of, work_of  # noqa: E402

from minidl.array.device import cupy_module  # noqa: E402


def block(inputs: int, outputs: int, stride: int) -> Layers:
    """Of ResNet-18; that a shortcut's convolution is 1 x 1, its weights say."""
    body = (*normed(inputs, outputs, stride), RELU, *normed(outputs, outputs))
    same = stride == 1 and inputs == outputs
    short = () if same else (normed(inputs, outputs, stride),)
    return (("residual", body, *short), RELU)


RESNET18 = (*normed(3, 64), RELU, *block(64, 64, 1), *block(64, 64, 1))
for width in (128, 256, 512):
    RESNET18 += block(width // 2, width, 2) + block(width, width, 1)
RESNET18 += (("mean",), ("linear", 512, 10))
LAYERS = {
    "digits CNN": work.DIGITS,
    "MNIST CNN": work.MNIST,
    "residual CNN": work.RESIDUAL,
    "ResNet18, CIFAR": RESNET18,
}


def step_of(name: str, build: Callable, images, labels) -> Callable[[], list]:
    """A step of training; it has only begun when it returns."""
    jax.config.update("jax_default_matmul_precision", "highest")
    weights = [parameter.numpy() for parameter in model_of(build).parameters()]
    return jax_peer.train_step(LAYERS[name], weights, [(images, labels)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=LAYERS)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    jax.config.update("jax_platforms", options.device)  # raises where there is none
    xp = np if options.device == "cpu" else cupy_module()
    *data, inner = work_of(xp, options.quick, options.network)
    step = step_of(options.network, *data)

    def steps():  # by the host's clock: its stream is not to be had
        for _ in range(inner):
            last = step()
        jax_peer.wait(last)

    print(milliseconds(np, steps, inner=1) / inner)


if __name__ == "__main__":
    main()
