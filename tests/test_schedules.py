"""Learning-rate schedules, against closed forms and against PyTorch's."""

from math import cos, pi

import numpy as np
import pytest

import minidl as md
from minidl import nn, optim

STEPS = 45
SCHEDULES = [  # (name, arguments by name)
    ("StepLR", {"step_size": 7}),
    ("StepLR", {"step_size": 1, "gamma": 0.9}),
    ("MultiStepLR", {"milestones": [3, 10, 10, 30], "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [0, 5]}),
    ("ExponentialLR", {"gamma": 0.93}),
    ("CosineAnnealingLR", {"T_max": 50}),
    ("CosineAnnealingLR", {"T_max": 8, "eta_min": 0.01}),
    ("CosineAnnealingLR", {"T_max": 1}),
    ("CosineAnnealingWarmRestarts", {"T_0": 6}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 0.01}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.5, "total_iters": 20}),
    ("LambdaLR", {"lr_lambda": lambda t: 0.9**t}),
    ("LambdaLR", {"lr_lambda": [lambda t: 1 / (t + 1), lambda t: 0.5]}),
    ("PolynomialLR", {}),
    ("PolynomialLR", {"total_iters": 30, "power": 2.5}),
    ("OneCycleLR", {"max_lr": 0.4, "total_steps": 45}),
    ("OneCycleLR", {"max_lr": [0.4, 2.0], "epochs": 5, "steps_per_epoch": 10}),
    (
        "OneCycleLR",
        {
            "max_lr": 0.4,
            "total_steps": 50,
            "pct_start": 0.25,
            "anneal_strategy": "linear",
            "base_momentum": [0.7, 0.8],
            "max_momentum": 0.9,
            "div_factor": 10.0,
            "final_div_factor": 100.0,
            "three_phase": True,
        },
    ),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 50, "cycle_momentum": False}),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(SCHEDULES)]


def both(kind="SGD", **settings):
    """The same optimizer, of two groups, in minidl and in PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    made = []
    for package, new in (
        (optim, lambda: nn.Parameter(np.zeros(1, np.float32))),
        (torch.optim, lambda: torch.zeros(1, requires_grad=True)),
    ):
        groups = [{"params": [new()]}, {"params": [new()], "lr": 0.5}]
        made.append(getattr(package, kind)(groups, lr=0.1, **settings))
    return made


def ours(lr=0.1, kind=optim.SGD):
    return kind([nn.Parameter(np.zeros(1, np.float32))], lr=lr)


def seen(optimizer, schedule):
    """What a schedule sets: rates, momenta, and what it says of them."""
    names = ("lr", "momentum", "betas")
    groups = [[g.get(k) for k in names] for g in optimizer.param_groups]
    return groups, schedule.get_last_lr(), schedule.last_epoch


def follow(pairs, steps=STEPS, by_hand=None):
    """Both sides make the same steps and agree to the last bit."""
    for step in range(steps):
        mine, theirs = (seen(o, schedules[0]) for o, schedules in pairs)
        assert mine == theirs, f"in step {step}"
        for optimizer, schedules in pairs:
            if by_hand and step % 9 == 4:
                for group in optimizer.param_groups:
                    group["lr"] *= by_hand
            optimizer.step()
            for schedule in schedules:
                schedule.step()


def torch_schedules():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.optim import lr_scheduler

    return lr_scheduler


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "arguments"), SCHEDULES, ids=IDS)
@pytest.mark.parametrize("by_hand", [None, 0.7])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("SGD", {"momentum": 0.9}), ("Adam", {})],
    ids=["SGD", "Adam"],
)
def test_pytorch(name, arguments, by_hand, kind, settings):
    if by_hand and name == "LinearLR" and not arguments:
        by_hand = 1.1
    pairs = [
        (optimizer, [getattr(package, name)(optimizer, **arguments)])
        for optimizer, package in zip(
            both(kind, **settings), (optim.lr_scheduler, torch_schedules()), strict=True
        )
    ]
    follow(pairs, by_hand=by_hand)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "arguments"), SCHEDULES, ids=IDS)
@pytest.mark.parametrize("last_epoch", [0, 5, 13])
def test_resuming(name, arguments, last_epoch):
    """`last_epoch` with an optimizer that a schedule has left behind."""
    pairs = []
    for optimizer, package in zip(
        both(momentum=0.9), (optim.lr_scheduler, torch_schedules()), strict=True
    ):
        new = getattr(package, name)
        first = new(optimizer, **arguments)
        for _ in range(last_epoch):
            optimizer.step()
            first.step()
        pairs.append((optimizer, [new(optimizer, **arguments, last_epoch=last_epoch)]))
    follow(pairs, steps=30)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "parts",
    [
        [("ExponentialLR", {"gamma": 0.9}), ("StepLR", {"step_size": 5})],
        [("LinearLR", {"total_iters": 10}), ("CosineAnnealingLR", {"T_max": 30})],
        [("PolynomialLR", {"total_iters": 40}), ("MultiStepLR", {"milestones": [4]})],
    ],
)
def test_schedules_at_once(parts):
    pairs = [
        (o, [getattr(package, name)(o, **arguments) for name, arguments in parts])
        for o, package in zip(
            both(), (optim.lr_scheduler, torch_schedules()), strict=True
        )
    ]
    follow(pairs)


SEQUENCES = [
    (
        [("LinearLR", {"total_iters": 5}), ("CosineAnnealingLR", {"T_max": 40})],
        [5],
    ),
    (
        [
            ("ExponentialLR", {"gamma": 0.9}),
            ("StepLR", {"step_size": 4}),
            ("PolynomialLR", {"total_iters": 20}),
        ],
        [10, 20],
    ),
    (
        [
            ("CosineAnnealingWarmRestarts", {"T_0": 4, "T_mult": 2}),
            ("LambdaLR", {"lr_lambda": lambda t: 1 / (t + 2)}),
            ("MultiStepLR", {"milestones": [0, 3]}),
            ("LinearLR", {}),
            ("CosineAnnealingWarmRestarts", {"T_0": 3}),
        ],
        [7, 15, 20, 30],
    ),
    ([("StepLR", {"step_size": 3}), ("ExponentialLR", {"gamma": 0.5})], [0]),
    (
        [("LinearLR", {}), ("OneCycleLR", {"max_lr": 1.0, "total_steps": 45})],
        [6],
    ),
]


def sequence(package, optimizer, parts, milestones):
    schedules = [getattr(package, name)(optimizer, **a) for name, a in parts]
    return package.SequentialLR(optimizer, schedules, milestones)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("parts", "milestones"), SEQUENCES)
def test_sequences(parts, milestones):
    packages = (optim.lr_scheduler, torch_schedules())
    pairs = [
        (o, [sequence(package, o, parts, milestones)])
        for o, package in zip(both(momentum=0.9), packages, strict=True)
    ]
    follow(pairs)


@pytest.mark.parametrize("place", [0, 1])
def test_a_sequence_in_a_sequence(place):
    schedules = optim.lr_scheduler
    optimizer = ours(lr=1.0)
    parts = [schedules.ExponentialLR(optimizer, 0.5), schedules.StepLR(optimizer, 2)]
    inner = schedules.SequentialLR(optimizer, parts, [2])  # 1, 1/2, 1, 1, 1/10
    parts = [schedules.ExponentialLR(optimizer, 0.7), inner]
    if place == 0:
        parts.reverse()
    outer = schedules.SequentialLR(optimizer, parts, [(5, 2)[place]])
    found = []
    for _ in range(7):
        found += outer.get_last_lr()
        outer.step()
    nested, plain = [1, 0.5, 1, 1, 0.1], [1, 0.7]
    assert found == pytest.approx(nested + plain if place == 0 else plain + nested)


@pytest.mark.filterwarnings("ignore")
def test_warm_restarts_by_fractions_of_epochs():
    pairs = zip(both(), (optim.lr_scheduler, torch_schedules()), strict=True)
    pairs = [(o, p.CosineAnnealingWarmRestarts(o, 3, 2, 0.01)) for o, p in pairs]
    for quarter in range(120):
        for optimizer, schedule in pairs:
            optimizer.step()
            schedule.step(quarter / 4)
        assert seen(*pairs[0]) == seen(*pairs[1])


def test_closed_forms():
    rates = {
        "StepLR": lambda t: 0.1 * 0.1 ** (t // 7),
        "ExponentialLR": lambda t: 0.1 * 0.93**t,
        "CosineAnnealingLR": lambda t: 0.1 * (1 + cos(pi * t / 50)) / 2,
        "CosineAnnealingWarmRestarts": lambda t: 0.1 * (1 + cos(pi * (t % 6) / 6)) / 2,
        "PolynomialLR": lambda t: 0.1 * (1 - min(t, 5) / 5),
        "LinearLR": lambda t: 0.1 * (1 / 3 + 2 / 3 * min(t, 5) / 5),
    }
    for name, rate in rates.items():
        arguments = next(a for n, a in SCHEDULES if n == name)
        optimizer = ours()
        schedule = getattr(optim.lr_scheduler, name)(optimizer, **arguments)
        for t in range(STEPS):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate(t)), name
            schedule.step()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [s for s in SCHEDULES if not isinstance(s[1].get("lr_lambda"), list)],
)
def test_state(name, arguments):
    def make():
        optimizer = ours(kind=optim.Adam)
        arguments_ = {
            k: v[0] if k.endswith("momentum") and isinstance(v, list) else v
            for k, v in arguments.items()
        }
        if isinstance(arguments.get("max_lr"), list):
            arguments_["max_lr"] = 0.4
        return optimizer, getattr(optim.lr_scheduler, name)(optimizer, **arguments_)

    (optimizer, schedule), (other, resumed) = make(), make()
    for _ in range(11):
        schedule.step()
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(20):
        assert seen(optimizer, schedule) == seen(other, resumed)
        schedule.step(), resumed.step()


def test_state_of_a_sequence():
    made = []
    for _ in range(2):
        optimizer = ours()
        made.append((optimizer, sequence(optim.lr_scheduler, optimizer, *SEQUENCES[2])))
    (optimizer, schedule), (other, resumed) = made
    for _ in range(11):
        schedule.step()
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(30):
        assert seen(optimizer, schedule) == seen(other, resumed)
        schedule.step(), resumed.step()


def test_state_of_a_callable_object():
    class Decay:
        def __init__(self, rate):
            self.rate = rate

        def __call__(self, epoch):
            return self.rate**epoch

    schedule = optim.lr_scheduler.LambdaLR(ours(), Decay(0.5))
    other = optim.lr_scheduler.LambdaLR(ours(), Decay(0.1))
    other.load_state_dict(schedule.state_dict())
    assert other.lr_lambdas[0].rate == 0.5


def test_a_rate_that_is_a_tensor():
    rate = md.tensor(0.5)
    optimizer = ours(lr=rate)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25


@pytest.mark.parametrize(
    ("name", "arguments", "error", "what"),
    [
        ("LinearLR", {"start_factor": 0}, ValueError, "start_factor"),
        ("LinearLR", {"end_factor": 2}, ValueError, "end_factor"),
        ("CosineAnnealingWarmRestarts", {"T_0": 0}, ValueError, "T_0"),
        ("CosineAnnealingWarmRestarts", {"T_0": 2, "T_mult": 1.5}, ValueError, "T_m"),
        ("LambdaLR", {"lr_lambda": [abs, abs]}, ValueError, "lr_lambda"),
        ("OneCycleLR", {"max_lr": 1}, ValueError, "total_steps"),
        ("OneCycleLR", {"max_lr": 1, "total_steps": 0}, ValueError, "positive"),
        (
            "OneCycleLR",
            {"max_lr": 1, "total_steps": 9, "pct_start": 2},
            ValueError,
            "pct",
        ),
        ("OneCycleLR", {"max_lr": [1, 2], "total_steps": 9}, ValueError, "max_lr"),
        (
            "OneCycleLR",
            {"max_lr": 1, "total_steps": 9, "anneal_strategy": "cubic"},
            ValueError,
            "anneal_strategy",
        ),
        ("StepLR", {"step_size": 2, "last_epoch": 3}, KeyError, "initial_lr"),
        ("SequentialLR", {"schedulers": [], "milestones": []}, ValueError, "least one"),
    ],
)
def test_wrong_arguments(name, arguments, error, what):
    optimizer = ours()
    with pytest.raises(error, match=what):
        getattr(optim.lr_scheduler, name)(optimizer, **arguments)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_other_mistakes():
    schedules = optim.lr_scheduler
    with pytest.raises(TypeError, match="Optimizer"):
        schedules.StepLR(0.1, 2)
    with pytest.raises(ValueError, match="momentum"):
        schedules.OneCycleLR(ours(kind=optim.Adagrad), 1.0, 9)
    schedule = schedules.OneCycleLR(ours(), 1.0, 2)
    schedule.step(), schedule.step()
    with pytest.raises(ValueError, match="2 steps"):
        schedule.step()
    first, second = ours(), ours()
    parts = [schedules.StepLR(first, 2), schedules.StepLR(second, 2)]
    with pytest.raises(ValueError, match="share"):
        schedules.SequentialLR(first, parts, [3])
    parts = [schedules.StepLR(first, 2), schedules.StepLR(first, 2)]
    with pytest.raises(ValueError, match="milestones"):
        schedules.SequentialLR(first, parts, [3, 4])
