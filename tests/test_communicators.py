"""The collectives: the same checks alone, on simulated ranks and under mpiexec."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks

from minidl import distributed
from minidl.distributed import Alone, Simulated, init

TOLERANCE = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14}


def inputs(communicator, shape, dtype):
    """The arrays of all ranks: every rank can work out what the others send."""
    draws = [np.random.default_rng(rank) for rank in range(communicator.size)]
    if np.dtype(dtype).kind == "f":
        return [rng.standard_normal(shape).astype(dtype) for rng in draws]
    return [rng.integers(0, 20, shape).astype(dtype) for rng in draws]


def close(result, expected):
    """Equal to the float64 computation, to the precision of the result."""
    tolerance = TOLERANCE.get(result.dtype.name, 0)
    np.testing.assert_allclose(
        result.astype("float64"), expected, rtol=tolerance, atol=tolerance
    )


def same_everywhere(communicator, array):
    assert len(set(communicator.all_gather_object(array.tobytes()))) == 1


REDUCTIONS = {"sum": np.sum, "avg": np.mean, "max": np.max, "min": np.min}


def reduced(arrays, op):
    """The reduction over ranks in float64."""
    return REDUCTIONS[op](np.stack(arrays).astype("float64"), axis=0)


def check_all_reduce(c):
    for dtype in ("float16", "float32", "float64", "int32", "int64", "uint8"):
        for op in ("sum", "avg", "max", "min"):
            if op == "avg" and np.dtype(dtype).kind != "f":
                continue
            for shape in ((), (0,), (5,), (3, 4), (10_007,)):
                arrays = inputs(c, shape, dtype)
                mine = arrays[c.rank].copy()
                assert c.all_reduce(mine, op) is mine
                close(mine, reduced(arrays, op))
                same_everywhere(c, mine)


def check_half_sums_round_once(c):
    arrays = inputs(c, (1000,), "float16")
    mine = c.all_reduce(arrays[c.rank].copy())
    single = np.sum([a.astype("float64") for a in arrays], axis=0).astype("float32")
    np.testing.assert_array_equal(mine, single.astype("float16"))


def check_nan_wins(c):
    for op in ("sum", "avg", "max", "min"):
        mine = np.array([float(c.rank), 1.0], "float32")
        if c.rank == c.size - 1:
            mine[1] = np.nan
        c.all_reduce(mine, op)
        assert np.isfinite(mine[0]) and np.isnan(mine[1])


def check_outstanding_complete_in_order(c):
    arrays = [inputs(c, (n,), "float32") for n in (50_000, 3, 1000, 1)]
    mine = [a[c.rank].copy() for a in arrays]
    works = [c.all_reduce(m, async_op=True) for m in mine]
    assert works[2].wait() is True
    assert works[0].is_completed() and works[1].is_completed()
    other = c.broadcast(np.array([c.rank]), src=c.size - 1)  # overtakes nothing
    assert other[0] == c.size - 1 and works[3].is_completed()
    for work, m, a in zip(works, mine, arrays, strict=True):
        assert work.wait()
        close(m, reduced(a, "sum"))


def check_polling_completes(c):
    mine = np.full(1000, c.rank + 1.0, "float32")
    work = c.all_reduce(mine, "avg", async_op=True)
    while not work.is_completed():
        c.poll()
    np.testing.assert_array_equal(mine, (c.size + 1) / 2)


def check_slices_of_a_buffer(c):
    buffer = np.arange(10, dtype="float32") * (c.rank + 1)
    works = [c.all_reduce(buffer[i : i + 4], async_op=True) for i in (6, 2)]
    works[1].wait()
    factor = np.where(np.arange(10) < 2, c.rank + 1, c.size * (c.size + 1) / 2)
    np.testing.assert_array_equal(buffer, np.arange(10) * factor)
    assert works[0].is_completed()


def check_broadcast(c):
    for src in range(c.size):
        for dtype in ("float16", "float32", "int64", "bool"):
            sent = np.arange(6).reshape(2, 3).astype(dtype)
            mine = sent.copy() if c.rank == src else np.zeros_like(sent)
            assert c.broadcast(mine, src) is mine
            np.testing.assert_array_equal(mine, sent)


def check_reduce_scatter(c):
    for dtype in ("float16", "float32", "int32"):
        for op in ("sum", "max"):
            arrays = inputs(c, (c.size * 7,), dtype)
            expected = reduced(arrays, op).reshape(c.size, 7)[c.rank]
            output = np.empty(7, dtype)
            assert c.reduce_scatter(output, arrays[c.rank], op) is output
            close(output, expected)
            whole = arrays[c.rank].copy()
            part = whole[c.rank * 7 : (c.rank + 1) * 7]
            c.reduce_scatter(part, whole, op)  # into its own block
            np.testing.assert_array_equal(part, output)


def check_all_gather(c):
    for dtype in ("float16", "float64", "bool"):
        arrays = inputs(c, (5,), dtype)
        output = np.empty(c.size * 5, dtype)
        assert c.all_gather(output, arrays[c.rank]) is output
        np.testing.assert_array_equal(output, np.concatenate(arrays))
        output[:] = 0
        part = output[c.rank * 5 : (c.rank + 1) * 5]
        part[:] = arrays[c.rank]
        c.all_gather(output, part)  # out of its own block
        np.testing.assert_array_equal(output, np.concatenate(arrays))


def check_objects(c):
    mine = {"rank": c.rank, "text": "x" * 1000 * c.rank}
    everyone = c.all_gather_object(mine)
    assert [o["rank"] for o in everyone] == list(range(c.size))
    assert [len(o["text"]) for o in everyone] == [1000 * r for r in range(c.size)]
    assert c.broadcast_object(f"from {c.rank}", src=c.size - 1) == f"from {c.size - 1}"


def check_barrier_and_place(c):
    c.barrier()
    assert 0 <= c.rank < c.size and (c.local_rank, c.local_size) == (c.rank, c.size)
    assert f"rank {c.rank} of {c.size}" in repr(c)


def check_wrong_arguments_send_nothing(c):
    a = np.zeros((4, 6), "float32")
    read_only = np.zeros(3)
    read_only.flags.writeable = False
    wrong = [
        (TypeError, "list", lambda: c.all_reduce([1.0])),
        (TypeError, "complex64", lambda: c.all_reduce(a.astype("complex64"))),
        (TypeError, "object", lambda: c.broadcast(np.array([None]))),
        (TypeError, "byte order", lambda: c.all_reduce(a.astype(">f4"))),
        (TypeError, "avg of int64", lambda: c.all_reduce(np.zeros(2, "int64"), "avg")),
        (TypeError, "sum of bool", lambda: c.all_reduce(np.zeros(2, "bool"))),
        (ValueError, "contiguous", lambda: c.all_reduce(a[:, ::2])),
        (ValueError, "contiguous", lambda: c.broadcast(a.T)),
        (ValueError, "read-only", lambda: c.all_reduce(read_only)),
        (ValueError, "'product'", lambda: c.all_reduce(a, "product")),
        (ValueError, "from rank 9", lambda: c.broadcast(a, src=9)),
        (ValueError, "from rank -1", lambda: c.broadcast_object(a, src=-1)),
        (ValueError, "over", lambda: c.all_gather(np.zeros(3), np.zeros(7))),
        (ValueError, "over", lambda: c.reduce_scatter(np.zeros(7), np.zeros(3))),
        (ValueError, "over", lambda: c.all_gather(np.zeros(c.size), np.zeros(1, "f"))),
    ]
    for kind, words, call in wrong:
        with pytest.raises(kind, match=words):
            call()
    c.barrier()  # nothing is under way


def check_functions_speak_for_the_communicator(c):
    assert init() is c or isinstance(c, Alone)  # the tests make an Alone of their own
    assert (distributed.get_rank(), distributed.get_world_size()) == (c.rank, c.size)
    assert distributed.get_backend() == c.backend and distributed.is_initialized()
    assert distributed.all_reduce(np.ones(2))[0] == c.size
    assert distributed.broadcast(np.full(2, c.rank), src=0)[0] == 0
    one = np.array([c.rank])
    gathered = distributed.all_gather_into_tensor(np.zeros(c.size, one.dtype), one)
    assert gathered.tolist() == list(range(c.size))
    assert distributed.reduce_scatter_tensor(one, gathered)[0] == c.rank * c.size
    distributed.barrier()
    assert distributed.all_gather_object("a") == ["a"] * c.size
    assert distributed.broadcast_object(c.rank) == 0


CHECKS = [check for name, check in globals().items() if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_alone(check):
    check(Alone())


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_simulated(check, n):
    Simulated(n).run(check)


def on_mpi_ranks(communicator):
    assert communicator.backend == "mpi" and communicator.size > 1
    assert init() is communicator and init("mpi") is communicator
    for check in CHECKS:
        check(communicator)
    rng = np.random.default_rng(communicator.rank)
    sums = [
        communicator.all_reduce(rng.standard_normal(n).astype("float32")).tobytes()
        for n in (7, 1000, 100_003)
    ]
    print(f"passed {hash_of(sums)}\n", end="")  # in one write
    communicator.close()
    with pytest.raises(RuntimeError, match="closed"):
        communicator.barrier()


def hash_of(chunks):
    from hashlib import sha256

    return sha256(b"".join(chunks)).hexdigest()


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 4])
def test_mpi(n):
    run = run_ranks(n, on_mpi_ranks)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == n and len(set(lines)) == 1 and lines[0].startswith("passed")


def sums_only(communicator):
    rng = np.random.default_rng(communicator.rank)
    delays = np.random.default_rng().random(3) * 0.01  # timing must not matter
    sums = []
    for n, delay in zip((7, 1000, 100_003), delays, strict=True):
        threading.Event().wait(delay)
        array = rng.standard_normal(n).astype("float32")
        sums.append(communicator.all_reduce(array).tobytes())
    print(f"passed {hash_of(sums)}\n", end="")  # in one write


@pytest.mark.mpi
@pytest.mark.slow
def test_mpi_sums_are_the_same_in_every_run():
    first, second = (run_ranks(3, sums_only) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert len(set((first.stdout + second.stdout).splitlines())) == 1


@given(n=st.integers(1, 5), length=st.integers(0, 40), seed=st.integers(0, 99))
def test_simulated_sums_are_taken_in_rank_order(n, length, seed):
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal((n, length)) * 1e3).astype("float32")
    expected = arrays[0].copy()
    for array in arrays[1:]:
        expected += array
    for result in Simulated(n).run(lambda c: c.all_reduce(arrays[c.rank].copy())):
        np.testing.assert_array_equal(result, expected)


def test_bfloat16_is_summed_in_float32():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16

    def sum_and_gather(c):
        mine = c.all_reduce(np.full(3, 1 + c.rank / 128, bfloat16))
        return mine, c.all_gather(np.empty(9, bfloat16), mine)

    for total, gathered in Simulated(3).run(sum_and_gather):
        assert total.dtype == gathered.dtype == bfloat16
        expected = np.float32(3 + 3 / 128).astype(bfloat16)
        assert (total == expected).all() and (gathered == expected).all()
