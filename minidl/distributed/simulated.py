"""Ranks as threads of one process, for tests and for teaching."""

import pickle
import threading
from collections import deque
from contextvars import copy_context

from minidl.distributed.arrays import check_message, combine, fill
from minidl.distributed.communicator import Communicator, simulated
from minidl.distributed.work import Work


class Released(RuntimeError):
    """What ranks that wait are told when another rank has failed."""


class Round:
    """The k-th collective: what each rank calls and sends, and what comes of it."""

    def __init__(self):
        self.calls = {}  # rank -> Call
        self.sent = {}  # rank -> what it sends
        self.result = None
        self.error = None
        self.complete = False


class Meeting:
    """Where the ranks of one run meet: round k is everyone's k-th collective."""

    def __init__(self, size):
        self.size = size
        self.changed = threading.Condition()
        self.rounds = {}
        self.mail = {}  # (from, to) -> arrays on their way
        self.left = set()  # ranks whose function has returned
        self.failed = None  # why the others are released

    def join(self, rank, number, call, sent, fold):
        """Enter round `number`; the last to come folds what all ranks have sent."""
        with self.changed:
            round = self.rounds.setdefault(number, Round())
            round.calls[rank], round.sent[rank] = call, sent
            if len(round.calls) == self.size:
                del self.rounds[number]
                ranks = range(self.size)
                round.error = self._disagreement(round.calls)
                if round.error is None:
                    round.result = fold([round.sent[rank] for rank in ranks])
                round.sent.clear()
                round.complete = True
                self.changed.notify_all()
            return round

    def arrived(self, round, rank):
        """Whether `round` is complete; an error when it never can be."""
        with self.changed:
            if not round.complete and round.error is None:
                round.error = self._desertion(round)
            if round.error:
                raise RuntimeError(round.error)
            if not round.complete and self.failed:
                raise Released(f"in {round.calls[rank]}, rank {rank}: {self.failed}")
            return round.complete

    def wait(self, round, rank):
        """Block until `round` is complete; an error when it never can be."""
        with self.changed:
            while not self.arrived(round, rank):
                self.changed.wait()

    def post(self, src, dst, array):
        """Send: never blocks."""
        with self.changed:
            self.mail.setdefault((src, dst), deque()).append(array)
            self.changed.notify_all()

    def collect(self, src, dst):
        """Receive: block until there is something; an error when there never will."""
        with self.changed:
            while not self.mail.get((src, dst)):
                if src in self.left:
                    raise RuntimeError(
                        f"rank {src} has returned without sending what rank {dst} "
                        "waits for"
                    )
                if self.failed:
                    raise Released(
                        f"in recv from rank {src}, rank {dst}: {self.failed}"
                    )
                self.changed.wait()
            return self.mail[src, dst].popleft()

    def leave(self, rank):
        """Note that a rank has returned, and wake those who wait for it."""
        with self.changed:
            self.left.add(rank)
            self.changed.notify_all()

    def fail(self, reason):
        """Release all who wait, or will wait, for a round that is not complete."""
        with self.changed:
            self.failed = self.failed or reason
            self.changed.notify_all()

    def _disagreement(self, calls):
        for rank in range(1, self.size):
            if calls[rank] != calls[0]:
                return f"rank 0 calls {calls[0]} while rank {rank} calls {calls[rank]}"

    def _desertion(self, round):
        for rank in sorted(self.left - round.calls.keys()):
            other = min(round.calls)
            return (
                f"rank {rank} has returned without joining {round.calls[other]}, "
                f"in which rank {other} waits"
            )


class SimulatedRank(Communicator):
    """One rank of a Simulated job; sums are taken in rank order."""

    backend = "simulated"

    def __init__(self, rank, size, meeting):
        super().__init__(rank, size, local_rank=rank, local_size=size)
        self._meeting = meeting

    def _begin(self, call, sent, fold, receive):
        round = self._meeting.join(self.rank, self._issued, call, sent, fold)
        return Work(self, call, round, lambda: receive(round.result))

    def _arrived(self, work):
        return self._meeting.arrived(work._handle, self.rank)

    def _await(self, work):
        self._meeting.wait(work._handle, self.rank)

    def _all_reduce(self, call, array, op):
        def receive(total):
            array[...] = total

        return self._begin(
            call, array.copy(), lambda arrays: combine(arrays, op), receive
        )

    def _broadcast(self, call, array, src):
        def receive(values):
            array[...] = values

        return self._begin(call, array.copy(), lambda arrays: arrays[src], receive)

    def _reduce_scatter(self, call, output, input, op):
        def receive(total):
            fill(output, total.reshape(self.size, -1)[self.rank])

        return self._begin(
            call, input.copy(), lambda arrays: combine(arrays, op), receive
        )

    def _all_gather(self, call, output, input):
        def receive(arrays):
            blocks = output.reshape(self.size, -1)
            for block, array in zip(blocks, arrays, strict=True):
                block[...] = array.reshape(-1)

        return self._begin(call, input.copy(), list, receive)

    def _barrier(self, call):
        return self._begin(call, None, list, lambda result: None)

    def _send_receive(self, call, outgoing, dst, incoming, src):
        if dst is not None:
            self._meeting.post(self.rank, dst, outgoing.copy())
        if src is not None:
            arrived = self._meeting.collect(src, self.rank)
            check_message(incoming, arrived.nbytes, src)
            fill(incoming, arrived)

    def _all_gather_object(self, call, obj):
        pickles = []  # pickled, so that ranks share no objects, as between processes
        self._begin(call, pickle.dumps(obj), list, pickles.extend).wait()
        return [pickle.loads(data) for data in pickles]


class Simulated:
    """A job of `n` ranks in one process: `run` calls a function once on each.

    Each rank is a thread with a copy of the caller's context, in which `init()`
    returns its communicator. Ranks that call different collectives, and ranks that
    return while others wait for them, are errors that name the calls.
    """

    def __init__(self, n: int):
        if n < 1:
            raise ValueError(f"a job has at least 1 rank, not {n}")
        self.size = n

    def run(self, function, *args) -> list:
        """The results of `function(communicator, *args)`, by rank.

        When ranks raise, the others are released, and the exception of the lowest
        rank that raised by itself is raised here, with a note that names the rank.
        """
        meeting = Meeting(self.size)
        results = [None] * self.size
        raised = {}

        def work(rank):
            communicator = SimulatedRank(rank, self.size, meeting)
            simulated.set(communicator)
            try:
                results[rank] = function(communicator, *args)
                meeting.leave(rank)
            except BaseException as exception:
                raised[rank] = exception
                meeting.fail(f"rank {rank} has failed: {exception!r}")

        threads = [
            threading.Thread(
                target=copy_context().run,
                args=(work, rank),
                name=f"rank {rank}",
                daemon=True,
            )
            for rank in range(self.size)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            meeting.fail("the run was interrupted")
            raise
        if raised:
            raise self._first(raised)
        return results

    def _first(self, raised):
        own = [rank for rank in sorted(raised) if type(raised[rank]) is not Released]
        exception = raised[own[0]]
        note = f"raised by rank {own[0]} of {self.size}"
        # shown with the traceback from Python 3.11 on
        exception.__notes__ = [*getattr(exception, "__notes__", ()), note]
        return exception
