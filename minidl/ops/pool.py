"""Pooling: the largest, or the mean, of each window."""

import numpy as np

from minidl.array import pooling as raw
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.spatial import batched, check_images, tuple_of


class MaxPool(Op):
    """The largest of each window, and its place in the plane it came from."""

    def forward(self, x, settings):
        y, indices = raw.max_pool_forward(x, *settings)
        self.shape, self.window = x.shape, settings[:4]
        self.save_for_backward(indices)
        return y, indices

    def backward(self, g, _):
        (indices,) = self.saved_tensors
        return MaxUnpool.apply(g, indices.data, self.shape, self.window)


class MaxUnpool(Op):
    """Each element goes to the place its index names; several there are added."""

    def forward(self, g, indices, shape, window):
        self.window = window
        self.save_for_backward(indices)
        return raw.max_pool_backward(g, indices, shape, *window)

    def backward(self, g):
        (indices,) = self.saved_tensors
        return MaxGather.apply(g, indices.data, self.window)


class MaxGather(Op):
    """The elements at the places that the indices name."""

    def forward(self, x, indices, window):
        self.shape, self.window = x.shape, window
        self.save_for_backward(indices)
        return raw.max_pool_gather(x, indices)

    def backward(self, g):
        (indices,) = self.saved_tensors
        return MaxUnpool.apply(g, indices.data, self.shape, self.window)


class AvgPool(Op):
    """The mean of each window."""

    def forward(self, x, settings):
        self.shape, self.settings = x.shape, settings
        return raw.avg_pool_forward(x, *settings)

    def backward(self, g):
        return AvgUnpool.apply(g, self.shape, self.settings)


class AvgUnpool(Op):
    """Each element shared out over its window."""

    def forward(self, g, shape, settings):
        self.settings = settings
        window, counting = settings[:3], settings[4:]
        return raw.avg_pool_backward(g, shape, *window, *counting)

    def backward(self, g):
        return AvgPool.apply(g, self.settings)


def window_of(n: int, kernel_size, stride, padding) -> tuple:
    """kernel, stride (the kernel's size where omitted) and padding as tuples."""
    kernel = tuple_of(kernel_size, n, "kernel_size")
    omitted = stride is None or stride == () or stride == []
    stride = kernel if omitted else tuple_of(stride, n, "stride")
    return kernel, stride, tuple_of(padding, n, "padding")


def max_pooling(n: int, sizes: str):
    """The public function over n dimensions."""

    def function(
        input: Tensor,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        ceil_mode=False,
        return_indices=False,
    ):
        window = window_of(n, kernel_size, stride, padding)
        settings = *window, tuple_of(dilation, n, "dilation"), bool(ceil_mode)
        check_images(name, input)
        y, where = batched(lambda x: MaxPool.apply(x, settings), n, name, input)
        return (y, Tensor(where.data.astype(np.int64))) if return_indices else y

    name = function.__name__ = function.__qualname__ = f"max_pool{n}d"
    function.__doc__ = (
        f"The largest of each window of (N, C, {sizes}); nothing in the padding is.\n\n"
        "    With return_indices also where it was, counted through the plane; the\n"
        "    first of equals, and NaN before all.\n    "
    )
    return function


def avg_pooling(n: int, sizes: str):
    """The public function over n dimensions."""

    def function(
        input: Tensor,
        kernel_size,
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ):
        window = window_of(n, kernel_size, stride, padding)
        settings = *window, bool(ceil_mode), count_include_pad, divisor_override
        check_images(name, input)
        return batched(lambda x: AvgPool.apply(x, settings), n, name, input)

    name = function.__name__ = function.__qualname__ = f"avg_pool{n}d"
    function.__doc__ = (
        f"The mean of each window of (N, C, {sizes}), padded with zeros, which count\n"
        "    if count_include_pad; divisor_override replaces the number of elements.\n"
        "    "
    )
    return function


max_pool1d, max_pool2d = max_pooling(1, "L"), max_pooling(2, "H, W")
max_pool3d = max_pooling(3, "D, H, W")
avg_pool2d, avg_pool3d = avg_pooling(2, "H, W"), avg_pooling(3, "D, H, W")
avg_pool1d_by = avg_pooling(1, "L")


def avg_pool1d(
    input: Tensor,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
) -> Tensor:
    """The mean of each window of (N, C, L); zeros of the padding count if
    count_include_pad."""
    return avg_pool1d_by(
        input, kernel_size, stride, padding, ceil_mode, count_include_pad
    )
