"""Losses of classification: cross entropy and negative log-likelihood.

A label out of range raises IndexError on a CPU; on a GPU, where looking would mean
waiting for the device, it gives a loss of NaN.
"""

from functools import partial

from minidl.array import cross_entropy as raw
from minidl.array.device import array_module, on_gpu
from minidl.array.dtypes import is_floating_point
from minidl.autograd.function import Op
from minidl.autograd.tensor import Tensor
from minidl.ops.index import Gather
from minidl.ops.loss import older, reduced
from minidl.ops.operands import as_tensor
from minidl.ops.softmax import log_softmax


class CrossEntropy(Op):
    """-sum(target log softmax(x)) over dim 1, and softmax(x): (N, C, *) -> (N, *).

    target = (1 - smoothing) one_hot(label) + smoothing / C. The second output stays
    inside: kept for backward, it can be differentiated again.
    """

    materialize_grads = False

    def forward(self, x, labels, smoothing):
        self.smoothing = smoothing
        terms, p = raw.cross_entropy(x, labels, smoothing)
        self.save_for_backward(p, labels)
        return terms, p

    def backward(self, g, gp):
        p, labels = self.saved_tensors
        gx = None if g is None else Deviation.apply(g, p, labels, self.smoothing)
        if gp is not None:
            through = gp * p
            through = through - p * through.sum(1, True)
            gx = through if gx is None else gx + through
        return gx


class Deviation(Op):
    """(p - target) g, for p (N, C, *), g and label (N, *)"""

    def forward(self, g, p, labels, smoothing):
        self.smoothing = smoothing
        self.save_for_backward(g if self.edges[1] is not None else None, p, labels)
        return raw.deviation(g, p, labels, smoothing)

    def backward(self, gy):
        g, p, labels = self.saved_tensors
        even = self.smoothing / max(p.shape[1], 1)
        gg = (gy * (p - even)).sum(1) - picked(gy, labels.data) * (1 - self.smoothing)
        return gg, None if g is None else gy * g.unsqueeze(1)


def picked(x: Tensor, labels) -> Tensor:
    """x[label] over dim 1: (N, C, *) -> (N, *)"""
    places = array_module(labels).expand_dims(labels, 1)
    return Gather.apply(x, places, 1).reshape(labels.shape)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-weight[t] log softmax(input)[t], the mean over the sum of weight[t].

    input is (C), (N, C) or (N, C, *); target the labels, without the C, of which
    those equal to ignore_index do not count; or probabilities, of the input's shape.
    label_smoothing moves that share of each target to all classes alike.
    Raises RuntimeError, ValueError or IndexError for a target that does not fit.
    """
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(
            f"cross_entropy: label_smoothing is a share, got {label_smoothing}"
        )
    reduction = older(size_average, reduce, reduction)
    input, target = scores_and_target("cross_entropy", input, target, weight)
    if target.shape == input.shape and is_floating_point(target.dtype):
        return of_probabilities(input, target, weight, reduction, label_smoothing)
    labels = target, weight, ignore_index
    if label_smoothing and weight is not None:
        scores = log_softmax(input, min(1, input.ndim - 1))
        terms, count = of_labels("cross_entropy", minus_picked, scores, *labels)
        share = label_smoothing / input.shape[min(1, input.ndim - 1)]
        uniform = minus_sum(scores, target, weight, ignore_index)
        terms = terms * (1 - label_smoothing) + uniform * share
    else:
        log_loss = partial(smoothed_log_loss, smoothing=label_smoothing)
        terms, count = of_labels("cross_entropy", log_loss, input, *labels)
    return reduced(terms, reduction, count)


def smoothed_log_loss(x: Tensor, labels, smoothing: float) -> Tensor:
    return CrossEntropy.apply(x, labels, smoothing)[0]


def minus_picked(x: Tensor, labels) -> Tensor:
    return -picked(x, labels)


def minus_sum(scores: Tensor, target: Tensor, weight, ignore_index: int) -> Tensor:
    """-sum of weight scores over the classes, 0 where the label is ignored."""
    dim = min(1, scores.ndim - 1)
    scores = scores * weight.reshape(-1, *[1] * (scores.ndim - 1 - dim))
    valid = target.data != ignore_index
    return -scores.sum(dim) * Tensor(valid.astype(scores.dtype))


def of_probabilities(input, target, weight, reduction, label_smoothing) -> Tensor:
    """-sum of weight t log softmax(x) over the classes."""
    dim = min(1, input.ndim - 1)
    classes = input.shape[dim]
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    terms = log_softmax(input, dim) * target
    if weight is not None:
        terms = terms * weight.reshape(-1, *[1] * (input.ndim - 1 - dim))
    terms = -terms.sum(dim)
    return reduced(terms, reduction)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-weight[t] input[t], for logarithms of probabilities; see cross_entropy."""
    input, target = scores_and_target("nll_loss", input, target, weight)
    terms, count = of_labels(
        "nll_loss", minus_picked, input, target, weight, ignore_index
    )
    return reduced(terms, older(size_average, reduce, reduction), count)


def of_labels(name, terms_of, input, target, weight, ignore_index) -> tuple:
    """terms_of(scores, labels) times their weights, and the sum of the weights."""
    if input.ndim == 1:
        if target.ndim:
            refuse_shape(name, input, target)
        scores, one = input.reshape(1, -1), target.reshape(1)
        terms, count = of_labels(name, terms_of, scores, one, weight, ignore_index)
        return terms.reshape(()), count
    check_target(name, input, target)
    labels, share, count = raw.valid_labels(
        name, target.data, input.shape[1], ignore_index, input.dtype
    )
    terms = terms_of(input, labels)
    if weight is not None:
        chosen = weight.data[labels]
        share = chosen if share is None else chosen * share
        count = share.sum()
    if share is not None:
        terms = terms * Tensor(share.astype(terms.dtype, copy=False))
    return terms, counted(count)


def counted(count):
    """A count as a number; on a GPU as a Tensor, which nobody has to wait for."""
    if isinstance(count, int):
        return count
    return Tensor(count) if on_gpu(count) else count.item()


def scores_and_target(name: str, input, target, weight) -> tuple[Tensor, Tensor]:
    """Both as Tensors, since arrays and lists are welcome too; checks the classes."""
    input = as_tensor(input)
    target = as_tensor(target, input)
    if not is_floating_point(input.dtype):
        raise RuntimeError(
            f"{name}: scores must be floating-point numbers, got {input.dtype}"
        )
    if not input.ndim:
        raise ValueError(
            f"{name}: expected scores (C), (N, C) or (N, C, *), got a number"
        )
    classes = input.shape[min(1, input.ndim - 1)]
    if weight is not None and tuple(weight.shape) != (classes,):
        raise RuntimeError(
            f"{name}: weight must hold one number for each of the {classes} classes, "
            f"got shape {tuple(weight.shape)}"
        )
    return input, target


def check_target(name: str, input: Tensor, target: Tensor) -> None:
    """Whether they are labels, and one for each row of scores."""
    labels = target.data
    if labels.dtype.kind not in "iu":
        hint = (
            "; probabilities have the shape of the input"
            if name == "cross_entropy"
            else ""
        )
        raise RuntimeError(f"{name}: labels must be integers, got {labels.dtype}{hint}")
    if labels.shape != input.shape[:1] + input.shape[2:]:
        refuse_shape(name, input, target)


def refuse_shape(name: str, input: Tensor, target: Tensor):
    raise ValueError(
        f"{name}: labels of shape {tuple(target.shape)} do not fit scores of shape "
        f"{tuple(input.shape)}: expected {tuple(input.shape[:1] + input.shape[2:])}"
        if input.ndim > 1
        else f"{name}: one label is expected for scores of shape {tuple(input.shape)}, "
        f"got shape {tuple(target.shape)}"
    )
