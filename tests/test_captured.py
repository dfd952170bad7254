"""A training step as one CUDA graph gives the numbers of the step as it is."""

from types import SimpleNamespace

import numpy as np
import pytest

import minidl as md
from minidl import nn, optim
from minidl.array import random
from minidl.array.device import gpu_available
from minidl.array.errors import UsageError
from minidl.distributed import Alone, DataParallel
from minidl.nn import functional as F
from minidl.train import CapturedStep, train_step
from minidl.train.captured import WARM_UP

SHAPE, CLASSES = (1, 6, 6), 4


class Looking(nn.Module):
    """A layer that waits for the device."""

    def forward(self, x):
        return x / (1 + x.abs().max().item())


def network(*more):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Flatten(),
        *more,
        nn.Linear(36, CLASSES),
    )


def batches(count: int):
    """Of 8 images, but every fifth of 3, as the last of an epoch."""
    rng = np.random.default_rng(0)
    for k in range(count):
        n = 3 if k % 5 == 4 else 8
        images = rng.normal(size=(n, *SHAPE)).astype("f4")
        yield md.tensor(images, device="cuda"), rng.integers(0, CLASSES, n)


class Run:
    """A training by some kind of step, with what each step cost."""

    def __init__(
        self, gpu, step=train_step, count=20, layers=(), rule=optim.Adam, scaler=None
    ):
        md.manual_seed(1)
        self.model = DataParallel(network(*layers).to("cuda"), Alone())
        self.optimizer = rule(self.model.parameters(), lr=0.02)
        schedule = optim.lr_scheduler.CosineAnnealingLR(self.optimizer, count)
        scaler = optim.GradScaler(enabled=False) if scaler is None else scaler
        self.losses, self.launches, self.waits = [], [], []
        for images, labels in batches(count):
            labels = md.tensor(labels, device="cuda")
            gpu.reset()
            loss = step(
                *(self.model, F.cross_entropy, self.optimizer, images, labels, scaler)
            )
            schedule.step()
            self.launches.append(list(gpu.launches))
            self.waits.append(gpu.syncs + gpu.uploads)
            self.losses.append([loss.item(), loss.total.item(), loss.count.item()])
        self.draws = random.default_generator().state
        self.scale = scaler.get_scale()

    def arrays(self):
        state = self.optimizer.state_dict()["state"].items()
        return {
            **{name: x.numpy() for name, x in self.model.state_dict().items()},
            **{f"{p} {k}": np.array(v) for p, kept in state for k, v in kept.items()},
        }

    def assert_same(self, other):
        assert self.losses == other.losses and self.draws == other.draws
        assert self.scale == other.scale
        own, others = self.arrays(), other.arrays()
        assert own.keys() == others.keys()
        for name, value in own.items():
            assert value.tobytes() == others[name].tobytes(), name


RULES = {
    "adam": optim.Adam,
    "sgd": lambda *a, **k: optim.SGD(*a, momentum=0.9, nesterov=True, **k),
    "adamw": lambda *a, **k: optim.AdamW(*a, amsgrad=True, **k),
    "rmsprop": optim.RMSprop,
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_captured_steps_give_the_same_numbers(stand_in, rule):
    """With a cosine schedule, dropout, batch norm and a smaller last batch."""
    step = CapturedStep()
    captured = Run(stand_in, step, rule=RULES[rule])
    captured.assert_same(Run(stand_in, rule=RULES[rule]))
    assert len(step.graphs) == 2 and not step.why_not  # 16 steps of 8 images, 4 of 3
    replayed = [k for k, names in enumerate(captured.launches) if "graph" in names]
    assert len(replayed) == 20 - 2 * WARM_UP


class Checkpointed(nn.Module):
    """Dropout that backward draws again."""

    def forward(self, x):
        return md.autograd.checkpoint(lambda x: F.dropout(x.tanh(), 0.4) * x, x)


@pytest.mark.slow
def test_what_backward_computes_again_draws_the_same(stand_in):
    step = CapturedStep(required=True)
    captured = Run(stand_in, step, 12, [Checkpointed()])
    captured.assert_same(Run(stand_in, count=12, layers=[Checkpointed()]))
    assert step.graphs


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_available(), reason="no CUDA device")
def test_on_a_gpu_it_gives_the_same_numbers():
    nothing = SimpleNamespace(reset=lambda: None, launches=[], syncs=[], uploads=[])
    step = CapturedStep(required=True)
    captured, plain = Run(nothing, step), Run(nothing)
    captured.assert_same(plain)
    assert len(step.graphs) == 2


def test_a_replayed_step_never_waits(stand_in):
    run = Run(stand_in, CapturedStep())
    assert run.waits == [[]] * 20
    replayed = [names for names in run.launches if names[-1] == "graph"]
    alone = [names for names in replayed if len(names) < 8]
    assert len(replayed) == 14 and len(alone) == 12  # two were recorded before
    assert all(len(names) > 30 for names in run.launches if names not in alone)


@pytest.mark.slow
def test_the_scale_of_the_loss_changes_in_a_graph(stand_in):
    """It grows until the scaled gradients overflow, and such steps are left out."""
    runs = [
        Run(
            stand_in,
            step,
            scaler=optim.GradScaler(init_scale=2.0**100, growth_interval=2),
        )
        for step in (train_step, CapturedStep())
    ]
    runs[1].assert_same(runs[0])
    assert runs[1].waits[1:] == [[]] * 19 and 2.0**100 < runs[1].scale < 2.0**128


@pytest.mark.parametrize("required", [False, True])
def test_a_step_that_waits_runs_as_it_is(stand_in, capsys, required):
    step = CapturedStep(required=required)
    if required:
        with pytest.raises(UsageError, match="cannot be captured: Looking.forward"):
            Run(stand_in, step, 6, [Looking()])
        return
    got = Run(stand_in, step, 12, [Looking()])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the step is not captured" in said
    assert "Looking.forward (test_captured.py, line " in said
    got.assert_same(Run(stand_in, count=12, layers=[Looking()]))


def test_on_a_cpu_it_runs_as_it_is(capsys):
    step = CapturedStep()
    x, y = np.ones((4, *SHAPE), "f4"), np.arange(4)
    losses = []
    for way in (train_step, step):
        md.manual_seed(0)
        model = DataParallel(network(), Alone())
        optimizer = optim.Adam(model.parameters())
        for _ in range(5):
            loss = way(model, F.cross_entropy, optimizer, md.Tensor(x), md.Tensor(y))
        losses.append(loss.item())
    assert losses[0] == losses[1]
    assert capsys.readouterr().err.count("need a GPU") == 1


@pytest.mark.slow
def test_what_is_switched_between_steps_counts(stand_in):
    """A frozen layer and batch norm in evaluation are other steps, captured anew."""
    ends = []
    for step in (train_step, CapturedStep()):
        md.manual_seed(1)
        model = DataParallel(network().to("cuda"), Alone())
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        (images, labels), *_ = batches(1)
        labels = md.tensor(labels, device="cuda")
        weights = []
        for k in range(24):
            if k == 6:
                model.module[1].eval()
            if k in (12, 17):
                model.module[0].requires_grad_(k == 17)
            step(model, F.cross_entropy, optimizer, images, labels)
            weights.append(model.module[0].weight.numpy())
        assert (weights[11] == weights[16]).all() and (weights[17] != weights[16]).any()
        ends.append([x.numpy().tobytes() for x in model.state_dict().values()])
        ends[-1].append(optimizer.state_dict()["state"]["0.weight"]["step"])
    assert ends[0] == ends[1] and ends[0][-1] == 19 and len(step.graphs) == 1


@pytest.mark.slow
def test_shapes_beyond_the_first_few_are_not_captured(stand_in):
    step, model = CapturedStep(), DataParallel(nn.Linear(2, 2).to("cuda"), Alone())
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for n in range(1, 7):
        x, y = md.zeros(n, 2, device="cuda"), md.zeros(n, dtype="int64", device="cuda")
        for _ in range(WARM_UP + 1):
            step(model, F.cross_entropy, optimizer, x, y)
    assert len(step.graphs) == 4


def test_batches_of_the_host_are_copied(stand_in):
    step, model = CapturedStep(), DataParallel(nn.Linear(2, 2).to("cuda"), Alone())
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    rng, losses = np.random.default_rng(0), []
    for _ in range(WARM_UP + 3):
        x, y = rng.normal(size=(4, 2)).astype("f4"), rng.integers(0, 2, 4)
        loss = step(model, F.cross_entropy, optimizer, md.Tensor(x), md.Tensor(y))
        x, y = (md.tensor(a, device="cuda") for a in (x, y))
        losses.append((loss.item(), F.cross_entropy(model(x), y).item()))
    assert all(a == b for a, b in losses) and len(set(losses)) == len(losses)
