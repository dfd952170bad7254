"""Differentiable operations, one family a file.

Everything that is an operator or a method of Tensor is bound to it here, in one list.
There are no operators in place: `x += y` is `x = x + y`, a new Tensor of that name.
"""

from minidl.autograd.tensor import Tensor
from minidl.ops import (
    activation,
    arithmetic,
    autocast_rules,
    comparison,
    convert,
    diagonal,
    elementwise,
    getitem,
    index,
    linear,
    magnitude,
    order,
    pieces,
    reduce,
    shape,
    softmax,
)
from minidl.ops.operands import as_tensor, cast

autocast_rules.install()


def floor_div(input, other):
    return arithmetic.div(input, other, rounding_mode="floor")


def reflected(function):
    return lambda self, other: function(other, self)


def if_number(function):
    """Whether a Tensor equals None, or anything that is no number, Python answers."""

    def compare(self, other):
        if isinstance(other, (Tensor, int, float)) or hasattr(other, "dtype"):
            return function(self, other)
        return NotImplemented

    return compare


OPERATORS = {
    "__add__": arithmetic.add,
    "__radd__": arithmetic.add,
    "__sub__": arithmetic.sub,
    "__rsub__": reflected(arithmetic.sub),
    "__mul__": arithmetic.mul,
    "__rmul__": arithmetic.mul,
    "__truediv__": arithmetic.div,
    "__rtruediv__": arithmetic.rdiv,
    "__floordiv__": floor_div,
    "__rfloordiv__": reflected(floor_div),
    "__mod__": arithmetic.remainder,
    "__rmod__": reflected(arithmetic.remainder),
    "__pow__": arithmetic.pow,
    "__rpow__": reflected(arithmetic.pow),
    "__neg__": elementwise.neg,
    "__pos__": lambda self: self,
    "__abs__": elementwise.abs,
    "__matmul__": linear.matmul,
    "__rmatmul__": reflected(linear.matmul),
    "__and__": comparison.bitwise_and,
    "__rand__": comparison.bitwise_and,
    "__or__": comparison.bitwise_or,
    "__ror__": comparison.bitwise_or,
    "__xor__": comparison.bitwise_xor,
    "__rxor__": comparison.bitwise_xor,
    "__invert__": comparison.bitwise_not,
    "__eq__": if_number(comparison.eq),
    "__ne__": if_number(comparison.ne),
    "__lt__": comparison.lt,
    "__le__": comparison.le,
    "__gt__": comparison.gt,
    "__ge__": comparison.ge,
    "__getitem__": getitem.getitem,
    "__setitem__": getitem.setitem,
    "__iter__": convert.iterate,
    "__contains__": convert.contains,
    "__deepcopy__": convert.deep_copy,
    "__reduce__": convert.reduced,
}
METHODS = {
    arithmetic: "add addcdiv addcmul div fmod lerp mul pow remainder sub",
    elementwise: (
        "abs atan2 ceil clamp cos erf exp expm1 floor log log1p maximum minimum neg "
        "reciprocal round rsqrt sign sin sqrt square tan trunc"
    ),
    comparison: (
        "all any bitwise_and bitwise_not bitwise_or bitwise_xor eq ge gt isfinite "
        "isinf isnan le logical_and logical_not logical_or logical_xor lt ne"
    ),
    activation: "relu sigmoid tanh",
    softmax: "softmax log_softmax",
    reduce: "cumsum logsumexp mean prod std sum var",
    order: "amax amin argmax argmin argsort max min sort topk",
    magnitude: "norm",
    shape: (
        "reshape view permute transpose t movedim flatten unsqueeze squeeze "
        "broadcast_to expand clone contiguous"
    ),
    pieces: "split chunk unbind narrow repeat tile flip roll",
    diagonal: "diagonal tril triu",
    index: "gather index_select take_along_dim scatter scatter_add masked_fill",
    linear: "matmul mm bmm mv dot outer addmm baddbmm",
    convert: "to cpu cuda type_as bfloat16",
}

for name, function in OPERATORS.items():
    setattr(Tensor, name, function)
for module, names in METHODS.items():
    for name in names.split():
        setattr(Tensor, name, getattr(module, name))
for name, dtype in convert.TYPES.items():
    setattr(Tensor, name, convert.to_type(name, dtype))
Tensor.T = property(lambda self: shape.permute(self, *range(self.ndim)[::-1]))
Tensor.where = lambda self, condition, other: elementwise.where(condition, self, other)
Tensor.mT = property(shape.matrix_transpose)
Tensor.type = cast
