"""Errors that a user can mend: the message is the whole story.

The command line prints such a message without a traceback and exits with its
`status`; everything else that is raised is a fault of the program and keeps its
traceback.
"""


class MinidlError(Exception):
    """A mistake that its user can mend; `status` is the exit status it leads to."""

    status = 1


class UsageError(MinidlError, ValueError):
    """Settings that are impossible, alone or together."""

    status = 2


class DeviceError(MinidlError, RuntimeError):
    """A device that was asked for and cannot be used."""

    status = 2


class CaptureError(MinidlError, RuntimeError):
    """A function that cannot be recorded as a CUDA graph."""


class DataError(MinidlError, ValueError):
    """A data file, or a batch, that is not what it should be."""


class CheckpointError(MinidlError, ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


class DistributedError(MinidlError, RuntimeError):
    """A communicator that cannot be made, or ranks that disagree."""


class DependencyError(MinidlError, ImportError):
    """An optional package that is needed and is not installed."""


def listed(items: list, most: int = 4) -> str:
    """'a, b, c and 5 more', for a message that is to be read however many there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
