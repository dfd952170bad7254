"""The room `distributed`: several ranks that work as one."""

from minidl.distributed import functional
from minidl.distributed.agreement import Report, verify
from minidl.distributed.collectives import (
    all_gather,
    all_gather_into_tensor,
    all_gather_object,
    all_reduce,
    barrier,
    broadcast,
    broadcast_object,
    destroy_process_group,
    get_backend,
    get_rank,
    get_world_size,
    recv,
    reduce_scatter,
    reduce_scatter_tensor,
    send,
)
from minidl.distributed.communicator import Alone, Communicator
from minidl.distributed.data_parallel import DataParallel
from minidl.distributed.launch import TIMEOUT, init, is_initialized, launched
from minidl.distributed.sampler import DistributedSampler
from minidl.distributed.simulated import Simulated
from minidl.distributed.sync_batch_norm import SyncBatchNorm
from minidl.distributed.work import Work

__all__ = [
    "TIMEOUT",
    "Alone",
    "Communicator",
    "DataParallel",
    "DistributedSampler",
    "Report",
    "Simulated",
    "SyncBatchNorm",
    "Work",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object",
    "destroy_process_group",
    "functional",
    "get_backend",
    "get_rank",
    "get_world_size",
    "init",
    "is_initialized",
    "launched",
    "recv",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "send",
    "verify",
]
