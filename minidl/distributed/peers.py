"""What ranks tell each other beside the collectives: who has ended, who waits where."""

import sys
import threading
import time

from minidl.array.errors import DistributedError

STALL = 5.0  # seconds in a collective until a rank tells the others where it waits
WARN = 60.0  # seconds until the lowest rank that waits names those who are missing


class Peers:
    """What each other rank has told; more than one thread may ask."""

    def __init__(self, MPI, mpi, hosts, timeout):
        self._MPI, self._mpi, self._hosts = MPI, mpi, hosts
        self.rank, self.timeout = mpi.rank, timeout
        self._sent = []
        self._lock = threading.RLock()
        self._ended = {}  # rank -> the number of the first collective it does not join
        self._waits = {}  # rank -> {number: the call that it has told it waits in}
        self._ending = 0.0
        self.last = "starting", ""  # (call, what this rank did) that all have joined

    def goodbye(self, issued):
        """Tell the others that this rank joins no collective from `issued` on."""
        self.tell(True, issued, "")

    def all_ended(self):
        """Whether every other rank has said goodbye; raises after the timeout."""
        ended = self.ended()
        if len(ended) == self._mpi.size - 1:
            return True
        if not self._ending:
            self._ending = time.monotonic()
        if time.monotonic() - self._ending > self.timeout:
            raise DistributedError(
                f"rank {self.rank} has waited {self.timeout:g} s at the end for "
                f"{', '.join(self._others([self.rank, *ended]))}"
            )
        return False

    def finish(self):
        """Wait until all messages of this rank have been taken."""
        self._MPI.Request.waitall(self._sent)

    def tell(self, *message):
        """Send (ended?, number, call) to every other rank."""
        with self._lock:
            for rank in range(self._mpi.size):
                if rank != self.rank:
                    self._sent.append(self._mpi.isend(message, dest=rank))

    def ended(self):
        """{rank: the number of the first collective that it does not join}, sorted."""
        with self._lock:
            self._listen()
            return dict(sorted(self._ended.items()))

    def elsewhere(self, call, number):
        """(rank, its call) for a rank that waits in another call in this one's place.

        Without one, None.
        """
        with self._lock:
            for rank, calls in sorted(self._waits.items()):
                if calls.get(number, str(call)) != str(call):
                    return rank, calls[number]

    def waiting(self, number):
        """The other ranks that are known to have come as far."""
        with self._lock:
            known = {rank: max(waits) for rank, waits in self._waits.items()}
            known |= self._ended
        return sorted(rank for rank, reached in known.items() if reached >= number)

    def missing(self, number):
        """The names of the ranks that are not known to have come as far."""
        return self._others([self.rank, *self.waiting(number)])

    def name(self, rank):
        return f"rank {rank} on host {self._hosts[rank]}"

    def give_up(self, call, missing):
        """Raise, after the timeout, for the ranks of these names that did not come."""
        last, doing = self.last
        raise DistributedError(
            f"rank {self.rank} has waited {self.timeout:g} s in {call} for "
            f"{', '.join(missing) or 'no one: the network is at fault'}; the last "
            f"thing that all ranks did together: {last}{doing and f' in {doing}'}"
        )

    def _others(self, known):
        return [self.name(r) for r in range(self._mpi.size) if r not in known]

    def _listen(self):
        status = self._MPI.Status()
        while self._mpi.iprobe(status=status):
            ended, number, call = self._mpi.recv(source=status.source)
            if ended:
                self._ended[status.source] = number
            else:
                self._waits.setdefault(status.source, {})[number] = call


class Lookout:
    """One thread of a rank that waits: how long already, and what it can wait for."""

    def __init__(self, peers):
        self.peers = peers
        self._number, self._since = -1, 0.0
        self._steps = []  # what is left to do about the collective that is waited for

    def look(self, call, number):
        """Raise when `call`, in which this rank waits, can never complete.

        That is when another rank has ended without joining it, or, after STALL
        seconds, when another rank waits in another call in its place.
        """
        peers = self.peers
        for rank, first in peers.ended().items():
            if first <= number:
                raise RuntimeError(
                    f"{peers.name(rank)} has ended without joining {call}, "
                    f"in which rank {peers.rank} waits"
                )
        other = peers.elsewhere(call, number)
        if other:
            (one, its), (two, others) = sorted([(peers.rank, call), other])
            raise RuntimeError(
                f"{peers.name(one)} waits in {its}, and {peers.name(two)} in {others}"
            )
        if number != self._number:
            self._number, self._since = number, time.monotonic()
            self._steps = [
                (min(STALL, peers.timeout / 2), self._tell_where),
                (WARN, self._warn),
                (peers.timeout, self._give_up),
            ]
            self._steps.sort(key=lambda step: step[0])
        if self._steps and time.monotonic() - self._since > self._steps[0][0]:
            _, step = self._steps.pop(0)
            step(call, number)

    def look_for(self, ranks, call, since, before):
        """The first of `ranks`, with which this one trades, to have ended.

        Raises when it is `before`, the answer of the last look: what it sent before
        it ended has had its time to come. Raises after the timeout, from `since` on.
        """
        peers = self.peers
        ended = [rank for rank in ranks if rank in peers.ended()]
        if ended and ended[0] == before:
            raise RuntimeError(
                f"{peers.name(before)} has ended without sending or receiving what "
                f"rank {peers.rank} waits for"
            )
        if time.monotonic() - since > peers.timeout:
            peers.give_up(call, [peers.name(rank) for rank in dict.fromkeys(ranks)])
        return ended[0] if ended else None

    def _tell_where(self, call, number):
        self.peers.tell(False, number, str(call))

    def _warn(self, call, number):
        missing = self.peers.missing(number)
        waiting = [self.peers.rank, *self.peers.waiting(number)]
        if missing and self.peers.rank == min(waiting):
            sys.stderr.write(
                f"rank {self.peers.rank} has waited {WARN:.0f} s in {call}, "
                f"without news of {', '.join(missing)}\n"
            )

    def _give_up(self, call, number):
        self.peers.give_up(call, self.peers.missing(number))
