"""What is measured, told without any framework: shapes, weights and batches in NumPy.

A model is a tuple of layers, each a tuple of its kind and its sizes:
("conv", inputs, outputs, stride, bias) is 3 x 3 with padding 1, ("norm", features) is
batch norm, ("pool",) is max pooling of 2 x 2, ("mean",) averages each image,
("residual", layers) adds its input to its layers' output, and ("residual", layers,
shortcut) what a second row of layers makes of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

BATCHES = 8  # a step takes the next of them, over and over
LEARNING_RATE = 1e-3
Layers = tuple[tuple, ...]


@dataclass(frozen=True)
class Work:
    """One row of the table.

    `kind` says what a step is: "train" is forward, backward and Adam of `layers` on
    images of `shape`; "conv" is a convolution `conv` = (N, C, H, W, K, k, stride) with
    bias and all its gradients; "adam" is Adam's step on arrays of `shapes`; "chain"
    is `length` operations, one upon the other, forward and backward.
    """

    title: str
    kind: str
    layers: Layers = ()
    shape: tuple[int, ...] = ()  # of the global batch
    conv: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    length: int = 1
    ranks: int = 1

    @property
    def parameters(self) -> int:
        """How many numbers `shapes` hold."""
        return sum(map(prod, self.shapes))

    def small(self) -> "Work":
        """The same work at a size that only shows that it runs."""
        batch, *rest = self.shape or (0,)
        return replace(
            self,
            title=f"{self.title} (made tiny)",
            shape=(min(batch, 4), *rest) if batch else (),
            conv=(2, *self.conv[1:]) if self.conv else (),
            shapes=self.shapes[:8],
            length=min(self.length, 20),
        )


def conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> tuple:
    return ("conv", inputs, outputs, stride, bias)


def normed(inputs: int, outputs: int, stride: int = 1) -> Layers:
    return (conv(inputs, outputs, stride, False), ("norm", outputs))


RELU = ("relu",)
BLOCK = (("residual", (*normed(64, 64), RELU, *normed(64, 64))), RELU)
DIGITS = (conv(1, 16), RELU, conv(16, 32), RELU, ("pool",), ("linear", 512, 10))
MNIST = (conv(1, 32), RELU, conv(32, 64), RELU, ("pool",))
MNIST += (("linear", 64 * 14 * 14, 128), RELU, ("linear", 128, 10))
RESIDUAL = (*normed(3, 32), RELU, *normed(32, 64, 2), RELU, *BLOCK, *BLOCK)
RESIDUAL += (("mean",), ("linear", 64, 10))
MLP = (("linear", 784, 512), RELU, ("linear", 512, 512), RELU, ("linear", 512, 10))
CONVS = (
    (64, 64, 32, 32, 64, 3, 1),
    (64, 128, 16, 16, 128, 3, 1),
    (128, 32, 28, 28, 64, 3, 1),
    (32, 64, 56, 56, 64, 3, 1),
    (64, 256, 8, 8, 512, 1, 1),
    (64, 3, 32, 32, 64, 3, 1),
)


def resnet50_shapes() -> Iterator[tuple[int, ...]]:
    """Of the parameters of ResNet-50: 161 arrays, 25,557,032 numbers.

    He et al., "Deep Residual Learning for Image Recognition", 2016, table 1.
    """

    def with_norm(*shape):
        return shape, shape[:1], shape[:1]

    yield from with_norm(64, 3, 7, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from with_norm(width, inputs, 1, 1)
            yield from with_norm(width, width, 3, 3)
            yield from with_norm(4 * width, width, 1, 1)
            if block == 0:
                yield from with_norm(4 * width, inputs, 1, 1)
            inputs = 4 * width
    yield from ((1000, 2048), (1000,))


def _conv_work(sizes: tuple[int, ...]) -> Work:
    n, c, h, w, k, kernel, stride = sizes
    title = f"conv {n}x{c}x{h}x{w}, {k} filters {kernel}x{kernel}"
    title += f", stride {stride}" if stride > 1 else ""
    return Work(f"{title}, forward and backward", "conv", conv=sizes)


WORKS: dict[str, Work] = {
    "digits": Work("digits CNN step, batch 64", "train", DIGITS, (64, 1, 8, 8)),
    "mnist": Work("MNIST CNN step, batch 128", "train", MNIST, (128, 1, 28, 28)),
    "residual": Work("residual CNN step, batch 64", "train", RESIDUAL, (64, 3, 32, 32)),
    "mlp": Work("MLP step, batch 256", "train", MLP, (256, 784)),
    "adam": Work("Adam, 25 M parameters", "adam", shapes=tuple(resnet50_shapes())),
    **{f"conv{i}": _conv_work(sizes) for i, sizes in enumerate(CONVS, 1)},
    "engine": Work("engine, an op forward and backward", "chain", length=1000),
    "ranks": Work(
        "MNIST CNN step, batch 128, 2 ranks of one thread each",
        "train",
        MNIST,
        (128, 1, 28, 28),
        ranks=2,
    ),
}


def weights(layers: Layers, seed: int = 0) -> list[np.ndarray]:
    """Initial weights, layer by layer: weight, then bias where there is one.

    He et al., "Delving Deep into Rectifiers", 2015: variance 2 / fan in.
    """
    random = np.random.default_rng(seed)
    arrays: list[np.ndarray] = []
    for kind, *sizes in flat(layers):
        if kind == "norm":
            arrays += [np.ones(sizes[0]), np.zeros(sizes[0])]
        elif kind == "linear":
            inputs, outputs = sizes
            scale = np.sqrt(2 / inputs)
            arrays += [random.normal(0, scale, (outputs, inputs)), np.zeros(outputs)]
        elif kind == "conv":
            inputs, outputs, _, bias = sizes
            shape = (outputs, inputs, 3, 3)
            arrays.append(random.normal(0, np.sqrt(2 / (9 * inputs)), shape))
            arrays += [np.zeros(outputs)] if bias else []
    return [a.astype(np.float32) for a in arrays]


def flat(layers: Layers) -> Iterator[tuple]:
    """The layers, those of residual blocks in their places."""
    for layer in layers:
        if layer[0] == "residual":
            for part in layer[1:]:
                yield from flat(part)
        else:
            yield layer


def batches(work: Work, rank: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """This rank's share of each batch: images and labels."""
    random = np.random.default_rng(1)
    share = work.shape[0] // work.ranks
    mine = slice(rank * share, (rank + 1) * share)
    made = []
    for _ in range(BATCHES):
        images = random.standard_normal(work.shape, np.float32)
        labels = random.integers(0, 10, work.shape[0])
        made.append((images[mine].copy(), labels[mine].copy()))
    return made


def conv_arrays(work: Work) -> list[np.ndarray]:
    """x, w, b and the gradient of y of a convolution with padding k // 2."""
    n, c, h, w, k, kernel, stride = work.conv
    pad = kernel // 2
    out = [(size + 2 * pad - kernel) // stride + 1 for size in (h, w)]
    shapes = ((n, c, h, w), (k, c, kernel, kernel), (k,), (n, k, *out))
    random = np.random.default_rng(2)
    return [random.standard_normal(shape, np.float32) for shape in shapes]


def gradients(work: Work) -> list[np.ndarray]:
    """A gradient for each of Adam's parameters, which begin at zero."""
    random = np.random.default_rng(3)
    return [random.standard_normal(shape, np.float32) for shape in work.shapes]


def chain_arrays() -> tuple[np.ndarray, np.ndarray]:
    """What the chain begins with, and what its operations take besides."""
    return np.full(4, 0.5, np.float32), np.full(4, 1.01, np.float32)
