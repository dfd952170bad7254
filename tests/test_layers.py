"""Each layer with PyTorch's state, held to PyTorch: representation, names, outputs,
gradients and what training changes. Skipped where PyTorch is not installed."""

import re

import numpy as np
import pytest

import minidl as md
from minidl import nn

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.slow
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def positive(*shape):
    return rng.uniform(0.05, 0.95, shape).astype(np.float32)


SIMPLE = (
    "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Softplus Softsign Hardtanh "
    "Hardswish Hardsigmoid PReLU GLU LogSigmoid Tanhshrink Tanh Sigmoid Identity "
    "Softmax LogSoftmax"
).split()
PAIRS = "MSELoss L1Loss SmoothL1Loss HuberLoss PoissonNLLLoss".split()
LABELS = np.array([0, 4, -100, 2])
INDEX = np.array([[0, 2], [6, 2]])
MASKS = {
    "attn_mask": np.triu(np.ones((4, 6), bool), 2),
    "key_padding_mask": np.arange(6) >= np.array([[6], [4]]),
}
Q, K, V = normal(4, 2, 8), normal(6, 2, 8), normal(6, 2, 8)
CASES = [  # name, arguments, options, inputs, options of the call
    *((name, (), {}, [normal(4, 6)], {}) for name in SIMPLE),
    *((name, (), {}, [normal(4, 5), normal(4, 5)], {}) for name in PAIRS),
    ("PReLU", (6,), {}, [normal(4, 6, 2)], {}),
    ("Threshold", (0.1, 2.0), {}, [normal(4, 5)], {}),
    ("Softmax", (-1,), {}, [normal(3, 4)], {}),
    ("Dropout", (0.0,), {}, [normal(3, 4)], {}),
    ("BatchNorm1d", (5,), {}, [normal(4, 5)], {}),
    ("BatchNorm1d", (5,), {"momentum": None}, [normal(4, 5, 3)], {}),
    ("BatchNorm2d", (5,), {"affine": False}, [normal(4, 5, 3, 2)], {}),
    ("BatchNorm2d", (5,), {"track_running_stats": False}, [normal(4, 5, 3, 2)], {}),
    ("BatchNorm3d", (5, 1e-3, 0.5), {}, [normal(4, 5, 3, 2, 2)], {}),
    ("LayerNorm", ((3, 2),), {}, [normal(4, 5, 3, 2)], {}),
    ("LayerNorm", (3,), {"bias": False}, [normal(4, 3)], {}),
    ("LayerNorm", (3,), {"elementwise_affine": False}, [normal(4, 3)], {}),
    ("GroupNorm", (2, 6), {}, [normal(4, 6, 3)], {}),
    ("GroupNorm", (2, 6), {"affine": False}, [normal(4, 6)], {}),
    (
        "InstanceNorm1d",
        (5,),
        {"affine": True, "track_running_stats": True},
        [normal(4, 5, 3)],
        {},
    ),
    ("InstanceNorm2d", (5,), {}, [normal(5, 3, 2)], {}),
    ("InstanceNorm3d", (5,), {}, [normal(2, 5, 3, 2, 2)], {}),
    ("RMSNorm", (3,), {}, [normal(4, 3)], {}),
    ("RMSNorm", ((4, 3), 1e-3, False), {}, [normal(2, 4, 3)], {}),
    ("LocalResponseNorm", (3,), {}, [normal(2, 7, 4, 3)], {}),
    ("Embedding", (7, 3), {"padding_idx": 2}, [INDEX], {}),
    ("Embedding", (7, 3, None, 1.0), {"scale_grad_by_freq": True}, [INDEX], {}),
    ("CosineSimilarity", (1,), {}, [normal(4, 5), normal(4, 5)], {}),
    ("CrossEntropyLoss", (), {}, [normal(4, 5), LABELS], {}),
    (
        "CrossEntropyLoss",
        (positive(5),),
        {"label_smoothing": 0.1},
        [normal(4, 5), LABELS],
        {},
    ),
    ("NLLLoss", (), {"reduction": "sum"}, [normal(4, 5), LABELS], {}),
    ("BCELoss", (), {}, [positive(4, 5), positive(4, 5)], {}),
    (
        "BCEWithLogitsLoss",
        (),
        {"pos_weight": positive(5), "weight": positive(4, 1)},
        [normal(4, 5), positive(4, 5)],
        {},
    ),
    (
        "KLDivLoss",
        (),
        {"reduction": "batchmean"},
        [normal(4, 5), positive(4, 5)],
        {},
    ),
    (
        "TripletMarginLoss",
        (),
        {"swap": True},
        [normal(4, 5), normal(4, 5), normal(4, 5)],
        {},
    ),
    (
        "MarginRankingLoss",
        (0.3,),
        {},
        [normal(4), normal(4), np.sign(normal(4))],
        {},
    ),
    ("HingeEmbeddingLoss", (), {}, [normal(4), np.sign(normal(4))], {}),
    (
        "GaussianNLLLoss",
        (),
        {"full": True},
        [normal(4, 5), normal(4, 5), positive(4, 5)],
        {},
    ),
    ("MultiheadAttention", (8, 2), {}, [Q, Q, Q], {}),
    ("MultiheadAttention", (8, 2), {}, [Q, K, V], MASKS),
    (
        "MultiheadAttention",
        (8, 2),
        {"bias": False, "batch_first": True},
        [Q, Q, Q],
        {"average_attn_weights": False},
    ),
    (
        "MultiheadAttention",
        (8, 2),
        {"add_bias_kv": True, "add_zero_attn": True},
        [Q, K, V],
        MASKS,
    ),
    (
        "MultiheadAttention",
        (8, 2),
        {"kdim": 5, "vdim": 3},
        [Q, K[..., :5], V[..., :3]],
        MASKS,
    ),
    (
        "MultiheadAttention",
        (8, 2),
        {},
        [Q[:, 0], K[:, 0], V[:, 0]],
        {"attn_mask": normal(4, 6), "need_weights": False},
    ),
    ("MultiheadAttention", (8, 4), {}, [Q, K, V], {"attn_mask": normal(8, 4, 6)}),
]


def both(value):
    """A value for PyTorch and for minidl."""
    if isinstance(value, np.ndarray):
        value = np.ascontiguousarray(value)
        return torch.tensor(value), md.tensor(value)
    return value, value


def both_options(options: dict):
    pairs = {name: both(value) for name, value in options.items()}
    return ({name: pair[i] for name, pair in pairs.items()} for i in range(2))


def both_inputs(arrays):
    """Leaves that want gradients; the same array is the same leaf."""
    made = {}
    for array in arrays:
        if id(array) not in made:
            made[id(array)] = pair = both(array)
            if array.dtype.kind == "f":
                pair[0].requires_grad_(), pair[1].requires_grad_()
    return ([made[id(array)][i] for array in arrays] for i in range(2))


def close(ours, theirs, what: str) -> None:
    if theirs is None or ours is None:
        assert ours is theirs, what
        return
    assert ours.shape == tuple(theirs.shape), what
    np.testing.assert_allclose(
        ours.numpy(), theirs.detach().numpy(), rtol=2e-4, atol=2e-5, err_msg=what
    )


@pytest.mark.parametrize(("name", "arguments", "options", "inputs", "call"), CASES)
def test_layer(name, arguments, options, inputs, call):
    torch.manual_seed(0)
    their_options, our_options = both_options(options)
    theirs = getattr(torch.nn, name)(*(both(a)[0] for a in arguments), **their_options)
    ours = getattr(nn, name)(*(both(a)[1] for a in arguments), **our_options)
    if name != "MultiheadAttention":  # PyTorch shows a class of its own in there
        shown = repr(ours)
        if "Norm" in name and "bias=" not in repr(torch.nn.LayerNorm(1)):
            shown = re.sub(r", bias=\w+", "", shown)  # as PyTorch 2.11 has it
        assert shown == repr(theirs)
    for p in theirs.parameters():
        torch.nn.init.normal_(p)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    for training in (True, True, False):
        theirs.train(training), ours.train(training)
        compare(ours, theirs, inputs, call)
    for key, value in theirs.state_dict().items():
        close(ours.state_dict()[key], value, key)


def compare(ours, theirs, arrays, call) -> None:
    (their_inputs, our_inputs), (their_call, our_call) = (
        both_inputs(arrays),
        both_options(call),
    )
    expected, found = theirs(*their_inputs, **their_call), ours(*our_inputs, **our_call)
    if isinstance(expected, tuple):
        close(found[1], expected[1], "attention weights")
        expected, found = expected[0], found[0]
    close(found, expected, "output")
    if not expected.requires_grad:
        return
    seed = normal(*expected.shape)
    theirs.zero_grad(), ours.zero_grad()
    expected.backward(torch.tensor(seed)), found.backward(md.tensor(seed))
    for a, b in zip(our_inputs, their_inputs, strict=True):
        close(a.grad, b.grad, "gradient of an input")
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, f"gradient of {name}")
