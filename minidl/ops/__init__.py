"""Differentiable operations, one family a file.

Everything that is an operator or a method of Tensor is bound to it here, in one list.
"""

from minidl.autograd.tensor import Tensor
from minidl.ops import (
    activation,
    convert,
    diagonal,
    elementwise,
    getitem,
    index,
    linear,
    pieces,
    reduce,
    shape,
)
from minidl.ops.operands import as_tensor, cast

OPERATORS = {
    "__add__": elementwise.add,
    "__radd__": elementwise.add,
    "__sub__": elementwise.sub,
    "__rsub__": lambda self, other: elementwise.sub(other, self),
    "__mul__": elementwise.mul,
    "__rmul__": elementwise.mul,
    "__truediv__": elementwise.div,
    "__rtruediv__": lambda self, other: elementwise.div(other, self),
    "__pow__": elementwise.pow,
    "__rpow__": lambda self, other: elementwise.pow(other, self),
    "__neg__": elementwise.neg,
    "__abs__": elementwise.abs,
    "__matmul__": linear.matmul,
    "__rmatmul__": lambda self, other: linear.matmul(as_tensor(other, self), self),
    "__eq__": elementwise.eq,
    "__ne__": elementwise.ne,
    "__lt__": elementwise.lt,
    "__le__": elementwise.le,
    "__gt__": elementwise.gt,
    "__ge__": elementwise.ge,
    "__getitem__": getitem.getitem,
    "__setitem__": getitem.setitem,
    "__iter__": convert.iterate,
    "__contains__": convert.contains,
    "__deepcopy__": convert.deep_copy,
    "__reduce__": convert.reduced,
}
METHODS = {
    elementwise: (
        "abs add sub mul div pow neg exp log log1p expm1 sqrt square reciprocal sign "
        "sin cos tan floor ceil round trunc maximum minimum atan2 "
        "eq ne lt le gt ge isnan isinf isfinite"
    ),
    activation: "relu sigmoid tanh softmax log_softmax",
    reduce: "sum mean argmax logsumexp",
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
Tensor.mT = property(shape.matrix_transpose)
Tensor.erf = lambda self: elementwise.erf(self)
Tensor.type = cast
