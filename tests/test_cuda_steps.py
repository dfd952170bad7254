"""A training step on a GPU: few launches, which can be captured."""

import numpy as np
import pytest

import minidl as md
from minidl import nn, optim
from minidl.array import cuda_source, dropout, random
from minidl.array.device import bfloat16
from minidl.nn import functional as F

pytest.importorskip("cupy", reason="CuPy is not installed")
from test_cuda_compile import compile_cuda, nvrtc  # noqa: E402, F401


def test_dropout_draws_the_bits_of_the_cpu(stand_in):
    for dtype in ("float32", "float64", "float16"):
        x = np.random.default_rng(0).normal(size=(7, 143)).astype(dtype)
        random.manual_seed(2**63 + 9)
        want = [dropout.dropout(x, p) for p in (0.3, 1.0, 0.5)]
        random.manual_seed(2**63 + 9)
        for p, (y, mask) in zip((0.3, 1.0, 0.5), want, strict=True):
            there = stand_in.cupy.asarray(x)
            stand_in.reset()
            got = dropout.dropout(there, p)
            assert stand_in.launches == ["dropout"] and not stand_in.uploads
            assert (got[0].get() == y).all() and (got[1].get() == mask).all()
    assert 450 < mask.sum() < 550


def test_dropout_and_its_gradient_are_one_launch_each(stand_in):
    x = md.tensor(np.ones((40, 33), "float32"), device="cuda", requires_grad=True)
    g = md.tensor(np.full((40, 33), 2, "float32"), device="cuda")
    stand_in.reset()
    y = F.dropout(x, 0.25)
    y.backward(g)
    assert len(stand_in.launches) <= 3  # the last one stores the gradient
    np.testing.assert_array_equal(x.grad.numpy(), 2 * y.numpy())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_those_of_the_cpu(stand_in, weighted, reduction, smoothing):
    draw = np.random.default_rng(0)
    x, weight = draw.normal(size=(9, 5)), draw.random(5)
    labels = draw.integers(0, 5, 9)
    labels[[2, 4]] = -100
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        scores = md.tensor(x, device=device, requires_grad=True)
        target = md.tensor(labels, device=device)
        w = md.tensor(weight, device=device) if weighted else None
        how = {"reduction": reduction, "label_smoothing": smoothing}
        stand_in.reset()
        loss = F.cross_entropy(scores, target, w, **how)
        loss.sum().backward()
        assert not stand_in.syncs and not stand_in.uploads
        losses.append(loss.numpy())
        gradients.append(scores.grad.numpy())
    np.testing.assert_allclose(*losses, rtol=1e-12)
    np.testing.assert_allclose(*gradients, rtol=1e-12, atol=1e-15)


def test_a_wrong_label_costs_nan(stand_in):
    x = md.tensor(np.zeros((3, 4), "float32"), device="cuda")
    loss = F.cross_entropy(x, md.tensor([0, 4, 1], device="cuda"), reduction="none")
    assert np.isnan(loss.numpy()).tolist() == [False, True, False]
    loss = F.cross_entropy(x, md.tensor([0, -1, 1], device="cuda"))
    assert np.isnan(loss.numpy())


def model():
    md.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.AvgPool2d(2), nn.Flatten(), nn.LayerNorm(16), nn.Dropout(0.25),
        nn.Linear(16, 10),
    )  # fmt: skip


def test_the_kernels_of_a_step_can_be_captured(stand_in):
    cupy = stand_in.cupy
    draw = np.random.default_rng(0)
    x = md.tensor(draw.normal(size=(8, 4, 8, 8)).astype("f4"), device="cuda")
    layers = nn.Sequential(
        nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.ReLU(),
        nn.Flatten(), nn.LayerNorm(36), nn.Softmax(1), nn.Dropout(0.5),
    ).to("cuda")  # fmt: skip
    weights = md.tensor(np.ones(36, "float32"), device="cuda", requires_grad=True)
    labels = md.tensor(draw.integers(0, 36, 8), device="cuda")
    optimizer = optim.Adam([*layers.parameters(), weights])
    stream = cupy.cuda.Stream(non_blocking=True)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(layers(x) * weights, labels)
        loss.backward()
        optimizer.step()
        return loss

    cupy.cuda.Device().synchronize()
    pool = cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        step(), step()
        stream.synchronize()
        stand_in.reset()
        stream.begin_capture()
        try:
            loss = step()
        finally:
            graph = stream.end_capture()
        assert not stand_in.syncs and not stand_in.uploads
        before = weights.numpy()
        graph.launch(stream)
        assert np.isfinite(loss.numpy()) and (weights.numpy() != before).any()


def test_a_network_trains_as_on_the_cpu(stand_in):
    draw = np.random.default_rng(1)
    images = draw.normal(size=(16, 1, 8, 8)).astype("float32")
    labels, losses = draw.integers(0, 10, 16), []
    for device in ("cpu", "cuda"):
        network = model().to(device)
        optimizer = optim.Adam(network.parameters(), lr=1e-2)
        md.manual_seed(3)
        x, y = (md.tensor(a, device=device) for a in (images, labels))
        losses.append([])
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    np.testing.assert_allclose(*losses, rtol=2e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.slow
def test_dropout_compiles(nvrtc):  # noqa: F811
    for dtype in ("float32", "float64", "float16", bfloat16 or "float16"):
        for how in (dropout._NUMBER, dropout._ON_DEVICE):
            types = cuda_source.types_of(np.empty(0, dtype))[:2]
            width = 16 // np.dtype(dtype).itemsize
            numbers = (("WIDTH", width), ("BLOCK", 256), *how)
            code = cuda_source.source_of(dropout._SOURCE, types, numbers)
            assert compile_cuda(code, "sm_80", options=(), raw=True)[1:4] == b"ELF"
