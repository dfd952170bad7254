"""A thread that sees when a collective on a GPU can never complete."""

import threading
import time
from queue import SimpleQueue

from minidl.array.errors import DistributedError
from minidl.distributed.peers import Lookout

INTERVAL = 0.05  # seconds between two looks


class Launch:
    """A collective as it was issued: what it waits for, and the arrays that it uses.

    `number` is its place among the collectives of all ranks, or None for a message
    between this rank and `partners`.
    """

    def __init__(self, call, number, arrays, partners=()):
        self.call, self.number, self.partners = call, number, partners
        self.arrays = arrays  # kept until they are no longer used
        self.ready = self.landed = None  # events: it may begin; it is over

    def begun(self) -> bool:
        """Whether nothing but other ranks can hold it up."""
        return self.ready is None or self.ready.done

    def over(self) -> bool:
        return self.landed is not None and self.landed.done


class Watch:
    """Looks at launches, one after another, until each is over.

    The host never waits for a collective on a GPU, or waits in CUDA without an end.
    What this raises ends the job on all ranks, as in any other thread.
    """

    def __init__(self, communicator, peers, device):
        self._communicator, self._device = communicator, device
        self._lookout = Lookout(peers)
        self._launches = SimpleQueue()
        self._added = self._over = 0  # one thread counts each
        self.check = None  # raises an error that NCCL has met by itself
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def add(self, launch: Launch) -> None:
        self._added += 1
        self._launches.put(launch)

    def idle(self) -> bool:
        """Whether all is over."""
        return self._added == self._over or not self._thread.is_alive()

    def close(self) -> None:
        self._launches.put(None)
        self._thread.join()

    def _run(self):
        with self._device:
            while (launch := self._launches.get()) is not None:
                self._see_through(launch)
                self._over += 1
                launch = None  # not to keep its arrays while there is nothing to do

    def _see_through(self, launch):
        since, ended = None, None
        while not launch.over():
            self._check(launch)
            if launch.begun():
                since = since or time.monotonic()
                ended = self._look(launch, since, ended)
            time.sleep(INTERVAL)
        if launch.number is not None:
            self._lookout.peers.last = launch.call, self._communicator.doing

    def _look(self, launch, since, ended):
        if launch.number is None:
            return self._lookout.look_for(launch.partners, launch.call, since, ended)
        self._lookout.look(launch.call, launch.number)

    def _check(self, launch):
        try:
            if self.check is not None:
                self.check()
        except RuntimeError as error:
            raise DistributedError(f"{launch.call} has failed: {error}") from error
