"""The training steps that gpu_check measures, and its peers in their processes."""

import importlib.util
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minidl
from minidl import nn, optim
from minidl.array.device import bfloat16
from minidl.array.precision import get_float32_matmul_precision
from minidl.autograd import Tensor
from minidl.distributed import Alone, DataParallel
from minidl.nn import functional as F
from minidl.train import CapturedStep, train_step


@pytest.mark.slow
def test_pytorch_runs(scripts):
    torch = pytest.importorskip("torch")
    build, shape = scripts.steps.NETWORKS["digits CNN"]
    images, labels = np.ones((4, *shape[1:]), "f4"), np.arange(4)
    assert scripts.adam.torch_adam(np, torch, [1000, 10]) > 0
    for layout in scripts.torch.layouts(torch).values():
        data = build, images, labels, 1, layout
        for precision in ("fp32", "tf32", "bf16"):
            assert scripts.steps.torch_time(np, torch, *data, precision) > 0
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for allowed in (True, False):
        with scripts.benchmarks.tf32_in(torch, allowed):
            assert torch.backends.cudnn.allow_tf32 == allowed
            assert torch.backends.cuda.matmul.allow_tf32 == allowed
    after = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    assert after == before


@pytest.fixture
def fake_peers(scripts, monkeypatch):
    """gpu_steps with times that are given, and a PyTorch that compiles nothing."""
    steps = scripts.steps

    def torch_time(xp, torch, build, images, labels, inner, layout, precision):
        return 6.0 if layout else 8.0

    def ask(peer, seconds):
        raise RuntimeError("no\nC compiler")

    torch = SimpleNamespace(channels_last="last")
    monkeypatch.setattr(steps, "torch_or_none", lambda xp: torch)
    monkeypatch.setattr(steps, "torch_time", torch_time)
    monkeypatch.setattr(steps, "ask", ask)
    monkeypatch.setattr(steps, "minidl_time", lambda *rest: 2.0)
    return steps


def test_what_cannot_be_compiled_is_passed_over(scripts, fake_peers, monkeypatch):
    monkeypatch.setattr(scripts.networks, "bfloat16", np.float16)
    rows = list(fake_peers.steps(np, True))
    assert not [row for row in rows if row["ok"] is False]
    notes = [row["note"] for row in rows if "note" in row]
    assert len(notes) == 4 + 2 * 2 and "no C compiler" in notes[0]
    ratios = [row["times_torch"] for row in rows if "torch_ms" in row]
    assert ratios == [3.0] * 4 + [4.0, 3.0] * 2  # one channel: not channels last
    for precision in ("bf16", "tf32"):
        found = [row for row in rows if row["name"].endswith(f", {precision}")]
        assert len(found) == 2 * 3 and sum("ms" in row for row in found) == 4


def test_what_takes_too_long_costs_only_itself(fake_peers, monkeypatch):
    def ask(peer, seconds):
        if peer.library == "torch":
            return 4.0
        raise TimeoutError("not done after 5 s")

    monkeypatch.setattr(fake_peers, "has_jax", lambda xp: True)
    monkeypatch.setattr(fake_peers, "ask", ask)
    rows = list(fake_peers.steps(np, True))
    notes = [row["note"] for row in rows if "note" in row]
    assert len(notes) == 2 and all("not done after 5 s" in note for note in notes)
    assert "ms" in rows[-1] and rows[-1]["torch_ms"] == 4.0
    monkeypatch.setattr(fake_peers, "SECONDS", -1)
    late = list(fake_peers.steps(np, True))
    assert [row["name"] for row in late] == [row["name"] for row in rows]
    assert all("no time" in row["note"] for row in late if "note" in row)


def test_peers_begin_in_time_to_end_in_it(scripts):
    steps, (_, limit) = scripts.steps, scripts.check.SECTIONS["steps"]
    assert steps.SECONDS + steps.GRACE < limit
    together = max(scripts.check.SECTIONS[name][1] for name in scripts.check.AT_ONCE)
    assert scripts.peers.SECONDS <= together
    asked = [peer for peer in scripts.peers.installed() if peer.library == "torch"]
    assert not asked or len(asked) == len(list(scripts.networks.cases()))


# --- peers in processes of their own


@pytest.fixture
def peers(scripts, monkeypatch, tmp_path):
    """gpu_peers, whose processes run what a test writes: `run`."""
    file = tmp_path / "peer.py"

    def run(code, seconds=60):
        """One peer, that has been started, and settled."""
        file.write_text(f"import pathlib, sys, time\n{code}")
        monkeypatch.setattr(scripts.peers, "__file__", str(file))
        monkeypatch.setattr(scripts.peers, "SECONDS", seconds)
        return scripts.peers.Peers([scripts.peers.Peer("torch", "a, b")])

    return SimpleNamespace(run=run, **vars(scripts.peers))


FILES = "path = pathlib.Path(sys.argv[1], 'torch-a-b-fp32')\n"
READY = FILES + "path.with_suffix('.ready').touch()\n"


@pytest.mark.parametrize(
    "code, message",
    [
        ("print('one'); 1 / 0", "division by zero"),
        ("time.sleep(60)", "not ready after"),
        (READY + "time.sleep(60)", "not done after 0 s"),
        (READY + "path.with_suffix('.ms').write_text('KeyError: 1')", "KeyError: 1"),
    ],
)
def test_a_peer_that_fails_says_why(peers, code, message):
    start = time.monotonic()
    with peers.run(code, seconds=1) as started:
        (peer,) = started.peers
        if "ready" in code:
            while started.prepares(peer):
                time.sleep(0.01)
        started.settle()
        with pytest.raises((RuntimeError, TimeoutError), match=message):
            peers.ask(peer, 0.1)
    assert time.monotonic() - start < 30
    assert started.processes[peer].poll() is not None
    with pytest.raises(RuntimeError, match="not started"):
        peers.ask(peer, 1)


@pytest.mark.slow
def test_a_peer_measures_when_it_is_asked(scripts):
    peers = scripts.peers
    libraries = [x for x in ("torch", "jax") if importlib.util.find_spec(x)]
    if not libraries:
        pytest.skip("there is no peer")
    peer = peers.Peer(libraries[-1], "digits CNN")
    with peers.Peers([peer], "cpu", quick=True) as started:
        started.settle()
        files = {file.suffix for file in Path(started.folder).iterdir()}
        assert files == {".log", ".ready"}
        assert peers.ask(peer, 30) > 0


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_steps_are_measured_in_a_precision(scripts, monkeypatch, precision):
    if precision == "bf16" and bfloat16 is None:
        pytest.skip("no ml_dtypes")
    seen = []
    build, shape = scripts.steps.NETWORKS["digits CNN"]
    data = build, np.ones((4, *shape[1:]), "f4"), np.arange(4), 1

    def step(model, loss_fn, *rest):
        storage = next(model.parameters()).storage
        seen.append((get_float32_matmul_precision(), storage.low is not None))
        return train_step(model, loss_fn, *rest)

    assert scripts.steps.minidl_time(np, step, *data, precision) > 0
    wanted = ("high", False) if precision == "tf32" else ("highest", True)
    assert set(seen) == {wanted} and get_float32_matmul_precision() == "highest"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_steps_are_captured_in_a_precision(scripts, stand_in, precision):
    if precision == "bf16" and bfloat16 is None:
        pytest.skip("no ml_dtypes")
    build, shape = scripts.steps.NETWORKS["digits CNN"]
    data = build, np.ones((4, *shape[1:]), "f4"), np.arange(4), 1
    step = CapturedStep(required=True)
    scripts.steps.minidl_time(stand_in.cupy, step, *data, precision)
    assert len(step.graphs) == 1


# --- JAX


@pytest.mark.slow
def test_jax_trains_the_same_networks(scripts):
    jax = pytest.importorskip("jax")
    import gpu_jax

    for name in scripts.networks.NETWORKS:
        build, images, labels, _ = scripts.networks.work_of(np, True, name)
        theirs = gpu_jax.step_of(name, build, images, labels)
        model = DataParallel(scripts.networks.model_of(build), Alone())
        adam = optim.Adam(model.parameters())
        x, y = minidl.tensor(images), minidl.tensor(labels)
        for _ in range(2):
            ours = train_step(model, F.cross_entropy, adam, x, y)
            np.testing.assert_allclose(
                ours.item(), jax.device_get(theirs()[0]), rtol=2e-3
            )
    assert jax.config.jax_default_matmul_precision == "highest"


@pytest.mark.slow
def test_the_networks_of_both_are_the_same(scripts):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype("f4")
    for name in ("residual CNN", "ResNet18, CIFAR"):
        build, _ = scripts.steps.NETWORKS[name]
        ours, theirs = build(nn), build(torch.nn)
        state = ours.state_dict()
        theirs.load_state_dict(
            {k: torch.from_numpy(v.numpy()) for k, v in state.items()}
        )
        got, wanted = ours(Tensor(x)).numpy(), theirs(torch.from_numpy(x))
        np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=2e-4, atol=2e-4)
