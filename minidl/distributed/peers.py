"""What ranks tell each other beside the collectives: who has ended, who waits where."""

import sys
import time

STALL = 5.0  # seconds in a collective until a rank tells the others where it waits
WARN = 60.0  # seconds until the lowest rank that waits names those who are missing


class Peers:
    """The last that each other rank has told: (ended?, number, call)."""

    def __init__(self, MPI, mpi, hosts):
        self._MPI, self._mpi, self._hosts = MPI, mpi, hosts
        self._sent = []
        self._told = {}  # rank -> its last message
        self._number, self._since = -1, 0.0
        self._steps = []  # what is left to do about the collective that is waited for

    def goodbye(self, issued):
        """Tell the others that this rank joins no collective from `issued` on."""
        self._tell(True, issued, "")

    def all_ended(self):
        """Whether every other rank has said goodbye."""
        self._listen()
        return sum(ended for ended, *_ in self._told.values()) == self._mpi.size - 1

    def finish(self):
        """Wait until all messages of this rank have been taken."""
        self._MPI.Request.waitall(self._sent)

    def look(self, call, number):
        """Raise when `call`, in which this rank waits, can never complete.

        That is when another rank has ended without joining it, or, after STALL
        seconds, when another rank waits in another call in its place.
        """
        self._listen()
        for rank, (ended, its_number, its_call) in sorted(self._told.items()):
            if ended and its_number <= number:
                raise RuntimeError(
                    f"{self._name(rank)} has ended without joining {call}, "
                    f"in which rank {self._mpi.rank} waits"
                )
            if not ended and its_number == number and its_call != str(call):
                (one, its), (other, others) = sorted(
                    [(self._mpi.rank, call), (rank, its_call)]
                )
                raise RuntimeError(
                    f"{self._name(one)} waits in {its}, "
                    f"and {self._name(other)} in {others}"
                )
        if number != self._number:
            self._number, self._since = number, time.monotonic()
            self._steps = [
                (STALL, lambda: self._tell(False, number, str(call))),
                (WARN, lambda: self._warn(call, number)),
            ]
        if self._steps and time.monotonic() - self._since > self._steps[0][0]:
            self._steps.pop(0)[1]()

    def _warn(self, call, number):
        others = (rank for rank in range(self._mpi.size) if rank != self._mpi.rank)
        joined = {rank for rank, told in self._told.items() if told[1] >= number}
        missing = [self._name(rank) for rank in others if rank not in joined]
        if missing and self._mpi.rank < min(joined, default=self._mpi.size):
            sys.stderr.write(
                f"rank {self._mpi.rank} has waited {WARN:.0f} s in {call}, "
                f"without news of {', '.join(missing)}\n"
            )

    def _name(self, rank):
        return f"rank {rank} on host {self._hosts[rank]}"

    def _tell(self, *message):
        for rank in range(self._mpi.size):
            if rank != self._mpi.rank:
                self._sent.append(self._mpi.isend(message, dest=rank))

    def _listen(self):
        status = self._MPI.Status()
        while self._mpi.iprobe(status=status):
            self._told[status.source] = self._mpi.recv(source=status.source)
