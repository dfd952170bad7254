"""What is wrong with the ranks of a job, and what is merely missing, in sentences."""

from minidl.array.device import gpu_available, why_no_gpu
from minidl.array.errors import listed

PACKAGES = {  # what is optional: what needs it, and what installs it
    "safetensors": ("checkpoints", "safetensors"),
    "tqdm": ("the progress bar of minidl train", "tqdm"),
    "matplotlib": ("the picture of the curves", '"minidl[plot]"'),
    "mpi4py": ("several ranks", '"minidl[mpi]"'),
    "ml_dtypes": ("bfloat16", "ml_dtypes"),
}


def problems(everyone: list[dict]) -> list[str]:
    """What must be mended before these ranks can train."""
    return [
        *device_problems(everyone),
        *(
            f"{users} {place}: start as many ranks on a host as it has GPUs, or set "
            "MINIDL_SHARE_GPUS=1"
            for users, place, asked in shared_devices(everyone)
            if not asked
        ),
        *skew(everyone),
        *(
            f"{name(own)}: the cache directory {own['cache']} {own['cache_problem']}; "
            "choose another one with MINIDL_CACHE_DIR"
            for own in everyone
            if own["cache_problem"]
        ),
    ]


def device_problems(everyone: list[dict]) -> list[str]:
    """Devices that cannot be used, and GPUs beside ranks without one."""
    without: dict[str, list[dict]] = {}
    for own in everyone:
        if "problem" in own["device"]:
            without.setdefault(own["device"]["problem"], []).append(own)
    found = [f"no device for {names(some)}: {why}" for why, some in without.items()]
    on_cpu = [own for own in everyone if own["device"]["name"] == "cpu"]
    on_gpu = [own for own in everyone if "identity" in own["device"]]
    if on_cpu and on_gpu:
        found.append(
            f"{names(on_cpu)} would train on the CPU, {names(on_gpu)} on a GPU: give "
            "every rank a GPU, or --device cpu"
        )
    return found


def shared_devices(everyone: list[dict]) -> list[tuple[str, str, bool]]:
    """GPUs that several ranks would use: by whom, which, and whether all may."""
    users: dict[tuple, list[dict]] = {}
    for own in everyone:
        if "identity" in own["device"]:
            users.setdefault((own["host"], own["device"]["identity"]), []).append(own)
    return [
        (
            names(own),
            f"share one GPU ({own[0]['device']['model']} at "
            f"{own[0]['device']['address']})",
            all(rank["may_share"] for rank in own),
        )
        for own in users.values()
        if len(own) > 1
    ]


def skew(everyone: list[dict]) -> list[str]:
    """Versions that are not the same on all ranks; of the driver they may differ."""
    found = []
    for what in everyone[0]["versions"]:
        holders: dict[str, list[dict]] = {}
        for own in everyone:
            version = own["versions"][what] or "none"
            holders.setdefault(version, []).append(own)
        if len(holders) > 1 and what != "CUDA driver":
            versions = ", ".join(f"{v} on {names(o)}" for v, o in holders.items())
            found.append(
                f"{what} is not the same on all ranks: {versions}; install one version "
                "everywhere"
            )
    return found


def hints(everyone: list[dict]) -> list[str]:
    """What works without, and would be better with."""
    found = [
        f"{name(own)}: {own['compiler_problem']}, so kernels run in NumPy, slower"
        for own in everyone
        if own["compiler_problem"]
    ]
    for package, (use, install) in PACKAGES.items():
        without = [own for own in everyone if package in own["missing"]]
        if without:
            where = f" on {names(without)}" if len(everyone) > 1 else ""
            found.append(
                f"{package} is missing{where}, for {use}: pip install {install}"
            )
    if everyone[0]["device"]["name"] == "cpu" and not gpu_available():
        found.append(f"there is no GPU: {why_no_gpu()}")
    found += [
        f"{users} {place}, as MINIDL_SHARE_GPUS lets them: they take turns"
        for users, place, asked in shared_devices(everyone)
        if asked
    ]
    if any("identity" in own["device"] for own in everyone) and len(everyone) > 1:
        if not everyone[0]["versions"]["NCCL"]:
            found.append(
                "without NCCL gradients travel through the memory of the host: pip "
                "install nvidia-nccl-cu12 (or -cu13, as the driver is)"
            )
    if everyone[0]["size"] == 1 and everyone[0]["mpirun"]:
        found.append("this is one rank; for several: mpirun -n 2 minidl doctor")
    elif everyone[0]["size"] == 1:
        found.append(
            "this is one rank, and no mpirun is on PATH to start several: pip install "
            '"minidl[mpi]" brings one, a cluster has its own'
        )
    return found + crowded(everyone)


def crowded(everyone: list[dict]) -> list[str]:
    """Hosts with more threads than cores."""
    found = []
    for host in dict.fromkeys(own["host"] for own in everyone):
        here = [own for own in everyone if own["host"] == host]
        threads = sum(own["threads"] for own in here)
        cores = len({core for own in here for core in own["cores"]})
        if threads > cores:
            found.append(
                f"{threads} threads of {len(here)} ranks share {cores} cores of "
                f"{host}: start fewer ranks, or set OMP_NUM_THREADS"
            )
    return found


def name(own: dict) -> str:
    return f"rank {own['rank']} on {own['host']}"


def names(some: list[dict]) -> str:
    """Ranks by host: rank 0 on node1; ranks 1, 3 on node2."""
    hosts: dict[str, list[int]] = {}
    for own in some:
        hosts.setdefault(own["host"], []).append(own["rank"])
    parts = []
    for host, ranks in hosts.items():
        many = "s" if len(ranks) > 1 else ""
        parts.append(f"rank{many} {listed(ranks, 8)} on {host}")
    return "; ".join(parts)
