"""Ranks that start together; one that fails before it has, and those that wait."""

import re
import shutil
import signal
import sys

import pytest
from ranks import ROOT, find_mpiexec, run_job, run_ranks, why_no_ranks

from minidl.distributed import init, launched
from minidl.distributed.witness import Witness


def mpi(test):
    return pytest.mark.mpi(pytest.mark.slow(test))


START = """
import os, signal, sys, time
import numpy as np
from minidl.array.errors import DataError
from minidl.distributed import init, launched

if launched().rank == 1:
    {}
init(timeout={})
"""
WAITED = (
    r"^rank [02] of 3 on host \S+ \(process \d+\) was killed, or gave up after {} s, "
    r"while it waited for all 3 ranks to start; nothing was heard of rank 1 on this "
    r"host$"
)


@mpi
@pytest.mark.parametrize(
    "what, words",
    [
        ("raise ValueError('wrong on purpose')", r"\nTraceback"),
        ("np.empty(2**50)", " out of memory: use a smaller batch"),
        ("raise DataError('train.gz: no such file')", " train.gz: no such file$"),
        ("os.kill(os.getpid(), signal.SIGINT)", " interrupted$"),
    ],
    ids=["raises", "lacks memory", "user's mistake", "interrupted"],
)
def test_a_rank_that_fails_before_it_starts_ends_all(what, words):
    run = run_ranks(3, START.format(what, 60))
    assert run.returncode != 0 and run.seconds < 15
    assert re.search(rf"^rank 1 of 3 on host \S+:{words}", run.stderr, re.M)
    assert run.stderr.count("Traceback") == ("memory" in words or "Trace" in words)
    assert "killed" not in run.stderr


@mpi
def test_a_mistake_of_all_ranks_before_they_start_is_said_once():
    run = run_ranks(3, "import minidl\nraise ValueError('wrong on purpose')")
    assert run.returncode != 0 and run.seconds < 10
    assert run.stderr.count("wrong on purpose\n") == 1, run.stderr
    assert "rank 0 of 3 on host" in run.stderr


def test_a_signal_that_is_handled_does_not_keep_a_rank_that_has_failed():
    text = (
        "import signal, minidl\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled', flush=True))\n"
        "raise ValueError('wrong on purpose')\n"
    )
    run = run_job([sys.executable, "-c", text], PMI_RANK="0", PMI_SIZE="2")
    assert run.returncode == -signal.SIGTERM and run.stdout == ""


@pytest.mark.parametrize("alone", [False, True])
def test_a_rank_that_is_alone_fails_as_any_process(alone):
    text = "from minidl.distributed import init\n"
    text += "init('alone')\n" * alone + "raise ValueError('wrong on purpose')\n"
    run = run_job([sys.executable, "-c", text], PMI_RANK="0", PMI_SIZE="2")
    assert run.returncode == (1 if alone else -signal.SIGTERM)
    assert run.stderr.startswith("Traceback" if alone else "rank 0 of 2 on host")
    assert run.stderr.endswith("\nValueError: wrong on purpose\n")


@mpi
@pytest.mark.parametrize("what", ["time.sleep(60)", "sys.exit(3)", "os._exit(0)"])
def test_a_rank_that_does_not_start_is_waited_for_and_named(what):
    run = run_ranks(3, START.format(what, 2))
    assert run.returncode != 0 and run.seconds < 15
    assert len(re.findall(WAITED.format(2), run.stderr, re.M)) == 1, run.stderr
    assert "Traceback" not in run.stderr


@mpi
def test_a_rank_that_is_killed_before_it_starts_is_named():
    what = "time.sleep(2); os.kill(os.getpid(), signal.SIGKILL)"
    run = run_ranks(3, START.format(what, 600))
    assert run.returncode != 0 and 2 < run.seconds < 15
    assert len(re.findall(WAITED.format(120), run.stderr, re.M)) == 1, run.stderr


@mpi
def test_scripts_around_the_ranks_do_not_hide_who_waits(tmp_path):
    if reason := why_no_ranks():
        pytest.skip(reason)
    script = tmp_path / "start.py"
    script.write_text(START.format("time.sleep(60)", 2))
    line = f"{sys.executable} {script}; exit $?"
    run = run_job([find_mpiexec(), "-n", "3", "sh", "-c", line])
    assert run.returncode != 0 and run.seconds < 15
    assert len(re.findall(WAITED.format(2), run.stderr, re.M)) == 1, run.stderr


def test_of_many_ranks_that_do_not_start_some_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one, two = Witness(3, 20), Witness(0, 20)
    with one.waiting(5), two.waiting(5):
        (file,) = tmp_path.iterdir()
        assert file.read_text().splitlines()[0] == (
            "was killed, or gave up after 5 s, while it waited for all 20 ranks to "
            "start; nothing was heard of rank 1, rank 2, rank 4, rank 5, rank 6, "
            "rank 7, rank 8, rank 9 and 10 more on this host"
        )
    assert not list(tmp_path.iterdir())
    one.dismiss()
    two.dismiss()


@mpi
def test_flags_that_one_rank_does_not_know_end_all(tmp_path):
    if reason := why_no_ranks():
        pytest.skip(reason)
    minidl = [sys.executable, "-m", "minidl", "train", "--out", str(tmp_path)]
    ranks = ["-n", "2", *minidl, ":", "-n", "1", *minidl, "--batch-size", "no"]
    run = run_job([find_mpiexec(), *ranks])
    assert run.returncode == 2 and run.seconds < 15
    words = r"^rank 2 of 3 on host \S+: minidl train: .*got 'no' \(see minidl train -"
    assert re.search(words, run.stderr, re.M), run.stderr
    assert list(tmp_path.iterdir()) == []


@mpi
def test_a_slow_import_is_not_taken_for_a_rank_that_is_late():
    text = (
        "import sys, time\n"
        "from minidl.distributed import init\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        name == 'mpi4py.MPI' and time.sleep(6)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "print(init(timeout=5).size)\n"
    )
    run = run_ranks(2, text)
    assert run.returncode == 0 and run.stdout.count("2") == 2, run.stderr


@mpi
def test_a_rank_without_mpi4py_is_named_and_ends_all(tmp_path):
    text = (
        "import sys\n"
        "from minidl.distributed import launched\n"
        "if launched().rank == 1: sys.modules['mpi4py'] = None\n"
        "from minidl.train.command_line import main\n"
        f"sys.exit(main(['train', '--out', {str(tmp_path)!r}]))\n"
    )
    run = run_ranks(2, text)
    assert run.returncode != 0 and run.seconds < 15
    assert re.search(r"and rank 1 on host \S+ has none: pip install", run.stderr)
    assert "killed" not in run.stderr and list(tmp_path.iterdir()) == []


@mpi
def test_ranks_with_other_code_are_named(tmp_path):
    if reason := why_no_ranks():
        pytest.skip(reason)
    shutil.copytree(ROOT / "minidl", tmp_path / "minidl")
    with open(tmp_path / "minidl" / "array" / "errors.py", "a") as file:
        file.write("# changed\n")
    script = tmp_path / "scripts" / "start.py"
    script.parent.mkdir()
    script.write_text("from minidl.distributed import init; init(); print('started')")
    python = [sys.executable, str(script)]
    other = ["env", f"PYTHONPATH={tmp_path}", *python]
    run = run_job([find_mpiexec(), "-n", "1", *python, ":", "-n", "2", *other])
    assert run.returncode == 1 and run.seconds < 10
    assert re.search(
        r"not the same on all ranks: rank 0 on \S+ has 0\S+ \(\w{8}\), "
        r"rank 1 on \S+ has 0\S+ \(\w{8}\), rank 2 on",
        run.stderr,
    )
    assert run.stderr.count("not the same") == 1
    assert "Traceback" not in run.stderr and "started" not in run.stdout


def test_a_launcher_without_mpi4py_is_one_clear_error():
    text = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from minidl.distributed import init\n"
        "from minidl.array.errors import DependencyError\n"
        "try: init()\n"
        "except DependencyError as error: print(error)\n"
    )
    run = run_job([sys.executable, "-c", text], PMI_RANK="1", PMI_SIZE="2")
    assert "MPICH has started 2 ranks" in run.stdout
    assert 'pip install "minidl[mpi]"' in run.stdout and not run.stderr


@mpi
def test_an_mpi_that_does_not_know_the_launcher_is_refused():
    if reason := why_no_ranks():
        pytest.skip(reason)
    text = "from minidl.distributed import init; init()"
    place = {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2"}
    run = run_job([sys.executable, "-c", text], **place)
    assert run.returncode == 1
    assert "MVAPICH2 has started 2 ranks" in run.stderr and "sees 1" in run.stderr


def test_without_a_launcher_nothing_needs_mpi():
    text = (
        "import sys\n"
        "from minidl.distributed import init\n"
        "c = init()\n"
        "assert c is init() and sys.excepthook is sys.__excepthook__\n"
        "print(c.size, c.backend, 'mpi4py' in sys.modules)\n"
    )
    run = run_job([sys.executable, "-c", text])
    assert run.stdout.split() == ["1", "alone", "False"], run.stderr


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, None),
        ({"PMI_RANK": "2", "PMI_SIZE": "3"}, ("MPICH", 2, 3)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"},
            ("Open MPI", 0, 4),
        ),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, ("Slurm", 1, 2)),
        # a batch script is no rank, whatever number of tasks it was given
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),
        # mpiexec inside a step of one task
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "1",
                "PMI_RANK": "1",
                "PMI_SIZE": "2",
            },
            ("MPICH", 1, 2),
        ),
    ],
)
def test_launchers_are_known_by_their_environment(environ, expected):
    assert launched(environ) == expected


def test_init_refuses_an_unknown_backend():
    with pytest.raises(ValueError, match="'gloo'"):
        init("gloo")
