"""Windows as columns and back, and channels as pixels and back."""

from minidl.array.windows import col2im, im2col
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.spatial import batched, check_images, tuple_of


class Unfold(Op):
    """(N, C, H, W) -> (N, C kh kw, L): each of the L windows a column."""

    def forward(self, x, window):
        self.shape, self.window = x.shape, window
        return im2col(x, *window)

    def backward(self, g):
        return Fold.apply(g, self.shape, self.window)


class Fold(Op):
    """(N, C kh kw, L) -> (N, C, H, W): each column added where its window is."""

    def forward(self, x, shape, window):
        self.window = window
        return col2im(x, shape, *window)

    def backward(self, g):
        return Unfold.apply(g, self.window)


def window_of(kernel_size, stride, padding, dilation) -> tuple:
    return (
        tuple_of(kernel_size, 2, "kernel_size"),
        tuple_of(stride, 2, "stride"),
        tuple_of(padding, 2, "padding"),
        tuple_of(dilation, 2, "dilation"),
    )


def unfold(input: Tensor, kernel_size, dilation=1, padding=0, stride=1) -> Tensor:
    """The windows of (N, C, H, W) as columns: (N, C kh kw, number of windows)."""
    window = window_of(kernel_size, stride, padding, dilation)
    check_images("unfold", input)
    return batched(lambda x: Unfold.apply(x, window), 2, "unfold", input)


def fold(
    input: Tensor, output_size, kernel_size, dilation=1, padding=0, stride=1
) -> Tensor:
    """Columns (N, C kh kw, number of windows) added up to images (N, C, H, W)."""
    size = tuple_of(output_size, 2, "output_size")
    window = window_of(kernel_size, stride, padding, dilation)
    area = max(window[0][0] * window[0][1], 1)

    def to_images(x):
        if x.shape[1] % area:
            raise ValueError(
                f"{x.shape[1]} rows are not a multiple of the kernel's {area} elements"
            )
        return Fold.apply(x, (len(x), x.shape[1] // area, *size), window)

    return batched(to_images, 1, "fold", input)


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """(*, C r^2, H, W) -> (*, C, H r, W r). Shi et al., "Real-time single image and
    video super-resolution using an efficient sub-pixel CNN", 2016."""
    r = check_factor("pixel_shuffle", input, upscale_factor)
    *batch, c, h, w = input.shape
    if c % (r * r):
        raise RuntimeError(
            f"pixel_shuffle: {c} channels are not a multiple of the square of {r}"
        )
    n = len(batch)
    x = input.reshape(*batch, c // (r * r), r, r, h, w)
    x = x.permute(*range(n + 1), n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*batch, c // (r * r), h * r, w * r)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """(*, C, H r, W r) -> (*, C r^2, H, W), what pixel_shuffle undoes."""
    r = check_factor("pixel_unshuffle", input, downscale_factor)
    *batch, c, h, w = input.shape
    if h % r or w % r:
        raise RuntimeError(
            f"pixel_unshuffle: height {h} and width {w} must be multiples of {r}"
        )
    n = len(batch)
    x = input.reshape(*batch, c, h // r, r, w // r, r)
    x = x.permute(*range(n + 1), n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*batch, c * r * r, h // r, w // r)


def check_factor(name: str, input: Tensor, factor: int) -> int:
    if input.ndim < 3 or factor < 1:
        raise RuntimeError(
            f"{name}: expected at least 3 dimensions (*, C, H, W) and a positive "
            f"factor, got shape {tuple(input.shape)} and {factor}"
        )
    return factor
