"""ShardedAdam is Adam: the same numbers, from a share of the moments on each rank."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from test_data_parallel import (
    BATCH,
    STEPS,
    Branches,
    batches,
    data,
    relative,
    small_cnn,
    vector,
)

import minidl as md
import minidl.nn.functional as F
from minidl import nn, optim
from minidl.distributed import (
    Alone,
    DataParallel,
    ShardedAdam,
    Simulated,
    SyncBatchNorm,
    functional,
)
from minidl.distributed.exchange import BucketedExchange
from minidl.train.step import train_step

BUCKETS = 0.001  # MB: three of them, or six
DECOUPLED = dict(weight_decay=0.1, decoupled_weight_decay=True)


def adam(model, **options):
    return optim.Adam(model.parameters(), **{"lr": 1e-2, **options})


def sharded(model, **options):
    options = {"lr": 1e-2, **options}
    return ShardedAdam(model.parameters(), model=model, **options)


def build(communicator, make, dtype=np.float32, compression=None, **options):
    model = DataParallel(
        small_cnn(dtype), communicator, BUCKETS, compression=compression
    )
    return model, make(model, **options)


def steps(model, optimizer, indices):
    """Train on some of the batches of `data`."""
    images, labels = data(vector(model).dtype)
    for index in indices:
        train_step(
            model,
            F.cross_entropy,
            optimizer,
            md.tensor(images[index]),
            md.tensor(labels[index]),
        )


def train(communicator, make, **options):
    """The weights after 20 steps."""
    model, optimizer = build(communicator, make, **options)
    steps(model, optimizer, batches(communicator, STEPS))
    return vector(model)


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": np.float64}, DECOUPLED, {"amsgrad": True, "weight_decay": 0.1}],
    ids=["float32", "float64", "decoupled", "amsgrad"],
)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_same_bits_as_adam(n, options):
    plain = Simulated(n).run(lambda c: train(c, adam, **options))
    found = Simulated(n).run(lambda c: train(c, sharded, **options))
    for weights in found:
        assert np.array_equal(weights, plain[0])


def test_parameter_groups_and_schedules():
    def run(communicator, make):
        model = DataParallel(small_cnn(np.float32), communicator, BUCKETS)
        first, *others = list(model.parameters())
        extra = {"model": model} if make is ShardedAdam else {}
        optimizer = make([{"params": [first], "lr": 0.1}], **extra, weight_decay=0.01)
        optimizer.add_param_group({"params": others[:2], "betas": (0.5, 0.9)})
        optimizer.add_param_group({"params": others[2:]})
        schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for index in batches(communicator, 5):
            steps(model, optimizer, [index])
            schedule.step()
        return vector(model)

    plain = Simulated(3).run(lambda c: run(c, optim.Adam))
    for weights in Simulated(3).run(lambda c: run(c, ShardedAdam)):
        assert np.array_equal(weights, plain[0])


def moment_bytes(optimizer):
    return sum(
        buffer.nbytes
        for flats in optimizer.flat
        for flat in flats
        for buffer in flat.buffers.values()
    )


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_memory_of_the_moments_is_divided(n):
    def run(communicator, make):
        md.manual_seed(0)
        model = DataParallel(nn.MLP((64, 200, 10)), communicator, 0.02)
        return moment_bytes(make(model))

    whole = run(Alone(), adam)
    each = Simulated(n).run(lambda c: run(c, sharded))
    assert whole <= sum(each) <= whole + 2 * 64 * len(each) * 4
    # rounded up: in the last bucket at most a cache line, of each of two moments
    assert max(each) <= whole / n + 2 * 64 * 4


def test_a_rank_may_own_nothing():
    """Linear(3, 2) fills two cache lines: with 4 ranks, two have padding only."""

    def run(communicator, make):
        md.manual_seed(0)
        model = DataParallel(nn.Linear(3, 2), communicator)
        optimizer = make(model)
        scaler = optim.GradScaler(init_scale=4.0)
        x = np.ones((communicator.rank + 1, 3), np.float32)
        for step in range(3):
            optimizer.zero_grad()
            far = 1e38 if step == 1 and communicator.rank == 3 else 1.0
            with np.errstate(over="ignore"):
                loss = F.mse_loss(model(md.tensor(x * far)), md.zeros(len(x), 2))
                scaler.scale(model.share(loss)).backward(on_grad_ready=model.ready)
            model.wait()
            scaler.step(optimizer)
            scaler.update()
        return vector(model), scaler.get_scale(), len(optimizer.state)

    plain = Simulated(4).run(lambda c: run(c, adam))
    found = Simulated(4).run(lambda c: run(c, sharded))
    assert [pieces for *_, pieces in found] == [1, 1, 0, 0]
    for weights, scale, _ in found:
        assert np.array_equal(weights, plain[0][0])
        assert np.isfinite(weights).all()
        assert scale == plain[0][1] == 2.0  # the overflow of rank 3, on all


@pytest.mark.parametrize("n", [1, 2, 3])
def test_parameters_without_a_gradient_are_left_alone(n):
    x = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)

    def run(communicator, make):
        md.manual_seed(1)
        model = DataParallel(Branches(), communicator, BUCKETS)
        optimizer = make(model, weight_decay=0.1)
        own = np.array_split(x, communicator.size)[communicator.rank]
        for step in range(3):
            optimizer.zero_grad()
            y = model(md.tensor(own), communicator.rank == 0 and step != 1)
            model.backward(F.mse_loss(y, md.tensor(np.ones_like(y.numpy()))))
            optimizer.step()
        state = optimizer.state_dict()["state"]
        return vector(model), {name: s["step"] for name, s in state.items()}

    plain = Simulated(n).run(lambda c: run(c, adam))
    for weights, counts in Simulated(n).run(lambda c: run(c, sharded)):
        assert np.array_equal(weights, plain[0][0])
        assert counts == plain[0][1]


@pytest.mark.parametrize("max_norm", [0.01, 100.0])
def test_clipping_by_the_norm_over_all_ranks(max_norm):
    def run(communicator, make):
        images, labels = data(np.float32)
        model, optimizer = build(communicator, make)
        norms = []
        for index in batches(communicator, 3):
            optimizer.zero_grad()
            scores = model(md.tensor(images[index]))
            model.backward(F.cross_entropy(scores, md.tensor(labels[index])))
            if make is adam:
                norm = optim.clip_grad_norm_(model.parameters(), max_norm)
            else:
                norm = optimizer.clip_grad_norm_(max_norm)
            norms.append(norm.item())
            optimizer.step()
        return vector(model), norms

    expected, norms = Simulated(1).run(lambda c: run(c, adam))[0]
    for make in (adam, sharded):
        for weights, own in Simulated(3).run(lambda c, make=make: run(c, make)):
            assert relative(weights, expected) < 2e-5  # Adam enlarges what is small
            np.testing.assert_allclose(own, norms, rtol=2e-6)


@pytest.mark.parametrize("max_norm", [0.01, 100.0])
def test_clipping_inside_the_update(max_norm):
    def run(communicator, make):
        model, optimizer = build(communicator, make)
        optimizer.max_norm = max_norm
        for storage in storages(model):
            storage.keep_low(np.float16)
        steps(model, optimizer, batches(communicator, 3))
        low = np.concatenate([s.low for s in storages(model)])
        whole = np.concatenate([s.data for s in storages(model)])
        assert (low == whole.astype(np.float16)).all()
        return vector(model)

    expected = Simulated(1).run(lambda c: run(c, adam))[0]
    for weights in Simulated(3).run(lambda c: run(c, sharded)):
        assert relative(weights, expected) < 2e-5


def storages(model):
    return list(dict.fromkeys(p.storage for p in model.module.parameters()))


def test_on_a_device_nothing_is_waited_for(stand_in):
    """One rank alone: its step and clipping, with the numbers of Adam on a CPU."""
    images, labels = data(np.float32)

    def run(device, make):
        model = DataParallel(small_cnn(np.float32).to(device), Alone(), BUCKETS)
        optimizer = make(model)
        x, y = (md.tensor(array[:8], device=device) for array in (images, labels))
        for _ in range(3):
            optimizer.zero_grad()
            model.backward(F.cross_entropy(model(x), y))
            stand_in.reset()
            if make is sharded:
                optimizer.clip_grad_norm_(0.1)
            else:
                optim.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            assert not stand_in.syncs and not stand_in.uploads
        return np.concatenate([p.numpy().ravel() for p in model.module.parameters()])

    expected = run("cpu", adam)
    for make in (adam, sharded):
        assert relative(run("cuda", make), expected) < 2e-5


def test_clipping_whole_parameters_is_refused():
    model, optimizer = build(Alone(), sharded)
    for clip in (optim.clip_grad_norm_, optim.clip_grad_value_):
        with pytest.raises(RuntimeError, match="only a share"):
            clip(model.parameters(), 1.0)


def test_accumulation_without_sync():
    images, labels = data(np.float64)

    def run(communicator, make):
        model, optimizer = build(communicator, make, np.float64)
        for _ in range(2):
            optimizer.zero_grad()
            own = np.arange(communicator.rank, BATCH, communicator.size)
            for number, index in enumerate(np.array_split(own, 2)):
                scores = model(md.tensor(images[index]))
                loss = F.cross_entropy(scores, md.tensor(labels[index]))
                if number == 0:
                    with model.no_sync():
                        model.backward(loss)
                else:
                    model.backward(loss)
            optimizer.step()
        return vector(model)

    expected = run(Alone(), adam)
    for weights in Simulated(2).run(lambda c: run(c, sharded)):
        assert relative(weights, expected) < 1e-12


def test_a_step_on_gradients_of_one_rank_is_refused():
    model, optimizer = build(Alone(), sharded)
    images, labels = map(md.tensor, data(np.float32))
    with model.no_sync():
        model.backward(F.cross_entropy(model(images), labels))
    with pytest.raises(RuntimeError, match="'0.weight' has not been exchanged"):
        optimizer.step()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@settings(max_examples=12)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
    st.sampled_from([0.0001, 0.0005, 0.002, 25]),
    st.booleans(),
)
def test_any_sizes(n, widths, bucket_cap_mb, double):
    """Parameters of several pieces, pieces of padding alone, one bucket or many."""
    dtype = np.float64 if double else np.float32
    x = np.random.default_rng(0).standard_normal((9, widths[0])).astype(dtype)

    def run(communicator, make):
        md.manual_seed(0)
        pairs = zip(widths, widths[1:] + [3], strict=True)
        layers = nn.Sequential(*(nn.Linear(*pair) for pair in pairs)).to(dtype)
        model = DataParallel(layers, communicator, bucket_cap_mb)
        optimizer = make(model, amsgrad=True)
        own = np.array_split(x, communicator.size)[communicator.rank]
        for _ in range(2):
            optimizer.zero_grad()
            model.backward((model(md.tensor(own)) ** 2).mean())
            optimizer.step()
        return vector(model), optimizer.state_dict()

    plain, state = Simulated(n).run(run, adam)[0]
    for weights, own in Simulated(n).run(run, sharded):
        assert np.array_equal(weights, plain)
        assert_same(own, state)


def test_state_travels_between_rank_counts_and_to_adam_and_back():
    order = batches(Alone(), 8)

    def run(communicator, make, part, start=None):
        model, optimizer = build(communicator, make, np.float64, amsgrad=True)
        if start is not None:
            weights, state = start
            model.module.load_state_dict(weights)
            optimizer.load_state_dict(state)
        own = [i[communicator.rank :: communicator.size] for i in part]
        steps(model, optimizer, own)
        weights = {k: v.numpy().copy() for k, v in model.state_dict().items()}
        state = optimizer.state_dict()
        state["state"] = {
            name: {
                key: value if key == "step" else value.numpy().copy()
                for key, value in values.items()
            }
            for name, values in state["state"].items()
        }
        return weights, state

    expected, expected_state = run(Alone(), adam, order)
    start = None
    parts = [order[:2], order[2:4], order[4:6], order[6:]]
    for (n, make), part in zip(
        [(3, sharded), (1, adam), (4, sharded), (2, sharded)], parts, strict=True
    ):
        start, *others = Simulated(n).run(
            lambda c, *args: run(c, *args), make, part, start
        )
        for _, state in others:
            assert_same(state, start[1])
    for name, weights in expected.items():
        np.testing.assert_allclose(start[0][name], weights, rtol=1e-9, atol=1e-13)
    assert_same(start[1], expected_state, rtol=1e-9, atol=1e-13)


def assert_same(state, other, **tolerance):
    assert state["param_groups"] == other["param_groups"]
    assert list(state["state"]) == list(other["state"])
    for name, values in state["state"].items():
        assert list(values) == list(other["state"][name])
        for key, value in values.items():
            np.testing.assert_allclose(
                value, other["state"][name][key], err_msg=f"{name} {key}", **tolerance
            )


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    model, optimizer = build(Alone(), sharded)
    steps(model, optimizer, batches(Alone(), 1))
    before = optimizer.state_dict()
    kept = {n: s["exp_avg"].numpy().copy() for n, s in before["state"].items()}
    wrong = json.loads(json.dumps({"param_groups": before["param_groups"]}))
    for change in ("shape", "name", "missing"):
        state = {n: dict(s) for n, s in before["state"].items()}
        groups = [dict(g) for g in wrong["param_groups"]]
        if change == "shape":
            state["0.weight"]["exp_avg"] = np.zeros((1, 1), np.float32)
        elif change == "missing":
            del state["7.bias"]["exp_avg_sq"]
        else:
            groups[0]["params"] = groups[0]["params"][::-1]
        with pytest.raises(ValueError, match="state"):
            optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, values in optimizer.state_dict()["state"].items():
        assert np.array_equal(values["exp_avg"].numpy(), kept[name])


def test_what_cannot_be_sharded_is_refused():
    model = DataParallel(small_cnn(np.float32), Alone())
    some = list(model.parameters())
    with pytest.raises(ValueError, match="more than once"):
        ShardedAdam([some[0], some[0]], model=model)
    with pytest.raises(TypeError, match="parameters of modules"):
        ShardedAdam([md.ones(3)], model=model)
    with pytest.raises(ValueError, match="none of its parameters"):
        ShardedAdam(nn.Linear(3, 2).parameters(), model=model)
    assert type(model.exchange) is BucketedExchange  # as it was
    with pytest.raises(RuntimeError, match="no trace"):
        sharded(model).trace(some[0], 0)
    model = DataParallel(small_cnn(np.float32), Alone())
    optimizer = ShardedAdam(list(model.parameters())[:2], model=model)
    with pytest.raises(RuntimeError, match="give it all parameters"):
        steps(model, optimizer, batches(Alone(), 1))
    model, optimizer = build(Alone(), sharded)
    model.module.to(np.float64)
    with pytest.raises(RuntimeError, match="has moved"):
        steps(model, optimizer, batches(Alone(), 1))


def test_buckets_leave_during_backward():
    sent = []

    class Recording(Alone):
        def reduce_scatter(self, output, input, op="sum", async_op=False):
            sent.append(input.size)
            return super().reduce_scatter(output, input, op, async_op)

    model, _ = build(Recording(), sharded)
    images, labels = map(md.tensor, data(np.float32))
    model.share(F.cross_entropy(model(images), labels)).backward(
        on_grad_ready=model.ready
    )
    assert len(sent) == len(model.exchange.buckets) > 1
    assert sum(sent) == sum(p.storage.room(p) for p in model.parameters())
    model.wait()
    assert len(sent) == len(model.exchange.buckets)


@pytest.mark.parametrize("n", [2, 3])
def test_compression_is_that_of_the_all_reduce(n):
    def run(communicator, make):
        return train(communicator, make, compression="float16")

    plain = Simulated(n).run(run, adam)
    for weights in Simulated(n).run(run, sharded):
        assert np.array_equal(weights, plain[0])


def several(communicator):
    """What a rank of the MPI test runs."""
    found = {
        "plain": train(communicator, adam),
        "sharded": train(communicator, sharded),
        "half": train(communicator, sharded, compression="float16"),
        "double": train(communicator, sharded, dtype=np.float64),
    }
    _, optimizer = build(communicator, sharded)
    found["bytes"] = np.array(communicator.all_gather_object(moment_bytes(optimizer)))

    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 7, 3, 2))
    own = slice(*[(0, 2), (2, 2), (2, 7)][communicator.rank])
    layer = SyncBatchNorm(3).to(np.float64)
    t = md.tensor(x[own], requires_grad=True)
    y = layer(t)
    y.backward(md.tensor(g[own]))
    parts = communicator.all_gather_object(np.stack([y.numpy(), t.grad.numpy()]))
    found["sync"] = np.concatenate(parts, 1)

    t = md.tensor(x[:6, 0] * (communicator.rank + 1), requires_grad=True)
    y = functional.all_gather(functional.reduce_scatter(functional.all_reduce(t) ** 2))
    (functional.broadcast(y, 2) * (communicator.rank + 1)).sum().backward()
    found["functional"] = t.grad.numpy()
    everyone = communicator.all_gather_object(
        {k: v.tobytes() for k, v in found.items()}
    )
    if communicator.rank == 0:
        same = [k for k in found if all(e[k] == everyone[0][k] for e in everyone)]
        print(json.dumps({"same": same, **{k: v.tolist() for k, v in found.items()}}))


@pytest.mark.mpi
@pytest.mark.slow
def test_on_mpi():
    run = run_ranks(3, several)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found.pop("same") == list(found)
    found = {k: np.array(v) for k, v in found.items()}
    expected = Simulated(3).run(lambda c: train(c, adam))[0]
    assert relative(found["plain"], expected) < 1e-6
    assert relative(found["sharded"], expected) < 1e-6
    assert np.array_equal(
        found["half"],
        Simulated(3).run(lambda c: train(c, sharded, compression="float16"))[0],
    )
    expected = Simulated(3).run(lambda c: train(c, adam, dtype=np.float64))[0]
    assert relative(found["double"], expected) < 1e-12
    assert found["bytes"].sum() < 1.2 * moment_bytes(build(Alone(), adam)[1])

    x, g = np.random.default_rng(0).standard_normal((2, 7, 3, 2))
    layer, t = nn.BatchNorm1d(3).to(np.float64), md.tensor(x, requires_grad=True)
    y = layer(t)
    y.backward(md.tensor(g))
    np.testing.assert_allclose(found["sync"], [y.numpy(), t.grad.numpy()], atol=1e-12)
    # of 6 y, with y = 3 s^2 in all, and s the sum of 1, 2, 3 times x on the three ranks
    np.testing.assert_allclose(
        found["functional"], 6 * 3 * 2 * 6 * x[:6, 0], rtol=1e-12
    )


def test_a_model_may_get_another_optimizer():
    first, _ = build(Alone(), sharded)
    expected = train(Alone(), adam)
    sharded(first)
    again = sharded(first)
    steps(first, again, batches(Alone(), STEPS))
    assert np.array_equal(vector(first), expected)
    model = DataParallel(first.module)
    steps(model, adam(model), batches(Alone(), 1))
    optim.clip_grad_norm_(model.parameters(), 1.0)
