"""Collectives of arrays on GPUs, by NCCL and by MPI, on stand-ins for CuPy and NCCL."""

import sys

import numpy as np
import pytest
from gpu_ranks import passed, ranks, run

from minidl.array.device import to_numpy

FLOATS = ("float16", "bfloat16", "float32", "float64")
WHOLE = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
TOLERANCE = {"float16": 3e-3, "bfloat16": 3e-2, "float32": 1e-6, "float64": 1e-14}


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


def leave(c):
    from stand_in import cupy as xp

    close(c.all_reduce(xp.full(3, 2.0), "avg"), np.full(3, 2.0))
    print("passed\n", end="", flush=True)
    sys.exit()


@ranks
def test_ranks_that_end_leave_nccl_first():
    """A thread cannot be started any more when Python 3.12 ends."""
    passed(run(2, leave), 2)
