"""The measurement: all peers at one work, round by round in turn."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median, quantiles

from benchmark.peers import Peer
from benchmark.process import Failed, Gone, Process

SECONDS = 0.3  # of the slowest peer, a round
MOST_STEPS = 1000
TOLERANCE = 1e-3  # of what peers compute, relative to the largest of an array
REST = 0.05  # before each turn: the last one's idle threads may still be spinning


@dataclass
class Result:
    """What one peer did at one work: seconds a step in each round, or why not."""

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # to the reference, by round
    why_not: str = ""
    failed: bool = False


def spread(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    return tuple(quantiles(values, n=4, method="inclusive"))


def difference(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """The largest between two peers' arrays, relative to the largest value of each."""
    if list(map(len, ours)) != list(map(len, theirs)):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        scale = max(map(abs, b)) or 1.0
        gaps = [abs(x - y) / scale for x, y in zip(a, b, strict=True)]
        worst = max([worst, *(gap if gap == gap else float("inf") for gap in gaps)])
    return worst


def measure(
    name: str,
    ranks: int,
    peers: dict[str, Peer],
    pythons: dict[str, str],
    threads: int,
    rounds: int,
    small: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Result]:
    """Time every peer at the work; the first one that can do it is the reference.

    A peer whose first steps compute something else than the reference's is not timed.
    """
    results = {key: Result() for key in peers}
    running: dict[str, Process] = {}

    def drop(key: str, why: Gone) -> None:
        results[key] = Result(why_not=str(why), failed=why.failed)
        if key in running:
            running.pop(key).end()
        say(f"{name}: {peers[key].title}: {why}")

    try:
        for key, peer in peers.items():
            try:
                running[key] = Process(
                    peer, pythons.get(key), name, ranks, threads, small
                )
            except Gone as gone:
                drop(key, gone)
                continue
            reference = running[next(iter(running))]
            gap = difference(running[key].seen, reference.seen)
            if gap > TOLERANCE:
                drop(key, Failed(f"computes something else: differs by {gap:.1e}"))
        steps = number_of_steps(running, drop, 0.01 if small else SECONDS)
        for number in range(-1, rounds):  # the first warms up
            play(running, drop, steps, number, results)
    finally:
        for process in running.values():
            process.end()
    compare(results)
    return results


def number_of_steps(running: dict, drop: Callable, seconds: float) -> int:
    """The same for every peer, so that all go the same way."""
    slowest = 0.0
    for key in list(running):
        try:
            slowest = max(slowest, running[key].seconds(2))
        except Gone as gone:
            drop(key, gone)
    return max(1, min(MOST_STEPS, round(seconds / slowest))) if slowest else 1


def play(running: dict, drop: Callable, steps: int, number: int, results: dict) -> None:
    """One round; who begins changes, so that nobody always follows the same peer."""
    keys = list(running)
    first = number % len(keys) if keys else 0
    for key in keys[first:] + keys[:first]:
        time.sleep(REST)
        try:
            seconds = running[key].seconds(steps)
        except Gone as gone:
            drop(key, gone)
            continue
        if number >= 0:
            results[key].seconds.append(seconds)


def compare(results: dict[str, Result]) -> None:
    """Ratios to the first peer that was timed, round by round."""
    reference = next((r.seconds for r in results.values() if r.seconds), [])
    for result in results.values():
        pairs = zip(result.seconds, reference, strict=True) if result.seconds else ()
        result.ratios = [own / other for own, other in pairs]


def typical(result: Result) -> float | None:
    """The median ratio, if there is one."""
    return median(result.ratios) if result.ratios else None
