"""Matrix products. Everything becomes products of two matrices, or of two stacks of
matrices: these are what GPUs and BLAS are fast at."""

from math import prod

from minidl.array import matmul as raw
from minidl.array.dtypes import DEFAULT_FLOAT, wide_type, widened
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.activation import relu, relu_gradient
from minidl.ops.arithmetic import add, mul
from minidl.ops.operands import as_tensor
from minidl.ops.shape import Reshape, expand, matrix_transpose, t, unsqueeze


class MatMul(Op):
    """Y = A B, for matrices or for stacks of them that broadcast."""

    def forward(self, a, b):
        needs_a, needs_b = self.needs_input_grad
        self.save_for_backward(a if needs_b else None, b if needs_a else None)
        return raw.matmul(a, b)

    def backward(self, g):
        a, b = self.saved_tensors
        return (
            None if b is None else product(self, 0, g, matrix_transpose(b)),
            None if a is None else product(self, 1, matrix_transpose(a), g),
        )


class Linear(Op):
    """Y = X W^T + b, for X (N, in), W (out, in), b (out); with relu, max(0, Y)."""

    def forward(self, x, w, b, relu=False):
        y = raw.linear(x, w, b, relu)
        self.save_for_backward(
            x if self.edges[1] is not None else None,
            w if self.edges[0] is not None else None,
            y if relu else None,
        )
        return y

    def backward(self, g):
        x, w, y = self.saved_tensors
        if y is not None:
            g = relu_gradient(g, y)
        gx = None
        if w is not None and x is not None and lies_transposed(x.data):
            gx = matrix_transpose(
                MatMul.apply(matrix_transpose(w), matrix_transpose(g))
            )
        elif w is not None:
            gx = MatMul.apply(g, w)
        return (
            gx,
            None if x is None else product(self, 1, matrix_transpose(g), x),
            None if self.edges[2] is None else sum_of_rows(self, 2, g),
        )


def lies_transposed(x) -> bool:
    """Whether a matrix lies in memory column by column, as its gradient then should."""
    return x.flags.f_contiguous and not x.flags.c_contiguous


def product(node: Op, position: int, a: Tensor, b: Tensor) -> Tensor:
    """A B as the gradient of an input of `node`; written straight into flat storage,
    or added to what is there, where that waits for it."""
    out = node.gradient_buffer(position)
    target = node.gradient_sum(position) if out is None else out
    if target is None or a.ndim > 2 or b.ndim > 2:
        return MatMul.apply(a, b)
    summed = DEFAULT_FLOAT if a.dtype.itemsize == 2 else a.dtype
    if target.dtype not in (a.dtype, summed):
        return MatMul.apply(a, b)
    return Tensor(raw.matmul(a.data, b.data, target, accumulate=out is None))


def sum_of_rows(node: Op, position: int, g: Tensor) -> Tensor:
    """The sum of the rows as the gradient of an input of `node`; written straight into
    flat storage where that waits for it, and then not rounded to 16 bits."""
    out = node.gradient_buffer(position)
    if out is None or out.dtype != wide_type(g.dtype):
        return g.sum(0)
    return Tensor(widened(g.data).sum(0, out=out))


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The matrix product, with PyTorch's rules for vectors and stacks of matrices.

    A vector counts as a row on the left and as a column on the right. A stack times
    one matrix is a product of two matrices; two stacks broadcast.
    """
    a, b = input, other
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):  # arrays, as in a + b
        a = as_tensor(a, b if isinstance(b, Tensor) else None)
        b = as_tensor(b, a)
    shapes = a.data.shape, b.data.shape
    if len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][1] == shapes[1][0]:
        if a.data.dtype == b.data.dtype:
            return MatMul.apply(a, b)
    check_product("matmul", a, b)
    if b.ndim > 2 >= a.ndim:  # (A B)^T = B^T A^T
        y = matmul(matrix_transpose(b), t(a))
        return y if a.ndim == 1 else matrix_transpose(y)
    if a.ndim > 2 and b.ndim > 2:
        return MatMul.apply(a, b)
    shape = a.shape[:-1] + b.shape[1:]
    if a.ndim != 2:
        a = Reshape.apply(a, (prod(a.shape[:-1]), a.shape[-1]))
    if b.ndim == 1:
        b = Reshape.apply(b, (b.shape[0], 1))
    y = MatMul.apply(a, b)
    return y if y.shape == shape else Reshape.apply(y, shape)


def check_product(name: str, a: Tensor, b: Tensor, *ndims: int) -> None:
    """Raise RuntimeError for operands whose product does not exist; `ndims` are the
    dimensions that a and b must have, if that is fixed."""
    if not a.ndim or not b.ndim or (ndims and (a.ndim, b.ndim) != ndims):
        expected = " and ".join(map(str, ndims)) or "at least 1"
        raise RuntimeError(
            f"{name} needs operands of {expected} dimensions, got shapes {a.shape} "
            f"and {b.shape}"
        )
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2]
    if a.shape[-1] != inner:
        raise RuntimeError(
            f"{name}: shapes {a.shape} and {b.shape} do not fit: "
            f"{a.shape[-1]} columns meet {inner} rows"
        )
    for n, m in zip(a.shape[-3::-1], b.shape[-3::-1], strict=False):
        if n != m and (ndims or 1 not in (n, m)):
            raise RuntimeError(
                f"{name}: the stacks {a.shape} and {b.shape} differ in their number of "
                "matrices"
            )
    if a.dtype != b.dtype:
        raise RuntimeError(f"{name}: operands are {a.dtype} and {b.dtype}; cast one")


def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices."""
    check_product("mm", input, mat2, 2, 2)
    return MatMul.apply(input, mat2)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of two stacks of matrices, (B, n, k) and (B, k, m)."""
    check_product("bmm", input, mat2, 3, 3)
    return MatMul.apply(input, mat2)


def mv(input: Tensor, vec: Tensor) -> Tensor:
    """The product of a matrix and a vector."""
    check_product("mv", input, vec, 2, 1)
    return matmul(input, vec)


def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """The sum of the products of two vectors' elements."""
    check_product("dot", input, tensor, 1, 1)
    return matmul(input, tensor)


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """output[i][j] = input[i] vec2[j]"""
    if input.ndim != 1 or vec2.ndim != 1:
        raise RuntimeError(
            f"outer needs two vectors, got shapes {input.shape} and {vec2.shape}"
        )
    return mul(unsqueeze(input, 1), vec2)


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta=1, alpha=1) -> Tensor:
    """beta input + alpha (mat1 mat2); with beta 0 input is not looked at."""
    return combined(input, mm(mat1, mat2), beta, alpha)


def baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta=1, alpha=1
) -> Tensor:
    """beta input + alpha (batch1 batch2), for stacks of matrices."""
    return combined(input, bmm(batch1, batch2), beta, alpha)


def combined(input: Tensor, y: Tensor, beta, alpha) -> Tensor:
    if input.dtype != y.dtype:
        raise RuntimeError(
            f"input is {input.dtype} and the product {y.dtype}; cast one"
        )
    y = y if alpha == 1 else mul(y, alpha)
    if beta == 0:
        return y
    input = input if input.shape == y.shape else expand(input, y.shape)
    return add(y, input, alpha=beta)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input W^T + b, for input (*, in_features), weight (out_features, in_features)."""
    return affine(input, weight, bias)


def affine(input, weight, bias, rectified: bool = False) -> Tensor:
    """`linear`, or max(0, that) in one operation."""
    if not isinstance(input, Tensor):
        raise TypeError(f"linear takes a Tensor, got {type(input).__name__}")
    if input.ndim == 0 or input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"linear: input of shape {tuple(input.shape)} does not fit a weight of "
            f"shape {tuple(weight.shape)}: its last dimension must be "
            f"{weight.shape[-1]}"
        )
    if input.dtype != weight.dtype:
        raise RuntimeError(
            f"linear: input is {input.dtype} and weight is {weight.dtype}; cast one"
        )
    if weight.ndim == 1:
        y = matmul(input, weight)
        y = y if bias is None else add(y, bias)
        return relu(y) if rectified else y
    if input.ndim == 2:
        return Linear.apply(input, weight, bias, rectified)
    *shape, width = input.shape
    rows = Reshape.apply(input, (prod(shape), width))
    y = Linear.apply(rows, weight, bias, rectified)
    return Reshape.apply(y, (*shape, weight.shape[0]))
