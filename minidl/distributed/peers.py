"""What ranks tell each other beside the collectives: who has ended, who waits where."""

import sys
import time

from minidl.array.errors import DistributedError

STALL = 5.0  # seconds in a collective until a rank tells the others where it waits
WARN = 60.0  # seconds until the lowest rank that waits names those who are missing


class Peers:
    """The last that each other rank has told: (ended?, number, call)."""

    def __init__(self, MPI, mpi, hosts, timeout):
        self._MPI, self._mpi, self._hosts, self._timeout = MPI, mpi, hosts, timeout
        self._sent = []
        self._told = {}  # rank -> its last message
        self._number, self._since, self._ending = -1, 0.0, 0.0
        self.last = "starting", ""  # (call, what this rank did) that all have joined
        self._steps = []  # what is left to do about the collective that is waited for

    def goodbye(self, issued):
        """Tell the others that this rank joins no collective from `issued` on."""
        self._tell(True, issued, "")

    def all_ended(self):
        """Whether every other rank has said goodbye; raises after the timeout."""
        self._listen()
        ended = [rank for rank, told in self._told.items() if told[0]]
        if len(ended) == self._mpi.size - 1:
            return True
        if not self._ending:
            self._ending = time.monotonic()
        if time.monotonic() - self._ending > self._timeout:
            known = [self._mpi.rank, *ended]
            raise DistributedError(
                f"rank {self._mpi.rank} has waited {self._timeout:g} s at the end for "
                f"{', '.join(self._others(known))}"
            )
        return False

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
                (min(STALL, self._timeout / 2), self._tell_where, (number, call)),
                (WARN, self._warn, (number, call)),
                (self._timeout, self._give_up, (number, call)),
            ]
            self._steps.sort(key=lambda step: step[0])
        if self._steps and time.monotonic() - self._since > self._steps[0][0]:
            _, step, what = self._steps.pop(0)
            step(*what)

    def look_for(self, ranks, before):
        """The first of `ranks`, with which this one trades, to have ended.

        Raises when it is `before`, the answer of the last look: what it sent before
        it ended has had its time to come.
        """
        self._listen()
        ended = [rank for rank in ranks if self._told.get(rank, (False,))[0]]
        if ended and ended[0] == before:
            raise RuntimeError(
                f"{self._name(before)} has ended without sending or receiving what "
                f"rank {self._mpi.rank} waits for"
            )
        return ended[0] if ended else None

    def _tell_where(self, number, call):
        self._tell(False, number, str(call))

    def _warn(self, number, call):
        missing = self._missing(number)
        waiting = [self._mpi.rank, *self._waiting(number)]
        if missing and self._mpi.rank == min(waiting):
            sys.stderr.write(
                f"rank {self._mpi.rank} has waited {WARN:.0f} s in {call}, "
                f"without news of {', '.join(missing)}\n"
            )

    def _give_up(self, number, call):
        missing = ", ".join(self._missing(number)) or "no one: the network is at fault"
        last, doing = self.last
        raise DistributedError(
            f"rank {self._mpi.rank} has waited {self._timeout:g} s in {call} for "
            f"{missing}; the last thing that all ranks did together: {last}"
            f"{doing and f' in {doing}'}"
        )

    def _waiting(self, number):
        """The other ranks that are known to have come as far."""
        return [rank for rank, told in self._told.items() if told[1] >= number]

    def _missing(self, number):
        return self._others([self._mpi.rank, *self._waiting(number)])

    def _others(self, known):
        ranks = range(self._mpi.size)
        return [self._name(rank) for rank in ranks if rank not in known]

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
