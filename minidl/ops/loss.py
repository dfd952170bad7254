"""Losses that are a formula for each element, then reduced.

The formulas are a table (`TERMS`) of expressions in x, the input, and t, the target.
A mean remembers its sum and of how many terms it is (`Tensor.total`, `Tensor.count`),
so that shares of a batch can be weighted by what they hold. The arguments
`size_average` and `reduce` are PyTorch's older way to say `reduction`.
"""

import warnings

from minidl.array.device import on_gpu
from minidl.autograd.tensor import Tensor
from minidl.ops.pointwise import Pointwise
from minidl.ops.reduce import mean_of

TERMS = {
    name: Pointwise(name, arguments, expression, scalars)
    for name, arguments, expression, scalars in [
        ("mse", "x t", "(x - t) * (x - t)", ""),
        ("l1", "x t", "abs(x - t)", ""),
        (
            "smooth_l1",
            "x t",
            "where(abs(x - t) < beta, 0.5 * (x - t) * (x - t) / beta, "
            "abs(x - t) - 0.5 * beta)",
            "beta",
        ),
        (
            "huber",
            "x t",
            "where(abs(x - t) <= delta, 0.5 * (x - t) * (x - t), "
            "delta * (abs(x - t) - 0.5 * delta))",
            "delta",
        ),
        (
            "hinge",
            "x t",
            "where(t != 1, where(margin - x < 0, 0, margin - x), 0) "
            "+ where(t != -1, x, 0)",
            "margin",
        ),
        (
            "ranking",
            "x y t",
            "where(margin - t * (x - y) < 0, 0, margin - t * (x - y))",
            "margin",
        ),
    ]
}


def reduced(terms: Tensor, reduction: str, count=None) -> Tensor:
    """The terms as they are, their sum, or their mean over `count` of them.

    `count` is a number or a 0-d Tensor; the mean's own `count` is a 0-d Tensor on
    a GPU where a number would have to be waited for, and a number otherwise.
    """
    if reduction == "none":
        return terms
    if reduction == "sum":
        return terms.sum()
    if reduction != "mean":
        raise ValueError(
            f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}"
        )
    total = terms.sum()
    if not isinstance(count, Tensor):
        return mean_of(total, terms.numel() if count is None else count)
    mean = total / count
    mean.total = total
    mean.count = count.detach() if on_gpu(count.data) else count.item()
    return mean


def older(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction, said in the older way if either of the first two is given."""
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


def compared(name: str, input, target, **scalars) -> Tensor:
    """The terms of input and target, with PyTorch's warning where shapes differ."""
    shapes = [getattr(x, "shape", None) for x in (input, target)]
    if None not in shapes and shapes[0] != shapes[1]:
        warnings.warn(
            f"{name}_loss: an input of shape {shapes[0]} meets a target of shape "
            f"{shapes[1]}; they are broadcast, which is likely to be a mistake",
            stacklevel=3,
        )
    return TERMS[name](input, target, **scalars)


def mse_loss(
    input, target, size_average=None, reduce=None, reduction="mean", weight=None
) -> Tensor:
    """(input - target)^2, times weight"""
    terms = compared("mse", input, target)
    return weighted(terms, weight, size_average, reduce, reduction)


def l1_loss(
    input, target, size_average=None, reduce=None, reduction="mean", weight=None
) -> Tensor:
    """|input - target|, times weight"""
    terms = compared("l1", input, target)
    return weighted(terms, weight, size_average, reduce, reduction)


def weighted(terms, weight, size_average, reduce, reduction) -> Tensor:
    """Reduce terms with weights: the mean is over the sum of the weights."""
    reduction = older(size_average, reduce, reduction)
    if weight is None:
        return reduced(terms, reduction)
    weight = weight.expand(terms.shape)
    return reduced(terms * weight, reduction, weight.sum())


def smooth_l1_loss(
    input, target, size_average=None, reduce=None, reduction="mean", beta=1.0
) -> Tensor:
    """(x - t)^2 / (2 beta) where |x - t| < beta, |x - t| - beta / 2 elsewhere"""
    if beta < 0:
        raise RuntimeError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    terms = compared("smooth_l1", input, target, beta=beta)
    return reduced(terms, older(size_average, reduce, reduction))


def huber_loss(input, target, reduction="mean", delta=1.0, weight=None) -> Tensor:
    """(x - t)^2 / 2 where |x - t| <= delta, delta (|x - t| - delta / 2) elsewhere"""
    if delta <= 0:
        raise RuntimeError(f"huber_loss: delta must be positive, got {delta}")
    terms = compared("huber", input, target, delta=delta)
    return weighted(terms, weight, None, None, reduction)


def hinge_embedding_loss(
    input, target, margin=1.0, size_average=None, reduce=None, reduction="mean"
) -> Tensor:
    """x where t is 1, max(0, margin - x) where t is -1"""
    terms = TERMS["hinge"](input, target, margin=margin)
    return reduced(terms, older(size_average, reduce, reduction))


def margin_ranking_loss(
    input1, input2, target, margin=0, size_average=None, reduce=None, reduction="mean"
) -> Tensor:
    """max(0, margin - t (input1 - input2))"""
    if not input1.ndim == input2.ndim == target.ndim:
        raise RuntimeError(
            "margin_ranking_loss: the arguments must have as many dimensions, got "
            f"{input1.ndim}, {input2.ndim} and {target.ndim}"
        )
    terms = TERMS["ranking"](input1, input2, target, margin=margin)
    return reduced(terms, older(size_average, reduce, reduction))
