"""Autocast: gradients go to the float32 weights, which are cast once."""

import numpy as np
import pytest

import minidl as md
from minidl import nn, optim
from minidl.array.dtypes import BFLOAT16
from minidl.nn import functional as F
from minidl.ops import autocast as ops_autocast

pytestmark = pytest.mark.skipif(BFLOAT16 is None, reason="ml_dtypes is not installed")
HALVES = [BFLOAT16, np.float16]


def weight(*shape) -> nn.Parameter:
    values = np.random.default_rng(0).normal(size=shape)
    return nn.Parameter(md.tensor(values.astype(np.float32)))


# --- Where gradients go ---------------------------------------------------------------


def network() -> nn.Module:
    md.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10)
    )


def gradients(model, dtype) -> list[np.ndarray]:
    x = md.tensor(np.random.default_rng(2).normal(size=(6, 1, 8, 8)).astype("f4"))
    for p in model.parameters():
        p.grad = None
    with md.autocast("cpu", dtype, enabled=dtype is not None):
        loss = F.cross_entropy(model(x), md.tensor([0, 1, 2, 3, 4, 5]))
    loss.backward()
    return [p.grad.numpy().copy() for p in model.parameters()]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_are_float32_and_close(dtype, flat):
    model = network()
    if flat:
        optim.SGD(model.parameters())
    for exact, rounded in zip(
        gradients(model, None), gradients(model, dtype), strict=True
    ):
        assert rounded.dtype == np.float32
        error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
        assert 0 < error < (0.02 if dtype == BFLOAT16 else 0.003)


def test_a_product_writes_the_float32_gradient_itself():
    model = network()
    optim.SGD(model.parameters())
    for g, p in zip(gradients(model, BFLOAT16), model.parameters(), strict=True):
        through_bfloat16 = g.astype(BFLOAT16).astype("f4")
        assert p.ndim == 1 or (g != through_bfloat16).any()
        assert p.grad.data is p.gradient_view


@pytest.mark.parametrize("flat", [False, True])
def test_gradients_of_all_uses_are_added_in_float32(flat):
    w, x = weight(4, 4), md.randn(3, 4)
    if flat:
        optim.SGD([w])
    with md.autocast("cpu"):
        total = (x @ w).float().sum() + 1e-3 * (x @ w).float().sum()
    total.backward()
    both = w.grad.numpy().copy()
    w.grad = None
    with md.autocast("cpu"):
        one = (x @ w).float().sum()
    one.backward()
    np.testing.assert_allclose(both, w.grad.numpy() * 1.001, rtol=3e-5)


def test_gradients_of_gradients():
    w, x = weight(4, 4), md.randn(3, 4)
    with md.autocast("cpu"):
        loss = ((x @ w).float() ** 2).sum()
    (g,) = md.autograd.grad(loss, [w], create_graph=True)
    assert g.dtype == np.float32
    (g**2).sum().backward()
    v = w.detach().requires_grad_()
    (g,) = md.autograd.grad(((x @ v) ** 2).sum(), [v], create_graph=True)
    (g**2).sum().backward()
    error = np.linalg.norm(w.grad.numpy() - v.grad.numpy())
    assert 0 < error < 0.02 * np.linalg.norm(v.grad.numpy())


def test_a_checkpointed_function_is_run_again_in_the_same_type():
    model, last = network(), nn.Linear(10, 2)
    x = md.randn(3, 1, 8, 8)
    found = []
    for function in (model, lambda x: md.autograd.checkpoint(model, x)):
        for p in model.parameters():
            p.grad = None
        with md.autocast("cpu"):
            loss = F.cross_entropy(last(function(x)), md.tensor([0, 1, 0]))
        loss.backward()
        found.append([p.grad.numpy() for p in model.parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


# --- Copies of weights ----------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("cache", [False, True])
def test_weights_are_cast_once_a_region(monkeypatch, flat, cache):
    first, second, x = weight(4, 4), weight(4, 4), md.randn(3, 4)
    if flat:
        optim.SGD([first, second])
    kept = []
    copy_in = nn.Parameter.copy_in

    def watched(self, dtype, made):
        result = copy_in(self, dtype, made)
        kept.append(result if result.base is None else result.base)
        return result

    monkeypatch.setattr(nn.Parameter, "copy_in", watched)
    for _ in range(2):
        kept.clear()
        with md.autocast("cpu", cache_enabled=cache):
            x @ first @ first @ second
        copies = len({id(array) for array in kept})
        assert copies == (3 if not cache else 1 if flat else 2)
    first.data[...] = 0  # known in the next region
    with md.autocast("cpu"):
        assert not (x @ first).numpy().any()


def test_what_stays_float32_is_not_copied(stand_in):
    norm, x = nn.LayerNorm(4).to("cuda"), md.randn(3, 4, device="cuda")
    optim.SGD(norm.parameters())
    with md.autocast("cuda", np.float16):
        assert norm(x).dtype == np.float32
        assert not ops_autocast.current.get().made


@pytest.mark.parametrize("dtype", HALVES)
def test_a_copy_that_is_kept_needs_no_cast(dtype):
    model = network()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    storage = next(model.parameters()).storage
    before = gradients(model, dtype)
    storage.keep_low(dtype)
    for step in range(3):
        again = gradients(model, dtype)
        if not step:
            assert all(np.array_equal(a, b) for a, b in zip(before, again, strict=True))
        optimizer.step()
        assert np.array_equal(storage.low, storage.data.astype(dtype))
    w = next(model.parameters())
    with md.autocast("cpu", dtype):
        assert np.shares_memory(
            ops_autocast.current.get().cast(w, dtype).data, storage.low
        )
    model.load_state_dict(network().state_dict())
    assert np.array_equal(storage.low, storage.data.astype(dtype))
    w.data = np.zeros(w.shape)
    assert np.array_equal(storage.low, storage.data.astype(dtype))


# --- Whole networks -------------------------------------------------------------------


def norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 3, stride=2),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.LayerNorm(128),
        nn.Linear(128, 5),
    )


def gpt() -> nn.Module:
    return nn.GPT(5, 8, n_layer=2, n_head=2, n_embd=16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("make", [norms, gpt])
def test_networks_have_the_gradients_of_float32_nearly(stand_in, make, device, dtype):
    md.manual_seed(0)
    model = make().to(device)
    optim.AdamW(model.parameters())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 8, 8)).astype("f4")
    y = rng.integers(0, 5, 4)
    if make is gpt:  # whose first and last layer share a weight
        x, y = rng.integers(0, 5, (2, 4, 8))
    x, y = md.tensor(x, device=device), md.tensor(y, device=device)
    found = []
    for enabled in (False, True):
        with md.autocast(device, dtype, enabled):
            scores = model(x)
            loss = F.cross_entropy(scores.reshape(-1, 5), y.reshape(-1))
        assert loss.dtype == np.float32 and (scores.dtype == dtype) == enabled
        for p in model.parameters():
            p.grad = None
        loss.backward()
        found.append(
            np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
        )
    exact, rounded = found
    assert rounded.dtype == np.float32
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    assert 0 < error < (0.03 if dtype == BFLOAT16 else 0.005)
