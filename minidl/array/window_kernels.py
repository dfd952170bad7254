"""Windows on a GPU: im2col, col2im and the swap of channels and images, a launch each.

A matrix of columns has a row for each channel and tap. `row` and `image` are the steps,
in elements, from a row to the next and from an image to the next, so that the same
kernels serve (C * taps, N * L) and (N, C * taps, L). Everything else about a window is
a constant of the compiled kernel: a division by a constant is a multiplication. Fewer
than three spatial dimensions are three, the first ones of size 1.
"""

from functools import lru_cache
from math import prod

from .device import Array, cupy_module

_COLUMNS = """
// one thread a window and channel: all taps
const I o = I(i) % L, plane = I(i) / L, c = plane % C, m = plane / C;
const I d0 = o / (OW * OH) * SD - PD, h0 = o / OW % OH * SH - PH;
const I w0 = o % OW * SW - PW;
const X* from = &x[0] + (long long)plane * (D * H * W);
Y* to = &y[0] + c * TAPS * row + m * image + o;
for (I a = 0; a < KD; ++a) for (I b = 0; b < KH; ++b) for (I k = 0; k < KW; ++k) {
    const I d = d0 + a * DD, h = h0 + b * DH, w = w0 + k * DW;
    const bool inside = d >= 0 && d < D && h >= 0 && h < H && w >= 0 && w < W;
    *to = inside ? from[(d * H + h) * W + w] : (X)0;
    to += row;
}
"""
_IMAGES = """
// one thread a pixel: it gathers from the windows that it is in, tap after tap
const I w = I(i) % W, h = I(i) / W % H, d = I(i) / (W * H) % D;
const I plane = I(i) / (W * H * D), c = plane % C, m = plane / C;
const X* from = &x[0] + c * TAPS * row + m * image;
S sum = 0;
for (I a = 0; a < KD; ++a) for (I b = 0; b < KH; ++b) for (I k = 0; k < KW; ++k) {
    const I od = d + PD - a * DD, oh = h + PH - b * DH, ow = w + PW - k * DW;
    if (od >= 0 && od % SD == 0 && od / SD < OD && oh >= 0 && oh % SH == 0 &&
        oh / SH < OH && ow >= 0 && ow % SW == 0 && ow / SW < OW)
        sum += (S)from[(od / SD * OH + oh / SH) * OW + ow / SW];
    from += row;
}
y = (Y)sum;
"""
_SWAP = """
// y[a][b][l] = x[b][a][l] (+ bias[b]), or its ReLU; NaN stays NaN
const I l = I(i) % length, ab = I(i) / length, b = ab % inner, a = ab / inner;
S value = (S)x[(b * outer + a) * length + l];
if (BIAS) value += (S)bias[b];
y = (Y)(RELU && value <= S(0) ? S(0) : value);
"""


def columns(x: Array, window: tuple, out: tuple, to: Array, row: int, image: int):
    """Write every window of x (N, C, *size) into a column of `to`; zeros outside."""
    x = cupy_module().ascontiguousarray(x)
    n = x.size // prod(x.shape[2:]) * prod(out)
    kernel = _kernel("columns", x.shape[1:], window, out, _index(n, x, to), None)
    with x.device:
        kernel(x, row, image, to, size=n)


def images(x: Array, window: tuple, out: tuple, to: Array, row: int, image: int):
    """Add every column of x up where it came from: write `to` (N, C, *size).

    A pixel gathers its own sum, in the order of the taps, so that it is the same in
    every run.
    """
    kind = _index(to.size, x, to)
    sums = "double" if x.dtype.itemsize == 8 else "float"
    kernel = _kernel("images", to.shape[1:], window, out, kind, sums)
    with x.device:
        kernel(cupy_module().ascontiguousarray(x), row, image, to)


def swap(x: Array, bias: Array | None, to: Array, relu: bool) -> None:
    """to (A, B, L) = x (B, A, L) with two dimensions exchanged, + bias (B); or
    max(0, to)."""
    outer, inner, length = to.shape
    sums = "double" if x.dtype.itemsize == 8 else "float"
    kernel = _swap_kernel(bias is not None, relu, _index(to.size, x, to), sums)
    x = cupy_module().ascontiguousarray(x)
    with x.device:
        kernel(x, x if bias is None else bias, outer, inner, length, to)


def _index(*sizes) -> str:
    """The integer to count with: 64 bits cost several times the instructions."""
    large = any((n if isinstance(n, int) else n.size) >= 1 << 31 for n in sizes)
    return "long long" if large else "int"


@lru_cache(maxsize=1024)
def _kernel(name, shape, window, out, index, sums):
    """The kernel for images of one shape (C, *size), and one window."""
    c, *size = shape
    names = ("", "K", "S", "P", "D", "O")
    lines = [f"typedef {index} I;"] + [f"typedef {sums} S;"] * (sums is not None)
    constants = {"C": c, "L": prod(out), "TAPS": prod(window[0])}
    for prefix, values in zip(names, (size, *window, out), strict=True):
        rest = 0 if prefix == "P" else 1
        values = [rest] * (3 - len(size)) + list(values)
        constants |= zip((prefix + axis for axis in "DHW"), values, strict=True)
    lines += [f"const I {key} = {value};" for key, value in constants.items()]
    body = _COLUMNS if name == "columns" else _IMAGES
    return cupy_module().ElementwiseKernel(
        "raw X x, int64 row, int64 image",
        "raw Y y" if name == "columns" else "Y y",
        "\n".join(lines) + body,
        f"minidl_{name}",
    )


@lru_cache(maxsize=16)
def _swap_kernel(with_bias: bool, relu: bool, index: str, sums: str):
    return cupy_module().ElementwiseKernel(
        "raw X x, raw Z bias, int64 first, int64 second, int64 third",
        "Y y",
        f"typedef {index} I; typedef {sums} S; const bool BIAS = {int(with_bias)}, "
        f"RELU = {int(relu)};\n"
        f"const I outer = first, inner = second, length = third;{_SWAP}",
        "minidl_swap",
    )
