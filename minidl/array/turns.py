"""Processes that come to need the same thing at once make it once."""

import contextlib
import fcntl
from collections.abc import Iterator
from math import inf
from pathlib import Path
from time import monotonic, sleep

POLL = 0.01  # seconds between two looks


@contextlib.contextmanager
def alone(path: Path, patience: float = inf) -> Iterator[None]:
    """Hold the lock on the file at `path`, which is made; wait for others until then.

    After `patience` seconds, and where a file system has no locks, it is done without:
    what is made must be written so that several may do it. A lock goes with its
    process, however that ends. Raises OSError where the file cannot be made.
    """
    with open(path, "w") as file:
        end = monotonic() + patience
        while not _locked(file) and monotonic() < end:
            sleep(POLL)
        yield


def _locked(file) -> bool:
    """False if another has the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        pass
    return True
