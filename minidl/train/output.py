"""What a command says, on standard output and beside it, as far as anyone listens."""

import os
import sys

from minidl.array.errors import MinidlError
from minidl.distributed import launched


class OutputError(MinidlError, OSError):
    """A file, a directory or standard output that cannot be written."""


class ReaderGoneError(OutputError):
    """Nobody reads standard output any more, as after `| head -1`."""

    status = 141  # a shell's for a command that SIGPIPE has ended


def open_closed() -> None:
    """Let an output that was closed from the start go nowhere.

    Otherwise Python has None in its place, and the next file that is opened takes its
    number, and all that a library prints.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))


def leading() -> bool:
    """Whether this process speaks for its job: alone, or rank 0."""
    place = launched()
    return place is None or place.rank == 0


def tell(text: str) -> None:
    """Print on standard output, of several ranks on the first.

    Raises OutputError where it takes no more, and ReaderGoneError where nobody reads.
    """
    if not leading():
        return
    try:
        print(text, flush=True)
    except BrokenPipeError as error:
        discard(sys.stdout)
        raise ReaderGoneError("nobody reads standard output any more") from error
    except OSError as error:
        discard(sys.stdout)
        raise OutputError(
            f"cannot write to standard output: {error.strerror or error}"
        ) from error


def say(sentence: str) -> None:
    """Print on standard error, of several ranks on the first, if that is possible."""
    if leading():
        Aside().write(f"{sentence}\n")


class Aside:
    """Standard error as a file that never fails: what it does not take is lost."""

    def __init__(self):
        self.encoding = getattr(sys.stderr, "encoding", None)

    def write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            discard(sys.stderr)

    def flush(self) -> None:
        """Nothing: `write` has flushed."""


def discard(stream) -> None:
    """Let a stream that has failed go nowhere, or Python fails once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
