"""Calls of functions that minidl and PyTorch both have, for tests of autocast."""

# Calls of one or two square matrices x and y; f and F are minidl's or PyTorch's
UNARY = """
    abs neg exp expm1 log log1p sqrt rsqrt square reciprocal sin cos tan tanh sigmoid
    erf floor relu sum mean prod var std amax norm
""".split()
LAYERS = """
    relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardswish
    logsigmoid tanhshrink normalize dropout
""".split()
LOSSES = """
    mse_loss l1_loss smooth_l1_loss huber_loss kl_div poisson_nll_loss
    binary_cross_entropy_with_logits cosine_similarity cross_entropy
""".split()
CALLS = {
    **{name: lambda f, F, x, y, n=name: getattr(f, n)(x) for name in UNARY},
    **{name: lambda f, F, x, y, n=name: getattr(F, n)(x) for name in LAYERS},
    **{name: lambda f, F, x, y, n=name: getattr(F, n)(x, y) for name in LOSSES},
    "binary_cross_entropy": lambda f, F, x, y: F.binary_cross_entropy(
        f.sigmoid(x), f.sigmoid(y)
    ),
    "logsumexp": lambda f, F, x, y: f.logsumexp(x, 0),
    "nll_loss": lambda f, F, x, y: F.nll_loss(x, f.argmax(y, 1)),
    "hinge_embedding_loss": lambda f, F, x, y: F.hinge_embedding_loss(x, f.sign(y)),
    "margin_ranking_loss": lambda f, F, x, y: F.margin_ranking_loss(x, y, f.sign(y)),
    "triplet_margin_loss": lambda f, F, x, y: F.triplet_margin_loss(x, y, x + y),
    "gaussian_nll_loss": lambda f, F, x, y: F.gaussian_nll_loss(x, y, f.abs(y) + 1),
    "softmax": lambda f, F, x, y: F.softmax(x, 1),
    "log_softmax": lambda f, F, x, y: F.log_softmax(x, 1),
    "cumsum": lambda f, F, x, y: f.cumsum(x, 0),
    "pow": lambda f, F, x, y: f.pow(x, 2.0),
    "power": lambda f, F, x, y: x**2,
    "add": lambda f, F, x, y: x + y,
    "mul": lambda f, F, x, y: x * y,
    "div": lambda f, F, x, y: x / y,
    "a number by": lambda f, F, x, y: 2 / x,
    "a number to the power": lambda f, F, x, y: 2**x,
    "a quotient rounded": lambda f, F, x, y: 2 // x,
    "maximum": lambda f, F, x, y: f.maximum(x, y),
    "where": lambda f, F, x, y: f.where(x > 0, x, y),
    "atan2": lambda f, F, x, y: f.atan2(x, y),
    "addcmul": lambda f, F, x, y: f.addcmul(x, x, y),
    "addcdiv": lambda f, F, x, y: f.addcdiv(x, x, y),
    "lerp": lambda f, F, x, y: f.lerp(x, x, 0.5),
    "cat": lambda f, F, x, y: f.cat([x, y]),
    "stack": lambda f, F, x, y: f.stack([x, y]),
    "matmul": lambda f, F, x, y: x @ y,
    "mm": lambda f, F, x, y: f.mm(x, y),
    "mv": lambda f, F, x, y: f.mv(x, f.amax(x, 0)),
    "dot": lambda f, F, x, y: f.dot(f.amax(x, 0), f.amax(x, 1)),
    "outer": lambda f, F, x, y: f.outer(f.amax(x, 0), f.amax(y, 0)),
    "bmm": lambda f, F, x, y: f.bmm(x.reshape(1, 4, 4), y.reshape(1, 4, 4)),
    "addmm": lambda f, F, x, y: f.addmm(x, x, y),
    "baddbmm": lambda f, F, x, y: f.baddbmm(
        x.reshape(1, 4, 4), x.reshape(1, 4, 4), y.reshape(1, 4, 4)
    ),
    "einsum": lambda f, F, x, y: f.einsum("ij,jk->ik", x, y),
    "einsum of elements": lambda f, F, x, y: f.einsum("ij,ij->ij", x, x),
    "tensordot": lambda f, F, x, y: f.tensordot(x, y, 1),
    "linear": lambda f, F, x, y: F.linear(x, y, f.amax(x, 0)),
    "attention": lambda f, F, x, y: F.scaled_dot_product_attention(
        x.reshape(1, 1, 4, 4), y.reshape(1, 1, 4, 4), y.reshape(1, 1, 4, 4)
    ),
    "conv1d": lambda f, F, x, y: F.conv1d(x.reshape(1, 4, 4), y.reshape(4, 4, 1)),
    "conv2d": lambda f, F, x, y: F.conv2d(x.reshape(1, 1, 4, 4), y.reshape(1, 1, 4, 4)),
    "conv3d": lambda f, F, x, y: F.conv3d(
        x.reshape(1, 1, 1, 4, 4), y.reshape(1, 1, 1, 4, 4)
    ),
    "conv_transpose1d": lambda f, F, x, y: F.conv_transpose1d(
        x.reshape(1, 4, 4), y.reshape(4, 4, 1)
    ),
    "conv_transpose2d": lambda f, F, x, y: F.conv_transpose2d(
        x.reshape(1, 1, 4, 4), y.reshape(1, 1, 4, 4)
    ),
    "prelu": lambda f, F, x, y: F.prelu(x, f.amax(y, 0)),
    "glu": lambda f, F, x, y: F.glu(x),
    "layer_norm": lambda f, F, x, y: F.layer_norm(x, (4,)),
    "group_norm": lambda f, F, x, y: F.group_norm(x, 2),
    "batch_norm": lambda f, F, x, y: F.batch_norm(x, None, None, training=True),
    "instance_norm": lambda f, F, x, y: F.instance_norm(x.reshape(1, 4, 4)),
    "max_pool1d": lambda f, F, x, y: F.max_pool1d(x.reshape(1, 4, 4), 2),
    "avg_pool2d": lambda f, F, x, y: F.avg_pool2d(x.reshape(1, 4, 4), 2),
    "avg_pool3d": lambda f, F, x, y: F.avg_pool3d(x.reshape(1, 1, 4, 4), (1, 2, 2)),
    "max_pool3d": lambda f, F, x, y: F.max_pool3d(x.reshape(1, 1, 1, 4, 4), (1, 2, 2)),
    "scatter_add": lambda f, F, x, y: f.scatter_add(x, 0, f.argmax(x, 1, True), y),
    "embedding": lambda f, F, x, y: F.embedding(f.argmax(x, 1), x),
    "reshape": lambda f, F, x, y: x.reshape(16),
    "t": lambda f, F, x, y: x.T,
    "clamp": lambda f, F, x, y: f.clamp(x, 0),
    "masked_fill": lambda f, F, x, y: f.clone(x).masked_fill(x > 0, 1.0),
    "pad": lambda f, F, x, y: F.pad(x, (1, 1)),
    "interpolate": lambda f, F, x, y: F.interpolate(x.reshape(1, 4, 4), scale_factor=2),
}
