"""N ranks train as one rank does: the gradient is that of the global batch."""

import json
from functools import partial

import numpy as np
import pytest
import textbook
from ranks import run_ranks

import minidl as md
import minidl.nn.functional as F
from minidl import distributed, nn, optim
from minidl.array.errors import DistributedError
from minidl.array.sampling import Sampler
from minidl.distributed import Alone, DataParallel, ShardedAdam, Simulated

SAMPLES, BATCH, STEPS = 53, 12, 20  # batches of 12, 12, 12, 12 and an uneven 5
SMALL_BUCKETS = 0.003  # MB: several buckets even for a tiny model


def data(dtype):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((SAMPLES, 1, 8, 8)).astype(dtype)
    return images, rng.integers(0, 10, SAMPLES)


def small_cnn(dtype):
    md.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return model.to(dtype)


def batches(communicator, steps):
    """This rank's indices of `steps` global batches, epoch after epoch."""
    sampler = Sampler(range(SAMPLES), communicator.size, communicator.rank, seed=3)
    found = []
    while len(found) < steps:
        found += list(sampler.batches(BATCH))
        sampler.set_epoch(sampler.epoch + 1)
    return found[:steps]


def train(communicator, dtype=np.float64, overlap=True, ignored=False, lr=1e-2):
    """The weights of a CNN after 20 steps of Adam, as one vector."""
    images, labels = data(dtype)
    if ignored:
        labels[::3] = -100
    model = small_cnn(dtype)
    optimizer = optim.Adam(model.parameters(), lr=lr)
    parallel = DataParallel(model, communicator, SMALL_BUCKETS, overlap)
    for index in batches(communicator, STEPS):
        optimizer.zero_grad()
        scores = parallel(md.tensor(images[index]))
        parallel.backward(F.cross_entropy(scores, md.tensor(labels[index])))
        optimizer.step()
    return vector(model)


def vector(model):
    return np.concatenate([p.numpy().ravel() for p in model.parameters()])


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.fixture(scope="module")
def alone():
    return train(Alone())


def test_one_rank_is_the_textbook(alone):
    images, labels = data(np.float64)
    model = small_cnn(np.float64)
    names = [name for name, _ in model.named_parameters()]
    start = {name: p.numpy().copy() for name, p in model.named_parameters()}

    def shapes_fit(params):  # the textbook's CNN has the same layers and names
        return list(params) == list(textbook.cnn_parameters(8, (1, 4, 8)))

    assert shapes_fit(start)
    steps = [(images[i], labels[i]) for i in batches(Alone(), STEPS)]
    for ranks in (1, 3):
        params, _ = textbook.cnn_train(start, steps, lr=1e-2, ranks=ranks)
        expected = np.concatenate([params[name].ravel() for name in names])
        assert relative(alone, expected) < 1e-9


@pytest.mark.parametrize("overlap", [False, True], ids=["naive", "bucketed"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_simulated_ranks_agree_with_one(n, overlap, alone):
    results = Simulated(n).run(lambda c: train(c, overlap=overlap))
    assert all(np.array_equal(w, results[0]) for w in results)
    assert relative(results[0], alone) < 1e-12


@pytest.mark.parametrize("n", [2, 3, 4])
def test_float32_and_ignored_labels(n):
    expected = train(Alone(), np.float32, ignored=True)
    results = Simulated(n).run(lambda c: train(c, np.float32, ignored=True))
    assert all(np.array_equal(w, results[0]) for w in results)
    assert relative(results[0], expected) < 1e-6


def print_weights(communicator):
    """What a rank of the MPI test runs."""
    single = train(communicator, np.float32)
    again = train(communicator, np.float32, overlap=False)
    double = train(communicator)
    everyone = communicator.all_gather_object(single.tobytes())
    if communicator.rank == 0:
        print(
            json.dumps(
                {
                    "same": len(dict.fromkeys(everyone)) == 1,
                    "single": single.tolist(),
                    "naive": again.tolist(),
                    "double": double.tolist(),
                }
            )
        )


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 4])
def test_mpi_ranks_agree_with_one(n, alone):
    runs = [run_ranks(n, print_weights) for _ in range(2 if n == 3 else 1)]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert run.stdout == runs[0].stdout  # the same bits in every run
    found = json.loads(runs[0].stdout)
    assert found["same"]
    expected = train(Alone(), np.float32)
    assert relative(np.array(found["single"]), expected) < 1e-6
    assert relative(np.array(found["naive"]), expected) < 1e-6
    assert relative(np.array(found["double"]), alone) < 1e-12


class Branches(nn.Module):
    """A model of which some parts are used by some ranks, or by none."""

    def __init__(self):
        super().__init__()
        self.shared, self.extra = nn.Linear(3, 2), nn.Linear(3, 2)
        self.unused, self.frozen = nn.Linear(3, 2), nn.Linear(3, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x, with_extra):
        y = self.shared(x) + self.frozen(x)
        return y + self.extra(x) if with_extra else y


@pytest.mark.parametrize("overlap", [False, True])
def test_parameters_without_a_gradient_on_some_ranks_or_on_all(overlap):
    x = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)

    def run(communicator):
        md.manual_seed(1)
        model = Branches()
        optimizer = optim.Adam(model.parameters(), weight_decay=0.1)
        parallel = DataParallel(model, communicator, SMALL_BUCKETS, overlap)
        own = np.array_split(x, communicator.size)[communicator.rank]
        for step in range(3):
            optimizer.zero_grad()
            y = parallel(md.tensor(own), communicator.rank == 0 and step != 1)
            parallel.backward(F.mse_loss(y, md.tensor(np.ones_like(y.numpy()))))
            if step == 1:
                assert model.extra.weight.grad is None
            optimizer.step()
        assert model.unused.weight.grad is None
        assert model.frozen.weight.grad is None
        state = optimizer.state_dict()["state"]
        steps = [
            state[f"{name}.weight"]["step"] for name in ("shared", "extra", "unused")
        ]
        return vector(model), steps

    first, second = Simulated(2).run(run)
    assert np.array_equal(first[0], second[0])
    assert first[1] == [3, 2, 0]


def test_accumulation_without_sync_is_one_large_batch():
    images, labels = data(np.float64)

    def run(communicator, parts):
        model = small_cnn(np.float64)
        parallel = DataParallel(model, communicator, SMALL_BUCKETS)
        order = np.array_split(np.arange(SAMPLES), parts * communicator.size)
        own = order[communicator.rank :: communicator.size]
        for number, index in enumerate(own, 1):
            scores = F.cross_entropy(
                parallel(md.tensor(images[index])), md.tensor(labels[index])
            )
            if number < len(own):
                with parallel.no_sync():
                    parallel.backward(scores)
            else:
                parallel.backward(scores)
        return np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])

    expected = run(Alone(), 1)
    assert relative(run(Alone(), 3), expected) < 1e-12
    for gradient in Simulated(2).run(lambda c: run(c, 3)):
        assert relative(gradient, expected) < 1e-12


def gradients_of_two_losses(communicator, overlap, kind=None):
    """The weights after a step of `kind` on two losses, each with a backward."""
    images, labels = data(np.float64)
    model = small_cnn(np.float64)
    parallel = DataParallel(model, communicator, overlap=overlap, bucket_cap_mb=1e-3)
    more = {"model": parallel} if kind is ShardedAdam else {}
    optimizer = (kind or optim.Adam)(model.parameters(), lr=1e-2, **more)
    for nothing in (True, False):
        for half in (slice(0, 5), slice(5, SAMPLES)):
            index = np.arange(SAMPLES)[half][communicator.rank :: communicator.size]
            scores = parallel(md.tensor(images[index]))
            parallel.backward(F.cross_entropy(scores, md.tensor(labels[index])))
        optimizer.step()
        optimizer.zero_grad(set_to_none=nothing)
    return vector(model)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("overlap", [True, False, None], ids=str)
def test_a_second_backward_adds_to_the_first(n, overlap):
    images, labels = data(np.float64)
    model = small_cnn(np.float64)
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        for half in (slice(0, 5), slice(5, SAMPLES)):
            scores = model(md.tensor(images[half]))
            F.cross_entropy(scores, md.tensor(labels[half])).backward()
        optimizer.step()
    kind = ShardedAdam if overlap is None else None
    run = partial(gradients_of_two_losses, overlap=overlap in (True, None), kind=kind)
    for weights in Simulated(n).run(run):
        np.testing.assert_allclose(weights, vector(model), rtol=1e-9, atol=1e-12)


def test_a_parameter_unfrozen_too_late_is_refused():
    def run(communicator):
        model = nn.Linear(3, 2)
        model.weight.requires_grad_(False)
        parallel = DataParallel(model, communicator)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        x = md.tensor(np.ones((4, 3), np.float32))
        parallel.backward(F.mse_loss(parallel(x), md.zeros(4, 2)))
        optimizer.step()
        model.weight.requires_grad_(True)
        parallel.backward(F.mse_loss(parallel(x), md.zeros(4, 2)))
        with pytest.raises(RuntimeError, match="'weight' .* frozen or unfrozen"):
            optimizer.step()
        optimizer.zero_grad()
        parallel = DataParallel(model, communicator)
        parallel.backward(F.mse_loss(parallel(x), md.zeros(4, 2)))
        optimizer.step()

    md.manual_seed(0)
    Simulated(2).run(run)


def test_a_rank_without_samples_takes_part():
    images, labels = data(np.float64)

    def run(communicator):
        model = small_cnn(np.float64)
        parallel = DataParallel(model, communicator)
        own = slice(0, 5 if communicator.rank == 0 else 0)
        parallel.backward(
            F.cross_entropy(parallel(md.tensor(images[own])), md.tensor(labels[own]))
        )
        return np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])

    expected = run(Alone())
    for gradient in Simulated(3).run(run):
        assert relative(gradient, expected) < 1e-12


def test_different_models_are_refused_on_every_rank():
    def run(communicator):
        md.manual_seed(int(communicator.rank == 1))
        with pytest.raises(DistributedError, match="model of rank 1 differs"):
            DataParallel(nn.Linear(3, 2), communicator)
        return True

    assert all(Simulated(3).run(run))


def test_a_loss_without_a_count_is_refused():
    parallel = DataParallel(nn.Linear(3, 2), Alone())
    loss = parallel(md.tensor(np.ones((4, 3), np.float32))).mean() * 2
    with pytest.raises(RuntimeError, match="how many terms"):
        parallel.backward(loss)
    assert parallel.module.weight.grad is None


def test_buckets_are_sent_in_one_order_and_during_backward():
    sent = []

    class Recording(Alone):
        def all_reduce(self, array, op="sum", async_op=False):
            sent.append(array.nbytes)
            return super().all_reduce(array, op, async_op)

    model = small_cnn(np.float32)
    parallel = DataParallel(model, Recording(), 0.001)
    images, labels = data(np.float32)
    loss = F.cross_entropy(parallel(md.tensor(images)), md.tensor(labels))
    seen = []

    def ready(parameter):
        parallel.ready(parameter)
        seen.append(len(sent))

    parallel.share(loss).backward(on_grad_ready=ready)
    during = len(sent)
    parallel.wait()
    assert during == len(parallel.exchange.buckets) > 2  # all left before the end
    assert seen[0] < during and seen == sorted(seen)
    total = sum(p.storage.room(p) * 4 for p in model.parameters())
    assert sum(sent[:during]) == total


# --- Half precision -------------------------------------------------------------------

DIGITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # the error of one rounding


def gradients(communicator, compression=None, overlap=True):
    """The mean gradient over all samples, from one backward."""
    images, labels = data(np.float32)
    model = small_cnn(np.float32)
    parallel = DataParallel(
        model, communicator, SMALL_BUCKETS, overlap, compression=compression
    )
    index = np.array_split(np.arange(SAMPLES), communicator.size)[communicator.rank]
    loss = F.cross_entropy(parallel(md.tensor(images[index])), md.tensor(labels[index]))
    parallel.backward(loss)
    return vector_of_gradients(model)


def vector_of_gradients(model):
    return np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])


def parts(n):
    """What each rank's samples alone add to the mean gradient."""
    images, labels = data(np.float32)
    found = []
    for index in np.array_split(np.arange(SAMPLES), n):
        model = small_cnn(np.float32)
        loss = F.cross_entropy(
            model(md.tensor(images[index])), md.tensor(labels[index])
        )
        loss.total.backward()
        found.append(vector_of_gradients(model) / SAMPLES)
    return np.abs(found)


@pytest.mark.parametrize("overlap", [False, True], ids=["naive", "bucketed"])
@pytest.mark.parametrize("compression", DIGITS)
@pytest.mark.parametrize("n", [2, 3])
def test_compression_rounds_what_is_sent_and_the_sum(n, compression, overlap):
    """|error| <= u (sum of what each rank sends + |the sum|), where u is a rounding."""
    exact = Simulated(n).run(gradients)[0]
    for found in Simulated(n).run(gradients, compression, overlap):
        u = DIGITS[compression] * (1 + DIGITS[compression])
        smallest = 2.0**-24 * n / SAMPLES  # float16 below its normal numbers
        bound = u * (parts(n).sum(0) + np.abs(exact)) + smallest + 1e-6 * exact.max()
        assert (np.abs(found - exact) <= bound).all()
        assert not np.array_equal(found, exact)
    assert np.array_equal(gradients(Alone(), compression), gradients(Alone()))


def test_compression_halves_what_is_sent():
    sent = []

    class Pair(Alone):
        """The first of two ranks, of which the other has nothing to add."""

        def __init__(self):
            super().__init__()
            self.size = 2

        def all_reduce(self, array, op="sum", async_op=False):
            sent.append((str(array.dtype), array.size))
            return super().all_reduce(array, op, async_op)

    for compression in (None, "float16", "bfloat16"):
        parallel = DataParallel(
            nn.Linear(3, 2), Pair(), SMALL_BUCKETS, compression=compression
        )
        parallel.backward(parallel(md.ones(4, 3)).mean())
    dtypes = ["float32", "float16", "bfloat16"]
    assert [s for s in sent if s[0] != "float64"] == [(d, 32) for d in dtypes]


def test_a_scaled_loss_is_the_loss_to_the_optimizer():
    def run(communicator, scaler):
        images, labels = data(np.float32)
        model = small_cnn(np.float32)
        parallel = DataParallel(model, communicator)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        index = np.arange(communicator.rank, SAMPLES, communicator.size)
        scores = parallel(md.tensor(images[index]))
        loss = F.cross_entropy(scores, md.tensor(labels[index]))
        if scaler is None:
            parallel.backward(loss)
            optimizer.step()
        else:
            with pytest.raises(RuntimeError, match=r"backward\(loss, scaler\)"):
                parallel.backward(scaler.scale(loss))
            parallel.backward(loss, scaler)
            scaler.step(optimizer)
        return vector(model)

    plain = Simulated(2).run(lambda c: run(c, None))
    scaled = Simulated(2).run(lambda c: run(c, optim.GradScaler(init_scale=2.0**10)))
    np.testing.assert_allclose(scaled, plain, rtol=1e-6, atol=1e-7)


def test_an_unknown_compression_is_refused():
    with pytest.raises(ValueError, match="compression is"):
        DataParallel(nn.Linear(3, 2), Alone(), compression="float8")


@pytest.mark.parametrize("compression", [None, "float16"])
def test_all_ranks_leave_out_the_step_in_which_one_overflows(compression):
    counts = []

    def run(communicator):
        images, labels = data(np.float32)
        model = small_cnn(np.float32)
        optimizer = optim.Adam(model.parameters(), lr=1e-2)
        scaler = optim.GradScaler(init_scale=64.0)
        parallel = DataParallel(model, communicator, compression=compression)
        kept, skipped = vector(model), []
        for step in range(3):
            optimizer.zero_grad()
            # too much for float16 in the sum of a rank's samples, or for float32
            large = 3e38 if compression is None else 3e3
            far = large if step == 1 and communicator.rank == 2 else 1.0
            index = np.arange(communicator.rank, SAMPLES, communicator.size)
            before = communicator._issued
            scores = parallel(md.tensor(images[index]))
            loss = parallel.share(F.cross_entropy(scores, md.tensor(labels[index])))
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = scaler.scale(loss) * far
                scaled.backward(on_grad_ready=parallel.ready)
                parallel.wait()
                scaler.step(optimizer)
            scaler.update()
            counts.append(communicator._issued - before)
            skipped.append(np.array_equal(kept, vector(model)))
            kept = vector(model)
        return skipped, scaler.get_scale(), kept.tobytes()

    results = Simulated(3).run(run)
    assert results == [results[0]] * 3
    assert results[0][:2] == ([False, True, False], 32.0)
    assert counts == [2] * 9  # one bucket, and the counts of samples


def test_a_step_on_gradients_of_one_rank_is_refused():
    def run(communicator):
        md.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        parallel = DataParallel(model, communicator)
        x = md.tensor(np.ones((4, 3), np.float32))
        loss = F.mse_loss(parallel(x), md.zeros(4, 2))
        loss.backward()
        with pytest.raises(RuntimeError, match="this rank's alone: call backward"):
            optimizer.step()
        optimizer.zero_grad()
        with parallel.no_sync():
            parallel.backward(F.mse_loss(parallel(x), md.zeros(4, 2)))
        with pytest.raises(RuntimeError, match="this rank's alone"):
            optimizer.step()
        parallel.backward(F.mse_loss(parallel(x), md.zeros(4, 2)))
        with md.no_grad():
            parallel(x)  # an evaluation in between changes nothing
        optimizer.step()

    Simulated(2).run(run)
    run_alone = DataParallel(nn.Linear(3, 2), Alone())
    optimizer = optim.SGD(run_alone.parameters(), lr=0.1)
    run_alone(md.ones(4, 3)).mean().backward()  # one rank is all ranks
    optimizer.step()


def test_the_sampler_of_a_rank_knows_its_rank():
    def run(communicator):
        sampler = distributed.DistributedSampler(range(10), shuffle=False)
        return [index.tolist() for index in sampler.batches(4)]

    assert Simulated(2).run(run) == [
        [[0, 1], [4, 5], [8]],
        [[2, 3], [6, 7], [9]],
    ]
    alone = distributed.DistributedSampler(range(3), shuffle=False)
    assert [index.tolist() for index in alone.batches(4)] == [[0, 1, 2]]
