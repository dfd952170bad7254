"""Losses that are a formula for each element, then reduced.

The formulas are a table (`TERMS`) of expressions in x, the input, and t, the target.
A mean remembers its sum and of how many terms it is (`Tensor.total`, `Tensor.count`),
so that shares of a batch can be weighted by what they hold. The arguments
`size_average` and `reduce` are PyTorch's older way to say `reduction`.
"""

from math import pi

from minidl.array.device import array_module, on_gpu
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.operands import as_tensor
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
        (  # the logarithms at least -100, so that 0 and 1 have finite losses
            "bce",
            "x t",
            "-(t * where(log(x) < -100, -100, log(x)) "
            "+ (1 - t) * where(log1p(-x) < -100, -100, log1p(-x)))",
            "",
        ),
        ("bce_logits", "x t", "(1 - t) * x + softplus(-x)", ""),
        (
            "bce_logits_weighted",
            "x t p",
            "(1 - t) * x + (1 + (p - 1) * t) * softplus(-x)",
            "",
        ),
        ("kl", "x t", "where(t == 0, 0, t * log(t)) - t * x", ""),
        ("kl_log", "x t", "exp(t) * (t - x)", ""),
        ("poisson_log", "x t", "exp(x) - t * x", ""),
        ("poisson", "x t", "x - t * log(x + eps)", "eps"),
        (  # Stirling's approximation of log(t!)
            "stirling",
            "t",
            f"where(t <= 1, 0, t * log(t) - t + 0.5 * log({2 * pi} * t))",
            "",
        ),
        ("gaussian", "x t v", "0.5 * (log(v) + (x - t) * (x - t) / v)", ""),
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
# PyTorch's: finite where x is 0 or 1
TERMS["bce"].gradients[0] = (
    Pointwise(
        "bce_slope",
        "g x t",
        "g * (x - t) / where((1 - x) * x < 1e-12, 1e-12, (1 - x) * x)",
    ),
    [0, 1],
)


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


def same_shape(name: str, input: Tensor, target: Tensor) -> None:
    if input.shape != target.shape:
        raise ValueError(
            f"{name}: target of shape {tuple(target.shape)} must have the shape of the "
            f"input, {tuple(input.shape)}"
        )


def mse_loss(
    input, target, size_average=None, reduce=None, reduction="mean", weight=None
) -> Tensor:
    """(input - target)^2, times weight"""
    return weighted(
        TERMS["mse"](input, target), weight, size_average, reduce, reduction
    )


def l1_loss(
    input, target, size_average=None, reduce=None, reduction="mean", weight=None
) -> Tensor:
    """|input - target|, times weight"""
    return weighted(TERMS["l1"](input, target), weight, size_average, reduce, reduction)


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
    terms = TERMS["smooth_l1"](input, target, beta=beta)
    return reduced(terms, older(size_average, reduce, reduction))


def huber_loss(input, target, reduction="mean", delta=1.0, weight=None) -> Tensor:
    """(x - t)^2 / 2 where |x - t| <= delta, delta (|x - t| - delta / 2) elsewhere"""
    if delta <= 0:
        raise RuntimeError(f"huber_loss: delta must be positive, got {delta}")
    terms = TERMS["huber"](input, target, delta=delta)
    return weighted(terms, weight, None, None, reduction)


def binary_cross_entropy(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean"
) -> Tensor:
    """-weight (t log(x) + (1 - t) log(1 - x)), logarithms cut off at -100

    Raises RuntimeError for an input outside of 0 to 1; on a GPU, where that would
    mean waiting for the device, the loss is NaN instead.
    """
    same_shape("binary_cross_entropy", input, target)
    x = input.data
    if not on_gpu(x) and not ((x >= 0) & (x <= 1)).all():
        raise RuntimeError(
            "binary_cross_entropy: the input must lie between 0 and 1; "
            "binary_cross_entropy_with_logits takes any number"
        )
    terms = TERMS["bce"](input, target)
    terms = terms if weight is None else terms * weight
    return reduced(terms, older(size_average, reduce, reduction))


def binary_cross_entropy_with_logits(
    input,
    target,
    weight=None,
    size_average=None,
    reduce=None,
    reduction="mean",
    pos_weight=None,
) -> Tensor:
    """-weight (pos_weight t log(s(x)) + (1 - t) log(1 - s(x))), s(x) = sigmoid(x)"""
    same_shape("binary_cross_entropy_with_logits", input, target)
    if pos_weight is None:
        terms = TERMS["bce_logits"](input, target)
    else:
        terms = TERMS["bce_logits_weighted"](input, target, pos_weight)
    terms = terms if weight is None else terms * weight
    return reduced(terms, older(size_average, reduce, reduction))


def kl_div(
    input, target, size_average=None, reduce=None, reduction="mean", log_target=False
) -> Tensor:
    """t (log(t) - x), where x is a logarithm, and t too with log_target.

    The reduction "batchmean", the sum over the size of dim 0, is the divergence.
    """
    terms = TERMS["kl_log" if log_target else "kl"](input, target)
    reduction = older(size_average, reduce, reduction)
    if reduction != "batchmean":
        return reduced(terms, reduction)
    return reduced(terms, "mean", input.shape[0] if input.ndim else 1)


def poisson_nll_loss(
    input,
    target,
    log_input=True,
    full=False,
    size_average=None,
    eps=1e-8,
    reduce=None,
    reduction="mean",
) -> Tensor:
    """exp(x) - t x, or x - t log(x + eps) without log_input; with full, + log(t!)"""
    if log_input:
        terms = TERMS["poisson_log"](input, target)
    else:
        terms = TERMS["poisson"](input, target, eps=eps)
    if full:
        terms = terms + TERMS["stirling"](target)
    return reduced(terms, older(size_average, reduce, reduction))


class AtLeast(Op):
    """y = max(x, low), whose gradient is passed on as if it were x."""

    def forward(self, x, low):
        return array_module(x).maximum(x, low)

    def backward(self, g):
        return g


def gaussian_nll_loss(
    input, target, var, full=False, eps=1e-6, reduction="mean"
) -> Tensor:
    """(log(v) + (x - t)^2 / v) / 2, v = max(var, eps); with full, + log(2 pi) / 2

    var is a number, or has the input's shape, or that with a last dimension of 1 or
    without it. Raises ValueError for a negative var (on a GPU: not, see above).
    """
    var = as_tensor(var, input)
    if var.ndim and var.shape != input.shape:
        if var.shape == input.shape[:-1]:
            var = var.unsqueeze(-1)
        elif var.shape[:-1] != input.shape[:-1] or var.shape[-1] != 1:
            raise ValueError(
                f"gaussian_nll_loss: var of shape {tuple(var.shape)} does not fit an "
                f"input of shape {tuple(input.shape)}"
            )
    if not on_gpu(var.data) and (var.data < 0).any():
        raise ValueError("gaussian_nll_loss: var must not be negative")
    terms = TERMS["gaussian"](input, target, AtLeast.apply(var, eps))
    if full:
        terms = terms + 0.9189385332046727  # log(2 pi) / 2
    return reduced(terms, reduction)


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
