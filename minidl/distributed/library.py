"""Which MPI library the ranks talk through."""

import ctypes
import sys


def mpi_facts() -> dict:
    """Its vendor and version, mpi4py's, and whether it takes arrays on a GPU.

    {} where MPI has not been started: asking would start it.
    """
    if "mpi4py.MPI" not in sys.modules:
        return {}
    import mpi4py
    from mpi4py import MPI

    vendor, numbers = MPI.get_vendor()
    return {
        "MPI": f"{vendor} {'.'.join(map(str, numbers))}",
        "mpi4py": mpi4py.__version__,
        "CUDA-aware": cuda_aware(MPI),
    }


def cuda_aware(MPI) -> bool:
    """Whether the MPI library behind mpi4py.MPI says that it takes device memory.

    Asked by MPIX_Query_cuda_support, which MPICH and Open MPI have, or, as of MPI 4.1,
    by the kinds of memory that it lists; trying would end the process of one that does
    not. Call it once MPI has started.
    """
    kinds = MPI.COMM_WORLD.Get_info().get("mpi_memory_alloc_kinds") or ""
    if "cuda" in kinds.replace(":", ",").split(","):
        return True
    try:
        query = ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support
    except (OSError, AttributeError):
        return False
    return query() == 1
