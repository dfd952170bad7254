"""Ranks on GPUs train as one, on stand-ins for CuPy and NCCL."""

import numpy as np
import pytest
from gpu_ranks import passed, ranks, run
from ranks import ROOT

from minidl import distributed, manual_seed, nn, optim, tensor
from minidl.array.device import to_numpy
from minidl.autograd import Tensor
from minidl.nn import functional as F


def small():
    """A model with batch norm over the global batch, and a parameter without use."""
    manual_seed(3)
    model = nn.Sequential(
        nn.Linear(6, 9, bias=False), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)
    )
    model.spare = nn.Parameter(np.ones(3))
    return model.to(dtype="float64")


def trained(communicator, device, rule, rank=0, size=1):
    """The weights after steps over batches of 7, of which each rank has its share.

    The last step accumulates two of them.
    """
    model = small().to(device)
    if size > 1:
        model = distributed.SyncBatchNorm.convert(model, communicator)
    parallel = distributed.DataParallel(model, communicator, bucket_cap_mb=0.0004)
    optimizer = rule(model.parameters(), parallel)
    rng = np.random.default_rng(0)
    for step in range(5):
        x, y = rng.standard_normal((7, 6)), rng.integers(0, 4, 7)
        images = tensor(x[rank::size], device=device)
        labels = tensor(y[rank::size], device=device)
        if step == 3:
            with parallel.no_sync():
                parallel.backward(F.cross_entropy(parallel(images), labels))
            continue
        parallel.backward(F.cross_entropy(parallel(images), labels))
        optimizer.step()
        optimizer.zero_grad()
    return {name: to_numpy(p.data) for name, p in model.named_parameters()}


def sgd(parameters, parallel):
    return optim.SGD(parameters, lr=0.1)


def sharded_adam(parameters, parallel):
    if parallel.communicator.size == 1:
        return optim.Adam(parameters, lr=1e-2)
    return distributed.ShardedAdam(parameters, lr=1e-2, model=parallel)


def train_as_one(c):
    device = c.place("auto")
    assert device == f"cuda:{c.rank}"
    for rule in (sgd, sharded_adam):
        wanted = trained(distributed.Alone(), "cpu", rule)
        got = trained(c, device, rule, c.rank, c.size)
        for name, weights in wanted.items():
            np.testing.assert_allclose(got[name], weights, rtol=1e-9, atol=1e-11)


def test_the_mean_costs_no_pass_over_the_gradients(stand_in):
    """Only sums that no_sync() has accumulated are divided, their count known last."""

    def backward(parallel, size):
        x = np.linspace(0, 1, 6 * size).reshape(size, 6)
        labels = tensor(np.arange(size) % 4, device="cuda")
        scores = parallel(tensor(x, device="cuda"))
        parallel.backward(F.cross_entropy(scores, labels, ignore_index=1))

    def gradient(plain):
        return plain.weight.grad.numpy()

    manual_seed(0)
    parallel = distributed.DataParallel(
        nn.Linear(6, 4, dtype="float64", device="cuda"), distributed.Alone()
    )
    stand_in.reset()
    backward(parallel, 7)
    assert "minidl_by_count" not in stand_in.launches and not stand_in.syncs
    mean = gradient(parallel.module)
    backward(parallel, 7)  # adds
    np.testing.assert_allclose(gradient(parallel.module), 2 * mean, rtol=1e-12)
    with pytest.raises(RuntimeError, match="not exchanged yet: call wait"):
        for _ in range(2):
            parallel.share(parallel(tensor(np.ones((2, 6)), device="cuda")).mean())
    parallel.give_up()
    parallel.zero_grad()
    with parallel.no_sync():
        backward(parallel, 7)
    backward(parallel, 7)
    assert stand_in.launches.count("minidl_by_count") == 1
    np.testing.assert_allclose(gradient(parallel.module), mean, rtol=1e-12)
    parallel.zero_grad()
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = parallel(tensor(np.ones((2, 6)), device="cuda"))
        labels = tensor(np.ones(2, int), device="cuda")
        parallel.backward(F.cross_entropy(scores, labels, ignore_index=1))
    assert not gradient(parallel.module).any()  # no label counts


@ranks
@pytest.mark.parametrize("way, n", [("nccl", 2), ("nccl", 3), ("nccl", 4), ("mpi", 3)])
def test_ranks_train_as_one(way, n):
    passed(run(n, train_as_one, way), n)


def capture_the_exchange(c):
    """A step in a graph: collectives are in it, and replays do what the step does."""
    import stand_in
    import stand_in_nccl
    from stand_in import cupy as xp

    images = np.random.default_rng(c.rank).standard_normal((4, 5), "f")

    def step():
        for p in model.parameters():
            p.grad = None
        parallel.backward((x * model.weight[:1]).mean())

    stream, pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
    with stream, xp.cuda.using_allocator(pool.malloc):
        model, x = nn.Linear(5, 3, device=c.place("auto")), Tensor(xp.asarray(images))
        parallel = distributed.DataParallel(model, c, bucket_cap_mb=0.00004)
        step()
        wanted = model.weight.grad.data.get()
        stream.begin_capture()
        calls = len(stand_in_nccl.calls)
        try:
            step()
        finally:
            graph = stream.end_capture()
        assert len(stand_in_nccl.calls) > calls
        for _ in range(2):
            stand_in.reset()
            model.weight.grad.data.fill(7)
            with c.replaying():
                graph.launch()
            assert not stand_in.syncs
            np.testing.assert_array_equal(model.weight.grad.data.get(), wanted)
        x.data[...] = 1
        graph.launch()
        assert (model.weight.grad.data.get() != wanted).any()


@ranks
def test_collectives_can_be_captured():
    passed(run(2, capture_the_exchange), 2)


def capture_over_mpi(c):
    from stand_in import cupy as xp

    x = xp.ones(3)
    stream = xp.cuda.Stream(non_blocking=True)
    c.all_reduce(x)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match="cannot be part of a CUDA graph"):
                c.all_reduce(x)
        finally:
            stream.end_capture()


@ranks
def test_collectives_of_mpi_cannot_be_captured():
    passed(run(2, capture_over_mpi, "mpi"), 2)


def train_by_command(c):
    from tempfile import mkdtemp

    from minidl.train.recipe import Settings, train

    def history(device, communicator):
        settings = Settings(
            model="mlp", epochs=1, batch_size=128, device=device, out=mkdtemp()
        )
        return train(settings, communicator)

    (got,), (wanted,) = history("gpu", c), history("cpu", distributed.Alone())
    assert abs(got.train_loss - wanted.train_loss) < 1e-5
    assert abs(got.test_loss - wanted.test_loss) < 1e-5


@ranks
def test_the_recipe_takes_nccl_by_itself():
    job = run(2, train_by_command)
    assert job.returncode == 0 and job.stdout.count("passed") == 2, job.stderr


def check_as_gpu_check_does(c):
    import sys

    sys.path.insert(0, str(ROOT / "scripts"))
    import gpu_communication

    from minidl.distributed import staging

    staging.CHUNK = 1 << 18  # 4 MiB are sent, and timed
    device, names = c.place("auto"), []
    for rows in ("collectives", "training", "graphs", "times"):
        for row in getattr(gpu_communication, rows)(c, device, True):
            names.append(row["name"])
            assert row["ok"] is not False, row
    assert ("all_reduce in a CUDA graph" in names) == (c.backend == "nccl")


@ranks
@pytest.mark.parametrize("way, n", [("shared", 1), ("nccl", 2), ("mpi", 2)])
def test_the_section_of_gpu_check(way, n):
    passed(run(n, check_as_gpu_check_does, way), n)
