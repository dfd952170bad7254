"""The results as Markdown and as JSON."""

import json
import os
import platform
from dataclasses import dataclass, field
from datetime import date
from math import exp, log
from pathlib import Path

from benchmark.peers import Peer
from benchmark.rounds import Result, spread, typical
from benchmark.work import Work

ADAM_BYTES = 28  # a parameter: read p, g, m, v and write p, m, v in float32


@dataclass
class Report:
    """All that a run found, and where and how."""

    command: str
    threads: int
    rounds: int
    peers: dict[str, Peer]
    works: dict[str, Work]
    versions: dict[str, str] = field(default_factory=dict)  # of those that are there
    missing: dict[str, str] = field(default_factory=dict)
    results: dict[str, dict[str, Result]] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)  # before and after
    day: str = field(default_factory=lambda: date.today().isoformat())


def processor() -> str:
    """The processor's name, and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(": ")[1] for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return f"{name}, {cores} cores"


def duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def cell(work: Work, result: Result, first: bool) -> str:
    """The ratio and its quartiles; of the reference, the time."""
    if not result.seconds:
        return "—"
    time = spread(result.seconds)[1]
    low, ratio, high = spread(result.ratios)
    text = duration(time / work.length) if first else f"{low:.2f}–{high:.2f}"
    return f"{1 if first else format(ratio, '.2f')} ({text}{bandwidth(work, time)})"


def bandwidth(work: Work, seconds: float) -> str:
    if work.kind != "adam":
        return ""
    return f", {ADAM_BYTES * work.parameters / seconds / 1e9:.3g} GB/s"


def row(report: Report, name: str) -> list[str]:
    """The title of a work, and a cell for each peer that is there."""
    work, results = report.works[name], report.results[name]
    timed = [key for key in report.versions if results[key].seconds]
    cells = [
        cell(work, results[k], k == timed[:1][0]) if timed else "—" for k in results
    ]
    return [work.title, *cells]


def markdown(report: Report) -> str:
    """One table: a row a work, a column a peer."""
    keys = list(report.versions)
    rows = [["work", *(report.peers[key].title for key in keys)]]
    rows.append(["---"] * len(rows[0]))
    rows += [row(report, name) for name in report.results]
    rows += mean_of_convolutions(report, keys)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"{table}\n\n{notes(report, keys)}\n"


def mean_of_convolutions(report: Report, keys: list[str]) -> list[list[str]]:
    convs = [
        r for name, r in report.results.items() if report.works[name].kind == "conv"
    ]
    if len(convs) < 2:
        return []
    row = []
    for key in keys:
        ratios = [typical(results[key]) for results in convs]
        whole = all(ratios)
        row.append(f"{exp(sum(map(log, ratios)) / len(ratios)):.2f}" if whole else "—")
    return [[f"the {len(convs)} convolutions, geometric mean", *row]]


def notes(report: Report, keys: list[str]) -> str:
    """What is needed to judge the numbers and to find them again."""
    loads = " and ".join(f"{load:.1f}" for load in report.loads)
    lines = [
        "Time relative to the first column, which shows its own time in brackets: "
        f"median of {report.rounds} interleaved rounds (first to third quartile).",
        f"{report.day}, {processor()}, {platform.system()}; threads: {report.threads}; "
        f"load average {loads} before and after",
        f"Command: `{report.command}`",
        "Versions: " + "; ".join(dict.fromkeys(report.versions[key] for key in keys)),
    ]
    if report.loads[0] > report.threads / 2:
        lines.append("The machine was busy with other work: times and ratios mislead")
    for key, why in report.missing.items():
        lines.append(f"Missing: {report.peers[key].title}: {why}")
    for name, results in report.results.items():
        for key in keys:
            if results[key].why_not:
                title = report.peers[key].title
                lines.append(f"No number: {name}, {title}: {results[key].why_not}")
    return "\n".join(f"- {line}" for line in lines)


def as_json(report: Report) -> str:
    """The same, and the seconds of each round."""
    works = {}
    for name, results in report.results.items():
        works[name] = {"title": report.works[name].title, "peers": {}}
        for key, result in results.items():
            told = {"why_not": result.why_not} if result.why_not else {}
            if result.seconds:
                told |= {"seconds": spread(result.seconds), "rounds": result.seconds}
                told |= {"ratio": spread(result.ratios)}
            works[name]["peers"][key] = told
    head = {
        "date": report.day,
        "processor": processor(),
        "command": report.command,
        "threads": report.threads,
        "rounds": report.rounds,
        "load_average": report.loads,
        "titles": {key: peer.title for key, peer in report.peers.items()},
        "versions": report.versions,
        "missing": report.missing,
    }
    return json.dumps({**head, "works": works}, indent=1)
