"""Lengths of vectors and angles between them."""

from numpy import broadcast_shapes

from minidl.autograd.tensor import Tensor
from minidl.ops.elementwise import minimum
from minidl.ops.loss import older, reduced
from minidl.ops.magnitude import norm
from minidl.ops.operands import matched
from minidl.ops.pointwise import Pointwise

at_least = Pointwise("at_least", "x", "where(x < low, low, x)", "low")


def normalize(
    input: Tensor, p: float = 2.0, dim=1, eps: float = 1e-12, out=None
) -> Tensor:
    """input / max(its p-norm along dim, eps); `out` is not offered."""
    if out is not None:
        raise ValueError("normalize: out is not offered: use the result")
    return input / at_least(norm(input, p, dim, keepdim=True), low=eps)


def cosine_similarity(
    x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8
) -> Tensor:
    """x1 . x2 / (max(|x1|, eps) max(|x2|, eps)) along dim"""
    shape = broadcast_shapes(x1.shape, x2.shape)
    x1, x2 = (x.expand(shape) for x in matched(x1, x2, floating=True))
    a, b = (at_least(norm(x, 2.0, dim, keepdim=True), low=eps) for x in (x1, x2))
    return ((x1 / a) * (x2 / b)).sum(dim)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """max(0, |a - p| - |a - n| + margin), distances as p-norms along the last dim.

    With swap, |p - n| takes the place of |a - n| where it is smaller.
    """
    if margin <= 0:
        raise ValueError(f"triplet_margin_loss: margin must be positive, got {margin}")
    near = norm(anchor - positive + eps, p, -1)
    far = norm(anchor - negative + eps, p, -1)
    if swap:
        far = minimum(far, norm(positive - negative + eps, p, -1))
    terms = at_least(near - far + margin, low=0)
    return reduced(terms, older(size_average, reduce, reduction))
