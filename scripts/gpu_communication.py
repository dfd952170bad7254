"""Communication as a section of gpu_check: NCCL and MPI, on as many GPUs as there are.

Each job runs in processes of its own, with a time limit: one that hangs costs itself
alone. `python scripts/gpu_communication.py BACKEND DEVICE QUICK` is one rank of a job.
An MPI that is only unpacked serves too: mpiexec on PATH, the library MPI4PY_LIBMPI.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_checks import norm_error, verdict  # noqa: E402

from minidl import distributed, manual_seed, nn, optim, tensor  # noqa: E402
from minidl.array.device import (  # noqa: E402
    bfloat16,
    cupy_module,
    nccl_module,
    synchronize,
    to_device,
    to_numpy,
    use_device,
)
from minidl.array.errors import DependencyError  # noqa: E402
from minidl.distributed.gpus import SHARED_NCCL  # noqa: E402
from minidl.distributed.launch import Launch, import_mpi  # noqa: E402
from minidl.nn import functional as F  # noqa: E402

SECONDS = 25  # for a job
SHARED = {  # two ranks of NCCL on one GPU must leave room for each other
    "MINIDL_SHARE_GPUS": "1",
    "NCCL_MULTI_RANK_GPU_ENABLE": "1",
    "NCCL_MAX_CTAS": "4",
    "NCCL_NET_GDR_LEVEL": "LOC",
}
OPEN_MPI = {  # it must be told that a container's root may, and more ranks than cores
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
DTYPES = {"float64": 1e-14, "float32": 1e-6, "float16": 2e-3, "int32": 0, "int64": 0}
DTYPES |= {} if bfloat16 is None else {"bfloat16": 2e-2}


def communication(xp, quick: bool) -> Iterator[dict]:
    """Jobs of several ranks; with NumPy in CuPy's place, those on host arrays."""
    try:
        import_mpi(Launch("gpu_check", 0, 2))
    except DependencyError as error:
        note = " ".join(f"ranks were passed over: {error.__cause__}".split())
        yield {"name": "communication", "ok": None, "note": note}
        return
    device = "cpu" if xp is np else "gpu"
    if device == "gpu":
        yield from nccl_jobs(quick)
    mpiexec = find_mpiexec()
    for n in (2,) if quick else (2, 4):
        if mpiexec is None:
            yield {"name": f"MPI, {n} ranks", "ok": None, "note": "there is no mpiexec"}
        else:
            command = [mpiexec, "-n", str(n)]
            yield from job(f"MPI, {n} ranks", command, "mpi", device, quick, SHARED)


def nccl_jobs(quick: bool) -> Iterator[dict]:
    """One rank, and two: on a GPU each, or on one where NCCL can."""
    nccl, mpiexec = nccl_module(), find_mpiexec()
    if nccl is None:
        yield {"name": "NCCL", "ok": None, "note": "CuPy finds no NCCL"}
        return
    version, count = nccl.get_version(), cupy_module().cuda.runtime.getDeviceCount()
    yield from job(f"NCCL {version}, 1 rank", [], "nccl", "gpu", quick)
    name = f"NCCL {version}, 2 ranks" + " on one GPU" * (count < 2)
    if mpiexec is None or count < 2 and version < SHARED_NCCL:
        note = "there is no mpiexec" if mpiexec is None else f"needs {SHARED_NCCL}"
        yield {"name": name, "ok": None, "note": note}
        return
    command, more = [mpiexec, "-n", "2"], SHARED if count < 2 else {}
    yield from job(name, command, "nccl", "gpu", quick, more)


def find_mpiexec() -> str | None:
    """The one beside this Python, or the one on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def job(name, launcher, backend, device, quick, more=None) -> Iterator[dict]:
    """The rows of one job, and one more if it fails."""
    line = [*launcher, sys.executable, __file__, backend, device, str(int(quick))]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | OPEN_MPI
    said, problem = "", None
    try:
        done = subprocess.run(
            line,
            env=environment | (more or {}),
            timeout=SECONDS,
            text=True,
            errors="replace",
            capture_output=True,
        )
        said, problem = done.stdout, done.stderr if done.returncode else None
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        problem = f"not done after {SECONDS} s"
    for row in (text for text in said.splitlines() if text.startswith("{")):
        row = json.loads(row)
        yield row | {"name": f"{name}: {row['name']}"}
    if problem is not None:
        last = "\n".join(problem.splitlines()[-20:])
        yield {"name": f"{name}: the job as a whole", "ok": False, "error": last}


# --- a rank


def rank(backend: str, device: str, quick: bool) -> None:
    """Check and measure; rank 0 prints the rows."""
    ranks = distributed.init(backend, timeout=SECONDS / 2)
    device = ranks.place(device)
    with use_device(device):
        for rows in (collectives, training, graphs, times):
            for row in rows(ranks, device, quick):
                if ranks.rank == 0:
                    print(json.dumps(row), flush=True)


def worst(ranks, name: str, error: float, tolerance: float) -> dict:
    """A row with the largest error of any rank."""
    return verdict(name, ranks.all_reduce(np.array([error]), "max")[0], tolerance)


def collectives(ranks, device: str, quick: bool) -> Iterator[dict]:
    """Each on every type, against float64 on the host."""
    for dtype, tolerance in DTYPES.items():
        rngs = [np.random.default_rng(r) for r in range(ranks.size)]
        parts = [rng.integers(-9, 9, (ranks.size, 1001)).astype(dtype) for rng in rngs]
        exact = np.stack(parts).astype(np.float64)
        mine = to_device(parts[ranks.rank], device)
        for op in ("sum", "avg", "max", "min"):
            if op == "avg" and np.dtype(dtype).kind == "i":
                continue
            wanted = {"sum": "sum", "avg": "mean"}.get(op, op)
            error = norm_error(
                ranks.all_reduce(mine.copy(), op), getattr(exact, wanted)(axis=0)
            )
            yield worst(ranks, f"all_reduce {op} {dtype}", error, tolerance)
        part = mine[0].copy()
        error = norm_error(ranks.reduce_scatter(part, mine), exact.sum(0)[ranks.rank])
        yield worst(ranks, f"reduce_scatter {dtype}", error, tolerance)
        whole = mine.copy()
        error = norm_error(ranks.all_gather(whole, mine[0].copy()), exact[:, 0])
        yield worst(ranks, f"all_gather {dtype}", error, 0)
        error = norm_error(ranks.broadcast(mine, ranks.size - 1), exact[-1])
        yield worst(ranks, f"broadcast {dtype}", error, 0)
    sent = to_device(np.full(1000, ranks.rank, np.float32), device)
    got, size = sent.copy(), ranks.size
    if size > 1:
        after, before = (ranks.rank + 1) % size, (ranks.rank - 1) % size
        ranks.send_receive(sent, after, got, before)
        error = float(abs(to_numpy(got) - before).max())
        yield worst(ranks, "send_receive", error, 0)


def training(ranks, device: str, quick: bool) -> Iterator[dict]:
    """The weights of several ranks against those of one, in NumPy."""
    rules = {
        "SGD": lambda own, _: optim.SGD(own, lr=0.1),
        "ShardedAdam": lambda own, to: distributed.ShardedAdam(own, lr=1e-2, model=to),
    }
    for name, rule in rules.items():
        wanted = trained(distributed.Alone(), "cpu", rule)
        got = trained(ranks, device, rule)
        error = max(norm_error(got[key], wanted[key]) for key in wanted)
        yield worst(ranks, f"weights after 5 steps of {name}", error, 1e-9)


def trained(ranks, device: str, rule) -> dict:
    """Weights after 5 steps over batches of 7 images, shared out unevenly."""
    manual_seed(0)
    model = nn.SmallCNN(1, 8, 10, (8, 8), 24).to(dtype="float64").to(device)
    parallel = distributed.DataParallel(model, ranks, bucket_cap_mb=0.01)
    optimizer = rule(model.parameters(), parallel)
    rng = np.random.default_rng(0)
    for _ in range(5):
        images, labels = rng.standard_normal((7, 1, 8, 8)), rng.integers(0, 10, 7)
        own = slice(ranks.rank, None, ranks.size)
        optimizer.zero_grad()
        output = parallel(tensor(images[own], device=device))
        parallel.backward(F.cross_entropy(output, tensor(labels[own], device=device)))
        optimizer.step()
    return {name: to_numpy(p.data) for name, p in model.named_parameters()}


def graphs(ranks, device: str, quick: bool) -> Iterator[dict]:
    """NCCL's all_reduce as part of a CUDA graph, replayed twice."""
    if ranks.backend != "nccl":
        return
    cupy = cupy_module()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x = cupy.full(1000, (ranks.rank + 1) / 2)
        x *= 2  # a kernel's first launch loads it, which cannot be captured
        stream.begin_capture()
        try:
            ranks.all_reduce(x, "avg", async_op=True).wait()
            x *= 2
        finally:
            graph = stream.end_capture()
        graph.launch()
        graph.launch()
        error = norm_error(x, np.full(1000, 2.0 * (ranks.size + 1)))
        del graph
    yield worst(ranks, "all_reduce in a CUDA graph", error, 1e-14)


def times(ranks, device: str, quick: bool) -> Iterator[dict]:
    """Medians of the slowest rank; GB/s are of the array, not of the wires."""
    for nbytes in (4 << 10, 4 << 20) if quick else (4 << 10, 4 << 20, 100 << 20):
        array, seconds = to_device(np.ones(nbytes // 4, np.float32), device), []
        for _ in range(7):
            array[...] = 1
            synchronize()
            ranks.barrier()
            start = perf_counter()
            ranks.all_reduce(array)
            synchronize()
            seconds.append(perf_counter() - start)
        ranks.all_reduce(slowest := np.array(seconds[2:]), "max")
        ms = 1e3 * median(slowest)
        row = {"name": f"all_reduce of {nbytes >> 10} KiB", "ok": None, "ms": ms}
        yield row | {"gb_per_s": nbytes / ms / 1e6}


if __name__ == "__main__":
    rank(sys.argv[1], sys.argv[2], sys.argv[3] == "1")
