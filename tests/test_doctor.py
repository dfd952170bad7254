"""`minidl doctor` tells what ranks have, and what is wrong with them."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest
from ranks import ROOT, environment, run_ranks

from minidl.array import cache, compiler, inventory
from minidl.array.errors import DeviceError
from minidl.array.threads import get_num_threads, set_num_threads
from minidl.distributed import Alone, Simulated
from minidl.distributed.library import cuda_aware
from minidl.train import collective_bench, doctor, findings
from minidl.train.command_line import main


@pytest.fixture(scope="module")
def alone():
    """What this process has, as one rank."""
    return doctor.facts(Alone(), "cpu")


def gpu(number: int) -> dict:
    address = f"0000:{17 + number}:00"
    return {
        "name": f"cuda:{number}",
        "model": "NVIDIA Z",
        "address": address,
        "identity": f"{address} abcd",
        "free": 3 << 30,
        "total": 4 << 30,
    }


def job(own: dict, size: int, hosts=("node1",), **changes) -> list[dict]:
    """Ranks that have what `own` has, each a GPU of its own; ranks on hosts in turn."""
    everyone = []
    for rank in range(size):
        changed = {
            "rank": rank,
            "size": size,
            "host": hosts[rank % len(hosts)],
            "process": 100 + rank,
            "device": gpu(rank // len(hosts)),
            "cores": [rank],
            "threads": 1,
        }
        everyone.append({**deepcopy(own), **changed, **changes})
    return everyone


def test_one_rank_on_a_cpu(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "SIZES", [])
    assert main(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    words = "process minidl Python NumPy CuPy NCCL MPI BLAS threads cache"
    assert all(word in out for word in words.split())
    assert str(os.getpid()) in out and "cpu" in out
    assert "hint: this is one rank" in out
    assert out.endswith("minidl can be used as it is\n")


def test_all_of_it_as_json(capsys):
    assert main(["doctor", "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] and report["problems"] == []
    (own,) = report["ranks"]
    assert own["process"] == os.getpid() and own["threads"] == get_num_threads()
    assert own["device"]["total"] >= own["device"]["free"] > 0
    assert own["versions"]["NumPy"] == inventory.numpy.__version__
    assert own["cache"] == str(cache.cache_path())
    assert report["all_reduce"] == []  # of one rank


def test_why_so_many_threads():
    before = get_num_threads()
    set_num_threads(before)
    assert doctor.why_threads() == "set by set_num_threads"


def test_a_gpu_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr("minidl.array.device.gpu_available", lambda: False)
    assert main(["doctor", "--device", "gpu"]) == 1
    out = capsys.readouterr().out
    assert "problem: no device for rank 0 on " in out and ": device 'gpu' was" in out
    assert "can be used" not in out


def test_a_cache_and_a_compiler_that_are_not_there(tmp_path):
    closed = tmp_path / "cache"
    closed.mkdir()
    closed.chmod(0o777)
    env = environment(MINIDL_CACHE_DIR=str(closed), MINIDL_COMPILER="/nope")
    command = [sys.executable, "-m", "minidl", "doctor"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ""
    assert f"the cache directory {closed} can be written by other users" in done.stdout
    assert "MINIDL_COMPILER=/nope names a compiler that is not there" in done.stdout


def test_a_compiler_that_fails(tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho compiler of old\nexit 1\n")
    broken.chmod(0o755)
    script = (
        "from minidl.array.inventory import compiler_facts; print(compiler_facts())"
    )
    env = environment(MINIDL_COMPILER=str(broken))
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True
    )
    assert "compiler of old" in done.stdout and "cannot compile" in done.stdout
    assert done.stderr == ""


def test_what_does_not_answer_ends(tmp_path):
    script = (
        "import time; from minidl.train import doctor, command_line\n"
        "doctor.versions = lambda: time.sleep(60)\n"
        "command_line.main(['doctor', '--timeout', '0.5'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1 and "in facts" in done.stderr


# --- what CuPy tells --------------------------------------------------------------


def test_versions_and_memory_as_cupy_tells_them(stand_in, monkeypatch):
    found = doctor.versions()
    assert found["CuPy"] == stand_in.cupy.__version__
    assert found["CUDA runtime"] == found["CUDA driver"] == "13.0"
    device = doctor.chosen_device(Alone(), "auto")
    assert device["name"] == "cuda:0" and device["model"] == "stand-in"
    assert device["address"] == stand_in.cupy.cuda.Device(0).pci_bus_id
    assert device["identity"].startswith(device["address"] + " ")
    assert 0 < device["free"] <= device["total"]
    held = stand_in.cupy.empty(1 << 20)
    less = doctor.chosen_device(Alone(), "auto")["free"]
    # little else comes and goes: what earlier tests have left
    assert device["free"] - less > held.nbytes // 2
    runtime = stand_in.cupy.cuda.runtime
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: 0)
    assert doctor.versions()["CUDA driver"] is None


def test_the_version_of_nccl(monkeypatch):
    nccl = SimpleNamespace(get_version=lambda: 22809)
    for module, version in ((nccl, "2.28.9"), (None, None)):
        monkeypatch.setattr(inventory, "nccl_module", lambda module=module: module)
        assert doctor.versions()["NCCL"] == version


def test_versions_as_they_are_written():
    assert inventory.dotted(12090, 1000, 10) == "12.9"
    assert inventory.dotted(13020, 1000, 10) == "13.2"
    assert inventory.asked(lambda: 22809, 10000, 100, 1) == "2.28.9"
    assert inventory.asked(lambda: 0, 1000, 10) is None


@pytest.mark.parametrize("error", [AttributeError, ImportError, OSError, RuntimeError])
def test_a_library_that_is_not_there_has_no_version(error):
    def ask():
        raise error("no library")

    assert inventory.asked(ask, 1000, 10) is None


def test_a_device_that_fails_is_a_sentence(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("cudaErrorUnknown")

    monkeypatch.setattr(Alone, "place", fail)
    found = doctor.chosen_device(Alone(), "auto")
    assert found == {"name": None, "problem": "cudaErrorUnknown"}

    def refuse(*_, **__):
        raise DeviceError("too few")

    monkeypatch.setattr(Alone, "place", refuse)
    assert doctor.chosen_device(Alone(), "auto")["problem"] == "too few"


# --- what is wrong ----------------------------------------------------------------


def test_ranks_with_a_gpu_each_are_well(alone):
    everyone = job(alone, 4, ("node1", "node2"))
    assert findings.problems(everyone) == []
    text = doctor.written(
        {
            "ranks": everyone,
            "all_reduce": [{"bytes": 8, "us": 1.5, "gb_per_s": 0.005}],
            "problems": [],
            "hints": [],
            "usable": True,
        }
    )
    lines = text.splitlines()
    assert (
        lines[2].split()
        == "1 node2 101 1 3.0/4.0 cuda:0 NVIDIA Z at 0000:17:00".split()
    )
    assert (
        lines[4].split()
        == "3 node2 103 1 3.0/4.0 cuda:1 NVIDIA Z at 0000:18:00".split()
    )
    assert "         8        1.5    0.005" in lines


def test_two_ranks_on_one_gpu(alone):
    everyone = job(alone, 4, ("node1", "node2"))
    everyone[3]["device"] = gpu(0)
    assert findings.problems(everyone) == [
        "ranks 1, 3 on node2 share one GPU (NVIDIA Z at 0000:17:00): start as many "
        "ranks on a host as it has GPUs, or set MINIDL_SHARE_GPUS=1"
    ]
    everyone[1]["may_share"] = True  # not by the other
    assert len(findings.problems(everyone)) == 1


def test_two_ranks_that_may_share_a_gpu(alone):
    everyone = job(alone, 2)
    everyone[1]["device"] = gpu(0)
    for own in everyone:
        own["may_share"] = True
    assert findings.problems(everyone) == []
    (said,) = [hint for hint in findings.hints(everyone) if "share" in hint]
    assert said.startswith("ranks 0, 1 on node1 share one GPU (NVIDIA Z at 0000:17:00)")


def test_a_gpu_for_some_and_none_for_others(alone):
    everyone = job(alone, 3)
    everyone[1]["device"] = alone["device"]
    everyone[2]["device"] = {"name": None, "problem": "it is lost"}
    lost, mixed = findings.problems(everyone)
    assert lost == "no device for rank 2 on node1: it is lost"
    assert "rank 1 on node1 would train on the CPU, rank 0 on node1 on a GPU" in mixed


@pytest.mark.parametrize("what", ["NumPy", "CuPy", "NCCL", "minidl", "MPI"])
def test_skew_of_versions(alone, what):
    everyone = job(alone, 3, ("node1", "node2"))
    for own, version in zip(everyone, ("1.0", "1.1", "1.0"), strict=True):
        own["versions"][what] = version
    (sentence,) = findings.problems(everyone)
    assert sentence == (
        f"{what} is not the same on all ranks: 1.0 on ranks 0, 2 on node1, 1.1 on rank "
        "1 on node2; install one version everywhere"
    )
    assert f"{what:<14}  1.1  (rank 1)" in doctor.shared_lines(everyone)
    everyone[1]["versions"][what] = None
    assert "none on rank 1" in findings.problems(everyone)[0]


def test_drivers_may_differ(alone):
    everyone = job(alone, 2)
    everyone[1]["versions"]["CUDA driver"] = "99.9"
    assert findings.problems(everyone) == []


def test_a_cache_of_one_rank(alone):
    everyone = job(alone, 2)
    everyone[1]["cache_problem"] = "cannot be written"
    (sentence,) = findings.problems(everyone)
    assert sentence.startswith("rank 1 on node1: the cache directory")


def test_what_is_missing_is_told_once(alone):
    everyone = job(alone, 2)
    for own in everyone:
        own["versions"]["NCCL"] = None
    everyone[1]["missing"] = ["matplotlib"]
    everyone[1]["compiler_problem"] = "no C++ compiler was found"
    everyone[0]["cores"] = everyone[1]["cores"]
    found = "\n".join(findings.hints(everyone))
    assert "matplotlib is missing on rank 1 on node1, for the picture of" in found
    assert 'pip install "minidl[plot]"' in found
    assert "rank 1 on node1: no C++ compiler was found, so kernels" in found
    assert "without NCCL gradients travel through the memory of the host" in found
    assert "2 threads of 2 ranks share 1 cores of node1" in found


def test_what_one_rank_lacks_for_several(alone):
    own = {**alone, "missing": ["mpi4py"], "mpirun": None}
    found = "\n".join(findings.hints([own]))
    assert 'mpi4py is missing, for several ranks: pip install "minidl[mpi]"' in found
    assert "no mpirun is on PATH" in found
    own = {**alone, "mpirun": "/usr/bin/mpirun"}
    assert "for several: mpirun -n 2 minidl doctor" in "\n".join(findings.hints([own]))


def test_many_ranks_are_named_shortly(alone):
    text = findings.names(job(alone, 20))
    assert text == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more on node1"


# --- several ranks ----------------------------------------------------------------


def test_the_curve(monkeypatch):
    monkeypatch.setattr(doctor, "SIZES", [8, 4096])
    monkeypatch.setattr(collective_bench.timed, "__defaults__", (0.01,))
    curve, *others = Simulated(3).run(doctor.bandwidth, "cpu")
    assert [row["bytes"] for row in curve] == [8, 4096]
    assert all(row["us"] > 0 and row["gb_per_s"] > 0 for row in curve)
    assert others == [curve, curve]


def test_an_mpi_that_takes_device_memory():
    source = 'extern "C" int MPIX_Query_cuda_support() { return 1; }'
    library = compiler.load(source)
    if library is None:
        pytest.skip("no C++ compiler")
    assert cuda_aware(mpi_of(library._name))
    assert not cuda_aware(mpi_of(compiler.load(inventory.TRIAL)._name))
    assert not cuda_aware(mpi_of("/nowhere.so"))
    assert cuda_aware(mpi_of("/nowhere.so", "mpi,system,cuda:device"))
    assert not cuda_aware(mpi_of("/nowhere.so", "mpi,system"))


def mpi_of(library, kinds=None):
    """What stands for mpi4py.MPI."""
    info = {"mpi_memory_alloc_kinds": kinds}
    world = SimpleNamespace(Get_info=lambda: info)
    return SimpleNamespace(__file__=library, COMM_WORLD=world)


DOCTOR = "import sys; from minidl.train.command_line import main; sys.exit(main({}))"


@pytest.mark.mpi
@pytest.mark.slow
def test_under_mpirun():
    flags = ["doctor", "--json", "--device", "cpu"]
    run = run_ranks(2, DOCTOR.format(flags))
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert [own["rank"] for own in report["ranks"]] == [0, 1]
    first, second = report["ranks"]
    assert first["process"] != second["process"] and first["backend"] == "mpi"
    assert first["versions"]["MPI"] and first["cuda_aware"] in (True, False)
    assert [row["bytes"] for row in report["all_reduce"]] == doctor.SIZES


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("devices, share, status", [(1, 0, 1), (1, 1, 0), (2, 0, 0)])
def test_ranks_on_gpus_under_mpirun(devices, share, status):
    pytest.importorskip("cupy")
    flags = ["-m", "minidl", "doctor", "--json"]
    count = str(devices)
    script = ROOT / "tests" / "stand_in.py"
    variables = {"STAND_IN_DEVICES": count, "MINIDL_SHARE_GPUS": str(share)}
    run = run_ranks(2, script, *flags, **variables)
    assert run.returncode == status, run.stderr
    report = json.loads(run.stdout)
    names = [own["device"]["name"] for own in report["ranks"]]
    if devices == 2:
        assert names == ["cuda:0", "cuda:1"] and len(report["all_reduce"]) == 4
    elif share:
        assert names == ["cuda:0", "cuda:0"] and len(report["all_reduce"]) == 4
    else:
        assert names[0] == "cuda:0" and report["problems"]


@pytest.mark.mpi
@pytest.mark.slow
def test_ranks_of_other_versions_under_mpirun():
    script = "import os, minidl.distributed.launch as launch\n"
    script += "rank = launch.launched().rank\n"
    script += "launch.code_digest = lambda package: f'code {rank}'\n"
    run = run_ranks(2, script + DOCTOR.format(["doctor", "--device", "cpu"]))
    assert run.returncode == 1, run.stderr
    assert run.stdout.count("problem: minidl is not the same on all ranks") == 1
    assert "Traceback" not in run.stderr


@pytest.mark.mpi
@pytest.mark.slow
def test_ranks_without_mpi4py_under_mpirun():
    script = "import sys; sys.modules['mpi4py'] = None\n"
    run = run_ranks(2, script + DOCTOR.format(["doctor", "--device", "cpu"]))
    assert run.returncode == 1
    assert 'pip install "minidl[mpi]"' in run.stdout and "Traceback" not in run.stderr
