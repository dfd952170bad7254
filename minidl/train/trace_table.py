"""What a trace says in a few lines: which names take the time, and what waiting costs.

"Exposed" is the time that a rank, or its GPU, waits for others: what communication
costs a step, the rest of which is hidden behind it.
"""

from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

from minidl.train.recorder import Range
from minidl.train.trace import Record

REPLAY = "graph replay"


class Average(NamedTuple):
    """All ranges of a name and category; nanoseconds, `own` without what is inside."""

    key: str
    category: str
    count: int
    own: int
    total: int


class Averages(list):
    """Averages of a rank, the longest first; a table shows some of them."""

    def __init__(self, record: Record):
        own: dict[tuple, list[int]] = {}
        for r, inside, again in nested(record.lane):
            if r.category != "step":
                sums = own.setdefault((r.name, r.category), [0, 0, 0])
                sums[0] += 1
                sums[1] += r.end - r.start - inside
                sums[2] += 0 if again else r.end - r.start
        rows = [Average(*key, *sums) for key, sums in own.items()]
        super().__init__(sorted(rows, key=lambda row: -row.own))
        self.steps = [r.end - r.start for r in record.lane if r.category == "step"]

    def table(self, row_limit: int = 10) -> str:
        """A line a name: calls and milliseconds a step, and the share of its time."""
        count, time = max(len(self.steps), 1), max(sum(self.steps), 1)
        lines = [f"{'calls':>43} {'own ms':>9} {'share':>7} {'total ms':>9}"]
        lines += [
            f"{row.category:8} {row.key[:28]:28} {row.count / count:5.1f} "
            f"{row.own / count / 1e6:9.3f} {100 * row.own / time:5.1f} % "
            f"{row.total / count / 1e6:9.3f}"
            for row in self[:row_limit]
        ]
        mean = time / count / 1e6
        return "\n".join([*lines, f"a step of {len(self.steps)}: {mean:.3f} ms"])


def nested(ranges: list[Range]):
    """(range, time of the ranges right inside, whether one of its kind is outside)."""
    open_ranges: list[list] = []  # [range, time inside]
    for r in sorted(ranges, key=lambda r: (r.start, -r.end)):
        while open_ranges and open_ranges[-1][0].end < r.end:
            yield left(open_ranges)
        if open_ranges:
            open_ranges[-1][1] += r.end - r.start
        open_ranges.append([r, 0])
    while open_ranges:
        yield left(open_ranges)


def left(open_ranges: list[list]) -> tuple[Range, int, bool]:
    r, inside = open_ranges.pop()
    return r, inside, any(outer[:2] == r[:2] for outer, _ in open_ranges)


class Communication(NamedTuple):
    """Nanoseconds of a rank's steps: in all, with communication, waiting for it."""

    steps: int
    under_way: int
    exposed: int

    @property
    def percent(self) -> float:
        """The share of the communication that is exposed."""
        return 100 * self.exposed / max(self.under_way, 1)


def communication(record: Record) -> Communication:
    """What a rank's collectives cost it, within its steps."""
    steps = merged(r for r in record.lane if r.category == "step")
    waits = [r for r in record.lane if r.category == "wait"]
    return Communication(
        sum(end - start for start, end in steps),
        common(steps, merged([*record.flights, *waits])),
        common(steps, merged(waits)),
    )


def exposed_sentence(records: list[Record]) -> str:
    """Of all ranks together: communication, and how much of it is exposed."""
    found = [communication(record) for record in records]
    if len(records) == 1:
        return "communication: none, on one rank"
    if any(r.name == REPLAY for record in records for r in record.host):
        return "communication: within graph replays, of which a trace shows no parts"
    percents = [one.percent for one in found]
    steps = fmean(one.steps for one in found)
    share = 100 * fmean(one.exposed for one in found) / max(steps, 1)
    return (
        f"communication: {fmean(percents):.0f} % of it exposed "
        f"({min(percents):.0f} to {max(percents):.0f} % on {len(records)} ranks), "
        f"{share:.0f} % of a step"
    )


def merged(ranges: Iterable[Range]) -> list[tuple[int, int]]:
    """What the ranges cover, as intervals that do not meet, in order."""
    found: list[tuple[int, int]] = []
    for r in sorted(ranges, key=lambda r: r.start):
        if found and r.start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], r.end)
        else:
            found.append((r.start, r.end))
    return found


def common(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> int:
    """How long what the intervals of both have in common is."""
    return sum(
        max(0, min(end, other_end) - max(start, other_start))
        for start, end in some
        for other_start, other_end in others
    )
