"""Collectives that are under way."""


class Work:
    """A collective under way; until `wait` returns, its arrays belong to it.

    Works of one communicator complete in the order in which they were issued.
    """

    def __init__(self, communicator, call, handle=None, finish=None):
        self.call = call
        self.number = communicator._issued
        communicator._issued += 1
        self._communicator = communicator
        self._handle = handle  # what the backend knows it by; None: done already
        self._finish = finish  # writes the result into the caller's array
        self._done = handle is None
        if not self._done:
            communicator._outstanding.append(self)

    def is_completed(self) -> bool:
        """Whether the result is there; never blocks."""
        if not self._done:
            self._communicator.poll()
        return self._done

    def wait(self) -> bool:
        """Block until the result is there; true, as in PyTorch."""
        communicator = self._communicator
        while not self._done:
            communicator._await(communicator._outstanding[0])
            communicator._complete_first()
        return True
