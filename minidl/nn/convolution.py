"""Convolution and transposed convolution over 1, 2 and 3 dimensions."""

from minidl.nn import functional as F
from minidl.nn.layers import weight_and_bias
from minidl.nn.module import Module
from minidl.ops.conv import conv
from minidl.ops.spatial import tuple_of

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Windowed(Module):
    """What all of these layers have in common."""

    dims: int
    transposed = False

    def __init__(
        self, channels, kernel_size, stride, padding, dilation, groups, padding_mode
    ):
        super().__init__()
        self.in_channels, self.out_channels = channels
        if groups < 1 or self.in_channels % groups or self.out_channels % groups:
            raise ValueError(
                f"groups={groups} must be positive and divide in_channels="
                f"{self.in_channels} and out_channels={self.out_channels}"
            )
        if padding_mode not in PADDING_MODES[: 1 if self.transposed else None]:
            raise ValueError(
                f"{type(self).__name__} does not know padding_mode={padding_mode!r}"
            )
        self.kernel_size = tuple_of(kernel_size, self.dims, "kernel_size")
        self.stride = tuple_of(stride, self.dims, "stride")
        self.dilation = tuple_of(dilation, self.dims, "dilation")
        self.padding = self.checked(padding)
        self.groups, self.padding_mode = groups, padding_mode

    def checked(self, padding):
        if not isinstance(padding, str):
            return tuple_of(padding, self.dims, "padding")
        if self.transposed or padding not in ("valid", "same"):
            raise ValueError(f"{type(self).__name__} does not know padding={padding!r}")
        if padding == "same" and self.stride != (1,) * self.dims:
            raise ValueError(f"padding='same' needs stride 1, got {self.stride}")
        return padding

    def extra_repr(self) -> str:
        ones, zeros = (1,) * self.dims, (0,) * self.dims
        unusual = {
            "padding": zeros,
            "output_padding": zeros,
            "dilation": ones,
            "groups": 1,
            "padding_mode": "zeros",
        }
        texts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}, stride={self.stride}",
            *(
                f"{name}={getattr(self, name)!r}"
                for name, usual in unusual.items()
                if getattr(self, name, usual) != usual
            ),
        ]
        return ", ".join(texts) + (", bias=False" if self.bias is None else "")


class Conv(Windowed):
    """y = x * weight + bias; weight (out_channels, in_channels / groups, *kernel)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        padding_mode="zeros",
        device=None,
        dtype=None,
    ):
        channels = in_channels, out_channels
        super().__init__(
            channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        weight_and_bias(self, shape, out_channels, bias, device, dtype)

    def sides(self) -> list[int]:
        """The padding as `F.pad` takes it: last dimension first, before and after."""
        if self.padding == "valid":
            return [0, 0] * self.dims
        if self.padding != "same":
            return [p for p in reversed(self.padding) for _ in range(2)]
        total = [
            d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)
        ]
        return [side for p in reversed(total) for side in (p // 2, p - p // 2)]

    def forward(self, input, relu: bool = False):
        """The convolution of the input, or, with `relu`, max(0, that) in one."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self.sides(), self.padding_mode), 0
        settings = self.stride, padding, self.dilation, self.groups, relu
        name = f"conv{self.dims}d"
        return conv(self.dims, name, input, self.weight, self.bias, *settings)


class Conv1d(Conv):
    """Convolution of (N, in_channels, L)."""

    dims = 1


class Conv2d(Conv):
    """Convolution of (N, in_channels, H, W)."""

    dims = 2


class Conv3d(Conv):
    """Convolution of (N, in_channels, D, H, W)."""

    dims = 3


class ConvTranspose(Windowed):
    """The gradient of a Conv's input as a layer; weight (in_channels,
    out_channels / groups, *kernel)."""

    transposed = True

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        bias=True,
        dilation=1,
        padding_mode="zeros",
        device=None,
        dtype=None,
    ):
        channels = in_channels, out_channels
        super().__init__(
            channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        self.output_padding = tuple_of(output_padding, self.dims, "output_padding")
        shape = (in_channels, out_channels // groups, *self.kernel_size)
        weight_and_bias(self, shape, out_channels, bias, device, dtype)

    def forward(self, input, output_size=None):
        """`output_size`, (*out) or (N, K, *out), chooses the output_padding."""
        functions = F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d
        more = self.output_padding
        if output_size is not None:
            more = self.padding_to(input.shape[-self.dims :], tuple(output_size))
        return functions[self.dims - 1](
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            more,
            self.groups,
            self.dilation,
        )

    def padding_to(self, size, output_size) -> tuple[int, ...]:
        """The output_padding that makes outputs of this size; ValueError if none."""
        least = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(
                size,
                self.stride,
                self.padding,
                self.dilation,
                self.kernel_size,
                strict=True,
            )
        ]
        wanted = output_size[-self.dims :]
        most = [n + s - 1 for n, s in zip(least, self.stride, strict=True)]
        fits = len(output_size) in (self.dims, self.dims + 1, self.dims + 2) and all(
            a <= n <= b for a, n, b in zip(least, wanted, most, strict=True)
        )
        if not fits:
            raise ValueError(
                f"output_size {output_size} cannot be made of an input of size "
                f"{tuple(size)}: possible are {least} to {most}"
            )
        return tuple(n - a for n, a in zip(wanted, least, strict=True))


class ConvTranspose1d(ConvTranspose):
    """Transposed convolution of (N, in_channels, L)."""

    dims = 1


class ConvTranspose2d(ConvTranspose):
    """Transposed convolution of (N, in_channels, H, W)."""

    dims = 2


class ConvTranspose3d(ConvTranspose):
    """Transposed convolution of (N, in_channels, D, H, W)."""

    dims = 3
