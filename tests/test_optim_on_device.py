"""Optimizers on a GPU: the numbers of a CPU, nothing waited for, and captured steps."""

import numpy as np
import pytest
from test_optim import RULES, arrays, give, parameters

import minidl as md
from minidl import nn, optim
from minidl.array import euclid
from minidl.array.device import bfloat16, to_device
from minidl.optim import lr_scheduler

pytestmark = pytest.mark.usefixtures("stand_in")
HALVES = ["float16", *([] if bfloat16 is None else [bfloat16])]


def pair(name="Adam", settings=None, dtype="f4"):
    """The same optimizer on both devices."""
    settings = RULES[name] if settings is None else settings
    here = parameters(dtype)
    there = [nn.Parameter(to_device(p.data, "cuda")) for p in here]
    return [getattr(optim, name)(params, **settings) for params in (here, there)]


def trained(optimizer):
    return optimizer.param_groups[0]["params"]


def same(here, there, tolerance=1e-6):
    for p, q in zip(trained(here), trained(there), strict=True):
        np.testing.assert_allclose(q.numpy(), p.numpy(), tolerance, tolerance)


class Captured:
    """A function as a CUDA graph, with a stream and a memory pool of its own."""

    def __init__(self, stand_in, function):
        cuda = stand_in.cupy.cuda
        self.stream, self.pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()
        with self.stream, cuda.using_allocator(self.pool.malloc):
            self.stream.begin_capture()
            try:
                function()
            finally:
                self.graph = self.stream.end_capture()

    def replay(self, optimizer):
        with self.stream:
            optimizer.refresh()
            self.graph.launch(self.stream)
        self.stream.synchronize()


# --- Steps ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_the_numbers_of_a_cpu(name, stand_in):
    here, there = pair(name, dtype="f8")
    for step in range(6):
        gradients = arrays(step)
        gradients[1] = gradients[1] if step > 1 else None
        for optimizer in (here, there):
            give(trained(optimizer), gradients)
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
        stand_in.reset()
        here.step(), there.step()
        assert not stand_in.syncs and not stand_in.uploads
        if step > 3:  # a clock each, the new rate, and the runs that they divide into
            numbers = [x for x in stand_in.launches if "_numbers" in x]
            rest = [x for x in stand_in.launches if x not in numbers]
            assert rest[0] == "fill" and len(numbers) == 2 and len(rest) == 4
    same(here, there, 1e-12)
    assert [there.state[p]["step"].item() for p in trained(there)] == [6, 4, 6, 6]


@pytest.mark.parametrize("name", RULES)
def test_two_launches_a_step(name, stand_in):
    here, there = pair(name)
    for step in range(3):
        give(trained(here), arrays(step)), give(trained(there), arrays(step))
        stand_in.reset()
        here.step(), there.step()
    kernel = there.rule(there.param_groups[0]).name
    numbers, update = stand_in.launches
    assert numbers.startswith(f"minidl_{kernel}_numbers")
    assert update.startswith(f"minidl_{kernel}")
    same(here, there)
    there.zero_grad()
    there.step()
    assert there.state[trained(there)[0]]["step"].item() == 3


def test_a_rate_on_the_device(stand_in):
    here, there = pair("SGD", {"momentum": 0.5})
    rate = md.tensor(0.5, device="cuda")
    there.param_groups[0]["lr"] = rate
    for step in range(3):
        here.param_groups[0]["lr"] = 0.5 + step
        rate.data.fill(0.5 + step)
        give(trained(here), arrays(step)), give(trained(there), arrays(step))
        stand_in.reset()
        here.step(), there.step()
        assert not stand_in.syncs and not stand_in.uploads
    same(here, there)


def test_state_goes_both_ways():
    here, there = pair("NAdam")
    for step in range(3):
        give(trained(here), [*arrays(step)[:3], None if step < 2 else arrays(step)[3]])
        here.step()
    clock = there.flat[0][0].clocks[trained(there)[0]]
    there.load_state_dict(here.state_dict())
    for p, q in zip(trained(there), trained(here), strict=True):
        p.data = q.data
    assert there.flat[0][0].clocks[trained(there)[0]] is clock
    assert [s["step"] for s in there.state_dict()["state"].values()] == [3, 3, 3, 1]
    for step in range(3, 5):
        give(trained(here), arrays(step)), give(trained(there), arrays(step))
        seen = there.trace(trained(there)[3], (1, 0, 2))
        assert seen.m_hat == pytest.approx(here.trace(trained(here)[3], 5).m_hat)
        here.step(), there.step()
    same(here, there)
    assert there.state_dict()["state"]["param3"]["mu_product"] == pytest.approx(
        here.state_dict()["state"]["param3"]["mu_product"], 1e-12
    )


# --- Captured steps -------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_captured_steps_follow_a_schedule(name, stand_in):
    here, there = pair(name)
    both = [lr_scheduler.CosineAnnealingLR(x, T_max=8) for x in (here, there)]
    graph = None
    for step in range(8):
        give(trained(here), arrays(step)), give(trained(there), arrays(step))
        here.step()
        if step < 2:
            there.step()
            continue
        if graph is None:
            there.refresh()
            before = there.state[trained(there)[0]]["step"].item()
            graph = Captured(stand_in, there.step)
            assert there.state[trained(there)[0]]["step"].item() == before
        stand_in.cupy.cuda.Device().synchronize()
        graph.replay(there)
        for schedule in both:
            schedule.step()
    same(here, there, 1e-5)
    assert there.state[trained(there)[0]]["step"].item() == 8


@pytest.mark.parametrize("name", RULES)
def test_a_captured_step_that_overflows(name, stand_in):
    """Scaled gradients, two of which are infinite or NaN: left out on both devices."""
    here, there = pair(name)
    scalers = [optim.GradScaler(init_scale=8.0, growth_interval=2) for _ in range(2)]
    graph = None

    def turn():
        scalers[1].step(there)
        scalers[1].update()

    for scaler, optimizer in zip(scalers, (here, there), strict=True):
        scaler.scale(trained(optimizer)[0].sum())
    for step in range(9):
        gradients = [scalers[0].get_scale() * g for g in arrays(step)]
        if step in (4, 7):
            gradients[step % 3] = gradients[step % 3] * np.where(
                step == 4, np.inf, np.nan
            )
        before = there.state_dict()["state"]["param0"]["step"]
        give(trained(here), gradients), give(trained(there), gradients)
        stand_in.cupy.cuda.Device().synchronize()
        stand_in.reset()
        scalers[0].step(here), scalers[0].update()
        if step < 2:
            turn()
        else:
            graph = graph or Captured(stand_in, turn)
            graph.replay(there)
        assert stand_in.syncs in ([], ["stream.synchronize"]) and not stand_in.uploads
        after = there.state_dict()["state"]["param0"]["step"]
        assert after == before + (step not in (4, 7))
        assert scalers[0].get_scale() == scalers[1].get_scale()
        same(here, there, 1e-5)


def test_a_scaler_waits_for_nothing(stand_in):
    p = nn.Parameter(to_device(np.ones(3, "f4"), "cuda"))
    optimizer, scaler = optim.Adam([p], lr=0.1), optim.GradScaler(init_scale=4.0)
    for unscaled in (False, True, False):
        for bad in (False, True):
            give([p], [[1.0, np.inf if bad else 2.0, 3.0]])
            scaler.scale(p.sum())
            before = p.numpy().copy()
            stand_in.reset()
            if unscaled:
                scaler.unscale_(optimizer)
                optim.clip_grad_norm_([p], 1.0)
            scaler.step(optimizer)
            scaler.update()
            assert not stand_in.syncs and not stand_in.uploads
            assert (p.numpy() == before).all() == bad
    assert optimizer.state[p]["step"].item() == 3


def test_a_setting_that_changes_in_a_capture_is_refused(stand_in):
    _, there = pair("SGD")
    give(trained(there), arrays(0))
    there.step()
    there.param_groups[0]["lr"] = 0.5
    with pytest.raises(RuntimeError, match=r"'lr' has changed: call .*refresh\(\)"):
        Captured(stand_in, there.step)
    there.refresh()
    before = trained(there)[0].numpy().copy()
    graph = Captured(stand_in, there.step)
    graph.replay(there)
    assert (trained(there)[0].numpy() != before).all()


# --- Clipping, measuring, rounding ----------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_clipping_is_two_launches(stand_in, dtype):
    here, there = pair(dtype=dtype)
    for limit in (0.5, 100.0):
        give(trained(here), arrays(0)), give(trained(there), arrays(0))
        stand_in.reset()
        norm = optim.clip_grad_norm_(trained(there), limit)
        room, measure, shrink = stand_in.launches  # the first is a memset
        assert (room, measure) == ("zeros", "minidl_norm")
        assert shrink.startswith("minidl_clip_norm")
        assert not stand_in.syncs and not stand_in.uploads
        expected = optim.clip_grad_norm_(trained(here), limit)
        assert norm.dtype == expected.dtype == np.dtype(dtype) and norm.shape == ()
        assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
        for p, q in zip(trained(here), trained(there), strict=True):
            np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), 1e-6)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_clipping_inside_the_update(device, scale, stand_in):
    here, there = pair("AdamW")
    other = there if device == "cuda" else pair("AdamW")[0]
    other.max_norm = 1.5
    for step, size in enumerate((0.01, 10.0, 3.0)):
        gradients = [size * g for g in arrays(step)]
        give(trained(here), gradients)
        give(trained(other), [scale * g for g in gradients])
        other.grad_scale = scale
        optim.clip_grad_norm_(trained(here), 1.5)
        stand_in.reset()
        here.step(), other.step()
        assert not stand_in.syncs and not stand_in.uploads
    same(here, other, 1e-5)
    before = trained(other)[0].numpy().copy()
    give(trained(other), [g * np.nan for g in arrays(0)])
    other.step()
    assert (trained(other)[0].numpy() == before).all()
    assert other.state[trained(other)[0]]["step"].item() == 3


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_the_low_copy_is_written_by_the_update(name, dtype, stand_in):
    for optimizer in pair(name):
        params = trained(optimizer)
        storage = params[0].storage
        storage.keep_low(dtype)
        assert storage.low.dtype == dtype and storage.low.size == storage.size
        for step in range(4):
            give(params, arrays(step))
            optimizer.found_inf = step == 3
            stand_in.reset()
            optimizer.step()
            if params[0].device != "cpu" and step in (1, 2):
                assert len(stand_in.launches) == 2
            low = to_device(storage.low, "cpu")
            assert (low == to_device(storage.data, "cpu").astype(dtype)).all()
        assert optimizer.state[params[0]]["step"].item() == 3


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("sizes", [[1], [10_007, 3], [40_000, 0, 70_001]])
def test_norm_on_the_device(dtype, sizes, stand_in):
    rng = np.random.default_rng(0)
    whole = [rng.standard_normal(n + 1).astype(dtype)[1:] for n in sizes]
    there = [to_device(np.append(1, x).astype(dtype), "cuda")[1:] for x in whole]
    stand_in.reset()
    norm, bad = euclid.norm(there)
    assert not stand_in.syncs and not stand_in.uploads
    expected = np.sqrt(sum(np.sum(x.astype("f8") ** 2) for x in whole))
    assert norm.shape == bad.shape == (1,) and bad.item() == 0
    assert norm.item() == pytest.approx(expected, rel=1e-12)
    again, _ = euclid.norm(there)
    assert again.item() == norm.item()
    there[0][-1] = np.nan
    assert euclid.norm(there)[1].item() == 1
