"""Who speaks for a rank that is killed.

A process that is killed says nothing, and its launcher knows neither its rank nor what
it did; the other ranks are killed within milliseconds. So beside each rank waits a
shell, which reads from a pipe that ends when the rank does. Unless it was dismissed,
it then says what the rank noted last. Of the ranks of a host that are killed one after
another, only the first one's shell speaks, so that what is read is the cause.

A rank that ends before it has a witness is missed by those that wait for all to start:
they keep a list of who of their host has not come, which is read in their stead.
"""

import atexit
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, flock
from pathlib import Path

from minidl.array.errors import listed
from minidl.array.threads import launcher

# Builtins alone, for speed. $1: the rank; $2: a file that is there once one has spoken;
# $3: what is to be said of ranks that wait for others to start, and of no others.
# Descriptor 1 is the rank's note; set -C makes > fail where the file exists.
SCRIPT = """
read -r word
[ "$word" = dismissed ] && exit
set -C
{ : > "$2"; } 2>/dev/null || exit
if [ "$word" = spoken ]; then
    :
elif { IFS= read -r waited < "$3"; } 2>/dev/null; then
    echo "$1 $waited" >&2
else
    IFS= read -r doing <&1
    [ "$doing" = starting ] || bar="
"  # a progress bar may stand in the line
    echo "$bar$1 was killed or has crashed; the last thing it did: $doing" >&2
fi
exec 1>&- 2>&-
sleep 5
rm -f "$2" "$3"
"""
LEFT = 10.0  # seconds: a shell that has spoken removes its file sooner


class Witness:
    """The shell beside rank `rank` of `size`, and the note that it reads."""

    def __init__(self, rank: int, size: int):
        self._rank, self._size = rank, size
        name = f"rank {rank} of {size} on host {socket.gethostname()}"
        # ranks of one host have been started by one process
        spoken = Path(tempfile.gettempdir(), f"minidl-{os.getuid()}-{launcher()}")
        with suppress(OSError):  # one that was left by a job of the same number
            if time.time() - spoken.stat().st_mtime > LEFT:
                spoken.unlink()
        self._waiting = spoken.with_suffix(".waiting")
        self._note = tempfile.TemporaryFile()
        self.note("")
        name = f"{name} (process {os.getpid()})"
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "witness", name, str(spoken), self._waiting],
            stdin=subprocess.PIPE,
            stdout=self._note,
            start_new_session=True,  # out of the way of signals to the whole job
        )
        atexit.register(self.dismiss)

    def note(self, doing: str) -> None:
        """What this rank does now: one line."""
        line = doing or "starting"
        os.pwrite(self._note.fileno(), f"{line}\n".encode(), 0)

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """While this rank waits for all to start, at most as long."""
        with suppress(OSError):  # without the list, fewer are named
            self._come(seconds)
        try:
            yield
        finally:
            with suppress(OSError):  # the first has done it: all have come
                self._waiting.unlink()

    def _come(self, seconds):
        """Take this rank from the list of those of whom nothing is known."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(self._waiting, flags, 0o600), "r+") as file:
            flock(file, LOCK_EX)
            before = file.read().splitlines()[1:] or range(self._size)
            missing = [rank for rank in map(int, before) if rank != self._rank]
            said = f"was killed, or gave up after {seconds:g} s, while it waited for "
            said += f"all {self._size} ranks to start"
            if missing:
                names = listed([f"rank {rank}" for rank in missing], 8)
                said += f"; nothing was heard of {names} on this host"
            file.seek(0)
            file.truncate()
            print(said, *missing, sep="\n", file=file)

    def dismiss(self, spoken: bool = False) -> None:
        """The rank speaks for itself; `spoken`: also for those that end with it."""
        if self._shell.stdin.closed:
            return
        self._shell.stdin.write(b"spoken\n" if spoken else b"dismissed\n")
        self._shell.stdin.close()
