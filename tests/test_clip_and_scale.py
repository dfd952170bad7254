"""Gradient clipping and loss scaling, against NumPy and PyTorch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl import nn, optim
from minidl.array.device import to_device, to_numpy

SHAPES = [(3, 4), (5,), (), (2, 1, 3)]


def parameters(gradients, xp=np, flat=True, dtype=np.float32):
    """Parameters with these gradients; None for one without."""
    params = [nn.Parameter(xp.zeros(s, dtype)) for s in SHAPES]
    if flat:
        optim.SGD(params)
    give(params, gradients)
    return params


def give(params, gradients):
    for p, g in zip(params, gradients, strict=True):
        p.grad = None
        if g is not None:
            p.grad = md.Tensor(to_device(np.asarray(g, p.dtype), p.device))


def random(seed, size=1.0):
    rng = np.random.default_rng(seed)
    return [size * rng.standard_normal(s) for s in SHAPES]


def check(params, gradients, tolerance=1e-5):
    for p, g in zip(params, gradients, strict=True):
        if g is None:
            assert p.grad is None
        else:
            np.testing.assert_allclose(p.grad.numpy(), g, tolerance, tolerance)


# --- Clipping -------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [2.0, 1, 3.5, float("inf"), "inf"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("missing", [None, 1])
def test_clip_by_norm(norm_type, flat, missing, xp):
    for size in (0.01, 10.0):
        gradients = random(0, size)
        if missing:
            gradients[missing] = None
        params = parameters(gradients, xp, flat)
        norm = optim.clip_grad_norm_(params, 2.5, norm_type)
        present = [g.ravel() for g in gradients if g is not None]
        expected = np.linalg.norm(np.concatenate(present), float(norm_type))
        assert norm.shape == () and norm.dtype == np.float32
        assert norm.item() == pytest.approx(expected, rel=1e-5)
        factor = min(1, 2.5 / (expected + 1e-6))
        check(params, [g if g is None else g * factor for g in gradients])


@given(seed=st.integers(0, 99), limit=st.floats(0.01, 10), order=st.floats(1, 6))
def test_clip_as_pytorch_does(seed, limit, order):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    gradients = random(seed)
    ours = parameters(gradients)
    theirs = [torch.zeros(s) for s in SHAPES]
    for p, g in zip(theirs, gradients, strict=True):
        p.grad = torch.tensor(g, dtype=torch.float32)
    norm = optim.clip_grad_norm_(iter(ours), limit, order)
    expected = torch.nn.utils.clip_grad_norm_(theirs, limit, order)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    check(ours, [p.grad.numpy() for p in theirs])
    optim.clip_grad_value_(ours, limit / 9)
    torch.nn.utils.clip_grad_value_(theirs, limit / 9)
    check(ours, [p.grad.numpy() for p in theirs])


def test_clip_is_one_launch(monkeypatch):
    from minidl.optim import clip

    launches = []
    params = parameters(random(0))
    monkeypatch.setattr(
        clip, "shrink", lambda out, **scalars: launches.append(out.size)
    )
    optim.clip_grad_norm_(params, 1.0)
    assert launches == [64]


def test_clip_two_number_types():
    params = [nn.Parameter(np.zeros(3, t)) for t in (np.float32, np.float64)]
    give(params, [np.full(3, 3.0), np.full(3, 4.0)])
    norm = optim.clip_grad_norm_(params, 1.0)
    assert norm.item() == pytest.approx(75**0.5)
    assert params[0].grad.dtype == np.float32
    np.testing.assert_allclose(params[1].grad.numpy(), 4 / 75**0.5, 1e-6)


def test_clip_without_gradients():
    p = nn.Parameter(np.zeros(3, np.float32))
    assert optim.clip_grad_norm_(p, 1.0).item() == 0
    optim.clip_grad_value_([p], 1.0)
    assert p.grad is None


def test_clip_what_is_not_finite():
    gradients = random(0)
    gradients[1][2] = np.nan
    params = parameters(gradients)
    with pytest.raises(RuntimeError, match="nan"):
        optim.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    check(params, gradients)
    assert np.isnan(optim.clip_grad_norm_(params, 1.0).item())
    assert np.isnan(params[0].grad.numpy()).all()


def test_clip_recovers_from_what_is_not_finite(xp):
    params = parameters(random(0), xp)
    for value in (float("nan"), float("inf"), 3.0):
        give(params, [np.full(s, value) for s in SHAPES])
        norm = optim.clip_grad_norm_(params, 1.0).item()
    assert norm == pytest.approx(3 * 24**0.5)  # not that of what lies between them


def test_clip_half_precision():
    params = [nn.Parameter(np.zeros(4, np.float16))]
    give(params, [np.full(4, 300.0)])  # its squares are too large for float16
    assert optim.clip_grad_norm_(params, 60.0).item() == 600
    assert params[0].grad.tolist() == [30.0] * 4


# --- Scaling --------------------------------------------------------------------------


def test_scaler_as_pytorch(xp):
    """Steps with and without overflow: the same scales, weights and step counts."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    settings = {"init_scale": 1024.0, "growth_interval": 3}
    scaler = optim.GradScaler(**settings)
    theirs = torch.amp.GradScaler("cpu", **settings)
    p = nn.Parameter(xp.ones(3, np.float32))
    q = torch.ones(3, requires_grad=True)
    optimizer, reference = optim.Adam([p], lr=0.1), torch.optim.Adam([q], lr=0.1)
    overflow = (2, 3, 9)
    for step in range(14):
        factor = float("inf") if step in overflow else 1.0 + step
        optimizer.zero_grad(), reference.zero_grad()
        scaler.scale((p * p * factor).sum()).backward()
        theirs.scale((q * q * factor).sum()).backward()
        if step % 2:
            scaler.unscale_(optimizer), theirs.unscale_(reference)
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), 1e-5)
        scaler.step(optimizer), theirs.step(reference)
        scaler.update(), theirs.update()
        assert scaler.get_scale() == theirs.get_scale()
        assert scaler.state_dict() == theirs.state_dict()
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), 1e-5)
    assert optimizer.state[p]["step"] == 14 - len(overflow)


def test_scale_stays_on_the_device(xp):
    scaler = optim.GradScaler(init_scale=8.0)
    p = nn.Parameter(xp.ones(3, np.float32))
    assert scaler.scale([p.sum(), p.sum()])[1].item() == 24
    assert type(scaler._scale) is type(p.data)
    scaler.scale(p.sum()).backward()
    scaler.step(optim.SGD([p], lr=1.0))
    scaler.update()
    assert type(scaler._scale) is type(p.data) and to_numpy(p.data).tolist() == [0] * 3


def test_a_scaled_loss_is_no_narrower_than_the_scale():
    """The first scale, 65536, is more than float16 holds."""
    for dtype, wide in (("f2", "f4"), ("f4", "f4"), ("f8", "f8")):
        scaled = optim.GradScaler().scale(md.tensor(np.asarray(2, dtype)))
        assert scaled.dtype == np.dtype(wide) and scaled.item() == 2.0**17


def test_several_optimizers():
    """An overflow leaves out the step of its own optimizer, and lowers the scale."""
    scaler = optim.GradScaler(init_scale=4.0)
    params = [nn.Parameter(np.ones(2, np.float32)) for _ in range(2)]
    optimizers = [optim.SGD([p], lr=1.0) for p in params]
    scaler.scale(params[0].sum() + (params[1] * float("inf")).sum()).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert [p.tolist() for p in params] == [[0, 0], [1, 1]]
    assert scaler.get_scale() == 2.0


def test_scaler_out_of_turn():
    p = nn.Parameter(np.ones(2, np.float32))
    optimizer = optim.SGD([p])
    scaler = optim.GradScaler()
    with pytest.raises(RuntimeError, match="scale"):
        scaler.step(optimizer)
    scaler.scale(p.sum()).backward()
    with pytest.raises(RuntimeError, match="step"):
        scaler.update()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="unscale_ was called already"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="step was called already"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="step was called already"):
        scaler.unscale_(optimizer)
    scaler.update(new_scale=3.0)
    assert scaler.get_scale() == 3.0
    for wrong in ({"growth_factor": 1.0}, {"backoff_factor": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            optim.GradScaler(**wrong)


def test_scaler_switched_off():
    p = nn.Parameter(np.ones(2, np.float32))
    optimizer = optim.SGD([p], lr=1.0)
    scaler = optim.GradScaler(enabled=False)
    scaler.scale(p.sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert p.tolist() == [0, 0] and scaler.get_scale() == 1 and not scaler.is_enabled()
    assert scaler.state_dict() == {}
    with pytest.raises(RuntimeError, match="not enabled"):
        optim.GradScaler().load_state_dict({})


def test_scaler_state():
    scaler = optim.GradScaler(init_scale=16.0, growth_interval=2)
    p = nn.Parameter(np.ones(2, np.float32))
    optimizer = optim.SGD([p])

    def turn(scaler):
        optimizer.zero_grad()
        scaler.scale(p.sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    turn(scaler)
    for other in (optim.GradScaler(), optim.GradScaler()):
        turn(other)
        other.load_state_dict(scaler.state_dict())
        assert other.state_dict() == scaler.state_dict()
        turn(other)
        assert other.get_scale() == 32


def test_float16_gradients_are_refused():
    p = nn.Parameter(np.ones(2, np.float16))
    optimizer = optim.SGD([p])
    scaler = optim.GradScaler(init_scale=2.0)
    scaler.scale(p.sum()).backward()
    with pytest.raises(ValueError, match="float16"):
        scaler.step(optimizer)


def test_an_optimizer_of_ones_own():
    """It is not asked to divide gradients, nor called where one is not finite."""

    class Own:
        param_groups = [{"params": [nn.Parameter(np.ones(2, np.float32))]}]
        seen = []

        def step(self):
            self.seen.append(self.param_groups[0]["params"][0].grad.tolist())

    own, scaler = Own(), optim.GradScaler(init_scale=4.0)
    p = own.param_groups[0]["params"][0]
    scaler.scale(p.sum())
    for gradient in ([4.0, 8.0], [np.inf, 1.0], [2.0, 4.0]):
        p.grad = md.tensor(np.asarray(gradient, np.float32))
        scaler.step(own)
        scaler.update()
    assert own.seen == [[1.0, 2.0], [1.0, 2.0]] and scaler.get_scale() == 2.0


def test_the_scale_of_ones_own_and_the_scaler_s():
    """Gradients that are sums over 5 samples, of a loss that was scaled."""
    params = parameters(random(0, 5 * 8.0))
    optimizer, scaler = optim.SGD(params, lr=1.0), optim.GradScaler(init_scale=8.0)
    scaler.scale(params[0].sum())
    optimizer.grad_scale = 5
    scaler.step(optimizer)
    for p, g in zip(params, random(0), strict=True):
        np.testing.assert_allclose(p.numpy(), -g, 1e-5)
    assert optimizer.grad_scale == 5 and optimizer.found_inf is None
