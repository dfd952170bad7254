"""cuDNN's convolutions, where NVIDIA's Python frontend is installed and not refused.

The three functions are those of `convolution_columns`, and answer None (or False)
where cuDNN cannot do it: in float64, on a CPU, without the extra `cudnn`, with
`MINIDL_CUDNN=0`. Arrays are taken as they lie, (N, C, *size) or with the channels last
in memory, and the result lies as the input does.
"""

from . import cudnn_plans
from .cuda_layout import made, usual
from .cudnn_plans import TYPES, plan_for, run
from .device import Array
from .rectifier import rectify

ALIGNMENT = 16  # bytes, which every plan takes for granted


def forward(
    x, w, b, shape, stride, padding, dilation, groups, relu=False
) -> Array | None:
    """y = w * x + b, or max(0, y), or None."""
    if not _takes(x, w):
        return None
    window, with_bias = (stride, padding, dilation), b is not None
    x, last = _lying(x)
    # a graph of convolution and ReLU with no bias between them is none of cuDNN's own
    ends = with_bias, relu and with_bias
    plan = plan_for("forward", x, x.shape, w.shape, shape, (last, last), window, *ends)
    if plan is None:
        return None
    y = _empty(shape, x, last)
    inputs = [_lying(array, False)[0] for array in (w, b) if array is not None]
    run(plan, x, *inputs, y)
    return rectify(out=y) if relu and not with_bias else y


def input_gradient(gy, w, x_shape, stride, padding, dilation, groups) -> Array | None:
    """gx, or None."""
    if not _takes(gy, w):
        return None
    window = stride, padding, dilation
    gy, last = _lying(gy)
    shapes = tuple(x_shape), w.shape, gy.shape
    plan = plan_for("input_gradient", gy, *shapes, (last, last), window)
    if plan is None:
        return None
    gx = _empty(x_shape, gy, last)
    run(plan, gy, _lying(w, False)[0], gx)
    return gx


def weight_gradient(gy, x, out, stride, padding, dilation, groups) -> bool:
    """Whether gw was written into `out`."""
    if not _takes(gy, x) or not out.size:
        return False
    window = stride, padding, dilation
    (gy, gy_last), (x, x_last) = _lying(gy), _lying(x)
    shapes, last = (x.shape, out.shape, gy.shape), (x_last, gy_last)
    plan = plan_for("weight_gradient", gy, *shapes, last, window)
    if plan is None:
        return False
    direct = out.dtype == x.dtype and out.flags.c_contiguous and _aligned(out)
    gw = out if direct else _empty(out.shape, x, False)
    run(plan, x, gy, gw)
    if gw is not out:
        out[...] = gw
    return True


def version() -> str | None:
    """The versions in use, or None where cuDNN is not used."""
    cudnn = cudnn_plans.frontend()
    if cudnn is None:
        return None
    return f"{cudnn.backend_version_string()} (frontend {cudnn.__version__})"


def _takes(*arrays: Array) -> bool:
    """Whether these are for cuDNN: not empty, of its types, of at most 3 dimensions."""
    good = all(array.size and array.dtype in TYPES for array in arrays)
    return good and arrays[0].ndim <= 5 and cudnn_plans.frontend() is not None


def _lying(array: Array, may_be_last: bool = True) -> tuple[Array, bool]:
    """(the array or a copy of it that is dense and aligned, channels last?)"""
    if array.flags.c_contiguous and _aligned(array):
        return array, False
    turned = array.transpose(0, *range(2, array.ndim), 1) if may_be_last else None
    if may_be_last and turned.flags.c_contiguous and _aligned(array):
        return array, True
    return array.copy(), False  # in C order


def _aligned(array: Array) -> bool:
    return array.data.ptr % ALIGNMENT == 0


def _empty(shape, like: Array, last: bool) -> Array:
    """A new array whose channels are last in memory, or not."""
    with like.device:
        return usual(made(shape, like.dtype, last), last)
