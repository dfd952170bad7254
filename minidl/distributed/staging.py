"""Device arrays over MPI: through pinned memory of the host, or directly.

An array is copied to the host, sent, and copied back, in chunks: while one is sent,
the next one is copied. The copies run on streams of their own. An MPI that reads the
memory of GPUs is given the arrays themselves where it has the arithmetic for them.
"""

from collections import deque
from contextlib import nullcontext

from minidl.array.device import on_gpu
from minidl.array.pinned import pinned
from minidl.distributed.streams import Lane, LaneWork

CHUNK = 8 << 20  # bytes: a copy of so many takes far longer than to start it


class Transfer:
    """One MPI collective: copies out, a request, copies back.

    `begin` makes the request; `out` and `back` are pairs (device array, host array).
    """

    def __init__(self, staged, begin, out=(), back=()):
        self._staged, self._begin, self._out, self._back = staged, begin, out, back
        self._request = self._finish = None
        self.landed = None  # once it is set, what is left is up to the GPU
        for device, host in out:
            device.get(out=host, stream=staged.out.stream, blocking=False)
        self._copied = staged.out.event(staged.out.stream)

    def begun(self) -> bool:
        """Whether MPI has it; begins, if the copies out are done."""
        if self._request is None and self._copied.done:
            self._request, self._finish = self._begin()
            self._begin = self._out = None
        return self._request is not None

    def arrived(self) -> bool:
        """Whether MPI is done with it; if so, starts the copies back."""
        if self._request is None or not self._request.Test():
            return False
        self._finish()
        lane = self._staged.back
        for device, host in self._back:
            device.set(host, stream=lane.stream)
        # without copies, `finish` may have computed on the current stream
        self.landed = lane.event(lane.stream if self._back else lane.current())
        return True


class Transfers:
    """Those of one collective, as a request."""

    def __init__(self, staged, transfers):
        self._staged, self._transfers = staged, transfers

    def Test(self):  # noqa: N802 - MPI's name
        self._staged.advance()
        return self.landed is not None

    @property
    def landed(self):
        """Of the last, which is the last to land; None before."""
        return self._transfers[-1].landed


class StagedWork(LaneWork):
    """Done when all its copies back are under way; `wait` leaves those to the GPU."""

    def __init__(self, communicator, call, lane, transfers):
        super().__init__(communicator, call, lane, transfers, self._arrived)
        self._transfers = transfers

    def _arrived(self):
        self.landed, self._transfers = self._transfers.landed, None


class Staged:
    """This rank's part in collectives of device arrays over MPI.

    `requests` are MPI's, of a communicator that nobody else uses: every rank begins
    and ends its transfers in one order, whatever the timing of its GPU. `direct`:
    whether this MPI reads and writes device memory.
    """

    def __init__(self, communicator, requests, device: int, direct: bool = False):
        self._communicator, self._requests = communicator, requests
        self._direct = direct
        self.out, self.back = Lane(device), Lane(device)
        self._queue = deque()  # transfers that MPI is not done with
        self._landing = deque()  # transfers whose copies back use their arrays

    def all_reduce(self, call, array, op):
        requests = self._requests

        def begin(chunk, _):
            return requests.all_reduce(chunk, op)

        if self._direct and requests.direct(op, array.dtype):
            return self._issue(call, begin, [(array, array)], direct=True)
        flat, step = array.reshape(-1), max(1, CHUNK // array.dtype.itemsize)
        chunks = [flat[start : start + step] for start in range(0, flat.size, step)]
        return self._issue(call, begin, [(chunk, chunk) for chunk in chunks])

    def broadcast(self, call, array, src):
        def begin(sent, got):
            return self._requests.broadcast(got if sent is None else sent, src)

        pair = (array, None) if src == self._communicator.rank else (None, array)
        return self._issue(call, begin, [pair], self._direct)

    def reduce_scatter(self, call, output, input, op):
        def begin(sent, got):
            return self._requests.reduce_scatter(got, sent, op)

        return self._issue(call, begin, [(input, output)])

    def all_gather(self, call, output, input):
        def begin(sent, got):
            if sent is not got:
                self._requests.place(got, sent)
            return self._requests.all_gather(got)

        if self._direct:  # this copy, too, is done before MPI begins
            self._requests.place(output, input)
            input = output
        return self._issue(call, begin, [(input, output)], self._direct)

    def send_receive(self, call, outgoing, dst, incoming, src):
        """Messages, by the host's: it waits for them."""
        self._refuse_capture()
        sent, got = outgoing, incoming
        if dst is not None and on_gpu(outgoing):
            sent = pinned(outgoing)
            self.out.follow()
            outgoing.get(out=sent, stream=self.out.stream, blocking=False)
            self.out.event(self.out.stream).synchronize()
        if src is not None and on_gpu(incoming):
            got = pinned(incoming)
            self.back.follow()
        self._communicator.send_receive_on_host(call, sent, dst, got, src)
        if got is not incoming:
            incoming.set(got, stream=self.back.stream)
            landed = self.back.event(self.back.stream)
            self.back.join(landed)
            landed.synchronize()  # `got` is kept no longer

    def advance(self) -> None:
        """Let MPI have what has been copied, and copy back what it is done with."""
        for transfer in self._queue:
            if not transfer.begun():
                break
        while self._queue and self._queue[0].arrived():
            self._landing.append(self._queue.popleft())
        while self._landing and self._landing[0].landed.done:
            self._landing.popleft()

    def idle(self) -> bool:
        """Whether nothing is under way."""
        self.advance()
        return not self._queue and not self._landing

    def close(self) -> None:
        """Nothing is left to be done."""

    abort = close
    replaying = nullcontext  # no graph has collectives in it

    def _issue(self, call, begin, pairs, direct=False):
        """A Work of one transfer for each (array to read, array to write)."""
        self._refuse_capture()
        pairs = [pair for pair in pairs if any(x is not None and x.size for x in pair)]
        if not pairs:
            return LaneWork(self._communicator, call, self.back)
        self.out.follow()
        make = self._direct_transfer if direct else self._transfer
        transfers = [make(begin, *pair) for pair in pairs]
        self._queue.extend(transfers)
        self.advance()
        transfers = Transfers(self, transfers)
        return StagedWork(self._communicator, call, self.back, transfers)

    def _transfer(self, begin, read, written):
        sent = None if read is None else pinned(read)
        got = sent
        if written is not read:
            got = None if written is None else pinned(written)
        return Transfer(
            self,
            lambda: begin(sent, got),
            [] if read is None else [(read, sent)],
            [] if written is None else [(written, got)],
        )

    def _direct_transfer(self, begin, read, written):
        return Transfer(self, lambda: begin(read, written))

    def _refuse_capture(self):
        if self.out.current().is_capturing():
            raise RuntimeError(
                "MPI's collectives cannot be part of a CUDA graph: capture what is "
                'before and after them, or use NCCL, init("nccl")'
            )
