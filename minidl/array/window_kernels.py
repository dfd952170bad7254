"""Windows on a GPU: im2col, col2im and the swap of channels and images, a launch each.

A matrix of columns has a row for each channel and tap. `row` and `image` are the steps,
in elements, from a row to the next and from an image to the next, so that the same
kernels serve (C * taps, N * L) and (N, C * taps, L). Everything else about a window is
a constant of the compiled kernel: a division by a constant is a multiplication. Fewer
than three spatial dimensions are three, the first ones of size 1.
"""

from functools import lru_cache
from math import gcd, prod

import numpy

from .cuda_source import VECTOR, aligned, blocks, contiguous, function
from .device import Array, cupy_module
from .dtypes import wide_type

_COLUMNS = """
// one thread a window and channel: all taps
const I o = I(i) % L, plane = I(i) / L, c = plane % C, m = plane / C;
const I d0 = o / (OW * OH) * SD - PD, h0 = o / OW % OH * SH - PH;
const I w0 = o % OW * SW - PW;
const X* from = &x[0] + (long long)plane * (D * H * W);
Y* to = &y[0] + c * TAPS * row + m * image + o;
for (I a = 0; a < KD; ++a) for (I b = 0; b < KH; ++b) {
    const I d = d0 + a * DD, h = h0 + b * DH;
    X taps[KW];  // loaded before any of them is stored: they are on their way together
    for (I k = 0; k < KW; ++k) {
        const I w = w0 + k * DW;
        const bool inside = d >= 0 && d < D && h >= 0 && h < H && w >= 0 && w < W;
        taps[k] = inside ? from[(d * H + h) * W + w] : (X)0;
    }
    for (I k = 0; k < KW; ++k, to += row) *to = taps[k];
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
_SWAP = (
    VECTOR
    + """
// y[a][b][l] = x[b][a][l] (+ bias[b]), or its ReLU; NaN stays NaN. A thread has UNITS
// packs of PACK neighbours, whose loads are under way together; `length` is in packs.
extern "C" __global__ void minidl_swap(
    const X* x, const Z* bias, Y* y, I count, I outer, I inner, I length
) {
    const I first = blockIdx.x * (I)(BLOCK * UNITS) + threadIdx.x;
    Vector<X, PACK> v[UNITS];
    UNROLLED(u, UNITS) if (const I n = first + u * BLOCK; n < count) {
        const I l = n % length, ab = n / length, b = ab % inner, a = ab / inner;
        v[u] = ((const Vector<X, PACK>*)x)[(b * outer + a) * length + l];
    }
    UNROLLED(u, UNITS) if (const I n = first + u * BLOCK; n < count) {
        const T shift = BIAS ? (T)bias[n / length % inner] : T(0);
        Vector<Y, PACK> result;
        UNROLLED(k, PACK) {
            T value = (T)v[u].at[k];
            if (BIAS) value += shift;
            result.at[k] = (Y)(RELU && value <= T(0) ? T(0) : value);
        }
        ((Vector<Y, PACK>*)y)[n] = result;
    }
}
"""
)
BLOCK = 256  # threads


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
    max(0, to), which is contiguous."""
    outer, inner, length = to.shape
    bytes_each = max(x.itemsize, to.itemsize)
    with x.device:
        x = contiguous(x)
        pack = gcd(length, 16 // bytes_each) if aligned(x, to) else 1
        count = to.size // pack
        units = min(8, 32 // (pack * bytes_each))
        integer = numpy.uint32 if to.size < 1 << 30 else numpy.int64
        kinds = ("X", x), ("Y", to), ("Z", x if bias is None else bias)
        types = (
            *((name, array.dtype) for name, array in kinds),
            ("T", wide_type(x.dtype)),
        )
        numbers = ("PACK", pack), ("UNITS", units), ("BLOCK", BLOCK)
        flags = ("BIAS", int(bias is not None)), ("RELU", int(relu))
        types = (*types, ("I", numpy.dtype(integer)))
        sizes = map(integer, (count, outer, inner, length // pack))
        kernel = function(_SWAP, types, (*numbers, *flags), "minidl_swap")
        bias = 0 if bias is None else contiguous(bias)
        kernel((blocks(count, BLOCK * units),), (BLOCK,), (x, bias, to, *sizes))


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
