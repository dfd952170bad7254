"""The public surface: every name is there, with PyTorch's arguments and defaults."""

import inspect

import pytest

import minidl as md
from minidl import nn, optim
from minidl.nn import functional as F
from minidl.optim import lr_scheduler

FUNCTIONS = """
    abs add sub mul div pow neg exp log log1p expm1 sqrt rsqrt square reciprocal sign
    sin cos tan tanh sigmoid erf floor ceil round trunc clamp maximum minimum where lerp
    addcmul addcdiv atan2 fmod remainder eq ne lt le gt ge logical_and logical_or
    logical_not logical_xor isnan isinf isfinite sum mean var std amax amin max min
    argmax argmin prod logsumexp cumsum norm any all topk sort matmul mm bmm mv dot
    outer addmm baddbmm einsum tensordot reshape flatten squeeze unsqueeze permute
    transpose t movedim broadcast_to tile cat stack split chunk unbind narrow diagonal
    tril triu flip roll clone gather index_select scatter scatter_add masked_fill
    take_along_dim softmax log_softmax relu
""".split()
SETTINGS = "set_float32_matmul_precision get_float32_matmul_precision".split()
METHODS = "view expand repeat contiguous".split()  # no functions in PyTorch
CREATION = """
    tensor from_dlpack zeros ones full arange rand randn randint eye zeros_like
    ones_like full_like rand_like randn_like randint_like
""".split()
LAYER_FUNCTIONS = """
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d batch_norm layer_norm
    group_norm instance_norm rms_norm local_response_norm dropout relu relu6 leaky_relu
    elu selu celu gelu silu mish softplus softsign hardtanh hardswish hardsigmoid prelu
    glu logsigmoid threshold tanhshrink softmax log_softmax embedding one_hot
    cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss
    binary_cross_entropy binary_cross_entropy_with_logits kl_div cosine_similarity
    triplet_margin_loss margin_ranking_loss hinge_embedding_loss poisson_nll_loss
    gaussian_nll_loss normalize pad interpolate unfold fold pixel_shuffle
    pixel_unshuffle scaled_dot_product_attention
""".split()
LAYERS = """
    Linear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
    MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d
    AdaptiveAvgPool2d AdaptiveMaxPool2d BatchNorm1d BatchNorm2d BatchNorm3d LayerNorm
    GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d RMSNorm LocalResponseNorm
    Dropout ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Softplus Softsign Hardtanh
    Hardswish Hardsigmoid PReLU GLU LogSigmoid Threshold Tanhshrink Softmax LogSoftmax
    Sigmoid Tanh Embedding CrossEntropyLoss NLLLoss MSELoss L1Loss SmoothL1Loss
    HuberLoss BCELoss BCEWithLogitsLoss KLDivLoss CosineSimilarity TripletMarginLoss
    MarginRankingLoss HingeEmbeddingLoss PoissonNLLLoss GaussianNLLLoss Upsample Unfold
    Fold PixelShuffle PixelUnshuffle Flatten Identity MultiheadAttention ModuleList
    Sequential Parameter
""".split()
OPTIMIZERS = "SGD Adam AdamW NAdam RAdam Adamax RMSprop Adagrad Adadelta".split()
SCHEDULES = """
    StepLR MultiStepLR ExponentialLR CosineAnnealingLR CosineAnnealingWarmRestarts
    LinearLR LambdaLR OneCycleLR PolynomialLR SequentialLR
""".split()
MODULE = """
    parameters named_parameters buffers state_dict load_state_dict train eval to apply
    zero_grad
""".split()
TENSOR = """
    data grad shape dtype device numpy item detach to backward requires_grad_ __dlpack__
    __dlpack_device__ __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__
    __rtruediv__ __floordiv__ __mod__ __pow__ __rpow__ __matmul__ __neg__ __abs__
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __or__ __xor__ __invert__
    __getitem__ __setitem__ __len__ __iter__ __bool__ __float__ __int__ T
""".split()
INIT = """
    uniform_ normal_ constant_ ones_ zeros_ xavier_uniform_ xavier_normal_
    kaiming_uniform_ kaiming_normal_ calculate_gain
""".split()
OURS = {  # place in PyTorch: where it is here, and what must be there
    "": (md, FUNCTIONS + CREATION + SETTINGS),
    "Tensor": (md.Tensor, METHODS),
    "nn.functional": (F, LAYER_FUNCTIONS),
    "nn": (nn, LAYERS),
    "nn.init": (nn.init, INIT),
    "nn.utils": (optim, ["clip_grad_norm_", "clip_grad_value_"]),
    "optim": (optim, OPTIMIZERS),
    "optim.lr_scheduler": (lr_scheduler, SCHEDULES),
}
# What minidl does not offer, anywhere
LEFT_OUT = """
    out layout pin_memory memory_format names sparse_grad foreach fused capturable
    differentiable _stacklevel implicit out_dtype
""".split()
# Where the arguments differ, and why
DIFFERENT = {
    ".einsum": "operands of the sublist form are not told apart by the signature",
    ".from_dlpack": "device and copy: use .to() and .clone()",
    ".max": "other has the place of dim, as in PyTorch's two forms",
    ".min": "other has the place of dim, as in PyTorch's two forms",
    ".tensor": "PyTorch's signature is not to be had",
    ".var": "unbiased may come first, as in PyTorch's two forms",
    ".std": "unbiased may come first, as in PyTorch's two forms",
    ".scatter": "value has the place of src, as in PyTorch's two forms",
    "nn.functional.one_hot": "the name is the documented one, tensor",
    "nn.functional.logsigmoid": "PyTorch's signature is not to be had",
    "nn.Parameter": "there is none without data",
    ".randint": "low may be left out before high, as in PyTorch's two forms",
    ".arange": "start may be left out before end, as in PyTorch's two forms",
    "nn.Hardtanh": "min_value and max_value are deprecated",
    "Tensor.view": "a view as another number type is not offered",
}


@pytest.mark.parametrize("place", OURS)
def test_every_name_is_there(place):
    module, names = OURS[place]
    assert names
    assert [name for name in names if not hasattr(module, name)] == []


def test_methods():
    assert [name for name in TENSOR if not hasattr(md.Tensor, name)] == []
    assert [name for name in MODULE if not hasattr(nn.Module, name)] == []


def test_what_else_is_public():
    for name in "MLP SmallCNN ResNet18 GPT Module init functional".split():
        assert hasattr(nn, name)
    for name in "grad Function gradcheck checkpoint".split():
        assert hasattr(md.autograd, name)
    for (
        name
    ) in "no_grad enable_grad autocast manual_seed Tensor float32 bfloat16".split():
        assert hasattr(md, name)
    assert hasattr(optim, "GradScaler") and hasattr(optim.Optimizer, "trace")


@pytest.mark.slow  # PyTorch
def test_method_forms_of_functions():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    names = [name for name in FUNCTIONS if hasattr(torch.Tensor, name)]
    assert len(names) > 100
    assert [name for name in names if not hasattr(md.Tensor, name)] == []


CASES = [f"{place}.{name}" for place, (_, names) in OURS.items() for name in names]


def test_what_differs_is_named_once():
    assert [case for case in DIFFERENT if case not in CASES] == []


@pytest.mark.slow  # PyTorch
@pytest.mark.parametrize("case", [case for case in CASES if case not in DIFFERENT])
def test_arguments_are_those_of_pytorch(case):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    place, _, name = case.rpartition(".")
    ours = inspect.signature(getattr(OURS[place][0], name))
    theirs = found(torch, place, name)
    written = signature(theirs)
    if written is not None:
        compare(ours, written)
        return
    schemas = [s for s in torch._C._jit_get_schemas_for_operator(f"aten::{name}")]
    schemas = [s for s in schemas if is_public(s)]
    assert schemas, "PyTorch tells nothing of its arguments"
    for schema in schemas:
        compare(ours, of_schema(schema))


def found(torch, place, name):
    """PyTorch's function, not its choice between forms with and without indices."""
    module = torch
    for part in filter(None, place.split(".")):
        module = getattr(module, part)
    plain = getattr(module, name, None)
    return getattr(module, f"{name}_with_indices", plain)


def signature(theirs):
    """A signature that says something, or None: functions of C++ have none."""
    try:
        parameters = inspect.signature(theirs).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return None if not inspect.isclass(theirs) else []
    return [(p.name, p.default, p.kind == p.KEYWORD_ONLY) for p in parameters]


def is_public(schema) -> bool:
    """A form that Python offers: for tensors, writing into none, dims by number."""
    text = str(schema)
    if schema.arguments[0].name == "a" or schema.overload_name in ("Scalar", "padding"):
        return False
    named = any("dim" in a.name and "str" in str(a.type) for a in schema.arguments)
    return "Tensor" in text and "!" not in text and not named


def of_schema(schema):
    """(name, default, by keyword only) of each argument."""
    return [
        (
            "input" if a.name == "self" else a.name,
            a.default_value if a.has_default_value() else inspect.Parameter.empty,
            a.kwarg_only,
        )
        for a in schema.arguments
    ]


def compare(ours, theirs) -> None:
    """Ours takes what theirs does, by position and by name, with equal defaults."""
    own = dict(ours.parameters)
    starred = [p for p in own.values() if p.kind == p.VAR_POSITIONAL]
    options = any(p.kind == p.VAR_KEYWORD for p in own.values())
    taken = (p.name for p in own.values() if p.kind == p.POSITIONAL_OR_KEYWORD)
    moved = bool(starred)  # by what is left out: then a place means nothing
    for name, default, keyword in theirs:
        if name in LEFT_OUT:
            moved = True
            continue
        if not keyword and not moved:
            assert next(taken, None) == name
        if name not in own and options:
            continue
        assert name in own, f"{name} is missing"
        mine = own[name].default
        if default is not inspect.Parameter.empty and mine is not None:
            assert plain(mine) == plain(default), f"{name}={mine}, PyTorch {default}"


def plain(default):
    """(1, 1), [1, 1] and 1 are one default, and so are (), [] and None."""
    if isinstance(default, (list, tuple)):
        if not default:
            return None
        if all(x == default[0] for x in default):
            return default[0]
        return tuple(default)
    return default
