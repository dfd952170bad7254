"""The rectifier in place, with which a convolution or a product may end."""

from .kernel import Kernel

rectify = Kernel("rectify", outputs="y", body="y = where(y <= 0, 0, y);")  # keeps NaN
rectify_gradient = Kernel(
    "rectify_gradient", "g y", "gx", body="gx = where(y <= 0, 0, g);"
)
