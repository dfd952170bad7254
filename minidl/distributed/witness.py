"""Who speaks for a rank that is killed.

A process that is killed says nothing, and its launcher knows neither its rank nor what
it did; the other ranks are killed within milliseconds. So beside each rank waits a
shell, which reads from a pipe that ends when the rank does. Unless it was dismissed,
it then says what the rank noted last. Of the ranks of a host that are killed one after
another, only the first one's shell speaks, so that what is read is the cause.
"""

import atexit
import os
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

# Builtins alone, for speed. $1: the rank; $2: a file that is there once one has spoken.
# Descriptor 1 is the rank's note; set -C makes > fail where the file exists.
SCRIPT = """
read -r word
[ "$word" = dismissed ] && exit
set -C
{ : > "$2"; } 2>/dev/null || exit
if [ "$word" != spoken ]; then
    IFS= read -r doing <&1
    [ "$doing" = starting ] || bar="
"  # a progress bar may stand in the line
    echo "$bar$1 was killed or has crashed; the last thing it did: $doing" >&2
fi
exec 1>&- 2>&-
sleep 5
rm -f "$2"
"""
LEFT = 10.0  # seconds: a shell that has spoken removes its file sooner


class Witness:
    """The shell beside rank `rank` of `size`, and the note that it reads."""

    def __init__(self, rank: int, size: int):
        name = f"rank {rank} of {size} on host {socket.gethostname()}"
        # ranks of one host have one parent, the launcher
        spoken = Path(tempfile.gettempdir(), f"minidl-{os.getuid()}-{os.getppid()}")
        with suppress(OSError):  # one that was left by a job of the same number
            if time.time() - spoken.stat().st_mtime > LEFT:
                spoken.unlink()
        self._note = tempfile.TemporaryFile()
        self.note("")
        name = f"{name} (process {os.getpid()})"
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "witness", name, str(spoken)],
            stdin=subprocess.PIPE,
            stdout=self._note,
            start_new_session=True,  # out of the way of signals to the whole job
        )
        atexit.register(self.dismiss)

    def note(self, doing: str) -> None:
        """What this rank does now: one line."""
        line = doing or "starting"
        os.pwrite(self._note.fileno(), f"{line}\n".encode(), 0)

    def dismiss(self, spoken: bool = False) -> None:
        """The rank speaks for itself; `spoken`: also for those that end with it."""
        if self._shell.stdin.closed:
            return
        self._shell.stdin.write(b"spoken\n" if spoken else b"dismissed\n")
        self._shell.stdin.close()
