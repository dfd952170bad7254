"""Matrix products. Everything becomes products of two matrices, or of two stacks of
matrices: these are what GPUs and BLAS are fast at."""

from minidl.array.device import array_module
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import matched
from minidl.ops.shape import Permute


class MatMul(Op):
    """Y = A B, for matrices or for stacks of them that broadcast."""

    def forward(self, a, b):
        needs_a, needs_b = self.needs_input_grad
        self.save_for_backward(a if needs_b else None, b if needs_a else None)
        return a @ b

    def backward(self, g):
        a, b = self.saved_tensors
        return (
            None if b is None else MatMul.apply(g, matrix_transpose(b)),
            None if a is None else MatMul.apply(matrix_transpose(a), g),
        )


class Linear(Op):
    """Y = X W^T + b, for X (N, in), W (out, in), b (out)."""

    def forward(self, x, w, b):
        self.save_for_backward(
            x if self.edges[1] is not None else None,
            w if self.edges[0] is not None else None,
        )
        y = x @ w.T
        if b is not None:
            y += b
        return y

    def backward(self, g):
        x, w = self.saved_tensors
        gx = gw = gb = None
        if w is not None:
            gx = MatMul.apply(g, w)
        if x is not None:
            gw = self.weight_gradient(g, x)
        if self.edges[2] is not None:
            gb = g.sum(0)
        return gx, gw, gb

    def weight_gradient(self, g, x):
        waiting = self.gradient_buffer(1)
        if waiting is None or waiting.dtype != g.dtype:
            return MatMul.apply(matrix_transpose(g), x)
        return Tensor(array_module(waiting).matmul(g.data.T, x.data, out=waiting))


def matrix_transpose(x: Tensor) -> Tensor:
    dims = list(range(x.ndim))
    dims[-2:] = dims[:-3:-1]
    return Permute.apply(x, tuple(dims))


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product, with PyTorch's rules for vectors and stacks of matrices."""
    a, b = matched(input, other)
    if not a.ndim or not b.ndim:
        raise RuntimeError("matmul needs at least 1 dimension in both arguments")
    column, row = a.ndim == 1, b.ndim == 1
    a = a.reshape(1, -1) if column else a
    b = b.reshape(-1, 1) if row else b
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError(
            f"matmul: shapes {tuple(input.shape)} and {tuple(other.shape)} do not fit: "
            f"{a.shape[-1]} columns meet {b.shape[-2]} rows"
        )
    y = MatMul.apply(a, b)
    shape = list(y.shape)
    if row:
        del shape[-1]
    if column:
        del shape[-1 if row else -2]
    return y.reshape(tuple(shape)) if row or column else y


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input W^T + b, for input (*, in_features) and weight (out_features, in_features)."""
    if input.ndim == 0 or input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"linear: input of shape {tuple(input.shape)} does not fit a weight of shape "
            f"{tuple(weight.shape)}: its last dimension must be {weight.shape[-1]}"
        )
    if input.dtype != weight.dtype:
        raise RuntimeError(
            f"linear: input is {input.dtype} and weight is {weight.dtype}; cast one"
        )
    if weight.ndim == 1:
        y = (input * weight).sum(-1)
        return y if bias is None else y + bias
    if input.ndim == 2:
        return Linear.apply(input, weight, bias)
    y = Linear.apply(input.reshape(-1, input.shape[-1]), weight, bias)
    return y.reshape(*input.shape[:-1], weight.shape[0])
