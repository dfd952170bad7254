"""Devices by name, threads by number."""

import os
import shutil
import subprocess
import sys
import threading
import time

import numpy
import pytest

from minidl.array import device, threads
from minidl.array.errors import DeviceError


def test_names_of_devices():
    assert device.canonical_device() == device.canonical_device("cpu") == "cpu"
    for name in ["gpux", "cuda:", "cuda:x", "cuda1", "cpu:0", "tpu", 3]:
        with pytest.raises(ValueError, match="unknown device"):
            device.canonical_device(name)


@pytest.mark.skipif(device.gpu_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_sentence():
    assert device.canonical_device("auto") == "cpu"
    for name in ["cuda", "gpu", "cuda:1"]:
        with pytest.raises(DeviceError, match="was asked for, but .*use device 'cpu'"):
            device.canonical_device(name)


@pytest.mark.gpu
def test_arrays_move(xp):
    x = xp.arange(3)
    assert device.array_module(x) is xp and device.array_module(1.0) is numpy
    name = device.device_of(x)
    assert device.to_device(x, name) is x
    there = device.to_device(numpy.arange(3), name)
    assert type(there) is type(x) and device.to_numpy(there).tolist() == [0, 1, 2]
    device.synchronize()


def python(code, **environment):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    line = [sys.executable, "-c", code]
    return subprocess.check_output(line, env=environment, text=True, timeout=60).strip()


def test_importing_minidl_imports_no_other_package():
    code = "import sys, minidl.array.random as r; r.uniform(3); print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python(code).split()}
    assert not loaded & {"torch", "mpi4py", "scipy"}
    assert device.gpu_available() or "cupy" not in loaded


@pytest.mark.parametrize(
    "variables, number",
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "2,4", "MPI_LOCALNRANKS": "999"}, 2),
        ({"MPI_LOCALNRANKS": "999"}, 1),
        ({"SLURM_TASKS_PER_NODE": "999(x2)"}, 1),
        ({}, len(os.sched_getaffinity(0))),
    ],
)
def test_default_number_of_threads(variables, number, monkeypatch):
    for name in ["OMP_NUM_THREADS", *threads._RANKS_HERE]:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found, why = threads._default()
    assert found == number
    if "OMP_NUM_THREADS" in variables:
        assert why == "as OMP_NUM_THREADS says"
    else:
        assert "cores may be used" in why
        assert ("by 999 ranks on this host" in why) == bool(variables)


@pytest.mark.parametrize(
    "own, launcher, number",
    [(4, 32, 4), (16, 32, 4), (32, 32, 4), (1, 32, 1), (2, 2, 1)],
    ids=["its share", "a socket", "not bound", "a core", "too few"],
)
def test_a_rank_that_is_bound_does_not_divide_twice(own, launcher, number, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MPI_LOCALNRANKS", "8")
    cores = {0: range(own), os.getppid(): range(launcher)}
    monkeypatch.setattr(os, "sched_getaffinity", cores.get)
    found, why = threads._default()
    assert found == number
    assert ("to which this rank is bound" in why) == (own < launcher and own <= 4)


def test_a_script_around_a_rank_is_not_its_launcher(monkeypatch):
    code = "from minidl.array import threads; print(threads._cores_of_launcher())"
    one = (
        f"taskset -c {min(os.sched_getaffinity(0))}" if shutil.which("taskset") else ""
    )
    line = f"PMI_RANK=0 {one} sh -c '{sys.executable} -c \"{code}\"; true'"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.check_output(line, env=environment, text=True, shell=True)
    assert int(said) == len(os.sched_getaffinity(0))


@pytest.fixture(params=[1, 3])
def three_threads(request):
    before = threads.get_num_threads()
    threads.set_num_threads(request.param)
    yield request.param
    threads.set_num_threads(before)


def test_parallel_keeps_order_and_raises(three_threads):
    def slow_square(x):
        time.sleep(0.001 * (5 - x))
        return x * x

    assert threads.parallel(slow_square, range(5)) == [0, 1, 4, 9, 16]
    assert threads.parallel(lambda x: threads.get_num_threads(), [1, 2]) in (
        [1, 1],
        [three_threads] * 2 if three_threads == 1 else [1, 1],
    )
    with pytest.raises(ZeroDivisionError):
        threads.parallel(lambda x: 1 / x, [1, 0, 2])
    nested = threads.parallel(lambda x: threads.parallel(abs, [x, -x]), range(8))
    assert nested == [[x, x] for x in range(8)]


def test_parallel_from_several_threads(three_threads):
    results = {}

    def rank(number):
        results[number] = threads.parallel(lambda x: x + number, range(20))

    ranks = [threading.Thread(target=rank, args=(k,)) for k in range(4)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert results == {k: list(range(k, 20 + k)) for k in range(4)}


def test_parallel_keeps_the_callers_errstate(three_threads):
    with numpy.errstate(over="raise"):
        states = threads.parallel(lambda x: numpy.geterr()["over"], range(8))
    assert states == ["raise"] * 8
    assert "raise" not in threads.parallel(lambda x: numpy.geterr()["over"], range(8))


def test_wrong_numbers_of_threads():
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="at least 1"):
            threads.set_num_threads(wrong)


def test_blas_threads():
    done = threads.blas_threads(1)
    assert done in (True, False)
    if done:
        x = numpy.ones((50, 50))
        assert ((x @ x) == 50).all()


def test_a_forked_child_can_run_kernels():
    code = """
import os, numpy
from minidl.array.kernel import Kernel
from minidl.array.threads import set_num_threads
set_num_threads(2)
k = Kernel("k", "x", "y", "", "y = x + 1;")
x = numpy.zeros(200_000)
k(x)
child = os.fork()
if child == 0:
    os._exit(0 if k(x).all() else 1)
print(os.waitpid(child, 0)[1])
"""
    assert python(code) == "0"
