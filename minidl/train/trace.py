"""The trace of all ranks as one file, by one clock.

The format is Chrome's: "Trace Event Format", Google, 2016; complete events (X) nest,
asynchronous ones (b, e) may overlap, times are in microseconds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from minidl.distributed import Communicator
from minidl.train.recorder import Range

PINGS = 16
LANES = ("host", "gpu")


@dataclass(frozen=True)
class Record:
    """What a rank did: on the host, on its GPU, and collectives under way."""

    rank: int
    place: str
    host: list[Range]
    gpu: list[Range]
    flights: list[Range]

    def moved(self, offset: int) -> "Record":
        """By a clock that is so many nanoseconds ahead."""
        parts = {
            name: [
                r._replace(start=r.start + offset, end=r.end + offset)
                for r in getattr(self, name)
            ]
            for name in ("host", "gpu", "flights")
        }
        return replace(self, **parts)

    @property
    def lane(self) -> list[Range]:
        """Where the time goes: the GPU if there is one."""
        return self.gpu or self.host


def clock_offset(communicator: Communicator, clock: Callable[[], int]) -> int:
    """Nanoseconds from this rank's clock to that of rank 0; every rank calls this.

    Rank 0 asks each of the others what time it is, several times, and takes the
    answer that came soonest as one of the middle of its way. F. Cristian,
    "Probabilistic clock synchronization", 1989.
    """
    answer = np.zeros(1, np.int64)
    if communicator.rank:
        for _ in range(PINGS):
            communicator.recv(answer, 0)
            answer[0] = clock()
            communicator.send(answer, 0)
        return int(communicator.recv(answer, 0)[0])
    for rank in range(1, communicator.size):
        found = []
        for _ in range(PINGS):
            before = clock()
            communicator.send(answer, rank)
            communicator.recv(answer, rank)
            after = clock()
            found.append((after - before, (before + after) // 2 - int(answer[0])))
        answer[0] = min(found)[1]
        communicator.send(answer, rank)
    return 0


def chrome_trace(records: list[Record]) -> bytes:
    """The JSON of all ranks, each a process of its number; the first time is 0."""
    ranges = [r for record in records for r in (*record.host, *record.gpu)]
    zero = min((r.start for r in ranges), default=0)
    events = [event for record in records for event in of_rank(record, zero)]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()


def of_rank(record: Record, zero: int):
    """A rank's events: names first, then each lane, then the collectives."""
    pid = record.rank
    named = {"ph": "M", "pid": pid}
    yield named | {
        "name": "process_name",
        "args": {"name": f"rank {pid} ({record.place})"},
    }
    yield named | {"name": "process_sort_index", "args": {"sort_index": pid}}
    for tid, lane in enumerate(LANES):
        ranges = getattr(record, lane)
        if ranges:
            thread = {"name": "thread_name", "tid": tid, "args": {"name": lane}}
            yield named | thread
        for r in ranges:
            start, end = microseconds(r, zero)
            event = {"ph": "X", "pid": pid, "tid": tid, "name": r.name}
            event |= {"cat": r.category, "ts": start, "dur": round(end - start, 3)}
            yield event | ({"args": r.details} if r.details else {})
    for number, r in enumerate(record.flights):
        common = {"pid": pid, "tid": 0, "cat": r.category, "name": r.name}
        common["id"] = f"{pid}.{number}"
        for phase, time in zip("be", microseconds(r, zero), strict=True):
            yield common | {"ph": phase, "ts": time}


def microseconds(r: Range, zero: int) -> tuple[float, float]:
    return (r.start - zero) / 1e3, (r.end - zero) / 1e3
