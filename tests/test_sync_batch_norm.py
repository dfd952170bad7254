"""SyncBatchNorm on several ranks is BatchNorm on the whole batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
import minidl.nn.functional as F
from minidl import nn
from minidl.autograd import grad
from minidl.distributed import Alone, DataParallel, Simulated, SyncBatchNorm
from minidl.distributed.sync_batch_norm import combined

CHANNELS = 3
SHAPES = [(11, CHANNELS), (9, CHANNELS, 4), (7, CHANNELS, 3, 2)]
SPLITS = {2: [5], 3: [2, 2], 4: [1, 4, 5]}  # uneven, with 0 on rank 1 of 3
LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def inputs(shape, dtype, offset=0.0):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, *shape))
    w, b = rng.standard_normal((2, CHANNELS))
    return [a.astype(dtype) for a in (x + offset, g, w, b)]


def run(layer, x, g, w, b):
    """Output, gradients and statistics, after two steps on x and on 2 x."""
    layer.to(x.dtype)
    layer.weight.data, layer.bias.data = w, b
    for factor in (2, 1):
        layer.zero_grad()
        t = md.tensor(factor * x, requires_grad=True)
        y = layer(t)
        y.backward(md.tensor(g))
    own = y.numpy(), t.grad.numpy()
    added = layer.weight.grad.numpy(), layer.bias.grad.numpy()
    shared = layer.running_mean.numpy(), layer.running_var.numpy()
    return own, added, (*shared, layer.num_batches_tracked.item())


def whole_and_parts(n, shape, dtype, offset=0.0, momentum=0.1):
    x, g, w, b = inputs(shape, dtype, offset)
    whole = run(LAYERS[len(shape)](CHANNELS, momentum=momentum), x, g, w, b)

    def part(communicator):
        own = [np.split(a, SPLITS[n])[communicator.rank] for a in (x, g)]
        return run(SyncBatchNorm(CHANNELS, momentum=momentum), *own, w, b)

    parts = Simulated(n).run(part)
    return whole, parts


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("shape", SHAPES, ids=len)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_whole_batch(n, shape, dtype, tolerance):
    whole, parts = whole_and_parts(n, shape, dtype)
    for i in range(2):
        together = np.concatenate([part[0][i] for part in parts])
        assert together.dtype == dtype
        close(together, whole[0][i], tolerance)
        close(sum(part[1][i] for part in parts), whole[1][i], tolerance)
    for _, _, statistics in parts:
        for own, others, expected in zip(
            statistics, parts[0][2], whole[2], strict=True
        ):
            assert np.array_equal(own, others)
            close(own, expected, tolerance)


def close(found, expected, tolerance):
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def test_momentum_none_is_the_mean_of_all_batches():
    whole, parts = whole_and_parts(2, SHAPES[2], "float64", momentum=None)
    for own, expected in zip(parts[1][2], whole[2], strict=True):
        close(own, expected, 1e-12)


@pytest.mark.parametrize("n", [2, 3])
def test_a_large_mean_costs_no_more_digits_than_on_one_rank(n):
    offset = 1e4
    x, g, w, b = inputs(SHAPES[2], np.float32, offset)
    exact = run(nn.BatchNorm2d(CHANNELS), *(a.astype(np.float64) for a in (x, g, w, b)))
    whole, parts = whole_and_parts(n, SHAPES[2], np.float32, offset)

    def error(values):
        return np.abs(values - exact[0][0]).max()

    together = np.concatenate([part[0][0] for part in parts])
    assert error(together) <= 2 * error(whole[0][0]) + 1e-6
    assert error(together) < 1e-2


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 99))
def test_combined_statistics(counts, seed):
    rng = np.random.default_rng(seed)
    samples = [5 + rng.standard_normal((count, 2)) for count in counts]
    means = [s.mean(0) if len(s) else np.zeros(2) for s in samples]
    squares = [((s - m) ** 2).sum(0) for s, m in zip(samples, means, strict=True)]
    n, mean, var = combined(*map(np.array, (counts, means, squares)))
    together = np.concatenate(samples)
    assert n == len(together)
    if n:
        np.testing.assert_allclose(mean, together.mean(0), atol=1e-12)
        np.testing.assert_allclose(var, together.var(0), atol=1e-12)


def test_float16_computes_in_float32():
    whole, parts = whole_and_parts(2, SHAPES[2], np.float16)
    together = np.concatenate([part[0][0] for part in parts])
    assert together.dtype == np.float16
    close(together, whole[0][0], 2e-3)


def test_evaluation_is_plain_and_asks_no_other_rank():
    x = inputs(SHAPES[2], np.float32)[0]

    def evaluate(communicator):
        layer = SyncBatchNorm(CHANNELS).eval()
        if communicator.rank:
            return None  # the other rank would wait for this one
        return layer(md.tensor(x)).numpy()

    expected = nn.BatchNorm2d(CHANNELS).eval()(md.tensor(x)).numpy()
    assert np.array_equal(Simulated(2).run(evaluate)[0], expected)


def test_on_one_rank_it_is_batch_norm():
    x = md.tensor(inputs(SHAPES[1], np.float32)[0])
    expected = nn.BatchNorm1d(CHANNELS)(x).numpy()
    assert np.array_equal(SyncBatchNorm(CHANNELS)(x).numpy(), expected)


def test_what_is_refused():
    def wrong(communicator):
        layer = SyncBatchNorm(CHANNELS)
        with pytest.raises(ValueError, match=r"expected an input of shape \(N, 3"):
            layer(md.ones(4, 2))
        with pytest.raises(ValueError, match="more than 1 value for each channel"):
            layer(md.ones(1 - communicator.rank, CHANNELS))
        x = md.ones(2, CHANNELS).requires_grad_()
        with pytest.raises(RuntimeError, match="no second derivative"):
            grad((layer(x) ** 2).sum(), [x], create_graph=True)
        return True

    assert all(Simulated(2).run(wrong))


def test_nothing_on_any_rank_leaves_the_statistics():
    def empty(communicator):
        layer = SyncBatchNorm(CHANNELS)
        x = md.zeros(0, CHANNELS, 2).requires_grad_()
        layer(x).sum().backward()
        assert x.grad.shape == (0, CHANNELS, 2)
        return layer.running_mean.numpy(), layer.weight.grad.numpy()

    for mean, gradient in Simulated(2).run(empty):
        assert not mean.any() and not gradient.any()


def network():
    md.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4 * 36, bias=False)),
        nn.Linear(4 * 36, 5),
    ).to(np.float64)


def test_convert_keeps_parameters_names_and_place():
    model = network()
    before = dict(model.named_parameters()), dict(model.named_buffers())
    names, order = list(model.state_dict()), repr(model)
    model[1].eval()
    converted = SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model and list(model.state_dict()) == names
    assert repr(model) == order.replace("BatchNorm2d", "SyncBatchNorm").replace(
        "BatchNorm1d", "SyncBatchNorm"
    )
    assert isinstance(model[1], SyncBatchNorm) and not model[1].training
    after = dict(model.named_parameters()), dict(model.named_buffers())
    for old, new in zip(before, after, strict=True):
        assert all(new[name] is value for name, value in old.items())
    layer = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    assert isinstance(SyncBatchNorm.convert(layer), SyncBatchNorm)
    shared = nn.Sequential(layer, layer)
    SyncBatchNorm.convert(shared)
    assert shared[0] is shared[1]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_network_trains_as_on_one_rank(n):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((10, 1, 6, 6)), rng.integers(0, 5, 10)

    def train(communicator):
        model = DataParallel(SyncBatchNorm.convert(network()), communicator, 0.001)
        parts = np.array_split(np.arange(10), communicator.size)
        own = parts[communicator.rank]
        if communicator.size == 3:  # one rank has nothing
            own = [parts[0], parts[0][:0], np.concatenate(parts[1:])][communicator.rank]
        for _ in range(3):
            model.zero_grad()
            loss = F.cross_entropy(
                model(md.tensor(images[own])), md.tensor(labels[own])
            )
            model.backward(loss)
            for p in model.parameters():
                p.data -= 0.1 * p.grad.data
        return [v.numpy() for v in model.state_dict().values()]

    expected = train(Alone())
    for values in Simulated(n).run(train):
        for value, other in zip(values, expected, strict=True):
            close(value, other, 1e-11)
