#!/usr/bin/env python3
"""Time minidl and every installed peer on the same work, and print one table.

    python scripts/bench.py --out bench          # bench.md and bench.json
    python scripts/bench.py --only mnist adam --peers torch minidl --rounds 5

Each peer works in processes of its own. All have the same weights and batches, the
same number of threads and of steps; their first steps must compute the same. Rounds
are interleaved: every peer makes its steps, then the next round begins.
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from benchmark.peers import PEERS, Peer
from benchmark.process import Gone, Process
from benchmark.rounds import measure
from benchmark.table import Report, as_json, markdown, row
from benchmark.work import WORKS


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


def interpreter(text: str) -> tuple[str, str]:
    peer, _, path = text.partition("=")
    if peer not in PEERS or not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(
            f"expected PEER=PATH with a peer of {', '.join(PEERS)} and the path of its "
            f"Python, got {text}"
        )
    return peer, path


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=WORKS,
        default=list(WORKS),
        metavar="WORK",
        help=", ".join(WORKS),
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=list(PEERS),
        metavar="PEER",
        help=", ".join(PEERS),
    )
    parser.add_argument(
        "--rounds", type=positive, default=15, metavar="N", help="default: 15"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=cores(),
        metavar="N",
        help="of each peer, by default as many as cores",
    )
    parser.add_argument(
        "--python",
        type=interpreter,
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="run a peer with another Python than this one",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: only to see that all runs"
    )
    parser.add_argument("--out", type=Path, help="also write OUT.md and OUT.json")
    found = parser.parse_args(words)
    if found.threads > cores():
        parser.error(f"--threads {found.threads}: there are {cores()} cores")
    if found.out and not os.access(found.out.absolute().parent, os.W_OK):
        parser.error(
            f"--out {found.out}: cannot write in {found.out.absolute().parent}"
        )
    return found


def roll_call(report: Report, pythons: dict[str, str]) -> dict[str, Peer]:
    """The peers that are there."""
    present = {}
    for key, peer in report.peers.items():
        try:
            with Process(peer, pythons.get(key), None, 1, report.threads) as process:
                report.versions[key] = process.versions
                present[key] = peer
        except Gone as gone:
            report.missing[key] = str(gone)
            say(f"missing: {peer.title}: {gone}")
    return present


def measure_all(report: Report, peers, pythons, small: bool) -> None:
    """Fill the report, work by work."""
    for name, work in report.works.items():
        say(f"{name}: {work.title}")
        report.results[name] = measure(
            name,
            work.ranks,
            peers,
            pythons,
            report.threads,
            report.rounds,
            small,
            say,
        )
        say("  ".join(["   ", *row(report, name)[1:]]))


def main(words: list[str] | None = None) -> int:
    """0, or 1 where a peer that is there failed or the run was cut short."""
    given = arguments(words)
    peers = {key: PEERS[key] for key in PEERS if key in given.peers}
    pythons = dict(given.python)
    told = sys.argv[1:] if words is None else words
    command = shlex.join(["python", "scripts/bench.py", *told])
    works = {name: work for name, work in WORKS.items() if name in given.only}
    if given.quick:
        works = {name: work.small() for name, work in works.items()}
    report = Report(command, given.threads, given.rounds, peers, works)
    report.loads.append(os.getloadavg()[0])
    present = roll_call(report, pythons)
    try:
        measure_all(report, present, pythons, given.quick)
    except KeyboardInterrupt:
        say("interrupted: the table holds what was measured until then")
    report.loads.append(os.getloadavg()[0])
    text = markdown(report)
    print(text)
    if given.out:
        Path(f"{given.out}.md").write_text(text)
        Path(f"{given.out}.json").write_text(as_json(report))
    every = [r for results in report.results.values() for r in results.values()]
    whole = len(report.results) == len(works)
    return int(not whole or any(result.failed for result in every))


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the workers too
    sys.exit(main())
