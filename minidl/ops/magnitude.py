"""Norms of vectors and matrices."""

from math import inf

from minidl.array.device import array_module
from minidl.array.dtypes import is_floating_point
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.elementwise import abs, sign, where
from minidl.ops.operands import cast
from minidl.ops.order import amax, amin
from minidl.ops.reduce import Reduction, normal_dims, sum


class PowerNorm(Reduction):
    """y = sum(|x|^p)^(1/p); where it has no gradient, at 0, that is 0."""

    def reduce(self, x, dims, p):
        self.p = p
        xp = array_module(x)
        if p == 2:
            return xp.sqrt((x * x).sum(axis=dims, keepdims=True))
        if p == 1:
            return xp.abs(x).sum(axis=dims, keepdims=True)
        return (xp.abs(x) ** p).sum(axis=dims, keepdims=True) ** (1 / p)

    def backward(self, g):
        x, y = self.saved_tensors
        p = self.p
        if p == 1:
            return self.spread(g) * sign(x)
        none = y == 0
        y = where(none, 1.0, y)
        if p == 2:
            return self.spread(where(none, 0.0, g / y)) * x
        zero = x == 0
        slope = where(zero, 0.0, sign(x) * abs(where(zero, 1.0, x)) ** (p - 1))
        return self.spread(where(none, 0.0, g * y ** (1 - p))) * slope


class SVD(Op):
    """A = U diag(s) V^T, for matrices in the last two dimensions.

    The gradient is Townsend's, "Differentiating the Singular Value Decomposition",
    2016; that of U and V needs singular values that differ.
    """

    materialize_grads = False

    def forward(self, a):
        u, s, vt = array_module(a).linalg.svd(a, full_matrices=False)
        self.save_for_backward(u, s, vt)
        return u, s, vt

    def backward(self, gu, gs, gvt):
        u, s, vt = self.saved_tensors
        v = vt.transpose(-1, -2)
        inner = 0.0  # U^T gA V
        if gs is not None:
            inner = inner + diagonal(gs)
        if gu is not None:
            inner = inner + turned(u, gu, s) * s.unsqueeze(-2)
        if gvt is not None:
            gv = gvt.transpose(-1, -2)
            inner = inner + s.unsqueeze(-1) * turned(v, gv, s)
        result = u @ inner @ vt
        if gu is not None:
            result = result + outside(u, gu / s.unsqueeze(-2)) @ vt
        if gvt is not None:
            rest = outside(v, gv / s.unsqueeze(-2))
            result = result + u @ rest.transpose(-1, -2)
        return result


def diagonal(s: Tensor) -> Tensor:
    xp = array_module(s.data)
    return s.unsqueeze(-1) * Tensor(xp.eye(s.shape[-1], dtype=s.dtype))


def turned(u: Tensor, gu: Tensor, s: Tensor) -> Tensor:
    """(U^T gU - gU^T U)_ij / (s_j^2 - s_i^2), 0 on the diagonal."""
    m = u.transpose(-1, -2) @ gu
    square = s * s
    gap = square.unsqueeze(-2) - square.unsqueeze(-1) + diagonal(s * 0.0 + 1.0)
    return (m - m.transpose(-1, -2)) / gap


def outside(u: Tensor, gu: Tensor) -> Tensor:
    """The part of gU that the columns of U do not span."""
    return gu - u @ (u.transpose(-1, -2) @ gu)


def norm(
    input: Tensor, p: float | str = "fro", dim=None, keepdim: bool = False, dtype=None
) -> Tensor:
    """sum(|input|^p)^(1/p) over dim (an int, a tuple or all).

    p = 0 counts what is not 0, inf is the largest |input|, -inf the smallest;
    "fro" is 2, and "nuc" the sum of the singular values of the matrices in the two
    dimensions of dim.
    """
    input = input if dtype is None else cast(input, dtype)
    if not is_floating_point(input.dtype):
        raise RuntimeError(f"norm needs floating point, got {input.dtype}")
    dims = normal_dims(dim, input.ndim)
    if p == "nuc":
        return nuclear_norm(input, dims, keepdim)
    if isinstance(p, str) and p != "fro":
        raise RuntimeError(f"p must be a number, 'fro' or 'nuc', got {p!r}")
    p = 2.0 if p == "fro" else float(p)
    if p == inf:
        return amax(abs(input), dims, keepdim)
    if p == -inf:
        return amin(abs(input), dims, keepdim)
    if p == 0:
        return sum(abs(sign(input)), dims, keepdim)
    return PowerNorm.apply(input, dims, keepdim, p)


def nuclear_norm(input: Tensor, dims, keepdim: bool) -> Tensor:
    if len(dims) != 2:
        raise RuntimeError(
            f"the nuclear norm is a matrix's, of 2 dimensions, not {dims}"
        )
    rest = [d for d in range(input.ndim) if d not in dims]
    s = SVD.apply(input.permute(*rest, *dims))[1]
    y = sum(s, -1)
    if keepdim:
        y = y.reshape([1 if d in dims else n for d, n in enumerate(input.shape)])
    return y
