"""A process that does one work as one peer: `worker.py SOCKET RANK CORES TASK`.

TASK is JSON: the peer's module and options, the name of the work (none: only tell
versions), whether small. Talks in lines of JSON over the socket: tells its rank, then
its versions and what its first three steps computed; then, for each number it is sent,
makes as many steps and answers with the seconds that one took.
"""

import importlib
import json
import os
import socket
import sys
import time
import traceback

FIRST_STEPS = 3
SAMPLES = 16


def prepared(task: dict):
    """The adapter, the work, and the function that makes a step."""
    from benchmark.work import WORKS

    adapter = importlib.import_module(task["module"])
    if task["work"] is None:
        return adapter, None, None
    work = WORKS[task["work"]]
    work = work.small() if task["small"] else work
    return adapter, work, adapter.build(work, **task["options"])


def first_steps(adapter, work, step) -> list[list[float]]:
    """A few numbers of every array that the first steps computed."""
    seen = []
    for _ in range(FIRST_STEPS):
        for array in adapter.to_numpy(work, step()):
            values = array.reshape(-1)
            every = max(1, values.size // SAMPLES)
            seen.append([float(v) for v in values[::every][:SAMPLES]])
    return seen


def timed(adapter, step, steps: int) -> float:
    """Seconds a step."""
    started = time.perf_counter()
    for _ in range(steps):
        result = step()
    adapter.wait(result)
    return (time.perf_counter() - started) / steps


def serve(lines, task: dict) -> None:
    def tell(**message):
        lines.write(json.dumps(message) + "\n")
        lines.flush()

    try:
        adapter, work, step = prepared(task)
        seen = first_steps(adapter, work, step) if step else []
        tell(versions=adapter.versions(), seen=seen)
        for line in lines:
            tell(seconds=timed(adapter, step, json.loads(line)))
    except ImportError as error:
        tell(missing=str(error))
    except NotImplementedError as error:
        tell(cannot=str(error))
    except Exception as error:  # whatever it is, the table tells it
        traceback.print_exc()
        tell(failed=f"{type(error).__name__}: {error}")


def pin(cores: int) -> None:
    """Use the first so many: some libraries count cores and not threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def main() -> None:
    path, rank, cores, task = sys.argv[1:]
    pin(int(cores))
    # mpiexec starts all ranks alike, and tells them apart in the environment
    rank = os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or rank
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        lines = connection.makefile("rw")
        lines.write(json.dumps({"rank": int(rank)}) + "\n")
        lines.flush()
        serve(lines, json.loads(task))


if __name__ == "__main__":
    main()
