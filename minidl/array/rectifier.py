"""The rectifier in place, with which a convolution or a product may end."""

import numpy

from .kernel import Kernel

rectify = Kernel("rectify", outputs="y", body="y = where(y <= 0, 0, y);")  # keeps NaN
rectify_gradient = Kernel(
    "rectify_gradient", "g y", "gx", body="gx = where(y <= 0, 0, g);"
)


def positive_part(x: numpy.ndarray, out: numpy.ndarray) -> numpy.ndarray:
    """out = max(0, x) in one pass of NumPy's; `clip` has a vector loop for numbers, as
    `maximum` has not."""
    return numpy.clip(x, 0, numpy.inf, out=out)
