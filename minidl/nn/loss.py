"""Losses as layers."""

from minidl.nn import functional as F
from minidl.nn.applied import Applied

OLDER = {"size_average": None, "reduce": None}  # PyTorch's older way to say reduction


class Loss(Applied):
    """What losses share: class weights are part of the state."""

    buffers_named = ("weight", "pos_weight")

    def extra_repr(self) -> str:
        return ""


class CrossEntropyLoss(
    Loss,
    function=F.cross_entropy,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """-weight[t] log softmax(x)[t]"""


class NLLLoss(
    Loss,
    function=F.nll_loss,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
):
    """-weight[t] x[t]"""


class MSELoss(Loss, function=F.mse_loss, **OLDER, reduction="mean"):
    """(x - t)^2"""


class L1Loss(Loss, function=F.l1_loss, **OLDER, reduction="mean"):
    """|x - t|"""


class SmoothL1Loss(
    Loss, function=F.smooth_l1_loss, **OLDER, reduction="mean", beta=1.0
):
    """(x - t)^2 / (2 beta) near t, |x - t| - beta / 2 elsewhere"""


class HuberLoss(Loss, function=F.huber_loss, reduction="mean", delta=1.0):
    """(x - t)^2 / 2 near t, delta (|x - t| - delta / 2) elsewhere"""


class BCELoss(
    Loss, function=F.binary_cross_entropy, weight=None, **OLDER, reduction="mean"
):
    """-(t log(x) + (1 - t) log(1 - x))"""


class BCEWithLogitsLoss(
    Loss,
    function=F.binary_cross_entropy_with_logits,
    weight=None,
    **OLDER,
    reduction="mean",
    pos_weight=None,
):
    """BCELoss of sigmoid(x)"""


class KLDivLoss(Loss, function=F.kl_div, **OLDER, reduction="mean", log_target=False):
    """t (log(t) - x)"""


class PoissonNLLLoss(
    Loss,
    function=F.poisson_nll_loss,
    log_input=True,
    full=False,
    size_average=None,
    eps=1e-8,
    reduce=None,
    reduction="mean",
):
    """exp(x) - t x"""


class GaussianNLLLoss(
    Loss, function=F.gaussian_nll_loss, full=False, eps=1e-6, reduction="mean"
):
    """(log(var) + (x - t)^2 / var) / 2, called with x, t and var"""

    def __init__(self, *, full=False, eps=1e-6, reduction="mean"):
        super().__init__(full, eps, reduction)


class HingeEmbeddingLoss(
    Loss, function=F.hinge_embedding_loss, margin=1.0, **OLDER, reduction="mean"
):
    """x where t is 1, max(0, margin - x) where t is -1"""


class MarginRankingLoss(
    Loss, function=F.margin_ranking_loss, margin=0.0, **OLDER, reduction="mean"
):
    """max(0, margin - t (x1 - x2)), called with x1, x2 and t"""


class TripletMarginLoss(
    Loss,
    function=F.triplet_margin_loss,
    margin=1.0,
    p=2.0,
    eps=1e-6,
    swap=False,
    **OLDER,
    reduction="mean",
):
    """max(0, |a - p| - |a - n| + margin), called with a, p and n"""


class CosineSimilarity(Loss, function=F.cosine_similarity, dim=1, eps=1e-8):
    """The cosine of the angle between x1 and x2, along dim"""
