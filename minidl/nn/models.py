"""A few whole models."""

from minidl.nn.activation import ReLU
from minidl.nn.containers import Sequential
from minidl.nn.convolution import Conv2d
from minidl.nn.layers import Linear
from minidl.nn.spatial import Flatten, MaxPool2d


class MLP(Sequential):
    """Linear layers with ReLU between them, for images or vectors.

    `sizes` are the numbers of features: of the input, of each hidden layer, of the
    output.
    """

    def __init__(self, sizes: tuple[int, ...] = (784, 512, 512, 10)):
        layers = [Flatten()]
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [Linear(inputs, outputs), ReLU()]
        super().__init__(*layers[:-1])


class SmallCNN(Sequential):
    """Two convolutions of 3 x 3 with ReLU, max pooling, and linear layers.

    For images (N, channels, size, size); `hidden` is the width of the linear layer
    before the last, 0 for none.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        classes: int = 10,
        width: tuple[int, int] = (32, 64),
        hidden: int = 128,
    ):
        first, second = width
        features = second * (size // 2) ** 2
        head = [Linear(features, hidden), ReLU()] if hidden else []
        super().__init__(
            Conv2d(channels, first, 3, padding=1),
            ReLU(),
            Conv2d(first, second, 3, padding=1),
            ReLU(),
            MaxPool2d(2),
            Flatten(),
            *head,
            Linear(hidden or features, classes),
        )
