"""One line to check the gradients of a function, and the gradients of those."""

import numpy as np

from minidl.autograd import Tensor, gradcheck, gradgradcheck


def check_gradients(function, *arrays, order: int = 2) -> None:
    """Compare with differences in float64, by every floating-point array.

    Arrays are NumPy's, CuPy's or nested lists of numbers; integers and bools are
    passed on as they are, as Tensors; what is None or a Tensor already, untouched.
    """
    inputs = tuple(differentiable(x) for x in arrays)
    assert gradcheck(function, inputs)
    if order > 1:
        assert gradgradcheck(function, inputs)


def differentiable(x):
    if x is None or isinstance(x, Tensor):
        return x
    array = np.asarray(x) if isinstance(x, (list, tuple, int, float)) else x
    if array.dtype.kind in "iub":
        return Tensor(array)
    return Tensor(array.astype(np.float64), requires_grad=True)
