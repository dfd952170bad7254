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
        "CUDA-aware": cuda_aware(MPI.__file__),
    }


def cuda_aware(library: str) -> bool:
    """Whether the MPI library behind this one says that it takes device memory.

    Asked by MPIX_Query_cuda_support, which MPICH and Open MPI have; trying would end
    the process of one that does not.
    """
    try:
        query = ctypes.CDLL(library).MPIX_Query_cuda_support
    except (OSError, AttributeError):
        return False
    return bool(query())
