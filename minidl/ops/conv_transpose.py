"""Transposed convolution: the gradient of a convolution's input, as a function."""

from minidl.autograd.tensor import Tensor
from minidl.ops.conv import ConvInput, check_operands
from minidl.ops.pad import pad
from minidl.ops.spatial import batched, tuple_of


def conv_transpose(
    n, name, input, weight, bias, stride, padding, output_padding, groups, dilation
) -> Tensor:
    """Transposed convolution over n dimensions."""
    check_operands(name, n, input, weight, bias)
    stride, padding = tuple_of(stride, n, "stride"), tuple_of(padding, n, "padding")
    dilation = tuple_of(dilation, n, "dilation")
    more = tuple_of(output_padding, n, "output_padding")
    if min(stride) < 1:
        raise RuntimeError(f"{name}: stride {stride} must be at least 1 everywhere")
    limits = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
    if any(not 0 <= m < limit for m, limit in zip(more, limits, strict=True)):
        raise RuntimeError(
            f"{name}: output_padding {more} must be at least 0 and smaller than the "
            f"stride {stride} or the dilation {dilation}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise RuntimeError(
            f"{name}: groups={groups} must be positive and divide the "
            f"{weight.shape[0]} input channels"
        )
    settings = stride, padding, dilation, groups
    arguments = weight, bias, more, settings
    return batched(lambda x: transposed(x, *arguments), n, name, input)


def transposed(x, weight, bias, more, settings) -> Tensor:
    """(N, C, *size) to (N, K, *out), with
    out = (size - 1) stride - 2 padding + dilation (kernel - 1) + more + 1."""
    stride, padding, dilation, groups = settings
    if any(m >= s for m, s in zip(more, stride, strict=True)):
        # as if zeros followed: each takes the output further by one stride
        zeros = [m // s for m, s in zip(more, stride, strict=True)]
        more = [m % s for m, s in zip(more, stride, strict=True)]
        x = pad(x, [side for z in reversed(zeros) for side in (0, z)])
    size = tuple(
        (i - 1) * s - 2 * p + d * (k - 1) + m + 1
        for i, s, p, d, k, m in zip(
            x.shape[2:], stride, padding, dilation, weight.shape[2:], more, strict=True
        )
    )
    channels = weight.shape[1] * groups
    if min(size) < 1:
        raise ValueError(f"the output would have the size {size}")
    if x.shape[1] != weight.shape[0]:
        raise ValueError(
            f"an input of {x.shape[1]} channels does not fit a weight of shape "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias of shape {tuple(bias.shape)}, expected ({channels},)")
    return ConvInput.apply(x, weight, bias, (len(x), channels, *size), settings)


def conv_transpose1d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
):
    """Transposed convolution of (N, C, L), weight (C, K / groups, kernel)."""
    sizes = stride, padding, output_padding
    return conv_transpose(
        1, "conv_transpose1d", input, weight, bias, *sizes, groups, dilation
    )


def conv_transpose2d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
):
    """Transposed convolution of (N, C, H, W), weight (C, K / groups, kh, kw)."""
    sizes = stride, padding, output_padding
    return conv_transpose(
        2, "conv_transpose2d", input, weight, bias, *sizes, groups, dilation
    )


def conv_transpose3d(
    input,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
):
    """Transposed convolution of (N, C, D, H, W), weight (C, K / groups, kd, kh, kw)."""
    sizes = stride, padding, output_padding
    return conv_transpose(
        3, "conv_transpose3d", input, weight, bias, *sizes, groups, dilation
    )
