"""Convolution of raw arrays in any number of spatial dimensions.

Layouts are PyTorch's: x (N, C, *size), w (K, C / groups, *kernel), y (N, K, *out);
stride, padding and dilation are tuples with one integer a spatial dimension. What
is computed is a cross-correlation,

    y[n, k, o] = b[k] + sum_{c, t} w[k, c, t] x[n, c, o * stride + t * dilation - p].

This file chooses. `convolution_columns` is the lowering of the textbooks, which is what
a GPU runs, unless it has `cudnn`; `convolution_cpu` has the same three functions for
NumPy, arranged so that everything stays in cache, and hands batches on to
`convolution_rows` and `convolution_tiles` where there is no compiler;
`convolution_sweep` is compiled and goes first on a CPU.
"""

import numpy as np

from minidl.array import channel_sums, cuda_bias, cudnn
from minidl.array import convolution_columns as columns
from minidl.array import convolution_cpu as cpu
from minidl.array import convolution_sweep as sweep
from minidl.array.casting import cast
from minidl.array.device import array_module
from minidl.array.rectifier import rectify
from minidl.array.windows import Array, Sizes, output_size


def output_shape(
    x_shape: Sizes,
    w_shape: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int = 1,
) -> Sizes:
    """Shape (N, K, *out) of a convolution; ValueError where the shapes do not fit."""
    if len(x_shape) != len(w_shape) or len(x_shape) < 3:
        raise ValueError(
            f"input of shape {tuple(x_shape)} and weight of shape {tuple(w_shape)}: "
            "expected (N, C, *size) and (K, C / groups, *kernel) with the same number "
            "of spatial dimensions"
        )
    if groups < 1 or w_shape[0] % groups:
        raise ValueError(
            f"groups={groups} must be positive and divide the {w_shape[0]} output "
            "channels"
        )
    if x_shape[1] != w_shape[1] * groups:
        raise ValueError(
            f"weight of shape {tuple(w_shape)} with groups={groups} expects "
            f"{w_shape[1] * groups} input channels, but the input of shape "
            f"{tuple(x_shape)} has {x_shape[1]}"
        )
    size, kernel = tuple(x_shape[2:]), tuple(w_shape[2:])
    out = output_size(size, kernel, stride, padding, dilation)
    return (x_shape[0], w_shape[0], *out)


def conv_forward(
    x: Array,
    w: Array,
    b: Array | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int = 1,
    relu: bool = False,
) -> Array:
    """y = w * x + b, of shape `output_shape(...)`; ValueError as there.

    With `relu`, max(0, y), taken in the last pass where there is one.
    """
    geometry = (stride, padding, dilation, groups)
    shape = output_shape(x.shape, w.shape, *geometry)
    _check_dtypes(x, w)
    if b is not None and b.shape != (shape[1],):
        raise ValueError(f"bias of shape {b.shape}, expected ({shape[1]},)")
    xp = array_module(x)
    if not w.size:  # no channels, nothing to add up
        start = 0 if b is None else b.reshape(-1, *(1 for _ in stride))
        y = xp.zeros(shape, x.dtype) + start
        return rectify(out=y) if relu else y
    if xp is not np:
        y = cudnn.forward(x, w, b, shape, *geometry, relu)
        return columns.forward(x, w, b, shape, *geometry, relu) if y is None else y
    bias = None if b is None else _wide(b)
    x, w, dtype = _wide(x), _wide(w), x.dtype
    y = sweep.forward(x, w, bias, shape, *geometry, relu=relu)
    if y is None:
        y = cpu.forward(x, w, bias, shape, *geometry, relu)
    return y if y.dtype == dtype else cast(y, dtype)


def conv_input_gradient(
    gy: Array,
    w: Array,
    x_shape: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int = 1,
) -> Array:
    """gx, the transpose of x -> w * x applied to gy: a transposed convolution."""
    geometry = (stride, padding, dilation, groups)
    _check_gradient(gy, output_shape(x_shape, w.shape, *geometry))
    _check_dtypes(gy, w)
    if not w.size:
        return array_module(gy).zeros(x_shape, gy.dtype)
    if array_module(gy) is np:
        gx = sweep.input_gradient(_wide(gy), _wide(w), x_shape, *geometry)
    else:
        gx = cudnn.input_gradient(gy, w, x_shape, *geometry)
    if gx is not None:
        return gx if gx.dtype == gy.dtype else cast(gx, gy.dtype)
    if _is_forward(gy.shape, w.shape, *geometry):
        reach = zip(w.shape[2:], padding, dilation, strict=True)
        padding = tuple(d * (k - 1) - p for k, p, d in reach)
        return conv_forward(
            gy, _turned(w, groups), None, stride, padding, dilation, groups
        )
    if array_module(gy) is not np:
        return columns.input_gradient(gy, w, x_shape, *geometry)
    gx = cpu.input_gradient(_wide(gy), _wide(w), x_shape, *geometry)
    return gx if gx.dtype == gy.dtype else cast(gx, gy.dtype)


def conv_weight_gradient(
    gy: Array,
    x: Array,
    w_shape: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    """gw, the transpose of w -> w * x applied to gy; written into `out` if given."""
    geometry = (stride, padding, dilation, groups)
    _check_gradient(gy, output_shape(x.shape, w_shape, *geometry))
    _check_dtypes(x, gy)
    xp = array_module(x)
    if out is None:
        out = xp.empty(w_shape, x.dtype)
    elif out.shape != tuple(w_shape):
        raise ValueError(f"out has shape {out.shape}, expected {tuple(w_shape)}")
    if not out.size:
        return out
    if xp is not np:
        if not cudnn.weight_gradient(gy, x, out, *geometry):
            columns.weight_gradient(gy, x, out, *geometry)
        return out
    wide = np.empty(w_shape, np.float32) if _is_half(out) else out
    gy, x = _wide(gy), _wide(x)
    if not sweep.weight_gradient(gy, x, wide, *geometry):
        cpu.weight_gradient(gy, x, wide, *geometry)
    if wide is not out:
        out[...] = wide
    return out


def conv_bias_gradient(gy: Array, out: Array | None = None) -> Array:
    """gb, the sum of gy (N, K, *out) over all but K; `out` may be used for it."""
    if array_module(gy) is np:
        return (sweep.bias_gradient(gy) or channel_sums.bias_gradient(gy))[1]
    return _summed_on_gpu(gy, None, out)[1]


def conv_rectified_gradient(
    gy: Array, y: Array, out: Array | None = None
) -> tuple[Array, Array]:
    """(g, gb): gy where y > 0 and 0 elsewhere, and that summed over all but K, for
    which `out` may be used."""
    if array_module(gy) is np:
        return sweep.bias_gradient(gy, y) or channel_sums.bias_gradient(gy, y)
    return _summed_on_gpu(gy, y, out)


def _summed_on_gpu(gy, y, out):
    if not gy.size:
        return gy, array_module(gy).zeros(gy.shape[1], gy.dtype)
    same = out is not None and out.dtype == gy.dtype
    g, gb = cuda_bias.bias_gradient(gy, y, out if same else None)
    return g, gb.astype(gy.dtype, copy=False)


def _is_half(array) -> bool:
    return array.dtype.itemsize == 2


def _wide(array):
    """Half precision as float32, since a CPU's BLAS has no product of halves."""
    return cast(array, np.float32) if _is_half(array) else array


def _check_dtypes(first, second):
    if first.dtype != second.dtype:
        both = f"{first.dtype} and {second.dtype}"
        raise TypeError(f"arrays of {both} in one convolution: convert one of them")


def _check_gradient(gy, expected):
    if gy.shape != expected:
        raise ValueError(
            f"gradient of shape {gy.shape} does not fit this convolution, whose "
            f"output has shape {expected}"
        )


def _is_forward(gy_shape, w_shape, stride, padding, dilation, groups) -> bool:
    """Whether the input gradient is best computed as a convolution of gy.

    It is one for stride 1; where gy has far more channels than x, its columns
    would be larger than those that `col2im` adds up.
    """
    reach = zip(w_shape[2:], padding, dilation, strict=True)
    return (
        all(s == 1 for s in stride)
        and all(p <= d * (k - 1) for k, p, d in reach)
        and gy_shape[1] <= 4 * w_shape[1] * groups
    )


def _turned(w, groups):
    """The weight that carries gy back: taps reversed, channels exchanged."""
    k, c, *kernel = w.shape
    w = w.reshape(groups, k // groups, c, *kernel).swapaxes(1, 2)
    w = w[(..., *(slice(None, None, -1) for _ in kernel))]
    return w.reshape(groups * c, k // groups, *kernel)
