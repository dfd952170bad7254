"""Everything that only a GPU can tell, in one command: `python scripts/gpu_check.py`.

Runs the tests on CuPy, holds kernels, convolutions and training to the CPU's numbers,
times them, and writes `scripts/results/<gpu>-<date>.json` and `.md`. Needs a checkout
and what is installed, no network. Exit status: 0 if all checks pass, 1 if one fails,
2 without a GPU.

Each section runs in a process of its own, with a time limit: a crash, a hang or an
error that the CUDA device does not recover from costs that section alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import gpu_adam  # noqa: E402
import gpu_benchmarks  # noqa: E402
import gpu_checks  # noqa: E402
import gpu_communication  # noqa: E402
import gpu_peers  # noqa: E402
import gpu_products  # noqa: E402
import gpu_report  # noqa: E402
import gpu_rows  # noqa: E402
import gpu_steps  # noqa: E402
import gpu_tests  # noqa: E402
import gpu_training  # noqa: E402

from minidl.array.device import canonical_device, cupy_module  # noqa: E402
from minidl.array.errors import DeviceError  # noqa: E402
from minidl.array.inventory import check_kernels  # noqa: E402

SECTIONS = {  # name: (generator of rows, seconds it may take), under 8 minutes
    "kernels": (gpu_checks.kernels, 120),
    "windows": (gpu_checks.windows, 75),
    "training": (gpu_training.training, 75),
    "tests": (gpu_tests.tests, gpu_tests.SECONDS + 15),
    "products": (gpu_products.products, 50),
    "rows": (gpu_rows.rows, 40),
    "adam": (gpu_adam.adam, 45),
    "elementwise": (gpu_benchmarks.elementwise, 25),
    "steps": (gpu_steps.steps, 110),
    "communication": (gpu_communication.communication, 80),
}
# They measure nothing, and mostly compile, so that they may run at the same time.
AT_ONCE = ("kernels", "windows", "training", "tests")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", metavar="DIR", default=ROOT / "scripts" / "results")
    parser.add_argument("--quick", action="store_true", help="a smoke run: less of all")
    parser.add_argument(
        "--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), metavar="SECTION"
    )
    parser.add_argument("--rows", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not os.access(Path.home(), os.W_OK):  # where CuPy would keep what it compiles
        os.environ.setdefault("CUPY_CACHE_DIR", f"{tempfile.gettempdir()}/cupy-kernels")
    try:
        canonical_device("cuda")
        check_kernels()
    except DeviceError as error:
        print(f"gpu_check found nothing to check: {error}", file=sys.stderr)
        return 2
    if options.rows:  # this process runs one section for another
        section, _ = SECTIONS[options.only[0]]
        write_rows(section(cupy_module(), options.quick), Path(options.rows))
        return 0
    environment = gpu_report.environment(ROOT)
    print(gpu_report.headline(environment), flush=True)
    sections: dict[str, list[dict]] = {}
    peers = list(gpu_peers.installed()) if "steps" in options.only else []
    with gpu_peers.Peers(peers, quick=options.quick) as started:
        for names in turns(options.only):
            with ThreadPoolExecutor() as pool:
                results = pool.map(partial(run_section, quick=options.quick), names)
                for name, rows in zip(names, results, strict=True):
                    sections[name] = rows
                    print(gpu_report.summary(name, rows), flush=True)
                    files = gpu_report.write(Path(options.out), environment, sections)
            started.settle()  # from here on times are measured
    print(f"report: {' and '.join(map(str, files))}")
    return 0 if gpu_report.passed(sections) else 1


def turns(names: list[str]) -> list[list[str]]:
    """The sections that run at the same time, then one after the other."""
    first = [[name for name in names if name in AT_ONCE]]
    return first + [[name] for name in names if name not in AT_ONCE]


def run_section(name: str, quick: bool) -> list[dict]:
    """The rows of a section, run in a process of its own."""
    command = [sys.executable, __file__, "--only", name]
    return collect(command + ["--quick"] * quick, SECTIONS[name][1])


def collect(command: list[str], limit: float) -> list[dict]:
    """Run `command --rows FILE`; the rows in FILE, and one more if that failed."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder, "rows"), Path(folder, "log")
        file.touch()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--rows", str(file)],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,  # so that its children end with it
            )
            try:
                status = process.wait(limit)
                problem = f"exit status {status}" if status else None
            except subprocess.TimeoutExpired:
                problem = f"not done after {limit:.0f} s"
            finally:
                gpu_tests.end(process)
        *lines, last = file.read_text().split("\n")  # `last` is empty, or cut off
        rows = [json.loads(line) for line in lines]
        if problem is None and not rows:
            problem = "no results"
        if problem is not None:
            said = log.read_text(errors="replace").splitlines()[-20:]
            detail = "\n".join([problem, *said])
            rows.append(
                {"name": "the section as a whole", "ok": False, "error": detail}
            )
    return rows


def write_rows(rows, file: Path) -> None:
    """Write each row as soon as it is there; an exception becomes the last one."""
    with file.open("w") as output:
        try:
            for row in rows:
                output.write(json.dumps(row) + "\n")
                output.flush()
        except Exception:
            row = {"name": "exception", "ok": False, "error": traceback.format_exc()}
            output.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
