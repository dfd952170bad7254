"""Optimizers, against the textbook's float64 and against PyTorch's."""

import numpy as np
import pytest
import textbook
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl import nn, optim
from minidl.array.device import to_device
from minidl.optim.rule import Rule

SHAPES = [(3, 4), (5,), (), (2, 1, 3)]
SGD_AND_ADAM = {  # minidl's class, its settings, the rule of the textbook
    "sgd": (optim.SGD, {"lr": 0.1}, textbook.sgd_step),
    "momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9}, textbook.sgd_step),
    "nesterov": (
        optim.SGD,
        {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        textbook.sgd_step,
    ),
    "dampening": (
        optim.SGD,
        {"lr": 0.1, "momentum": 0.5, "dampening": 0.3},
        textbook.sgd_step,
    ),
    "adam": (optim.Adam, {"lr": 0.01}, textbook.adam_step),
    "adam, decay": (
        optim.Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
        textbook.adam_step,
    ),
    "amsgrad": (optim.Adam, {"lr": 0.01, "amsgrad": True}, textbook.adam_step),
    "adamw": (optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}, textbook.adamw_step),
}
DECAY = {"weight_decay": 0.1}
CONFIGURATIONS = [
    *[
        ("SGD", settings)
        for settings in (
            {},
            DECAY,
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.5, **DECAY},
            {"momentum": 0.9, "nesterov": True, **DECAY},
            {"momentum": 0.9, "maximize": True, **DECAY},
        )
    ],
    *[
        (name, settings)
        for name in ("Adam", "AdamW")
        for settings in (
            {},
            DECAY,
            {"amsgrad": True, **DECAY},
            {"betas": (0.5, 0.7), "eps": 0.01, "maximize": True},
        )
    ],
    ("Adam", {"decoupled_weight_decay": True, **DECAY}),
    *[
        (name, settings)
        for name in ("NAdam", "RAdam")
        for settings in (
            {},
            DECAY,
            {"decoupled_weight_decay": True, **DECAY},
            {"betas": (0.5, 0.7), "eps": 0.01, "maximize": True, **DECAY},
        )
    ],
    ("NAdam", {"momentum_decay": 0.1}),
    ("RAdam", {"betas": (0.9, 0.6)}),
    ("Adamax", {}),
    ("Adamax", {"betas": (0.5, 0.7), "eps": 0.01, "maximize": True, **DECAY}),
    *[
        ("RMSprop", {"centered": centered, "momentum": momentum, **more})
        for centered in (False, True)
        for momentum in (0, 0.9)
        for more in ({}, {"alpha": 0.9, "eps": 0.01, "maximize": True, **DECAY})
    ],
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5, **DECAY}),
    ("Adagrad", {"eps": 0.1, "maximize": True}),
    ("Adadelta", {}),
    ("Adadelta", {"rho": 0.5, "eps": 0.01, "maximize": True, **DECAY}),
]
RULES = dict(CONFIGURATIONS)  # each rule once, in its richest form


def titles(configurations):
    return [
        f"{name}-" + ",".join(f"{k}={v}" for k, v in settings.items())
        for name, settings in configurations
    ]


def arrays(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def parameters(dtype, xp=np, seed=0):
    return [nn.Parameter(xp.asarray(a)) for a in arrays(seed, dtype)]


def give(params, gradients):
    """Set the gradients, as backward does; None leaves a parameter without."""
    for p, g in zip(params, gradients, strict=True):
        p.grad = None
        if g is not None:
            p.grad = md.Tensor(to_device(np.asarray(g, p.dtype), p.device))


def close(p, expected, tolerance):
    np.testing.assert_allclose(p.numpy(), expected, tolerance, tolerance)


# --- The rules ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SGD_AND_ADAM)
@pytest.mark.parametrize("steps", [1, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [("f4", 3e-5), ("f8", 1e-11)])
def test_textbook(name, steps, dtype, tolerance, xp):
    kind, settings, rule = SGD_AND_ADAM[name]
    params = parameters(dtype, xp)
    optimizer = kind(params, **settings)
    expected, states = arrays(0), [{} for _ in SHAPES]
    for step in range(1, steps + 1):
        gradients = arrays(step)
        give(params, gradients)
        optimizer.step()
        for i, g in enumerate(gradients):
            expected[i], states[i] = rule(expected[i], g, states[i], **settings)
    for p, e in zip(params, expected, strict=True):
        close(p, e, tolerance)


@pytest.mark.parametrize(
    ("name", "settings"), CONFIGURATIONS, ids=titles(CONFIGURATIONS)
)
def test_pytorch(name, settings):
    """Two groups, 12 steps, gradients that are missing now and then."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays(0)]
    groups = [slice(0, 2), slice(2, 4)]
    reference = getattr(torch.optim, name)(
        [{"params": theirs[groups[0]], "lr": 0.05}, {"params": theirs[groups[1]]}],
        **settings,
    )
    for dtype, tolerance in (("f4", 3e-5), ("f8", 1e-11)):
        ours = parameters(dtype)
        optimizer = getattr(optim, name)(
            [{"params": ours[groups[0]], "lr": 0.05}, {"params": ours[groups[1]]}],
            **settings,
        )
        for step in range(1, 13):
            gradients = arrays(step)
            if step in (1, 5):
                gradients[step % 3] = None
            give(ours, gradients)
            optimizer.step()
            if dtype == "f4":
                for p, g in zip(theirs, gradients, strict=True):
                    p.grad = None if g is None else torch.tensor(g)
                reference.step()
        for p, e in zip(ours, theirs, strict=True):
            if name == "NAdam":  # PyTorch keeps its product of momenta in float32
                tolerance = max(tolerance, 1e-8)
            close(p, e.detach().numpy(), tolerance)


@pytest.mark.parametrize("name", RULES)
def test_same_arguments_as_pytorch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from inspect import signature

    left_out = {"foreach", "fused", "capturable", "differentiable"}
    ours, theirs = (
        {
            k: p.default
            for k, p in signature(getattr(package, name)).parameters.items()
            if k not in left_out
        }
        for package in (optim, torch.optim)
    )
    assert ours == theirs
    assert [k for k in ours if k != "maximize"] == [
        k for k in theirs if k != "maximize"
    ]


@pytest.mark.parametrize("name", RULES)
def test_one_launch_a_group(name, monkeypatch):
    optimizer = getattr(optim, name)(parameters("f4"), **RULES[name])
    launches, run = [], Rule.__call__
    monkeypatch.setattr(
        Rule,
        "__call__",
        lambda rule, g, *a: (launches.append(g.size), run(rule, g, *a)),
    )
    for step in range(3):
        give(optimizer.param_groups[0]["params"], arrays(step))
        optimizer.step()
    assert launches == [64, 64, 64]  # four parameters, each padded to 16 elements


@pytest.mark.parametrize("name", RULES)
def test_padding_stays_zero(name):
    params = parameters("f4")
    optimizer = getattr(optim, name)(params, **RULES[name])
    for step in range(3):
        give(params, arrays(step))
        optimizer.step()
    storage = params[0].storage
    assert np.count_nonzero(storage.data) == sum(p.data.size for p in params)


def test_bit_for_bit():
    def run():
        params = parameters("f4")
        optimizer = optim.Adam(params)
        for step in range(5):
            give(params, arrays(step))
            optimizer.step()
        return b"".join(p.numpy().tobytes() for p in params)

    assert run() == run()


# --- Groups, gradients, closures ------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_no_gradient_no_step(name):
    params = parameters("f4")
    optimizer = getattr(optim, name)(params, **RULES[name])
    before = [p.numpy().copy() for p in params]
    give(params, [None, *arrays(1)[1:]])
    optimizer.step()
    moved = [(p.numpy() != b).any() for p, b in zip(params, before, strict=True)]
    assert moved == [False, True, True, True]
    assert [optimizer.state[p]["step"] for p in params] == [0, 1, 1, 1]


def test_closure_and_zero_grad():
    p = nn.Parameter(np.ones(3, np.float32))
    optimizer = optim.SGD([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with md.no_grad():
        assert optimizer.step(closure).item() == 3
    assert p.tolist() == [0, 0, 0]
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0, 0, 0]
    optimizer.zero_grad()
    assert p.grad is None


def test_add_param_group():
    first, second = parameters("f4")[:2]
    optimizer = optim.SGD([first], lr=1.0)
    optimizer.add_param_group({"params": second, "lr": 10.0, "name": "head"})
    before = second.numpy().copy()
    give([first, second], [None, np.ones(5)])
    optimizer.step()
    close(second, before - 10, 1e-6)
    assert [g["lr"] for g in optimizer.param_groups] == [1.0, 10.0]
    assert optimizer.param_groups[1]["name"] == "head"


def test_learning_rate_as_a_tensor():
    p = nn.Parameter(np.zeros(1, np.float32))
    optimizer = optim.SGD([p], lr=md.tensor(0.5))
    give([p], [np.ones(1)])
    optimizer.step()
    optimizer.param_groups[0]["lr"].data[...] = 2
    optimizer.step()
    assert p.item() == -2.5


def test_momentum_switched_on_later():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    p, q = nn.Parameter(np.ones(3)), torch.ones(3, dtype=torch.float64)
    optimizer, reference = optim.SGD([p], lr=0.1), torch.optim.SGD([q], lr=0.1)
    for step in range(4):
        for group in (optimizer.param_groups[0], reference.param_groups[0]):
            group["momentum"] = 0.9 if step else 0
        give([p], [np.arange(3.0)])
        q.grad = torch.arange(3, dtype=torch.float64)
        optimizer.step(), reference.step()
    close(p, q.numpy(), 1e-12)


@pytest.mark.parametrize(
    ("kind", "settings", "what"),
    [
        (optim.SGD, {"lr": -1}, "lr"),
        (optim.SGD, {"lr": float("nan")}, "lr"),
        (optim.SGD, {"momentum": -1}, "momentum"),
        (optim.SGD, {"nesterov": True}, "nesterov"),
        (optim.SGD, {"weight_decay": -1}, "weight_decay"),
        (optim.Adam, {"betas": (0.9, 1.0)}, "betas"),
        (optim.AdamW, {"eps": -1}, "eps"),
        (optim.NAdam, {"momentum_decay": -1}, "momentum_decay"),
        (optim.RMSprop, {"alpha": -1}, "alpha"),
        (optim.Adagrad, {"lr_decay": -1}, "lr_decay"),
        (optim.Adagrad, {"initial_accumulator_value": -1}, "initial_accumulator"),
        (optim.Adadelta, {"rho": 1.5}, "rho"),
    ],
)
def test_settings_that_cannot_be(kind, settings, what):
    p = nn.Parameter(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=what):
        kind([p], **settings)
    assert p.storage is None  # nothing was moved


def test_parameters_that_cannot_be():
    p = nn.Parameter(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="model.parameters"):
        optim.Adam(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="empty"):
        optim.SGD([])
    with pytest.raises(TypeError, match="list"):
        optim.SGD(p)
    with pytest.raises(TypeError, match="ndarray"):
        optim.SGD([np.zeros(3)])
    with pytest.raises(ValueError, match="result"):
        optim.SGD([p * 2])
    with pytest.raises(ValueError, match="more than once"):
        optim.SGD([p, p])
    optimizer = optim.SGD([p])
    with pytest.raises(ValueError, match="more than once"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


# --- Several optimizers, other homes --------------------------------------------------


@given(data=st.data())
def test_any_subsets_in_any_order(data):
    """Optimizers over overlapping lists: each trains its own, all of it."""
    params = parameters("f8")
    expected = [p.numpy().copy() for p in params]
    order = st.lists(st.sampled_from(range(4)), min_size=1, unique=True)
    chosen = data.draw(st.lists(order, min_size=1, max_size=3))
    optimizers = [optim.SGD([params[i] for i in c], lr=0.5) for c in chosen]
    for step in range(2):
        gradients = arrays(step)
        for members, optimizer in zip(chosen, optimizers, strict=True):
            give(params, gradients)
            optimizer.step()
            for i in members:
                expected[i] = expected[i] - 0.5 * gradients[i]
    for p, e in zip(params, expected, strict=True):
        close(p, e, 1e-12)


def test_a_second_optimizer_keeps_the_storage():
    params = parameters("f4")
    optim.SGD(params)
    storage = params[0].storage
    optim.Adam(params)
    optim.Adam(params[1:3])
    assert all(p.storage is storage for p in params)


@pytest.mark.parametrize("name", RULES)
def test_plain_tensors(name):
    """Leaf Tensors that no module owns, one of them not contiguous."""
    kind, settings = getattr(optim, name), RULES[name]
    homes = [nn.Parameter(np.ones((3, 2), np.float32)) for _ in range(2)]
    tensors = [
        md.tensor(np.ones((3, 2), np.float32), requires_grad=True),
        md.Tensor(np.ones((2, 3), np.float32).T).requires_grad_(),
    ]
    for _ in range(2):
        for p, g in zip(homes + tensors, [1.0, 2.0] * 2, strict=True):
            p.grad = md.tensor(np.full((3, 2), g, np.float32))
    kind(homes, **settings).step()
    kind(tensors, **settings).step()
    for p, q in zip(homes, tensors, strict=True):
        close(q, p.numpy(), 1e-6)


def test_two_number_types_in_a_group():
    params = [nn.Parameter(np.ones(3, t)) for t in (np.float32, np.float64)]
    optimizer = optim.SGD(params, lr=1.0)
    give(params, [np.ones(3), np.ones(3)])
    optimizer.step()
    assert [p.tolist() for p in params] == [[0.0] * 3] * 2


def test_a_model_cast_after_its_optimizer():
    model = nn.Linear(2, 2)
    optimizer = optim.Adam(model.parameters())
    model.to(np.float64)
    for p in model.parameters():
        p.grad = md.Tensor(np.ones(p.shape))
    before = model.weight.numpy().copy()
    with pytest.raises(RuntimeError, match="build optimizers after"):
        optimizer.step()
    assert (model.weight.numpy() == before).all()


# --- The state ------------------------------------------------------------------------


def trained(name, seed, steps):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data[...] = rng.standard_normal(p.shape)
    optimizer = getattr(optim, name)(model.parameters(), **RULES[name])
    train(model, optimizer, range(steps))
    return model, optimizer


def train(model, optimizer, seeds):
    for seed in seeds:
        x = np.random.default_rng(seed).standard_normal((5, 3)).astype(np.float32)
        optimizer.zero_grad()
        model(md.tensor(x)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", RULES)
def test_state_moves_to_another_optimizer(name):
    model, optimizer = trained(name, 0, 3)
    other, resumed = trained(name, 1, 1)
    optimizer.param_groups[0]["lr"] = 0.125
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["lr"] == 0.125
    train(model, optimizer, (7, 8))
    train(other, resumed, (7, 8))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.numpy().tobytes() == q.numpy().tobytes()


def test_state_by_name():
    model, optimizer = trained("Adam", 0, 2)
    saved = optimizer.state_dict()
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert saved["param_groups"][0]["params"] == names
    assert list(saved["state"]) == names
    weight = saved["state"]["0.weight"]
    assert list(weight) == ["step", "exp_avg", "exp_avg_sq"]
    assert weight["step"] == 2 and weight["exp_avg"].shape == (4, 3)


def test_a_name_twice():
    models = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = optim.Adam([p for m in models for p in m.parameters()])
    assert list(optimizer.state_dict()["state"]) == [
        "weight",
        "bias",
        "weight@2",
        "bias@2",
    ]


@pytest.mark.parametrize("change", ["missing", "shape", "group", "setting"])
def test_a_state_that_does_not_fit(change):
    model, optimizer = trained("Adam", 0, 2)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 99.0
    if change == "missing":
        del saved["state"]["1.bias"]["exp_avg"]
    elif change == "shape":
        saved["state"]["1.bias"]["exp_avg"] = np.zeros(7)
    elif change == "group":
        saved["param_groups"][0]["params"].pop()
    else:
        saved["param_groups"][0]["betas"] = (2.0, 2.0)
    with pytest.raises(ValueError):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] != 99.0


def test_loading_a_setting_that_needs_more_state():
    model, optimizer = trained("Adam", 0, 0)
    other = optim.Adam(model.parameters(), amsgrad=True)
    plain = optim.Adam(model.parameters(), amsgrad=False)
    plain.load_state_dict(other.state_dict())
    assert "max_exp_avg_sq" in plain.state[model[0].weight]


# --- Tracing --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_trace_is_what_step_does(name, xp):
    params = parameters("f4", xp)
    optimizer = getattr(optim, name)(params, **RULES[name])
    for step in range(3):
        give(params, arrays(step))
        seen = optimizer.trace(params[0], (1, 2))
        assert vars(seen) == vars(optimizer.trace(params[0], 6))
        assert seen.weight == params[0].data[1, 2]
        optimizer.step()
        assert seen.new_weight == params[0].data[1, 2]
        assert seen.step == step + 1 == optimizer.state[params[0]]["step"]
        assert f"{seen.update:.9g}" in str(seen)


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_trace_of_adam(kind):
    p = nn.Parameter(np.array([0.5, -0.25]))
    optimizer = kind([p], lr=0.1, weight_decay=0, betas=(0.9, 0.99))
    give([p], [[1.0, 3.0]])
    optimizer.step()
    give([p], [[1.0, 2.0]])
    seen = optimizer.trace(p, 1)
    m, v = 0.9 * 0.3 + 0.2, 0.99 * 0.09 + 0.04
    m_hat, v_hat = m / (1 - 0.9**2), v / (1 - 0.99**2)
    update = -0.1 * m_hat / (v_hat**0.5 + 1e-8)
    expected = [2, 2.0, m, v, m_hat, v_hat, v_hat**0.5 + 1e-8, update]
    names = "step g m v m_hat v_hat denominator update".split()
    np.testing.assert_allclose([getattr(seen, k) for k in names], expected, 1e-12)
    assert [line.split()[0] for line in str(seen).splitlines()] == [
        "step",
        "weight",
        *names[1:],
        "new_weight",
    ]


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RAdam", "Adamax"])
def test_trace_explains_the_update(name):
    p = nn.Parameter(np.array([0.5]))
    optimizer = getattr(optim, name)([p], lr=0.1, weight_decay=0)
    for step in range(8):
        give([p], [[1.0 + step]])
        seen = optimizer.trace(p, 0)
        optimizer.step()
        assert seen.update == pytest.approx(-0.1 * seen.m_hat / seen.denominator)


def test_nothing_to_trace():
    p, q = parameters("f4")[:2]
    optimizer = optim.Adam([p])
    with pytest.raises(ValueError, match="not train"):
        optimizer.trace(q, 0)
    with pytest.raises(RuntimeError, match="backward"):
        optimizer.trace(p, 0)
    give([p], arrays(0)[:1])
    with pytest.raises(IndexError, match="one weight"):
        optimizer.trace(p, (1,))
