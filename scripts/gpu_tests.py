"""The test-suite as a section of gpu_check: several processes share out its files.

Most of the time goes into compiling kernels, which is the processors' work.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 105  # for all of them, which is less than the section has
NOTHING = 5  # pytest's exit status where no test was asked for
PYTEST = [sys.executable, "-m", "pytest", "-vv", "-m", "gpu", "-rfE", "--tb=short"]
PYTEST += ["-p", "no:cacheprovider"]  # -vv: setup.cfg asks for less, a line a test


def tests(xp, quick: bool) -> Iterator[dict]:
    """The tests that are marked `gpu`: those with the fixture `xp`, on CuPy."""
    for package in ("pytest", "hypothesis"):
        if find_spec(package) is None:
            note = f"{package} is not installed: the tests were passed over"
            yield {"name": "pytest -m gpu", "ok": None, "note": note}
            return
    line = [*PYTEST, *["-x"] * quick]
    files = sorted(map(str, (ROOT / "tests").glob("test_*.py")))
    parts = min(8, os.cpu_count() or 1)
    yield from run([[*line, *files[k::parts]] for k in range(parts)])


def run(lines: list[list[str]]) -> Iterator[dict]:
    """Run pytest in the checkout, once for each line, at the same time."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(k)) for k, _ in enumerate(lines)]
        processes = []
        for line, log in zip(lines, logs, strict=True):
            with log.open("wb") as output:
                process = subprocess.Popen(
                    line,
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": path},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that its children end with it
                )
            processes.append(process)
        try:
            statuses = finished(processes, time.monotonic() + SECONDS)
        finally:
            for process in processes:
                end(process)
        said = [log.read_text(errors="replace") for log in logs]
    print(*said, sep="\n", flush=True)
    done = [pair for pair in zip(said, statuses, strict=True) if pair[1] != NOTHING]
    if not done:
        yield {"name": "pytest -m gpu", "ok": False, "error": "there are no such tests"}
    for output, status in done:
        yield from outcome(output, status)


def finished(processes: list, until: float) -> list[int | None]:
    """Exit statuses; None for a process that was not done in time."""
    while time.monotonic() < until and None in [p.poll() for p in processes]:
        time.sleep(0.1)
    return [process.poll() for process in processes]


def end(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def outcome(output: str, status: int | None) -> Iterator[dict]:
    """Rows from what pytest wrote: one for the closing line, one for each failure."""
    closing = [x.strip("= ") for x in output.splitlines() if re.search(r" in \d", x)]
    closing = closing[-1] if closing else "no closing line"
    if status is None:
        passed = len(re.findall(r"^\S+ PASSED", output, re.M))
        closing = f"{passed} passed, not done after {SECONDS} s"
    passed = re.search(r"(\d+) passed", closing)
    good = status == 0 and passed is not None and int(passed[1]) > 0
    name = f"pytest -m gpu: {closing}"
    error = None if good else f"status {status}"
    if not passed:  # it has not come so far: a mistake at its start
        error = f"{error}\n{output[-2000:]}"
    yield {"name": name, "ok": good, "error": error}
    pattern = r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$"
    if status is None:
        pattern = r"^(\S+) (?:FAILED|ERROR)()"
    for name, message in re.findall(pattern, output, re.M):
        yield {"name": name, "ok": False, "error": message}
