"""Failing on GPUs: who is missing, who shares, who has another NCCL."""

import os
import re
import time

import numpy as np
import pytest
from gpu_ranks import passed, ranks, run


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


@ranks
def test_a_rank_that_does_not_come_to_nccl_is_named():
    job = run(3, stall, timeout=1.5)
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
    job = run(2, stall_in_a_graph, timeout=1.5)
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
    from stand_in import cupy as xp

    os.environ["STAND_IN_NCCL"] = str(22809 + c.rank)
    c.all_reduce(xp.ones(3))


@ranks
def test_versions_of_nccl_must_be_one():
    job = run(2, other_version)
    assert job.returncode == 1 and job.stderr.count("Traceback") == 0
    said = r"NCCL is not the same .*: rank 0 on \S+ has 22809, rank 1 on \S+ has 22810"
    assert re.search(said, job.stderr), job.stderr
