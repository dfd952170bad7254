"""Losses. A mean knows how many terms it is the mean over (`Tensor.count`), so that
shares of a batch can be weighted by what they hold."""

from minidl.array.device import array_module
from minidl.autograd.tensor import Tensor
from minidl.ops.activation import log_softmax
from minidl.ops.index import Gather
from minidl.ops.reduce import mean_of


def reduced(terms: Tensor, reduction: str, count=None) -> Tensor:
    """The terms as they are, their sum, or their mean over `count` of them."""
    if reduction == "none":
        return terms
    if reduction == "sum":
        return terms.sum()
    if reduction != "mean":
        raise ValueError(
            f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}"
        )
    return mean_of(terms.sum(), terms.numel() if count is None else count)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(input)[target], for scores (N, classes) and labels (N)."""
    check_labels(input, target, ignore_index)
    xp = array_module(target.data)
    valid = target.data != ignore_index
    labels = xp.where(valid, target.data, 0)[:, None]
    terms = -Gather.apply(log_softmax(input, 1), labels, 1).reshape(target.shape)
    terms = terms * Tensor(valid.astype(input.dtype))
    return reduced(terms, reduction, int(valid.sum()))


def check_labels(input: Tensor, target: Tensor, ignore_index: int) -> None:
    labels = target.data
    if labels.dtype.kind not in "iu":
        raise RuntimeError(
            f"cross_entropy: labels must be integers, got {labels.dtype}; "
            "probabilities have the shape of the input"
        )
    if labels.shape != input.shape[:1] + input.shape[2:]:
        raise ValueError(
            f"cross_entropy: labels of shape {labels.shape} do not fit scores of shape "
            f"{tuple(input.shape)}: expected {input.shape[:1] + input.shape[2:]}"
        )
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= input.shape[1]))
    if wrong.any():
        raise IndexError(
            f"cross_entropy: label {labels[wrong][0]} is out of range: expected 0 to "
            f"{input.shape[1] - 1} for scores of {input.shape[1]} classes"
        )


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)^2"""
    difference = input - target
    return reduced(difference * difference, reduction)
