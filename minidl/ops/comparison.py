"""Questions to each element, and the logic of their answers; nothing here has a
gradient."""

from functools import update_wrapper

from minidl.array.device import array_module
from minidl.autograd.function import explain
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import as_tensor, matched
from minidl.ops.reduce import normal_dims


def of_one(name: str, meaning: str):
    """A question to one element: NumPy's function, its answer a Tensor of bool."""

    def function(input: Tensor) -> Tensor:
        data = as_tensor(input).data
        return Tensor(getattr(array_module(data), name)(data))

    return named(function, name, meaning)


def of_two(name: str, meaning: str, numpy: str = ""):
    """A question to two elements, which broadcast and are compared as one type."""

    def function(input, other) -> Tensor:
        a, b = matched(input, other)
        a, b = (x.data if isinstance(x, Tensor) else x for x in (a, b))
        try:
            return Tensor(getattr(array_module(a, b), numpy or name)(a, b))
        except Exception as error:
            explain(error, name, (a, b))
            raise

    return named(function, name, meaning)


def named(function, name: str, meaning: str):
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{meaning}, element by element."
    return function


eq = of_two("eq", "Whether input equals other", "equal")
ne = of_two("ne", "Whether input does not equal other", "not_equal")
lt = of_two("lt", "Whether input is less than other", "less")
le = of_two("le", "Whether input is at most other", "less_equal")
gt = of_two("gt", "Whether input is greater than other", "greater")
ge = of_two("ge", "Whether input is at least other", "greater_equal")
logical_and = of_two("logical_and", "Whether neither is 0")
logical_or = of_two("logical_or", "Whether one or both are not 0")
logical_xor = of_two("logical_xor", "Whether just one is not 0")
logical_not = of_one("logical_not", "Whether input is 0")
isnan = of_one("isnan", "Whether input is no number")
isinf = of_one("isinf", "Whether input is infinite, of either sign")
isfinite = of_one("isfinite", "Whether input is a number and not infinite")


def bits(function):
    """The function, for integers and bools alone."""

    def checked(*operands) -> Tensor:
        for x in operands:
            if isinstance(x, float) or as_tensor(x).is_floating_point():
                raise RuntimeError(
                    f"{function.__name__} needs integers or bools, not floating point"
                )
        return function(*operands)

    return update_wrapper(checked, function)


bitwise_and = bits(of_two("bitwise_and", "The bits that are 1 in both"))
bitwise_or = bits(of_two("bitwise_or", "The bits that are 1 in one or both"))
bitwise_xor = bits(of_two("bitwise_xor", "The bits that are 1 in just one"))
bitwise_not = bits(of_one("bitwise_not", "The bits that are 0, or not for bools"))


def any(input: Tensor, dim=None, keepdim: bool = False) -> Tensor:
    """Whether one element or more over dim (an int, a tuple or all) is not 0."""
    return truth("any", input, dim, keepdim)


def all(input: Tensor, dim=None, keepdim: bool = False) -> Tensor:
    """Whether no element over dim (an int, a tuple or all) is 0."""
    return truth("all", input, dim, keepdim)


def truth(name: str, input: Tensor, dim, keepdim: bool) -> Tensor:
    # to any and all, () is no dimension; to all other reductions it is every one
    dims = () if dim == () else normal_dims(dim, input.ndim)
    xp = array_module(input.data)
    y = getattr(xp, name)(input.data != 0, axis=dims, keepdims=keepdim)
    # PyTorch answers uint8, which was its bool once, in kind
    return Tensor(y.astype(input.dtype) if input.dtype == "uint8" else y)
