"""Modules, their parameters and state, and the flat storage behind them."""

import copy
import gc
import weakref

import numpy as np
import pytest

import minidl as md
import minidl.nn.functional as F
from minidl import nn, optim
from minidl.nn.parameter import FlatStorage, flat_storages


class Block(nn.Module):
    """Everything that a module can hold."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(md.tensor([1.0, 2.0]))
        self.register_buffer("count", md.tensor(3))
        self.inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        self.register_buffer("cache", md.tensor([0.5]), persistent=False)
        self.register_parameter("absent", None)
        self.shift = nn.Parameter(md.tensor([0.0, 0.0]))
        self.setting = 5

    def forward(self, x):
        return self.inner(x * self.scale) + self.shift


PARAMETERS = [
    "scale",
    "shift",
    "inner.0.weight",
    "inner.0.bias",
    "inner.2.weight",
    "inner.2.bias",
]


def names(pairs):
    return [name for name, _ in pairs]


def values(module):
    return {name: p.numpy().copy() for name, p in module.state_dict().items()}


def same(a, b):
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


# --- Registration ---------------------------------------------------------------------


def test_registration_is_in_order_of_assignment():
    block = Block()
    assert names(block.named_parameters()) == PARAMETERS
    assert names(block.named_buffers()) == ["count", "cache"]
    assert names(block.named_modules()) == [
        "",
        "inner",
        "inner.0",
        "inner.1",
        "inner.2",
    ]
    assert names(block.named_children()) == ["inner"]
    assert list(block.state_dict()) == ["scale", "shift", "count", *PARAMETERS[2:]]
    assert names(block.named_parameters(recurse=False)) == PARAMETERS[:2]
    assert names(block.named_parameters("model"))[-1] == "model.inner.2.bias"
    assert block.absent is None and {"scale", "count", "inner"} <= set(dir(block))
    assert [p.name for p in block.parameters()] == PARAMETERS


def test_replacing_and_deleting():
    block = Block()
    block.scale = nn.Parameter(md.tensor([4.0]))
    assert names(block.named_parameters())[0] == "scale", "the place is kept"
    block.scale = None
    assert "scale" not in block.state_dict() and block.scale is None
    block.scale = nn.Parameter(md.tensor([4.0]))
    assert names(block.named_parameters())[0] == "scale"
    block.count = md.tensor(7)
    assert block.state_dict()["count"].item() == 7
    block.count = nn.Parameter(md.tensor([1.0]))  # from the buffers to the parameters
    assert names(block.named_buffers()) == ["cache"]
    assert names(block.named_parameters(recurse=False)) == ["scale", "shift", "count"]
    del block.inner, block.cache, block.setting
    assert not list(block.children()) and not list(block.buffers())
    with pytest.raises(AttributeError, match="Block has no attribute 'inner'"):
        block.inner  # noqa: B018
    with pytest.raises(AttributeError):
        del block.inner
    block.register_buffer("cache", md.tensor([1.0]))  # persistent this time
    assert "cache" in block.state_dict()
    block.setting = nn.ReLU()
    assert names(block.named_children()) == ["setting"]


def test_refusals_of_registration():
    block = Block()
    before = values(block)
    for name, value, sentence in [
        ("scale", md.tensor([1.0]), "must be a Parameter or None, got Tensor"),
        ("inner", 5, "must be a Module or None, got int"),
        ("count", np.zeros(3), "must be a Tensor or None, got ndarray"),
    ]:
        with pytest.raises(TypeError, match=f"'{name}' {sentence}"):
            setattr(block, name, value)
    with pytest.raises(KeyError, match="has an attribute 'setting' already"):
        block.register_parameter("setting", nn.Parameter(md.tensor([1.0])))
    with pytest.raises(KeyError, match="dot"):
        block.register_module("a.b", nn.ReLU())
    with pytest.raises(TypeError, match="Parameter or None, got Tensor"):
        block.register_parameter("new", md.tensor([1.0]))
    same(values(block), before)

    class Early(nn.Module):
        def __init__(self):
            self.layer = nn.ReLU()

    with pytest.raises(AttributeError, match=r"call super\(\).__init__\(\) before"):
        Early()
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(1)


def test_shared_parameters_are_named_twice_and_found_once():
    block = Block()
    block.tied = nn.Linear(2, 3)
    block.tied.weight = block.inner[0].weight
    assert names(block.named_parameters()) == [*PARAMETERS, "tied.bias"]
    assert "tied.weight" in names(block.named_parameters(remove_duplicate=False))
    assert "tied.weight" in block.state_dict()
    block.again = block.inner
    assert names(block.named_parameters()) == [*PARAMETERS, "tied.bias"]
    optimizer = optim.SGD(block.parameters(), lr=1.0)
    block.tied(block.inner[0](md.tensor([[1.0, 2.0]]))[:, :2]).sum().backward()
    before = block.tied.weight.numpy().copy()
    optimizer.step()
    expected = before - block.tied.weight.grad.numpy()
    np.testing.assert_array_equal(block.inner[0].weight.numpy(), expected)


def test_representation():
    class Named(nn.Module):
        def extra_repr(self):
            return "size=3"

    module = Named()
    module.first, module.second = Named(), nn.Sequential(nn.Tanh())
    assert repr(module) == (
        "Named(\n"
        "  size=3\n"
        "  (first): Named(size=3)\n"
        "  (second): Sequential(\n"
        "    (0): Tanh()\n"
        "  )\n"
        ")"
    )


# --- The state ------------------------------------------------------------------------


def test_state_dict_has_the_names_and_shapes_of_pytorch():
    torch = pytest.importorskip("torch")

    def build(nn):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, (1, 3), groups=2)),
            nn.Flatten(),
            nn.Linear(6, 5),
        )

    ours, theirs = build(nn), build(torch.nn)
    shapes = {name: tuple(p.shape) for name, p in theirs.state_dict().items()}
    assert {name: p.shape for name, p in ours.state_dict().items()} == shapes
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    same(values(ours), {k: v.numpy() for k, v in theirs.state_dict().items()})
    theirs.load_state_dict(
        {k: torch.from_numpy(v.numpy()) for k, v in ours.state_dict().items()}
    )


def test_state_dict_round_trip():
    a, b = Block(), Block()
    a.shift.data[...] = 9
    a.count.data[...] = 8
    assert b.load_state_dict(a.state_dict()) == ([], [])
    same(values(a), values(b))
    a.shift.data[...] = 1
    assert b.shift.numpy()[0] == 9, "values are copied in"
    assert not a.state_dict()["shift"].requires_grad
    a.state_dict()["shift"].data[...] = 4
    assert a.shift.numpy()[0] == 4, "the state is on the module's own arrays"
    b.load_state_dict({k: v.numpy().tolist() for k, v in a.state_dict().items()})
    same(values(a), values(b))


def test_state_that_does_not_fit_changes_nothing():
    block = Block()
    before = values(block)
    state = {name: value + 1 for name, value in before.items()}
    wrong = {**state, "inner.0.weight": np.zeros((2, 3)), "stranger": np.zeros(1)}
    del wrong["shift"]
    sentence = (
        r"does not fit Block: inner.0.weight has shape \(3, 2\) here and \(2, 3\) "
        "there; shift is missing; stranger is unknown here"
    )
    with pytest.raises(RuntimeError, match=sentence):
        block.load_state_dict(wrong)
    same(values(block), before)
    with pytest.raises(RuntimeError, match="inner.0.weight has shape"):
        block.load_state_dict(wrong, strict=False)
    same(values(block), before)
    del wrong["inner.0.weight"]
    result = block.load_state_dict(wrong, strict=False)
    assert result.missing_keys == ["shift", "inner.0.weight"]
    assert result.unexpected_keys == ["stranger"]
    np.testing.assert_array_equal(block.scale.numpy(), before["scale"] + 1)
    np.testing.assert_array_equal(block.shift.numpy(), before["shift"])


# --- The mode, the place, the type ----------------------------------------------------


def test_train_eval_apply_requires_grad():
    block, seen = Block(), []
    assert block.training and block.eval() is block
    assert not any(module.training for module in block.modules())
    assert block.train().inner[1].training
    assert block.apply(lambda m: seen.append(type(m).__name__)) is block
    assert seen == ["Linear", "ReLU", "Linear", "Sequential", "Block"]
    block.requires_grad_(False)
    assert not block(md.tensor([[1.0, 2.0]])).requires_grad


@pytest.mark.parametrize("flat", [False, True])
def test_zero_grad(flat):
    block = Block()
    if flat:
        optim.SGD(block.parameters())
    block.scale.grad = md.tensor([1.0, 2.0])
    block.zero_grad(set_to_none=False)
    assert block.scale.grad.tolist() == [0, 0] and block.shift.grad is None
    block.zero_grad()
    assert block.scale.grad is None


def test_to_casts_floating_point_values_alone():
    block = Block()
    block.scale.grad = md.tensor([1.0, 2.0])
    parameters = list(block.parameters())
    assert block.to(np.float64) is block
    assert [p.dtype for p in block.parameters()] == [np.float64] * 6
    assert (block.cache.dtype, block.count.dtype) == (np.float64, np.int64)
    assert all(a is b for a, b in zip(parameters, block.parameters(), strict=True))
    assert block.scale.grad is None
    array = block.scale.data
    assert block.to("cpu", md.float64).scale.data is array, "nothing to do"
    with pytest.raises(ValueError, match="unknown device 'nowhere'"):
        block.to("nowhere")


def test_to_takes_parameters_out_of_flat_storage():
    block = Block()
    optimizer = optim.SGD(block.parameters(), lr=0.1)
    block.to(dtype="float64")
    assert block.scale.storage is None and block.scale.gradient_view is None
    block(md.tensor(np.ones((1, 2)))).sum().backward()
    with pytest.raises(RuntimeError, match="'scale' has become float64 on cpu"):
        optimizer.step()


def test_moves_to_the_device_and_back(xp):
    block = Block()
    before = values(block)
    block.to("cpu" if xp is np else "cuda")
    assert isinstance(block.scale.data, xp.ndarray)
    optim.Adam(block.parameters())
    block.load_state_dict(before)
    assert isinstance(block.scale.data, xp.ndarray)
    same(values(block.to("cpu")), before)


@pytest.mark.parametrize("flat", [False, True])
def test_deepcopy(flat):
    block = Block()
    block.tied = block.inner
    if flat:
        optim.Adam(block.parameters())
    block(md.tensor([[1.0, 2.0]])).sum().backward()
    block.eval()
    block.shift.requires_grad_(False)
    other = copy.deepcopy(block)
    same(values(block), values(other))
    assert other.tied is other.inner and other.inner is not block.inner
    assert not other.training and not other.shift.requires_grad
    assert "cache" not in other.state_dict()
    for p in other.parameters():
        assert type(p) is nn.Parameter and p.storage is None and p.grad is None
    before = values(block)
    for p in other.parameters():
        p.data[...] = 0
    same(values(block), before)
    assert not other.scale.numpy().any()
    optim.SGD(other.parameters(), lr=1.0)
    other(md.tensor([[1.0, 2.0]])).sum().backward()
    assert other.scale.storage is not block.scale.storage


# --- Flat storage ---------------------------------------------------------------------


def flat_block(dtype="float32", xp=np):
    block = Block().to("cpu" if xp is np else "cuda", dtype)
    return block, FlatStorage(list(block.parameters()))


def shares_memory(a, b):
    if isinstance(a, np.ndarray):
        return np.shares_memory(a, b)
    start, end = b.data.ptr, b.data.ptr + b.nbytes
    return start <= a.data.ptr < end


def gaps(storage):
    """The elements that belong to no parameter, of data and grad."""
    free = np.ones(storage.size, bool)
    for p in storage.parameters:
        free[p.offset : p.offset + p.numel()] = False
    return [md.Tensor(x).numpy()[free] for x in (storage.data, storage.grad)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_flat_storage_is_aligned_and_in_order(xp, dtype):
    before = values(Block().to(dtype=dtype))
    block, storage = flat_block(dtype, xp)
    shapes = {name: value.shape for name, value in before.items()}
    end = 0
    for name, p in block.named_parameters():
        assert p.offset >= end and p.offset * p.element_size() % 64 == 0
        assert shares_memory(p.data, storage.data) and p.shape == shapes[name]
        end = p.offset + p.numel()
    assert storage.size >= end and not any(g.any() for g in gaps(storage))
    assert names(block.named_parameters()) == PARAMETERS


def test_moving_into_flat_storage_changes_no_value():
    block = Block()
    before = values(block)
    block.scale.grad = md.tensor([1.0, 2.0])
    storage = FlatStorage(list(block.parameters()))
    same(values(block), before)
    assert block.scale.grad.tolist() == [1, 2] and block.shift.grad is None
    assert storage.grad[:2].tolist() == [1, 2]


def test_views_stay_views(xp):
    block, storage = flat_block(xp=xp)
    block.load_state_dict({name: value + 1 for name, value in values(block).items()})
    block.scale.data = xp.asarray([7.0, 8.0])
    assert storage.data[:2].tolist() == [7, 8] and block.scale.dtype == np.float32
    block.scale.data = md.tensor([1.0, 2.0])  # as in PyTorch, where data is a Tensor
    assert storage.data[:2].tolist() == [1, 2]
    gradient = md.tensor(xp.asarray([3.0, 4.0], "float32"))
    block.scale.grad = gradient
    assert storage.grad[:2].tolist() == [3, 4]
    gradient.data[...] = 0
    assert block.scale.grad.tolist() == [3, 4]
    with pytest.raises(
        ValueError, match=r"scale has shape \(2,\), got .* shape \(3,\)"
    ):
        next(block.parameters()).data = xp.zeros(3)
    x = md.tensor(xp.ones((4, 2), "float32"))
    for _ in range(2):
        block(x).sum().backward()
    block.zero_grad()
    block(x).sum().backward()
    for p in block.parameters():
        assert shares_memory(p.data, storage.data)
        assert shares_memory(p.grad.data, storage.grad)
    assert not any(g.any() for g in gaps(storage))


def test_gradients_accumulate_in_flat_storage_as_outside():
    inside, outside = Block(), Block()
    outside.load_state_dict(inside.state_dict())
    FlatStorage(list(inside.parameters()))
    x = md.tensor([[1.0, 2.0], [3.0, -4.0]])
    for block in (inside, outside):
        for _ in range(3):
            (block(x) * block(x + 1)).sum().backward()
    for p, q in zip(inside.parameters(), outside.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-5)
    inside.zero_grad()
    inside(x).sum().backward(create_graph=True)
    assert inside.scale.grad.requires_grad
    penalty = (inside.scale.grad * inside.scale.grad).sum()
    (second,) = md.autograd.grad(penalty, inside.inner[0].weight)
    assert second.shape == (3, 2) and second.numpy().any()
    inside.zero_grad()


def test_products_are_written_into_the_flat_gradient(xp, monkeypatch):
    """The gradients of weights arrive as the very view, without a copy."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))
    model.to("cpu" if xp is np else "cuda")
    FlatStorage(list(model.parameters()))
    arrived = {}
    accumulate = nn.Parameter.accumulate

    def spy(self, gradient, fresh):
        arrived.setdefault(self.name, []).append(gradient.data is self.gradient_view)
        accumulate(self, gradient, fresh)

    assert [p.name for p in model.parameters()][0] == "0.weight"
    monkeypatch.setattr(nn.Parameter, "accumulate", spy)
    x = md.tensor(xp.ones((2, 2, 4, 4), "float32"))
    model(x).sum().backward()
    assert arrived["0.weight"] == arrived["2.weight"] == [True]
    expected = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    model(x).sum().backward()  # the second must not overwrite the first
    assert arrived["0.weight"] == [True, False]
    assert arrived["2.weight"] == [True, True]  # added where it lies
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), 2 * expected[name], rtol=1e-6)


def test_a_weight_used_twice_in_flat_storage(xp):
    linear = nn.Linear(3, 3).to("cpu" if xp is np else "cuda", "float64")
    array = np.random.default_rng(0).normal(size=(2, 3))

    def gradients():
        x = md.tensor(xp.asarray(array))
        y = linear(linear(x).tanh()) + F.linear(x, linear.weight)
        (y @ linear.weight @ linear.weight).sum().backward()
        result = [p.grad.numpy().copy() for p in linear.parameters()]
        linear.zero_grad()
        return result

    expected = gradients()
    FlatStorage(list(linear.parameters()))
    for a, b in zip(expected, gradients(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_a_weight_that_is_its_own_input_in_flat_storage():
    array = np.random.default_rng(0).normal(size=(3, 3))
    w = nn.Parameter(md.tensor(array))
    FlatStorage([w])
    weights = np.random.default_rng(1).normal(size=(3, 3))
    F.linear(w, w).backward(md.tensor(weights))  # w w^T
    expected = (weights + weights.T) @ array
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1e-12)


def test_grad_leaves_the_flat_gradient_alone(xp):
    linear = nn.Linear(3, 4).to("cpu" if xp is np else "cuda")
    storage = FlatStorage(list(linear.parameters()))
    storage.grad[...] = 7
    x = md.tensor(xp.ones((2, 3), "float32"))
    (g,) = md.autograd.grad(linear(x).sum(), linear.weight)
    assert not shares_memory(g.data, storage.grad)
    assert linear.weight.grad is None and (md.Tensor(storage.grad).numpy() == 7).all()


def test_a_storage_that_parameters_have_left_is_not_used_again():
    block = Block()
    (old,) = flat_storages(list(block.parameters()))
    assert flat_storages(list(block.parameters())) == [old], "all are there already"
    block.inner.to(dtype="float64").to(dtype="float32")
    (new,) = flat_storages(list(block.parameters()))
    assert new is not old and all(p.storage is new for p in block.parameters())


def test_number_types_have_storages_of_their_own():
    block = Block()
    block.inner.to(dtype="float64")
    storages = flat_storages(list(block.parameters()))
    assert [s.data.dtype for s in storages] == [np.float32, np.float64]
    assert block.scale.storage is block.shift.storage is storages[0]
    with pytest.raises(ValueError, match="one number type and device, got float32 on"):
        FlatStorage(list(block.parameters()))


def test_optimizers_over_subsets():
    block = Block()
    first = optim.SGD(block.inner.parameters(), lr=1.0)
    second = optim.SGD([block.scale, block.shift], lr=10.0)
    before = values(block)
    block(md.tensor([[1.0, 2.0]])).sum().backward()
    first.step()
    second.step()
    for name, p in block.named_parameters():
        lr = 1 if name.startswith("inner") else 10
        expected = before[name] - lr * p.grad.numpy()
        np.testing.assert_allclose(p.numpy(), expected, rtol=1e-6)
    storage = block.scale.storage
    optim.Adam(block.parameters())
    assert block.scale.storage is storage, "a third optimizer moves nothing"


def test_parameters_without_elements_or_dimensions():
    parameters = [nn.Parameter(md.tensor(np.zeros(s))) for s in [(), (0, 3), (2,), ()]]
    storage = FlatStorage(parameters)
    (parameters[0] * 2 + parameters[2].sum() + parameters[1].sum()).backward()
    assert parameters[0].grad.item() == 2 and parameters[1].grad.shape == (0, 3)
    assert parameters[3].grad is None and parameters[3].shape == ()
    assert not any(g.any() for g in gaps(storage))


def test_a_training_step_in_flat_storage_is_freed(without_collector):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    optimizer = optim.Adam(model.parameters())
    x, labels = md.tensor(np.ones((2, 1, 8, 8), "float32")), md.tensor([0, 2])
    for _ in range(2):
        optimizer.zero_grad()
        hidden = model[:3](x)
        loss = F.cross_entropy(model[3:](hidden), labels)
        array = weakref.ref(hidden.data)
        loss.backward()
        optimizer.step()
        del hidden, loss
        assert array() is None
    assert gc.collect() == 0
    storage = weakref.ref(model[0].weight.storage)
    del optimizer
    assert storage() is not None, "the parameters keep it"
