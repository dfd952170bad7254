"""The rectifier in place, with which a convolution may end."""

from .kernel import Kernel

rectify = Kernel("rectify", outputs="y", body="y = where(y <= 0, 0, y);")  # keeps NaN
