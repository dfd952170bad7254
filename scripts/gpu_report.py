"""The report of gpu_check: what it ran on, what passed, what was measured."""

import datetime
import importlib.util
import json
import os
import platform
import re
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

import minidl
from minidl.array.device import cupy_module
from minidl.distributed.launch import code_digest

PEERS = "numpy cupy ml_dtypes pytest hypothesis mpi4py torch jax".split()


def environment(root: Path) -> dict:
    """The machine and the versions; None stands for what is not there."""
    cuda = cupy_module().cuda
    device = cuda.runtime.getDeviceProperties(cuda.runtime.getDevice())
    major, minor = device["major"], device["minor"]
    return {
        "gpu": device["name"].decode(),
        "compute_capability": f"{major}.{minor}",
        "memory_gib": round(device["totalGlobalMem"] / 2**30, 1),
        "driver": output_of(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        ),
        "cuda_of_driver": asked(lambda: version_of(cuda.runtime.driverGetVersion())),
        "cuda_runtime": asked(lambda: version_of(cuda.runtime.runtimeGetVersion())),
        "nvrtc": asked(lambda: ".".join(map(str, cuda.nvrtc.getVersion()))),
        "python": platform.python_version(),
        **{name: installed(name) for name in PEERS},
        "minidl": f"{minidl.__version__} ({code_digest(Path(minidl.__file__).parent)})",
        "commit": output_of("git", "-C", str(root), "rev-parse", "HEAD"),
        "changed_files": changed(root),
        "cpus": os.cpu_count(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "minutes"),
    }


def asked(question: Callable[[], str]) -> str:
    """The answer, or why there is none: a report is written all the same."""
    try:
        return question()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def version_of(number: int) -> str:
    """12080 is 12.8"""
    return f"{number // 1000}.{number % 1000 // 10}"


def installed(package: str) -> str | None:
    """The version of a package, without importing the slow ones."""
    if importlib.util.find_spec(package) is None:
        return None
    if package == "cupy":
        return cupy_module().__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def changed(root: Path) -> int | None:
    """How many files differ from the commit."""
    status = output_of("git", "-C", str(root), "status", "--porcelain")
    return None if status is None else len(status.splitlines())


def output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def headline(environment: dict) -> str:
    missing = [name for name in PEERS if environment[name] is None]
    text = (
        f"{environment['gpu']}, driver {environment['driver']}, "
        f"CUDA {environment['cuda_runtime']}, CuPy {environment['cupy']}, "
        f"NumPy {environment['numpy']}, "
        f"minidl {environment['commit'] or environment['minidl']}"  # a copy without git
    )
    if missing:
        text += f"\nnot installed, and passed over: {', '.join(missing)}"
    return text


def attempt(name: str, rows: Iterable[dict]) -> Iterator[dict]:
    """The rows; an exception ends them alone, and is the last one."""
    try:
        yield from rows
    except Exception:
        yield {"name": name, "ok": False, "error": traceback.format_exc(limit=-8)}


def passed(sections: dict[str, list[dict]]) -> bool:
    """Whether no check failed; a row whose `ok` is None is a measurement."""
    return all(row.get("ok") is not False for rows in sections.values() for row in rows)


def summary(name: str, rows: list[dict]) -> str:
    """A section in a few lines: how many checks, the largest error, what failed."""
    checks = [row for row in rows if row.get("ok") is not None]
    failed = [row for row in checks if not row["ok"]]
    text = f"{name}: {len(checks) - len(failed)} of {len(checks)} checks passed"
    if not checks:
        notes = all("note" in row for row in rows)
        text = f"{name}: {'passed over' if notes else 'measured'}"
    worst = max(checks, key=share_of_tolerance, default=None)
    if worst is not None and share_of_tolerance(worst):
        text += (
            f"; nearest its limit: {worst['name']}, "
            f"error {worst['error']:.1e} of {worst['tolerance']:.0e}"
        )
    lines = [text]
    lines += [f"  FAILED {row['name']}: {row.get('error')}" for row in failed]
    for row in rows:
        if row.get("ok") is None:
            numbers = ", ".join(f"{k} {shown(v)}" for k, v in row.items() if k in SHOWN)
            lines.append(f"  {row['name']}: {numbers or row.get('note')}")
    return "\n".join(lines)


SHOWN = "ms gb_per_s share_of_copy tflop_per_s torch_ms times_torch".split()


def share_of_tolerance(row: dict) -> float:
    error = row.get("error")
    if not isinstance(error, float) or not error:
        return 0.0
    return error / row["tolerance"] if row["tolerance"] else float("inf")


def shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(folder: Path, environment: dict, sections: dict) -> tuple[Path, Path]:
    """Write both files, whole; their names are the GPU's and the day's."""
    gpu = re.sub(r"[^a-z0-9]+", "-", environment["gpu"].lower()).strip("-")
    stem = f"{gpu}-{environment['date'][:10]}"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "passed": passed(sections),
        "environment": environment,
        "sections": sections,
    }
    texts = {".json": json.dumps(content, indent=1), ".md": markdown(content)}
    files = []
    for suffix, text in texts.items():
        file = folder / (stem + suffix)
        temporary = file.with_name(file.name + ".part")
        temporary.write_text(text + "\n")
        os.replace(temporary, file)
        files.append(file)
    return tuple(files)


def markdown(content: dict) -> str:
    """The same for people: failures in full, measurements as tables."""
    environment = content["environment"]
    verdict = "All checks passed." if content["passed"] else "Some checks FAILED."
    lines = [f"# gpu_check: {environment['gpu']}, {environment['date'][:10]}", ""]
    lines += [verdict, "", "| | |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in environment.items()]
    for name, rows in content["sections"].items():
        first, *failures = summary(name, rows).splitlines()
        lines += ["", f"## {name}", "", first.partition(": ")[2] + "."]
        failures = [line for line in failures if not line.startswith("  FAILED")]
        for row in rows:
            if row.get("ok") is False:
                lines += ["", f"FAILED: {row['name']}", "", "```"]
                lines += [str(row.get("error")), "```"]
        lines += table([row for row in rows if row.get("ok") is None])
    return "\n".join(lines)


def table(rows: list[dict]) -> list[str]:
    """Rows of measurements, with every column that one of them has."""
    if not rows:
        return []
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "ok"))
    lines = ["", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [shown(row[key]) if key in row else "" for key in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
