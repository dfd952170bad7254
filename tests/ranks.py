"""Start ranks with mpiexec from a test.

    run_ranks(3, function)                 # function(communicator), of a test module
    run_ranks(3, Path("script.py"), "--flag")
    run_ranks(3, "from minidl.distributed import init; print(init().rank)")

`python tests/ranks.py FILE NAME` is what each rank runs for a function.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_", "HYD", "SLURM_", "MV2_")


@dataclass
class Run:
    """How a job ended."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def find_mpiexec():
    """The mpiexec beside this Python (the MPICH wheel's), or the one on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


@cache
def why_no_ranks():
    """A sentence on what is missing for MPI tests, or None."""
    if importlib.util.find_spec("mpi4py") is None:
        return 'mpi4py is not installed: pip install "minidl[mpi]"'
    if find_mpiexec() is None:
        return 'no mpiexec found: pip install "minidl[mpi]"'
    code = "import mpi4py; mpi4py.rc.initialize = False; import mpi4py.MPI"
    if subprocess.run([sys.executable, "-c", code], capture_output=True).returncode:
        return 'mpi4py finds no MPI library: pip install "minidl[mpi]"'


def environment(**extra):
    """The variables for a job: this checkout first, and no launcher's."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    env["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests"), *filter(None, [env.get("PYTHONPATH")])]
    )
    env["OMP_NUM_THREADS"] = env["OPENBLAS_NUM_THREADS"] = "1"
    # Open MPI refuses both unless told otherwise
    env["OMPI_ALLOW_RUN_AS_ROOT"] = env["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    env["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    env["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    return env | extra


def python_arguments(what, *args):
    """The arguments with which Python runs a function, a script or source text."""
    if isinstance(what, Path):
        return [str(what), *map(str, args)]
    if callable(what):
        return [__file__, what.__code__.co_filename, what.__name__]
    return ["-c", what, *map(str, args)]


def run_ranks(n, what, *args, timeout=60, **env) -> Run:
    """Run a function, a script (Path) or source text (str) on `n` ranks.

    Skips the test where there is no MPI; fails it when `timeout` seconds are over,
    with no process left behind.
    """
    import pytest

    if reason := why_no_ranks():
        pytest.skip(reason)
    return run_job(
        [find_mpiexec(), "-n", str(n), sys.executable, *python_arguments(what, *args)],
        timeout,
        **env,
    )


def run_job(command, timeout=60, **env) -> Run:
    """Run a command in a process group of its own, which ends with it."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGTERM)  # mpiexec ends its ranks
        try:
            stdout, stderr = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise AssertionError(
            f"not over after {timeout} s: {command}\n{stdout}\n{stderr}"
        ) from None
    seconds = time.monotonic() - start
    return Run(process.returncode, stdout, stderr, seconds)


if __name__ == "__main__":
    from minidl.distributed import init

    communicator = init()  # first: an exception in what follows ends all ranks
    file, name = sys.argv[1:]
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(communicator)
