"""Start ranks with a stand-in GPU each from a test.

passed(run(3, function), 3)  # function(communicator), of a test module, by NCCL
run(2, function, "mpi")
"""

import importlib

import pytest
from ranks import run_ranks

from minidl import distributed
from minidl.array.device import use_device

# what each way is asked of `init`; "shared": two ranks on one GPU
WAYS = {"nccl": None, "shared": "nccl", "mpi": "mpi", "direct": "mpi"}
START = "import sys, gpu_ranks; gpu_ranks.start(*sys.argv[1:])"


def ranks(function):
    return pytest.mark.mpi(pytest.mark.slow(function))


def run(n, function, way="nccl", timeout=60, **environment):
    """Run a function of a test module on `n` ranks, which wait so long for another."""
    pytest.importorskip("cupy")
    what = function.__module__, function.__name__, way, str(timeout)
    return run_ranks(n, START, *what, **environment)


def passed(job, n):
    assert job.returncode == 0, job.stderr
    assert job.stdout.splitlines() == ["passed"] * n and not job.stderr, job.stderr


def start(module, name, way, timeout):
    """On each rank: the stand-ins, the communicator, the function."""
    import stand_in
    import stand_in_nccl

    from minidl.distributed import gpus, requests, staging, watch

    stand_in.install(devices=4)
    stand_in_nccl.install()
    # what has been waited for is in order for the stand-in, which is to see races
    watch.Launch.begun = lambda launch: True
    watch.Launch.over = lambda launch: launch.landed is not None
    staging.CHUNK = 4096
    if way == "direct":
        gpus.cuda_aware = lambda MPI: True
        requests.Requests.memory = checked(requests.Requests.memory)
    communicator = distributed.init(WAYS[way], timeout=float(timeout))
    with use_device(communicator.place("auto")):
        getattr(importlib.import_module(module), name)(communicator)
    assert communicator.backend == (WAYS[way] or "nccl")
    communicator.close()
    assert stand_in_nccl.calls[-1:] == ["destroy"] * (communicator.backend == "nccl")
    print("passed\n", end="", flush=True)


def checked(memory):
    """`Requests.memory`, for arrays of which MPI has all that a GPU had to do."""
    from stand_in_memory import check_host

    from minidl.array.device import on_gpu

    def given(self, array):
        if on_gpu(array) and array.size:
            check_host(array.data.ptr, array.nbytes)
        return memory(self, array)

    return given
