"""Losses that are minus the logarithm of a probability, then reduced as in loss.py."""

from math import pi

from minidl.array.device import array_module, on_gpu
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.loss import older, reduced
from minidl.ops.operands import as_tensor
from minidl.ops.pointwise import Pointwise

TERMS = {
    name: Pointwise(name, arguments, expression, scalars)
    for name, arguments, expression, scalars in [
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


def same_shape(name: str, input: Tensor, target: Tensor) -> None:
    if input.shape != target.shape:
        raise ValueError(
            f"{name}: target of shape {tuple(target.shape)} must have the shape of the "
            f"input, {tuple(input.shape)}"
        )


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
        return array_module(x).maximum(x, x.dtype.type(low))

    def backward(self, g):
        return g


def gaussian_nll_loss(
    input, target, var, full=False, eps=1e-6, reduction="mean"
) -> Tensor:
    """(log(v) + (x - t)^2 / v) / 2, v = max(var, eps); with full, + log(2 pi) / 2

    var is a number, or has the input's shape, or that with a last dimension of 1 or
    without it. Raises ValueError for a negative var (on a GPU it gives NaN).
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
