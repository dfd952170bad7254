"""What each function computes in under autocast.

The lists are PyTorch's ("Autocast Op Reference"), which differ between devices: on a
CPU most functions of 16 bits are computed in float32 anyway and rounded once.
"""

from minidl.ops import (
    activation,
    arithmetic,
    attention,
    conv,
    conv_transpose,
    cross_entropy,
    distance,
    einsum,
    elementwise,
    index,
    interpolate,
    layer_norm,
    likelihood,
    linear,
    loss,
    magnitude,
    pieces,
    pool,
    reduce,
    softmax,
)
from minidl.ops.autocast import casting, full, low, refused, widest

RULES = [  # where, the functions, the rule on a CPU, on a GPU
    (linear, "linear affine matmul mm bmm addmm baddbmm", low, low),
    (conv, "conv conv1d conv2d conv3d", low, low),
    (
        conv_transpose,
        "conv_transpose1d conv_transpose2d conv_transpose3d",
        low,
        low,
    ),
    (attention, "scaled_dot_product_attention", low, low),
    (linear, "mv", widest, low),
    (activation, "prelu", low, low),
    (cross_entropy, "cross_entropy nll_loss", full, full),
    (
        loss,
        "mse_loss l1_loss smooth_l1_loss huber_loss hinge_embedding_loss "
        "margin_ranking_loss",
        full,
        full,
    ),
    (
        likelihood,
        "kl_div poisson_nll_loss binary_cross_entropy_with_logits",
        full,
        full,
    ),
    (distance, "triplet_margin_loss", full, full),
    (reduce, "prod", full, full),
    (likelihood, "binary_cross_entropy", full, refused),
    (pool, "avg_pool3d max_pool3d", full, None),
    (softmax, "softmax log_softmax", None, full),
    (layer_norm, "layer_norm group_norm rms_norm", None, full),
    (interpolate, "interpolate", None, full),
    (magnitude, "norm", None, full),
    (distance, "cosine_similarity normalize", None, full),
    (reduce, "sum cumsum logsumexp", None, full),
    (elementwise, "exp expm1 log log1p reciprocal rsqrt square tan", None, full),
    (arithmetic, "pow rdiv", None, full),
    (activation, "softplus", None, full),
    (pieces, "cat stack", widest, widest),
    (arithmetic, "addcdiv addcmul", None, widest),
    (elementwise, "atan2", None, widest),
    (linear, "dot", widest, widest),
    (einsum, "einsum", None, low),
    (einsum, "tensordot", None, widest),
    (index, "scatter_add", None, widest),
]


def install() -> None:
    """Put the functions that cast in the place of those that do not."""
    for module, names, on_cpu, on_gpu in RULES:
        for name in names.split():
            rules = {"cpu": on_cpu, "cuda": on_gpu}
            setattr(module, name, casting(getattr(module, name), rules))
