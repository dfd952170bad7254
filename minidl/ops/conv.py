"""Convolution. Forward, the gradient of its input and the gradient of its weight are
three operations, and the gradients of each are the other two."""

from minidl.array import convolution as raw
from minidl.array.bias import add_bias
from minidl.autograd.function import Op
from minidl.autograd.structure import BroadcastTo
from minidl.autograd.tensor import Tensor
from minidl.ops.activation import relu_gradient
from minidl.ops.pad import pad
from minidl.ops.spatial import batched, tuple_of


class Conv(Op):
    """y = x * w + b, x (N, C, *size), w (K, C / groups, *kernel), b (K); with relu,
    max(0, y)."""

    fresh = True

    def forward(self, x, w, b, settings, relu=False):
        needs = self.needs_input_grad
        self.settings, self.x_shape, self.w_shape = settings, x.shape, w.shape
        y = raw.conv_forward(x, w, b, *settings, relu=relu)
        self.save_for_backward(
            x if needs[1] else None, w if needs[0] else None, y if relu else None
        )
        return y

    def backward(self, g):
        x, w, y = self.saved_tensors
        gx = gw = gb = None
        if y is not None and self.edges[2] is not None:
            g, gb = Rectified.apply(g, y, self.gradient_buffer(2))
        elif y is not None:
            g = relu_gradient(g, y)
        if w is not None:
            gx = ConvInput.apply(g, w, None, self.x_shape, self.settings)
        if x is not None:
            out = self.gradient_buffer(1)
            gw = ConvWeight.apply(g, x, self.w_shape, self.settings, out)
        if self.edges[2] is not None and gb is None:
            gb = SumToChannels.apply(g, self.gradient_buffer(2))
        return gx, gw, gb


class ConvInput(Op):
    """The gradient of a convolution's input, gy * w transposed, + b for each channel;
    gy (N, K, *out), b (C)."""

    def forward(self, gy, w, b, x_shape, settings):
        self.settings, self.w_shape = settings, w.shape
        needs = self.needs_input_grad
        self.save_for_backward(gy if needs[1] else None, w if needs[0] else None)
        x = raw.conv_input_gradient(gy, w, x_shape, *settings)
        return x if b is None else add_bias(x, b)

    def backward(self, g):
        gy, w = self.saved_tensors
        ggy = gw = gb = None
        if w is not None:
            ggy = Conv.apply(g, w, None, self.settings)
        if gy is not None:
            out = self.gradient_buffer(1)
            gw = ConvWeight.apply(gy, g, self.w_shape, self.settings, out)
        if self.edges[2] is not None:
            gb = SumToChannels.apply(g, self.gradient_buffer(2))
        return ggy, gw, gb


class ConvWeight(Op):
    """The gradient of a convolution's weight, written to `out` where that is given."""

    def forward(self, gy, x, w_shape, settings, out):
        self.settings, self.x_shape = settings, x.shape
        needs = self.needs_input_grad
        self.save_for_backward(gy if needs[1] else None, x if needs[0] else None)
        return raw.conv_weight_gradient(gy, x, w_shape, *settings, out=out)

    def backward(self, g):
        gy, x = self.saved_tensors
        ggy = gx = None
        if x is not None:
            ggy = Conv.apply(x, g, None, self.settings)
        if gy is not None:
            gx = ConvInput.apply(gy, g, None, self.x_shape, self.settings)
        return ggy, gx


class Rectified(Op):
    """g where y > 0, 0 elsewhere, and the sum of that over all but the channels, which
    may be written to `out` where that is given."""

    materialize_grads = False

    def forward(self, g, y, out):
        self.save_for_backward(y)
        return raw.conv_rectified_gradient(g, y, out)

    def backward(self, ggy, ggb):
        (y,) = self.saved_tensors
        if ggb is not None:
            spread = BroadcastTo.apply(column(ggb, y.ndim), y.shape)
            ggy = spread if ggy is None else ggy + spread
        return None if ggy is None else relu_gradient(ggy, y)


class SumToChannels(Op):
    """(N, C, *size) -> (C); may be written to `out` where that is given."""

    def forward(self, g, out):
        self.shape = g.shape
        return raw.conv_bias_gradient(g, out)

    def backward(self, g):
        return BroadcastTo.apply(column(g, len(self.shape)), self.shape)


def column(b: Tensor, ndim: int) -> Tensor:
    """(C) as it broadcasts to (N, C, *size)."""
    return b.reshape(-1, *(1,) * (ndim - 2))


def check_operands(name: str, n: int, input: Tensor, weight: Tensor, bias) -> None:
    """RuntimeError where number types, devices or dimensions do not fit."""
    if weight.ndim != n + 2:
        raise RuntimeError(
            f"{name}: expected a weight of {n + 2} dimensions, got shape "
            f"{tuple(weight.shape)}"
        )
    for other in (weight, bias):
        if other is not None and other.dtype != input.dtype:
            raise RuntimeError(
                f"{name}: input is {input.dtype} and a parameter is {other.dtype}; "
                "cast one with .to()"
            )
        if other is not None and other.device != input.device:
            raise RuntimeError(
                f"{name}: input is on {input.device} and a parameter on "
                f"{other.device}; move one with .to()"
            )


def conv(
    n, name, input, weight, bias, stride, padding, dilation, groups, relu=False
) -> Tensor:
    """Convolution over n dimensions; an input without a batch dimension gets one.

    With `relu` it is max(0, y), in one operation.
    """
    check_operands(name, n, input, weight, bias)
    stride = tuple_of(stride, n, "stride")
    dilation = tuple_of(dilation, n, "dilation")
    if isinstance(padding, str):
        input, padding = padded(input, weight, stride, padding, dilation)
    settings = stride, tuple_of(padding, n, "padding"), dilation, groups
    return batched(
        lambda x: Conv.apply(x, weight, bias, settings, relu), n, name, input
    )


def padded(input, weight, stride, padding: str, dilation):
    """The meaning of padding="valid" and padding="same"."""
    if padding == "valid":
        return input, 0
    if padding != "same":
        raise RuntimeError(f"padding must be 'valid', 'same' or ints, got {padding!r}")
    if any(s != 1 for s in stride):
        raise RuntimeError("padding='same' needs stride 1")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if all(p % 2 == 0 for p in total):
        return input, tuple(p // 2 for p in total)
    # the odd one goes to the end
    sides = [side for p in reversed(total) for side in (p // 2, p - p // 2)]
    return pad(input, sides), 0


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolution of (N, C, L) with a weight of (K, C / groups, kernel)."""
    sizes = stride, padding, dilation
    return conv(1, "conv1d", input, weight, bias, *sizes, groups)


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolution of (N, C, H, W) with a weight of (K, C / groups, kh, kw)."""
    sizes = stride, padding, dilation
    return conv(2, "conv2d", input, weight, bias, *sizes, groups)


def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolution of (N, C, D, H, W) with a weight of (K, C / groups, kd, kh, kw)."""
    sizes = stride, padding, dilation
    return conv(3, "conv3d", input, weight, bias, *sizes, groups)
