"""What happens when a rank fails: it says so once, and takes all ranks with it."""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress

from minidl.array.errors import MinidlError
from minidl.distributed.witness import Witness

PATIENCE = 1.0  # seconds that rank 0 may be behind the others in failing
OUT_OF_MEMORY = "out of memory: use a smaller batch, or more ranks"
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
    if out_of_memory(exception):
        said += f"{where} {OUT_OF_MEMORY}\n"
    return said


def out_of_memory(exception):
    """Whether a host's or a GPU's memory was too small."""
    full = "cudaErrorMemoryAllocation" in str(exception)  # CUDA's own, not CuPy's
    return full or isinstance(exception, MemoryError)


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


class Unstarted:
    """A rank that has not started MPI, for which the others may wait to start."""

    doing = ""

    def __init__(self, rank, size):
        self.rank, self.size, self.host = rank, size, socket.gethostname()

    def failed(self, exception):
        """Report an exception that nobody caught, and let the launcher end the job.

        By a signal: before MPI has started, MPICH's mpiexec does not heed an exit
        status.
        """
        with suppress(OSError):  # those that wait need not say whom they miss
            Witness(self.rank, self.size).dismiss(spoken=True)
        report(exception, self)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever handles it
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
