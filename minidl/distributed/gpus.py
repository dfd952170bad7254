"""Which GPU a rank takes, and by which way the arrays on the ranks' GPUs travel."""

from typing import NamedTuple

from minidl.array.device import (
    canonical_device,
    cupy_module,
    nccl_module,
    take_device,
)
from minidl.array.errors import DependencyError, DistributedError
from minidl.distributed.library import cuda_aware

SHARED_NCCL = 23000  # the first NCCL in which ranks may share a GPU
ADVICE = (
    "start one rank a GPU, or use device 'cpu'; MINIDL_SHARE_GPUS=1, or "
    "init(share_gpus=True), lets ranks share"
)


class Gpu(NamedTuple):
    """One GPU: where it is, and a number that no other has."""

    bus: str  # its PCI bus id
    uuid: str  # also tells the parts of a divided GPU apart

    @classmethod
    def number(cls, index: int) -> "Gpu":
        """The GPU that CUDA counts as `index` in this process."""
        runtime = cupy_module().cuda.runtime
        uuid = bytes(runtime.getDeviceProperties(index).get("uuid", b""))
        return cls(runtime.deviceGetPCIBusId(index), uuid[:16].hex())


def identity(host: str, gpu: Gpu) -> tuple:
    """What two ranks on one GPU have in common, also from within two containers."""
    # CuPy cuts the number at a byte of 0: alone it could be that of two GPUs
    return (gpu.uuid if gpu.uuid.strip("0") else host, gpu.bus)


def choose(everyone: list[tuple[str, list[Gpu]]], share: bool) -> list[int | None]:
    """For each rank, the number among the GPUs that it sees of the one that it takes.

    `everyone` holds each rank's host and the GPUs that it sees. Ranks that see fewest
    choose first, so that one to which a launcher has given a GPU keeps it; among the
    others the lowest rank does. None: there is no GPU left. Where ranks may share,
    they go round.
    """
    chosen: list[int | None] = [None] * len(everyone)
    users: dict[tuple, int] = {}
    for rank in sorted(range(len(everyone)), key=lambda r: (len(everyone[r][1]), r)):
        host, seen = everyone[rank]
        taken = [users.get(identity(host, gpu), 0) for gpu in seen]
        if seen and (share or not min(taken)):
            chosen[rank] = taken.index(min(taken))
            key = identity(host, seen[chosen[rank]])
            users[key] = users.get(key, 0) + 1
    return chosen


def own(communicator, device: str | None, share: bool) -> str:
    """The device of this rank, for a name that may stand for any GPU.

    Raises, on every rank, what it met itself, or DistributedError, where one has none.
    """
    problem, seen, mine = None, [], []
    try:
        name = canonical_device(device)
        if name != "cpu":
            count = cupy_module().cuda.runtime.getDeviceCount()
            seen = [int(name[5:])] if ":" in str(device) else list(range(count))
        mine = [Gpu.number(index) for index in seen]
    except RuntimeError as error:  # a DeviceError, or CUDA's own
        problem = error
    told = communicator.all_gather_object(
        ((communicator.host, mine), problem and str(problem))
    )
    if problem is not None:
        raise problem
    for rank, ((host, _), its_problem) in enumerate(told):
        if its_problem is not None:
            raise DistributedError(f"rank {rank} on host {host}: {its_problem}")
    everyone = [place for place, _ in told]
    if not any(visible for _, visible in everyone):
        return name
    chosen = choose(everyone, share)
    check_chosen(everyone, chosen)
    return take_device(f"cuda:{seen[chosen[communicator.rank]]}")


def check_chosen(everyone: list[tuple[str, list[Gpu]]], chosen: list) -> None:
    """Raise DistributedError for the first rank without a GPU."""
    if None not in chosen:
        return
    rank = chosen.index(None)
    host, visible = everyone[rank]
    if not visible:
        raise DistributedError(
            f"rank {rank} on host {host} is to compute on its CPU, and others on GPUs: "
            "give every rank a GPU, or use device 'cpu'"
        )
    others = [r for r, number in enumerate(chosen) if number is not None]
    others = [str(r) for r in others if everyone[r][0] == host]
    raise DistributedError(
        f"rank {rank} on host {host} would share a GPU: the {len(visible)} that it "
        f"sees ({', '.join(gpu.bus for gpu in visible)}) are taken by rank "
        f"{', '.join(others)}; {ADVICE}"
    )


class Report(NamedTuple):
    """What a rank tells the others before arrays on GPUs travel."""

    host: str
    gpu: Gpu
    nccl: int  # its version; 0: none, or none that can be used
    cuda_aware: bool


def report(communicator, MPI, index: int) -> Report:
    """Of this rank, whose arrays are on GPU `index`."""
    nccl = nccl_module()
    threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE  # what watches NCCL is one
    version = nccl.get_version() if nccl is not None and threads else 0
    return Report(communicator.host, Gpu.number(index), version, cuda_aware(MPI))


def twice(reports: list[Report]) -> list[tuple[int, int]]:
    """Pairs of ranks on one GPU."""
    first: dict[tuple, int] = {}
    pairs = []
    for rank, told in enumerate(reports):
        other = first.setdefault(identity(told.host, told.gpu), rank)
        if other != rank:
            pairs.append((other, rank))
    return pairs


def way(reports: list[Report], wanted: str | None, share: bool) -> str:
    """ "nccl", "direct" or "staged", from what all ranks have told: the same on all.

    Raises DistributedError for ranks on one GPU that may not share it and for
    versions of NCCL that differ, DependencyError where NCCL is wanted and missing.
    """
    pairs = twice(reports)
    if pairs and not share:
        one, two = pairs[0]
        host, gpu = reports[two].host, reports[two].gpu
        raise DistributedError(
            f"rank {one} and rank {two} both use GPU {gpu.bus} of host {host}; {ADVICE}"
        )
    by_mpi = "direct" if all(told.cuda_aware for told in reports) else "staged"
    if wanted == "mpi":
        return by_mpi
    without = [rank for rank, told in enumerate(reports) if not told.nccl]
    if without and wanted == "nccl":
        raise DependencyError(
            f"rank {without[0]} on host {reports[without[0]].host} has no NCCL that "
            "CuPy finds (or an MPI library without threads): pip install "
            "nvidia-nccl-cu12 (or -cu13, as CuPy is)"
        )
    if without:
        return by_mpi
    for rank, told in enumerate(reports):
        if told.nccl != reports[0].nccl:
            raise DistributedError(
                f"NCCL is not the same on all ranks: rank 0 on {reports[0].host} has "
                f"{reports[0].nccl}, rank {rank} on {told.host} has {told.nccl}; "
                'install one version everywhere, or use init("mpi")'
            )
    if pairs and wanted is None:
        return by_mpi
    if pairs and reports[0].nccl < SHARED_NCCL:
        raise DistributedError(
            f"NCCL {reports[0].nccl} has no two ranks on one GPU: use one of "
            f'{SHARED_NCCL} or newer, or init("mpi")'
        )
    return "nccl"
