"""Losses of classification: cross entropy and negative log-likelihood.

A label out of range raises IndexError on a CPU; on a GPU, where looking would mean
waiting for the device, it gives a loss of NaN.
"""

from minidl.array import cross_entropy as raw
from minidl.array.device import array_module, on_gpu
from minidl.array.dtypes import is_floating_point
from minidl.autograd.function import Op
from minidl.autograd.structure import stretched
from minidl.autograd.tensor import Tensor
from minidl.ops.elementwise import where
from minidl.ops.index import Gather
from minidl.ops.loss import older, reduced
from minidl.ops.operands import as_tensor
from minidl.ops.softmax import log_softmax


class CrossEntropy(Op):
    """-sum(target log softmax(x)) over dim 1, and softmax(x): (N, C, *) -> (N, *).

    target = (1 - smoothing) one_hot(label) + smoothing / C; where a label is ignored,
    the term is 0. The second output stays inside: kept for backward, it can be
    differentiated again.
    """

    materialize_grads = False

    def forward(self, x, labels, smoothing, ignored):
        self.options = smoothing, ignored
        terms, p = raw.cross_entropy(x, labels, smoothing, ignored)
        self.save_for_backward(p, labels)
        return terms, p

    def backward(self, g, gp):
        p, labels = self.saved_tensors
        gx = None if g is None else Deviation.apply(g, p, labels, *self.options)
        if gp is not None:
            through = gp * p
            through = through - p * through.sum(1, True)
            gx = through if gx is None else gx + through
        return gx


class Deviation(Op):
    """(p - target) g, for p (N, C, *), g and label (N, *); 0 where it is ignored"""

    def forward(self, g, p, labels, smoothing, ignored):
        self.options = smoothing, ignored
        self.save_for_backward(g if self.edges[1] is not None else None, p, labels)
        return raw.deviation(g, p, labels, smoothing, ignored)

    def backward(self, gy):
        g, p, labels = self.saved_tensors
        smoothing, ignored = self.options
        classes = p.shape[1]
        labels, share, _ = raw.valid_labels(
            "cross_entropy", labels.data, classes, ignored, p.dtype
        )
        if share is not None:
            gy = gy * Tensor(share.astype(p.dtype, copy=False)).unsqueeze(1)
        gg = (gy * (p - smoothing / max(classes, 1))).sum(1)
        gg = gg - picked(gy, labels) * (1 - smoothing)
        return gg, None if g is None else gy * g.unsqueeze(1)


class CountedMean(Op):
    """total / count, total = sum(terms) and count, of the terms whose labels count."""

    materialize_grads = False

    def forward(self, terms, labels, ignored):
        self.shape = terms.shape
        total, count, mean = raw.counted_mean(terms, labels, ignored)
        self.undifferentiable = (count,)
        self.save_for_backward(count)
        return mean, total, count

    def backward(self, g, g_total, _):
        if g is not None:
            (count,) = self.saved_tensors
            g = g / count
        if g_total is not None:
            g = g_total if g is None else g + g_total
        return stretched(g, self.shape)


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
    if weight is None:
        return unweighted(input, target, ignore_index, reduction, label_smoothing)
    dim = min(1, input.ndim - 1)
    scores, labels = log_softmax(input, dim), (target, weight, ignore_index)
    terms, count = of_labels("cross_entropy", scores, *labels)
    if label_smoothing:
        share = label_smoothing / input.shape[dim]
        uniform = minus_sum(scores, *labels)
        terms = terms * (1 - label_smoothing) + uniform * share
    return reduced(terms, reduction, count)


def unweighted(input, target, ignored: int, reduction: str, smoothing: float) -> Tensor:
    """Cross entropy with labels that count alike, or not at all."""
    alone = input.ndim == 1 and not target.ndim
    if alone:
        input, target = input.reshape(1, -1), target.reshape(1)
    check_target("cross_entropy", input, target)
    labels = target.data
    count = raw.count_labels("cross_entropy", labels, input.shape[1], ignored)
    terms, _ = CrossEntropy.apply(input, labels, smoothing, ignored)
    if count is None and reduction == "mean":
        mean, mean.total, mean.count = CountedMean.apply(terms, labels, ignored)
        return mean
    return reduced(terms.reshape(()) if alone else terms, reduction, count)


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
    terms, count = of_labels("nll_loss", input, target, weight, ignore_index)
    return reduced(terms, older(size_average, reduce, reduction), count)


def of_labels(name, input, target, weight, ignore_index) -> tuple:
    """-input[t] times its weight, and the sum of the weights."""
    if input.ndim == 1:
        if target.ndim:
            refuse_shape(name, input, target)
        scores, one = input.reshape(1, -1), target.reshape(1)
        terms, count = of_labels(name, scores, one, weight, ignore_index)
        return terms.reshape(()), count
    check_target(name, input, target)
    labels, share, count = raw.valid_labels(
        name, target.data, input.shape[1], ignore_index, input.dtype
    )
    terms = -picked(input, labels)
    if weight is not None:
        chosen = weight.data[labels]
        terms = terms * Tensor(chosen.astype(terms.dtype, copy=False))
        count = (chosen if share is None else chosen * share).sum()
    if share is not None:  # 0 where a label is ignored, its gradient too
        kept = Tensor(share.astype(terms.dtype, copy=False))
        terms = where(kept != 0, terms * kept, 0.0)
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
