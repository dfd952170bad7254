"""Collectives of arrays on GPUs, by NCCL and by MPI, on stand-ins for CuPy and NCCL."""

import re
import time

import numpy as np
import pytest
from ranks import ROOT, run_ranks

from minidl import distributed, manual_seed, nn, optim, tensor
from minidl.array.device import to_numpy, use_device
from minidl.array.errors import DependencyError, DeviceError, DistributedError
from minidl.autograd import Tensor
from minidl.distributed import Simulated, gpus
from minidl.distributed.gpus import Gpu, Report
from minidl.nn import functional as F

WAYS = {"nccl": None, "shared": "nccl", "mpi": "mpi", "direct": "mpi"}
START = "import sys, test_gpu_communicators as t; t.start(*sys.argv[1:])"
FLOATS = ("float16", "bfloat16", "float32", "float64")
WHOLE = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
TOLERANCE = {"float16": 3e-3, "bfloat16": 3e-2, "float32": 1e-6, "float64": 1e-14}


def ranks(function):
    return pytest.mark.mpi(pytest.mark.slow(function))


def run(n, function, way="nccl", **environment):
    """Run a function of this module on `n` ranks, each with a stand-in GPU."""
    pytest.importorskip("cupy")
    return run_ranks(n, START, function.__name__, way, **environment)


def start(name, way):
    """On each rank: the stand-ins, the communicator, the function."""
    import stand_in
    import stand_in_nccl

    from minidl.distributed import staging, watch

    stand_in.install(devices=4)
    stand_in_nccl.install()
    # what has been waited for is in order for the stand-in, which is to see races
    watch.Launch.begun = lambda launch: True
    watch.Launch.over = lambda launch: launch.landed is not None
    staging.CHUNK = 4096
    if way == "direct":
        gpus.cuda_aware = lambda MPI: True
    communicator = distributed.init(WAYS[way])
    with use_device(communicator.place("auto")):
        globals()[name](communicator)
    assert communicator.backend == (WAYS[way] or "nccl")
    communicator.close()
    assert stand_in_nccl.calls[-1:] == ["destroy"] * (communicator.backend == "nccl")
    print("passed\n", end="", flush=True)


def passed(job, n):
    assert job.returncode == 0, job.stderr
    assert job.stdout.splitlines() == ["passed"] * n and not job.stderr, job.stderr


# --- collectives


def inputs(c, shape, dtype):
    """The arrays of all ranks, on the host."""
    rngs = [np.random.default_rng(rank) for rank in range(c.size)]
    if dtype in FLOATS:
        return [rng.standard_normal(shape).astype(dtype) for rng in rngs]
    return [rng.integers(0, 20, shape).astype(dtype) for rng in rngs]


def close(array, expected):
    tolerance = TOLERANCE.get(array.dtype.name, 0)
    got = to_numpy(array).astype("float64")
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def reduced(arrays, op):
    fold = {"sum": np.sum, "avg": np.mean, "max": np.max, "min": np.min}[op]
    return fold(np.stack(arrays).astype("float64"), axis=0)


def check_collectives(c):
    import stand_in
    from stand_in import cupy as xp

    dtypes = [(d, ("sum", "avg", "max", "min")) for d in FLOATS]
    dtypes += [(d, ("sum", "max", "min")) for d in WHOLE]
    for dtype, ops in dtypes:
        for shape in ((), (0,), (5,), (3, 701)):
            arrays = inputs(c, shape, dtype)
            for op in ops:
                mine = xp.asarray(arrays[c.rank])
                before = len(stand_in.syncs)
                assert c.all_reduce(mine, op) is mine
                if c.backend == "nccl":
                    assert len(stand_in.syncs) == before
                close(mine, reduced(arrays, op))
        arrays = inputs(c, (c.size * 7,), dtype)
        expected = reduced(arrays, "sum").reshape(c.size, 7)[c.rank]
        whole, output = xp.asarray(arrays[c.rank]), xp.empty(7, dtype)
        assert c.reduce_scatter(output, whole) is output
        close(output, expected)
        c.reduce_scatter(whole[c.rank * 7 : (c.rank + 1) * 7], whole)
        close(whole[c.rank * 7 : (c.rank + 1) * 7], expected)
        check_copies(c, xp, dtype)
    check_copies(c, xp, "bool")
    arrays = [np.full(3, rank) for rank in range(c.size)]
    close(c.all_reduce(arrays[c.rank].copy()), reduced(arrays, "sum"))  # on the host
    c.barrier()


def check_copies(c, xp, dtype):
    arrays = inputs(c, (2, 3), dtype)
    for src in range(c.size):
        mine = xp.asarray(arrays[c.rank])
        assert c.broadcast(mine, src) is mine
        assert (mine.get() == arrays[src]).all()
    output = xp.empty((c.size, 2, 3), dtype)
    assert c.all_gather(output, xp.asarray(arrays[c.rank])) is output
    assert (output.get() == np.stack(arrays)).all()
    output[: c.rank], output[c.rank + 1 :] = 0, 0
    c.all_gather(output, output[c.rank])  # from its own place
    assert (output.get() == np.stack(arrays)).all()


def check_messages(c):
    from stand_in import cupy as xp

    after, before = (c.rank + 1) % c.size, (c.rank - 1) % c.size
    for _ in range(2):  # also once there is a way that all have agreed on
        mine, got = xp.full(1000, c.rank), xp.empty(1000, "int64")
        mine += 1
        assert c.send_receive(mine, after, got, before) is got
        got *= 2
        assert (got.get() == 2 * before + 2).all()
        c.all_reduce(got)


def check_order(c):
    """Results are there for what is asked of the current stream after `wait`."""
    from stand_in import cupy as xp

    with xp.cuda.Stream(non_blocking=True):
        buffer = xp.zeros(5000, "float32")
        buffer += c.rank + 1
        works = [c.all_reduce(buffer[k : k + 2500], async_op=True) for k in (2500, 0)]
        other = xp.full(10, c.rank, "float32")
        dropped = c.all_reduce(other + 1, "avg", async_op=True)
        for work in works:
            assert work.wait() is True and work.is_completed()
        buffer *= 2
        assert (buffer.get() == c.size * (c.size + 1)).all()
        assert dropped.wait()
        c.all_reduce(other, async_op=True).wait()
        assert (other.get() == c.size * (c.size - 1) / 2).all()


def touch_before_waiting(c):
    """The stand-in sees it: so the tests would see a missing event."""
    from stand_in import cupy as xp

    with xp.cuda.Stream(non_blocking=True):
        mine = xp.zeros(10, "float32")
        work = c.all_reduce(mine, async_op=True)
        with pytest.raises(RuntimeError, match="a race"):
            mine += 1
        work.wait()
        mine += 1


def check_wrong_arguments(c):
    from stand_in import cupy as xp

    with pytest.raises(ValueError, match="on one device"):
        c.all_gather(xp.empty(2 * c.size), np.zeros(2))
    with pytest.raises(TypeError, match="avg of int32"):
        c.all_reduce(xp.zeros(2, "int32"), "avg")
    c.all_reduce(xp.zeros(2))
    if c.backend == "nccl":
        with xp.cuda.Device((c.rank + 1) % 4):
            with pytest.raises(ValueError, match=r"are on cuda:\d, where its first"):
                c.all_reduce(xp.zeros(2))


def every_check(c):
    check_messages(c)
    check_order(c)
    if c.backend == "nccl":
        touch_before_waiting(c)
    check_collectives(c)
    check_wrong_arguments(c)


@ranks
@pytest.mark.parametrize(
    "way, n", [("nccl", 2), ("mpi", 2), ("direct", 2), ("nccl", 3)]
)
def test_collectives(way, n):
    passed(run(n, every_check, way), n)


# --- training


def small():
    """A model with batch norm over the global batch, and a parameter without use."""
    manual_seed(3)
    model = nn.Sequential(
        nn.Linear(6, 9, bias=False), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)
    )
    model.spare = nn.Parameter(np.ones(3))
    return model.to(dtype="float64")


def trained(communicator, device, rule, rank=0, size=1):
    """The weights after steps over batches of 7, of which each rank has its share."""
    model = small().to(device)
    if size > 1:
        model = distributed.SyncBatchNorm.convert(model, communicator)
    parallel = distributed.DataParallel(model, communicator, bucket_cap_mb=0.0004)
    optimizer = rule(model.parameters(), parallel)
    rng = np.random.default_rng(0)
    for _ in range(4):
        x, y = rng.standard_normal((7, 6)), rng.integers(0, 4, 7)
        images = tensor(x[rank::size], device=device)
        labels = tensor(y[rank::size], device=device)
        optimizer.zero_grad()
        parallel.backward(F.cross_entropy(parallel(images), labels))
        optimizer.step()
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
        settings = Settings(model="mlp", epochs=1, device=device, out=mkdtemp())
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


# --- failing


def stall(c):
    from stand_in import cupy as xp

    x = xp.ones(3, "float32")
    c.doing = "step 1 of epoch 1"
    c.all_reduce(x)
    c.doing = "step 2 of epoch 1"
    if c.rank == 1:
        time.sleep(60)
    if c.rank == 0 and c.size == 3:
        c.all_reduce(x)
        time.sleep(60)  # the host has gone on
    c.all_reduce(x)
    x.get()


STALL = (
    "import minidl.distributed as d; init = d.init; "
    "d.init = lambda way: init(way, timeout=1.5); "
)


@ranks
def test_a_rank_that_does_not_come_to_nccl_is_named():
    pytest.importorskip("cupy")
    job = run_ranks(3, STALL + START, "stall", "nccl")
    assert job.returncode == 1 and 1.5 < job.seconds < 15
    assert re.search(
        r"^rank 0 of 3 on host \S+, in step 2 of epoch 1: rank 0 has waited 1.5 s in "
        r"all_reduce\(sum, float32, shape \(3,\), GPU\) for rank 1 on host \S+; the "
        r"last thing that all ranks did together: all_reduce\(sum, float32, ",
        job.stderr,
        re.M,
    ), job.stderr


def stall_in_a_graph(c):
    from stand_in import cupy as xp

    x, stream = xp.ones(3), xp.cuda.Stream(non_blocking=True)
    c.all_reduce(x)
    stream.wait_event(xp.cuda.get_current_stream().record())
    with stream:
        stream.begin_capture()
        c.all_reduce(x)
        graph = stream.end_capture()
        for _ in range(2):
            with c.replaying():
                graph.launch()
            if c.rank == 1:
                time.sleep(60)


@ranks
def test_a_rank_that_does_not_replay_is_named():
    pytest.importorskip("cupy")
    job = run_ranks(2, STALL + START, "stall_in_a_graph", "nccl")
    assert job.returncode == 1 and 1.5 < job.seconds < 15
    said = r"rank 0 has waited 1.5 s in replay a graph\(\) for rank 1 on host \S+; the"
    assert re.search(said, job.stderr), job.stderr


def raise_on_one(c):
    from stand_in import cupy as xp

    x = xp.ones(3)
    c.all_reduce(x)
    if c.rank == 1:
        raise KeyError("wrong on purpose")
    c.all_reduce(x)


@ranks
def test_an_exception_aborts_nccl():
    job = run(2, raise_on_one)
    assert job.returncode == 1 and job.seconds < 15
    assert job.stderr.count("Traceback") == 1 and "rank 1 of 2" in job.stderr
    assert job.stderr.index("wrong on purpose") < job.stderr.index("NCCL is aborted")


def leave(c):
    from stand_in import cupy as xp

    c.all_reduce(xp.ones(3))
    if c.rank == 0:
        c.all_reduce(xp.ones(4))


@ranks
@pytest.mark.parametrize("way", ["nccl", "mpi"])
def test_a_rank_that_ends_is_missed_on_the_gpu(way):
    job = run(2, leave, way)
    assert job.returncode == 1 and job.seconds < 15
    said = r"rank 1 on host \S+ has ended without joining all_reduce\(sum, float64, "
    assert re.search(said + r"shape \(4,\), GPU\), in which rank 0 waits", job.stderr)


def mix(c):
    from stand_in import cupy as xp

    from minidl.distributed import peers

    peers.STALL = 0.3
    c.all_reduce(np.ones(3) if c.rank else xp.ones(3))


@ranks
def test_ranks_on_gpus_and_ranks_on_cpus_do_not_mix():
    job = run(2, mix)
    assert job.returncode == 1 and job.seconds < 15
    assert re.search(
        r"rank 0 on host \S+ waits in agree on GPUs\(\), and rank 1 on host \S+ in "
        r"all_reduce\(sum, float64, shape \(3,\)\)",
        job.stderr,
    )


def one_gpu(c):
    from stand_in import cupy as xp

    with xp.cuda.Device(0):
        c.all_reduce(xp.ones(3))


@ranks
def test_two_ranks_on_one_gpu_are_refused():
    job = run(2, one_gpu)
    assert job.returncode == 1 and job.stderr.count("Traceback") == 0
    said = (
        r"rank 0 and rank 1 both use GPU 0000:00:00.0 of host \S+; start one rank a GPU"
    )
    assert re.search(said, job.stderr), job.stderr


@ranks
@pytest.mark.parametrize("version, way", [("22809", "mpi"), ("23004", "shared")])
def test_two_ranks_share_a_gpu_where_they_may(version, way):
    more = {"MINIDL_SHARE_GPUS": "1", "STAND_IN_NCCL": version}
    passed(run(2, one_gpu, way, **more), 2)


def other_version(c):
    import os

    from stand_in import cupy as xp

    os.environ["STAND_IN_NCCL"] = str(22809 + c.rank)
    c.all_reduce(xp.ones(3))


@ranks
def test_versions_of_nccl_must_be_one():
    job = run(2, other_version)
    assert job.returncode == 1 and job.stderr.count("Traceback") == 0
    said = r"NCCL is not the same .*: rank 0 on \S+ has 22809, rank 1 on \S+ has 22810"
    assert re.search(said, job.stderr), job.stderr


# --- which GPU, which way


def seen(*buses):
    return [Gpu(f"0000:0{bus}:00.0", "") for bus in buses]


@pytest.mark.parametrize(
    "everyone, chosen",
    [
        ([("a", seen(1, 2, 3))] * 3, [0, 1, 2]),
        ([("a", seen(1, 2)), ("b", seen(1, 2))] * 2, [0, 0, 1, 1]),
        ([("a", seen(1)), ("a", seen(2)), ("b", seen(1))], [0, 0, 0]),  # bound
        ([("a", seen(1, 2)), ("a", seen(1))], [1, 0]),
        ([("a", seen(1, 2)), ("a", seen(3, 4))], [0, 0]),
        ([("a", seen(1))] * 2, [0, None]),
        ([("a", seen(1, 2))] * 3, [0, 1, None]),
        ([("a", seen(1)), ("a", [])], [0, None]),
    ],
)
def test_every_rank_chooses_a_gpu_of_its_own(everyone, chosen):
    assert gpus.choose(everyone, share=False) == chosen


def test_ranks_that_share_go_round():
    everyone = [("a", seen(1, 2))] * 5
    assert gpus.choose(everyone, share=True) == [0, 1, 0, 1, 0]


def test_a_gpu_is_known_by_its_number_across_containers():
    one = Gpu("0000:01:00.0", "ab" * 16)
    part, other = Gpu("0000:01:00.0", "cd" * 16), Gpu("0000:02:00.0", "ab" * 16)
    assert gpus.identity("a", one) == gpus.identity("b", other)
    assert gpus.identity("a", one) != gpus.identity("a", part)


def test_ranks_agree_on_their_devices(stand_in):
    def own(share, device="gpu"):
        return Simulated(2).run(lambda c: gpus.own(c, device, share))

    assert own(share=True) == ["cuda:0"] * 2 and own(False, "cpu") == ["cpu"] * 2
    assert Simulated(2).run(lambda c: c.place("gpu")) == ["cuda:0"] * 2  # one process
    said = r"rank 1 on host \S+ would share a GPU: the 1 that it sees \(0000:00:00.0\) "
    with pytest.raises(DistributedError, match=said + "are taken by rank 0; start one"):
        own(share=False)


def test_a_rank_without_a_gpu_is_named_on_all(stand_in, monkeypatch):
    def missing(device):
        if distributed.init().rank == 1:
            raise DeviceError("there is no GPU")
        return "cuda:0"

    def place(c):
        kind = DeviceError if c.rank == 1 else DistributedError
        with pytest.raises(kind, match="there is no GPU") as caught:
            gpus.own(c, "gpu", False)
        return str(caught.value)

    monkeypatch.setattr(gpus, "canonical_device", missing)
    zero, one = Simulated(2).run(place)
    assert zero.startswith("rank 1 on host") and one == "there is no GPU"
    monkeypatch.setattr(gpus, "canonical_device", lambda device: device)
    with pytest.raises(DistributedError, match="rank 0 on host .* compute on its CPU"):
        Simulated(2).run(lambda c: gpus.own(c, ("cpu", "cuda:0")[c.rank], False))


def told(bus=1, nccl=22809, aware=False, host="a"):
    return Report(host, *seen(bus), nccl, aware)


@pytest.mark.parametrize(
    "reports, wanted, share, expected",
    [
        ([told(1), told(2)], None, False, "nccl"),
        ([told(1), told(2)], "mpi", False, "staged"),
        ([told(1, aware=True), told(2, aware=True)], "mpi", False, "direct"),
        ([told(1, aware=True), told(2)], "mpi", False, "staged"),
        ([told(1), told(2, nccl=0)], None, False, "staged"),
        ([told(1), told(1)], None, True, "staged"),
        ([told(1, 23003), told(1, 23003)], None, True, "staged"),
        ([told(1, 23003), told(1, 23003)], "nccl", True, "nccl"),
        ([told(1), told(1, host="b")], None, False, "nccl"),
        ([told()], "nccl", False, "nccl"),
    ],
)
def test_the_way_of_arrays_on_gpus(reports, wanted, share, expected):
    assert gpus.way(reports, wanted, share) == expected


def test_a_way_that_is_not_there_is_refused():
    with pytest.raises(
        DistributedError, match="rank 0 and rank 1 both use GPU 0000:01"
    ):
        gpus.way([told(1), told(1)], None, False)
    with pytest.raises(DependencyError, match="rank 1 on host a has no NCCL"):
        gpus.way([told(1), told(2, nccl=0)], "nccl", False)
    with pytest.raises(DistributedError, match="22809 .* no two ranks on one GPU"):
        gpus.way([told(1), told(1)], "nccl", True)
    with pytest.raises(DistributedError, match="rank 1 on a has 22704"):
        gpus.way([told(1), told(2, nccl=22704)], None, False)
