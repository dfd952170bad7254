"""Finding the ranks of this job, and checking that they fit together.

Under a launcher, an exception that ends a rank ends the job on all of them from the
import on. A rank that ends otherwise before `init()`, as by sys.exit, some launchers
(MPICH's) take for one that has done its work: so call it first.
"""

import atexit
import faulthandler
import os
import socket
import sys
from hashlib import blake2b
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import minidl
from minidl.array.device import canonical_device
from minidl.array.errors import DependencyError, DistributedError, listed
from minidl.distributed import failing
from minidl.distributed.communicator import Alone, Communicator, simulated
from minidl.distributed.mpi import MPICommunicator
from minidl.distributed.witness import Witness

# What launchers tell the processes that they start: rank and number of ranks.
# SLURM_NTASKS is no such thing: a batch script has it too, and is no rank.
LAUNCHERS = {
    "MPICH": ("PMI_RANK", "PMI_SIZE"),  # its hydra, Intel MPI, srun --mpi=pmi2
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MVAPICH2": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    "Slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # PMIx included
}
START_SECONDS = 120  # at most, for all ranks to reach init(), after the first has
TIMEOUT = 600.0  # seconds that a collective waits for a rank, unless told otherwise

_communicator = None  # this process's


class Launch(NamedTuple):
    """What a launcher has told this process about its job."""

    launcher: str
    rank: int
    size: int


def launched(environ=os.environ) -> Launch | None:
    """The place of this process among several ranks, or None when it is alone.

    Reads the environment only, so that it costs nothing and needs no MPI.
    """
    for launcher, (rank, size) in LAUNCHERS.items():
        values = environ.get(rank, ""), environ.get(size, "")
        if all(value.isdecimal() for value in values):
            launch = Launch(launcher, *map(int, values))
            return launch if launch.size > 1 else None
    return None


def init(
    backend: str | None = None,
    timeout: float = TIMEOUT,
    share_gpus: bool | None = None,
) -> Communicator:
    """The communicator of this process: of several ranks under a launcher, or Alone.

    `backend` is "alone", "mpi", "nccl" (what is on the host still travels by MPI), or
    None: NCCL for arrays on GPUs, where each rank has a GPU of its own and that
    library, and otherwise MPI. A rank that has waited `timeout` seconds for another,
    be it to start, ends the job. `share_gpus` lets several ranks use one GPU, which
    otherwise is an error (None: as the environment's MINIDL_SHARE_GPUS says, 0 or 1).

    A second call returns the same communicator. On several ranks, an exception that
    nobody catches ends the job on all of them, from now on in any thread; after
    init("alone") it ends this process as any other. Raises DependencyError without
    mpi4py, and DistributedError, on every rank, when ranks run different code.
    """
    global _communicator
    if backend not in (None, "alone", "mpi", "nccl"):
        raise ValueError(f'backend is "alone", "mpi", "nccl" or None, not {backend!r}')
    if simulated.get() is not None:
        return simulated.get()
    if _communicator is not None and not _communicator.closed:
        if backend not in (None, _communicator.backend):
            raise DistributedError(
                f"init({backend!r}) in a process that has already "
                f"started {_communicator.backend!r}"
            )
        return _communicator
    if backend == "alone" or backend is None and not launched():
        _communicator = Alone()
        fail_alone()
    else:
        if share_gpus is None:
            share_gpus = sharing_wanted()
        _communicator = start_mpi(timeout, backend, share_gpus)
    if backend == "nccl":
        canonical_device("cuda")  # raises DeviceError where there is none
    return _communicator


def sharing_wanted() -> bool:
    """Whether MINIDL_SHARE_GPUS lets several ranks use one GPU."""
    return os.environ.get("MINIDL_SHARE_GPUS", "0") not in ("", "0")


def is_initialized() -> bool:
    """Whether this process, or this simulated rank, has a communicator."""
    if simulated.get() is not None:
        return True
    return _communicator is not None and not _communicator.closed


def start_mpi(timeout, backend, share_gpus) -> Communicator:
    """Start MPI, and check the ranks against each other."""
    launch = launched() or Launch("no launcher", 0, 1)
    witness = Witness(launch.rank, launch.size)
    try:
        MPI = import_mpi(launch)
        wait_for_all_ranks_to_start(MPI, witness, timeout)
        communicator = MPICommunicator(MPI, timeout, witness, backend, share_gpus)
    except BaseException:
        witness.dismiss(spoken=True)  # this rank says itself what has happened
        raise
    if communicator.size > 1:
        failing.install(communicator)
        if isinstance(sys.stdout, TextIOWrapper):
            # a rank that is killed takes its unwritten lines with it
            sys.stdout.reconfigure(line_buffering=True)
    else:
        fail_alone()
    check_size(communicator, launch, MPI.Get_library_version())
    check_code(communicator)
    atexit.register(say_goodbye, communicator)
    return communicator


def import_mpi(launch):
    """mpi4py.MPI, without starting it: an import may take longer than a timeout.

    A rank that gives up earlier than it begins to start MPI leaves the others behind:
    MPICH's mpiexec does not end them.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter: mpi4py, but no MPI
        raise DependencyError(
            f"{launch.launcher} has started {launch.size} ranks, which need mpi4py and "
            f"an MPI library, and rank {launch.rank} on host {socket.gethostname()} "
            f'has none: pip install "minidl[mpi]" ({error})'
        ) from error
    return MPI


def wait_for_all_ranks_to_start(MPI, witness, timeout):
    """Start MPI, which returns when all ranks have.

    A rank that ended before would be waited for without end, with Python at a stand:
    after `timeout` or START_SECONDS this process ends, and its witness says why.
    """
    seconds = min(timeout, START_SECONDS)
    with open(os.devnull, "w") as nowhere, witness.waiting(seconds):
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            if not MPI.Is_initialized():
                MPI.Init_thread()
        finally:
            faulthandler.cancel_dump_traceback_later()


def check_size(communicator, launch, library):
    """Refuse a launcher and an MPI library that do not know each other."""
    if communicator.size != launch.size and launch.size > 1:
        library = " ".join(library.splitlines()[0].split())
        raise DistributedError(
            f"{launch.launcher} has started {launch.size} ranks, and the MPI library "
            f"of mpi4py ({library}) sees {communicator.size}: start with the mpiexec "
            "of that library, or install mpi4py for the MPI of the launcher"
        )


def check_code(communicator, package=Path(minidl.__file__).parent):
    """Refuse ranks that run another version, or other files, than rank 0."""
    mine = f"{minidl.__version__} ({code_digest(package)})"
    everyone = communicator.all_gather_object((mine, communicator.host))
    version, host = everyone[0]
    others = [
        f"rank {rank} on {its_host} has {its_version}"
        for rank, (its_version, its_host) in enumerate(everyone)
        if its_version != version
    ]
    if others:
        raise DistributedError(
            f"minidl is not the same on all ranks: rank 0 on {host} has {version}, "
            f"{listed(others, 8)}; install one version everywhere"
        )


def code_digest(package):
    """A short hash over the names and contents of all source files of a package."""
    digest = blake2b(digest_size=4)
    for file in sorted(filter(Path.is_file, package.rglob("*.py"))):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package)} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def fail_unstarted(kind, exception, trace):
    """The excepthook of a rank until `init`: the others may wait for it to start."""
    failing.Unstarted(_launch.rank, _launch.size).failed(exception)


def fail_alone():
    """Let an exception end this process as any other."""
    if sys.excepthook is fail_unstarted:
        sys.excepthook = sys.__excepthook__


def say_goodbye(communicator):
    """Close at exit; when that fails, so does the job."""
    try:
        communicator.close()
    except BaseException as error:
        communicator.failed(error)
        raise


_launch = launched()
if _launch:
    sys.excepthook = fail_unstarted
