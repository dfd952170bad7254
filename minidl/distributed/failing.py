"""What happens when a rank fails: it says so once, and takes all ranks with it."""

import os
import signal
import sys
import threading
import time
import traceback

from minidl.array.errors import MinidlError

PATIENCE = 1.0  # seconds that rank 0 may be behind the others in failing
LINGER = 0.3  # MPICH's mpiexec drops what it has not read when a rank aborts


def exit_status(exception):
    """The exit status that Python gives `exception` (130 for an interrupt)."""
    if isinstance(exception, KeyboardInterrupt):
        return 130
    if not isinstance(exception, SystemExit):
        return getattr(exception, "status", 1)
    if exception.code is None:
        return 0
    return exception.code if isinstance(exception.code, int) else 1


def describe(exception, rank, size, host, doing=""):
    """What a rank prints: a sentence for a user's mistake, otherwise the traceback."""
    where = f"rank {rank} of {size} on host {host}{doing and f', in {doing}'}:"
    if isinstance(exception, SystemExit):
        wordless = exception.code is None or isinstance(exception.code, int)
        return "" if wordless else f"{where} {exception.code}\n"
    if isinstance(exception, KeyboardInterrupt):
        return f"{where} interrupted\n"
    if isinstance(exception, MinidlError):
        return f"{where} {exception}\n"
    said = f"{where}\n{''.join(traceback.format_exception(exception))}"
    full = "cudaErrorMemoryAllocation" in str(exception)  # CUDA's own, not CuPy's
    if full or isinstance(exception, MemoryError):
        said += f"{where} out of memory: use a smaller batch, or more ranks\n"
    return said


def report(exception, communicator):
    """Print what a rank has to say about `exception`, and see that it is read.

    Where all ranks fail alike, as for a missing file, rank 0 speaks for them: the
    others wait a moment, in which its abort ends them.
    """
    rank, size = communicator.rank, communicator.size
    said = describe(exception, rank, size, communicator.host, communicator.doing)
    if rank:
        time.sleep(PATIENCE + min(0.1 * rank, 1.0))
    sys.stdout.flush()
    bar = "\n" if communicator.doing else ""  # a progress bar may stand in the line
    sys.stderr.write(f"{bar}{said}")  # in one write
    sys.stderr.flush()
    time.sleep(LINGER)


def fail_to_start(error, rank):
    """Say what a rank lacks to start MPI, and end the job, whose other ranks wait.

    By a signal: before MPI has started, MPICH's mpiexec does not heed an exit status.
    """
    if rank:  # all may lack it
        time.sleep(PATIENCE + min(0.1 * rank, 1.0))
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
    time.sleep(LINGER)
    os.kill(os.getpid(), signal.SIGTERM)


def install(communicator):
    """Let `communicator` hear of every exception that no one catches."""

    def in_main_thread(kind, exception, trace):
        communicator.failed(exception)

    def in_other_thread(args):
        if args.exc_type is not SystemExit:  # which ends a thread in silence
            communicator.failed(args.exc_value)

    sys.excepthook = in_main_thread
    threading.excepthook = in_other_thread
