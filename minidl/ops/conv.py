"""Convolution. Forward, the gradient of its input and the gradient of its weight are
three operations, and the gradients of each are the other two."""

from minidl.array import convolution as raw
from minidl.array.convolution import output_shape
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor


class Conv(Op):
    """y = x * w + b; x (N, C, *size), w (K, C / groups, *kernel), b (K)."""

    def forward(self, x, w, b, settings):
        needs = self.needs_input_grad
        self.settings, self.x_shape, self.w_shape = settings, x.shape, w.shape
        self.save_for_backward(x if needs[1] else None, w if needs[0] else None)
        return raw.conv_forward(x, w, b, *settings)

    def backward(self, g):
        x, w = self.saved_tensors
        gx = gw = gb = None
        if w is not None:
            gx = ConvInput.apply(g, w, self.x_shape, self.settings)
        if x is not None:
            out = self.gradient_buffer(1)
            gw = ConvWeight.apply(g, x, self.w_shape, self.settings, out)
        if self.edges[2] is not None:
            gb = g.sum((0, *range(2, g.ndim)))
        return gx, gw, gb


class ConvInput(Op):
    """The gradient of a convolution's input: the transposed convolution of gy."""

    def forward(self, gy, w, x_shape, settings):
        self.settings, self.w_shape = settings, w.shape
        needs = self.needs_input_grad
        self.save_for_backward(gy if needs[1] else None, w if needs[0] else None)
        return raw.conv_input_gradient(gy, w, x_shape, *settings)

    def backward(self, g):
        gy, w = self.saved_tensors
        return (
            None if w is None else Conv.apply(g, w, None, self.settings),
            None
            if gy is None
            else ConvWeight.apply(gy, g, self.w_shape, self.settings, None),
        )


class ConvWeight(Op):
    """The gradient of a convolution's weight."""

    def forward(self, gy, x, w_shape, settings, out):
        self.settings, self.x_shape = settings, x.shape
        self.save_for_backward(gy, x)
        return raw.conv_weight_gradient(gy, x, w_shape, *settings, out=out)

    def backward(self, g):
        gy, x = self.saved_tensors
        ggy = gx = None
        if self.edges[0] is not None:
            ggy = Conv.apply(x, g, None, self.settings)
        if self.edges[1] is not None:
            gx = ConvInput.apply(gy, g, self.x_shape, self.settings)
        return ggy, gx


def tuple_of(value, n: int, name: str) -> tuple[int, ...]:
    """One int for each of n dimensions; a single one serves for all."""
    values = (value,) * n if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= n
    if len(values) != n:
        raise RuntimeError(f"{name} must be an int or {n} of them, got {value!r}")
    return values


def conv(n, input, weight, bias, stride, padding, dilation, groups) -> Tensor:
    """Convolution over n dimensions; an input without a batch dimension gets one."""
    if input.ndim == n + 1:
        batched = input.reshape(1, *input.shape)
        y = conv(n, batched, weight, bias, stride, padding, dilation, groups)
        return y.reshape(y.shape[1:])
    check_types(f"conv{n}d", input, weight, bias)
    if input.ndim != n + 2:
        raise RuntimeError(
            f"conv{n}d: expected an input of {n + 1} or {n + 2} dimensions "
            f"(N, C, *size), got shape {tuple(input.shape)}"
        )
    stride = tuple_of(stride, n, "stride")
    dilation = tuple_of(dilation, n, "dilation")
    if isinstance(padding, str):
        input, padding = padded(input, weight, stride, padding, dilation)
    settings = stride, tuple_of(padding, n, "padding"), dilation, groups
    output_shape(input.shape, weight.shape, *settings)  # raises before any work
    return Conv.apply(input, weight, bias, settings)


def padded(input, weight, stride, padding: str, dilation):
    """The meaning of padding="valid" and padding="same"."""
    n = len(stride)
    if padding == "valid":
        return input, 0
    if padding != "same":
        raise RuntimeError(f"padding must be 'valid', 'same' or ints, got {padding!r}")
    if any(s != 1 for s in stride):
        raise RuntimeError("padding='same' needs stride 1")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if all(p % 2 == 0 for p in total):
        return input, tuple(p // 2 for p in total)
    from minidl.ops.pad import pad  # the odd one goes to the end

    sides = [side for p in reversed(total) for side in (p // 2, p - p // 2)]
    return pad(input, sides), (0,) * n


def check_types(name: str, input: Tensor, *others: Tensor | None) -> None:
    for other in others:
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


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolution of (N, C, L) with a weight of (K, C / groups, kernel)."""
    return conv(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolution of (N, C, H, W) with a weight of (K, C / groups, kh, kw)."""
    return conv(2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Convolution of (N, C, D, H, W) with a weight of (K, C / groups, kd, kh, kw)."""
    return conv(3, input, weight, bias, stride, padding, dilation, groups)
