"""JAX's training steps for gpu_check: each is one jitted function.

Its arguments are donated; weights and batch are minidl's, and products of float32 are
float32, as they are in minidl unless it is told otherwise.
"""

from collections.abc import Callable

import jax
from benchmark import jax_peer, work
from benchmark.work import RELU, Layers, normed
from gpu_networks import model_of


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


def steps_of(
    device: str, name: str, build: Callable, images, labels, inner: int
) -> Callable[[], None]:
    """So many steps, by the host's clock: the stream of JAX is not to be had."""
    jax.config.update("jax_platforms", device)
    try:
        jax.devices(device)
    except Exception as error:  # an AssertionError without a word among them
        raise RuntimeError(f"JAX has no device {device!r}: {error}") from None
    step = step_of(name, build, images, labels)

    def steps():
        for _ in range(inner):
            last = step()
        jax_peer.wait(last)

    return steps
