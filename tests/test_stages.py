"""Training, stage by stage, against the textbook: each stage contains the one before.

An Adam step, a hundred of them, a convolution forward, backward, one step of a network,
twenty steps. In float64 the two agree to the last digits; in float32 as far as it goes.
"""

import numpy as np
import pytest
import textbook as book

import minidl as md
import minidl.nn.functional as F
from minidl import nn, optim

TOLERANCE = {"float64": 1e-11, "float32": 2e-5}
OPTIMIZERS = {
    "adam": (optim.Adam, book.adam_step, {}),
    "adam_decay": (optim.Adam, book.adam_step, {"weight_decay": 0.1}),
    "amsgrad": (optim.Adam, book.adam_step, {"amsgrad": True, "betas": (0.8, 0.9)}),
    "adamw": (optim.AdamW, book.adamw_step, {"weight_decay": 0.1}),
    "sgd": (optim.SGD, book.sgd_step, {"weight_decay": 0.1}),
    "momentum": (optim.SGD, book.sgd_step, {"momentum": 0.9, "dampening": 0.1}),
    "nesterov": (optim.SGD, book.sgd_step, {"momentum": 0.9, "nesterov": True}),
}
CONVOLUTIONS = {
    "plain": {},
    "padded": {"padding": 1},
    "uneven": {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "stride": 2, "padding": 2},
}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def put(array, xp, dtype=None):
    return md.tensor(xp.asarray(array if dtype is None else array.astype(dtype)))


def agree(ours, theirs, dtype, scale=1.0):
    """Within the tolerance of the type, relative to the largest element."""
    assert ours.dtype == dtype and ours.shape == theirs.shape
    error = np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max()
    assert error <= scale * TOLERANCE[dtype], f"relative error {error:.3g}"


# --- The optimizer --------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("steps", [1, 100])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_steps(xp, name, steps, dtype):
    ours, rule, options = OPTIMIZERS[name]
    shapes = [(3, 5), (7,), ()]  # in flat storage with room between them
    parameters = [nn.Parameter(put(normal(*s), xp, dtype)) for s in shapes]
    values = [p.numpy().astype(np.float64) for p in parameters]
    states = [{} for _ in shapes]
    optimizer = ours(parameters, lr=0.01, **options)
    for step in range(steps):
        for i, p in enumerate(parameters):
            g = normal(*shapes[i], seed=step).astype(dtype)
            p.grad = put(g, xp)
            values[i], states[i] = rule(values[i], g, states[i], lr=0.01, **options)
        optimizer.step()
    for p, value in zip(parameters, values, strict=True):
        agree(p, value, dtype, scale=1 if steps == 1 else 10)


# --- Convolution ----------------------------------------------------------------------


def convolution(xp, name, dtype):
    options = CONVOLUTIONS[name]
    shape = 6 if name != "depthwise" else 8, 4 // options.get("groups", 1), 3, 3
    arrays = [normal(2, 4, 9, 8), normal(*shape), normal(shape[0])]
    arrays = [x.astype(dtype) for x in arrays]
    tensors = [put(x, xp).requires_grad_() for x in arrays]
    return arrays, F.conv2d(*tensors, **options), tensors, options


@dtypes
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_forward(xp, name, dtype):
    arrays, y, _, options = convolution(xp, name, dtype)
    agree(y, book.conv2d(*arrays, **options), dtype)


@dtypes
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_backward(xp, name, dtype):
    arrays, y, tensors, options = convolution(xp, name, dtype)
    gy = normal(*y.shape, seed=1)
    y.backward(put(gy, xp, dtype))
    expected = book.conv2d_backward(gy.astype(dtype), *arrays, **options)
    for x, g in zip(tensors, expected, strict=True):
        agree(x.grad, g, dtype)


# --- A network ------------------------------------------------------------------------


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def mlp():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


NETWORKS = {
    "cnn": (cnn, book.cnn_parameters, book.cnn_loss_and_gradients, (1, 8, 8)),
    "mlp": (mlp, book.mlp_parameters, book.mlp_loss_and_gradients, (64,)),
}


def batches(shape, n):
    """n batches that differ in size, the last one of a single sample."""
    rng = np.random.default_rng(0)
    sizes = [16, 5] * n
    sizes[n - 1] = 1 if n > 1 else 16
    return [(rng.normal(size=(k, *shape)), rng.integers(0, 10, k)) for k in sizes[:n]]


def trained(xp, build, values, data, dtype, rule, options):
    """Our network after a step a batch, and the losses."""
    model = build().to(dtype=np.dtype(dtype))
    model.load_state_dict(values)
    if xp is not np:
        model.to("cuda")
    optimizer = rule(model.parameters(), lr=0.01, **options)
    losses = []
    for x, labels in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(put(x, xp, dtype)), put(labels, xp))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@dtypes
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradients_of_a_network(xp, name, dtype):
    build, parameters, textbook_step, shape = NETWORKS[name]
    ((x, labels),) = batches(shape, 1)
    x, values = x.astype(dtype), parameters()
    values = {name: p.astype(dtype) for name, p in values.items()}
    loss, gradients = textbook_step(values, x, labels)
    model, losses = trained(
        xp, build, values, [(x, labels)], dtype, optim.SGD, {"weight_decay": 0}
    )
    np.testing.assert_allclose(losses, [loss], rtol=TOLERANCE[dtype])
    assert [n for n, _ in model.named_parameters()] == list(gradients)
    for n, p in model.named_parameters():
        agree(p.grad, gradients[n], dtype)


@dtypes
@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("rule", ["adam", "adamw", "nesterov"])
@pytest.mark.parametrize("name", NETWORKS)
def test_training(xp, name, rule, steps, dtype):
    build, parameters, textbook_step, shape = NETWORKS[name]
    ours, theirs, options = OPTIMIZERS[rule]
    data = [(x.astype(dtype), labels) for x, labels in batches(shape, steps)]
    values = {name: p.astype(dtype) for name, p in parameters().items()}
    expected, losses = book.train(
        textbook_step, values, data, 0.01, rule=theirs, **options
    )
    model, our_losses = trained(xp, build, values, data, dtype, ours, options)
    scale = 1 if steps == 1 else 50  # Adam magnifies what small gradients have lost
    np.testing.assert_allclose(our_losses, losses, rtol=scale * TOLERANCE[dtype])
    for n, p in model.named_parameters():
        agree(p, expected[n], dtype, scale)


def test_training_twice_gives_the_same_bits(xp):
    build, parameters, _, shape = NETWORKS["cnn"]
    data, values = batches(shape, 5), parameters()
    runs = [
        trained(xp, build, values, data, "float32", optim.Adam, {}) for _ in range(2)
    ]
    assert runs[0][1] == runs[1][1]
    for p, q in zip(*[model.parameters() for model, _ in runs], strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
