"""A bias for each channel, with which a convolution or a product may end."""

from . import cuda_bias
from .device import Array, on_gpu
from .rectifier import rectify


def add_bias(y: Array, b: Array, relu: bool = False) -> Array:
    """y (N, K, *) with b (K) added to it in place, or the ReLU of that."""
    if on_gpu(y) and y.size and y.flags.c_contiguous and y.dtype.kind not in "biu":
        return cuda_bias.add_bias(y, b, relu)
    y += b.reshape(-1, *[1] * (y.ndim - 2))
    return rectify(out=y) if relu else y
