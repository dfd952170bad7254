"""Pooling: the largest, or the mean, of each window."""

from minidl.array import pooling as raw
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.conv import tuple_of


class MaxPool(Op):
    """The largest of each window, and its place in the plane it came from."""

    def forward(self, x, settings):
        y, indices = raw.max_pool_forward(x, *settings)
        self.shape, self.settings = x.shape, settings
        self.save_for_backward(indices)
        return y, indices

    def backward(self, g, _):
        (indices,) = self.saved_tensors
        return MaxUnpool.apply(g, indices.data, self.shape, self.settings[:4])


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


def batched(function, n: int, input: Tensor):
    """Call with a batch dimension; give back without one what came without one."""
    if input.ndim == n + 2:
        return function(input)
    if input.ndim != n + 1:
        raise RuntimeError(
            f"pooling over {n} dimensions needs an input of {n + 1} or {n + 2} "
            f"dimensions, got shape {tuple(input.shape)}"
        )
    result = function(input.reshape(1, *input.shape))
    if isinstance(result, tuple):
        return tuple(x.reshape(x.shape[1:]) for x in result)
    return result.reshape(result.shape[1:])


def max_pool(n, input, kernel_size, stride, padding, dilation, ceil_mode, indices):
    kernel = tuple_of(kernel_size, n, "kernel_size")
    settings = (
        kernel,
        tuple_of(stride if stride not in (None, ()) else kernel, n, "stride"),
        tuple_of(padding, n, "padding"),
        tuple_of(dilation, n, "dilation"),
        ceil_mode,
    )
    y, where = batched(lambda x: MaxPool.apply(x, settings), n, input)
    return (y, where) if indices else y


def max_pool2d(
    input,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
):
    """The largest of each window of (N, C, H, W)."""
    return max_pool(
        2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def avg_pool(n, input, kernel_size, stride, padding, ceil_mode, include_pad, divisor):
    kernel = tuple_of(kernel_size, n, "kernel_size")
    settings = (
        kernel,
        tuple_of(stride if stride not in (None, ()) else kernel, n, "stride"),
        tuple_of(padding, n, "padding"),
        ceil_mode,
        include_pad,
        divisor,
    )
    return batched(lambda x: AvgPool.apply(x, settings), n, input)


def avg_pool2d(
    input,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    """The mean of each window of (N, C, H, W)."""
    return avg_pool(
        2,
        input,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
