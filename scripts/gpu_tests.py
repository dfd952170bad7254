"""The test-suite as a section of gpu_check."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tests(xp, quick: bool) -> Iterator[dict]:
    """The tests that are marked `gpu`: those with the fixture `xp`, on CuPy."""
    for package in ("pytest", "hypothesis"):
        if find_spec(package) is None:
            note = f"{package} is not installed: the tests were passed over"
            yield {"name": "pytest -m gpu", "ok": None, "note": note}
            return
    line = [sys.executable, "-m", "pytest", "-m", "gpu", "-rfE", "--tb=short"]
    yield from run([*line, "-p", "no:cacheprovider", *["-x"] * quick])


def run(line: list[str]) -> Iterator[dict]:
    """Run pytest in the checkout, printing what it says as it says it."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    said = []
    with subprocess.Popen(
        line,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for text in process.stdout:
            print(text, end="", flush=True)
            said.append(text)
    yield from outcome("".join(said), process.returncode)


def outcome(output: str, status: int) -> Iterator[dict]:
    """Rows from what pytest wrote: one for the closing line, one for each failure."""
    closing = [x.strip("= ") for x in output.splitlines() if re.search(r" in \d", x)]
    closing = closing[-1] if closing else "no closing line"
    passed = re.search(r"(\d+) passed", closing)
    good = status == 0 and passed is not None and int(passed[1]) > 0
    name = f"pytest -m gpu: {closing}"
    yield {"name": name, "ok": good, "error": None if good else f"status {status}"}
    pattern = r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$"
    for name, message in re.findall(pattern, output, re.M):
        yield {"name": name, "ok": False, "error": message}
