"""Matrix products. Everything becomes products of two matrices, or of two stacks of
matrices: these are what GPUs and BLAS are fast at."""

from math import prod

from minidl.array import matmul as raw
from minidl.array.dtypes import wide_type
from minidl.autograd.function import Arithmetic, Op
from minidl.autograd.tensor import Tensor
from minidl.ops.activation import relu, relu_gradient
from minidl.ops.arithmetic import add, mul
from minidl.ops.operands import as_tensor
from minidl.ops.shape import Reshape, expand, matrix_transpose, t, unsqueeze


class MatMul(Arithmetic):
    """Y = A B, for matrices or for stacks of them that broadcast."""

    fresh = True

    def forward(self, a, b):
        for_a, for_b = self.edges
        self.saved = None if for_b is None else a, None if for_a is None else b
        return raw.matmul(a, b)

    def backward(self, g):
        a, b = self.saved_like(g)
        return (
            None if b is None else product(self, 0, g, turned(b)),
            None if a is None else product(self, 1, turned(a), g),
        )


class Linear(Arithmetic):
    """Y = X W^T + b, for X (N, in), W (out, in), b (out); with relu, max(0, Y)."""

    fresh = True

    def forward(self, x, w, b, relu=False):
        y = raw.linear(x, w, b, relu)
        for_x, for_w, *_ = self.edges
        self.saved = (
            None if for_w is None else x,
            None if for_x is None else w,
            y if relu else None,
        )
        return y

    def backward(self, g):
        x, w, y = self.saved_like(g)
        gb = None
        if self.edges[2] is not None:
            g, gb = bias_gradient(self, 2, g, y)
        elif y is not None:
            g = relu_gradient.like(g)(g, y)
        gx = None
        if w is not None and x is not None and lies_transposed(x):
            gx = turned(multiplied(turned(w), turned(g)))
        elif w is not None:
            gx = product(self, 0, g, w)
        return (
            gx,
            None if x is None else product(self, 1, turned(g), x),
            gb,
        )


def lies_transposed(x) -> bool:
    """Whether a matrix lies in memory column by column, as its gradient then should."""
    flags = (x.data if isinstance(x, Tensor) else x).flags
    return flags.f_contiguous and not flags.c_contiguous


def turned(x):
    """The last two dimensions of a Tensor, or of a bare array, exchanged."""
    return matrix_transpose(x) if isinstance(x, Tensor) else x.swapaxes(-1, -2)


def bias_gradient(node: Op, position: int, g, y):
    """(g, 0 where y is given and not above 0; its sum over rows as the gradient of an
    input of `node`), Tensors or arrays; of arrays the sum is written straight into flat
    storage where that waits for it, and then not rounded to 16 bits."""
    if isinstance(g, Tensor):
        g = g if y is None else relu_gradient(g, y)
        return g, g.sum(0)
    out = node.gradient_buffer(position)
    if out is not None and out.dtype != wide_type(g.dtype):
        out = None
    return raw.bias_gradient(g, y, out)


def multiplied(a, b):
    """A B, Tensors or arrays."""
    return MatMul.apply(a, b) if isinstance(a, Tensor) else raw.matmul(a, b)


def product(node: Op, position: int, a, b):
    """A B, Tensors or arrays, as the gradient of an input of `node`; arrays straight
    into flat storage, or added to what is there, where that waits for it."""
    if isinstance(a, Tensor):
        return multiplied(a, b)
    out = node.gradient_buffer(position)
    target = node.gradient_sum(position) if out is None else out
    known = a.dtype, wide_type(a.dtype)
    if target is None or a.ndim > 2 or target.dtype not in known:
        return multiplied(a, b)
    return raw.matmul(a, b, target, accumulate=out is None)


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
