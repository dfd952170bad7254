"""Who takes part: for each peer its module here, and how to start it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Peer:
    """`module` has `versions`, `build`, `wait` and `to_numpy`, as minidl_peer has.

    `options` are given to `build`; `install` says how to get what the module imports;
    with `mpi` its ranks are started by mpiexec, otherwise they find each other by
    RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    """

    title: str
    module: str
    install: str
    options: dict[str, bool] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    mpi: bool = False


TORCH = ("benchmark.torch_peer", "pip install torch")
MINIDL = ("benchmark.minidl_peer", 'pip install ".[mpi]"')

# All ratios are to the first peer that is there.
PEERS: dict[str, Peer] = {
    "torch": Peer("PyTorch eager", *TORCH),
    "torch-tuned": Peer(
        "PyTorch, fused Adam, channels_last",
        *TORCH,
        {"fused": True, "channels_last": True},
    ),
    "torch-compile": Peer(
        "torch.compile, fused Adam", *TORCH, {"fused": True, "compile": True}
    ),
    "jax": Peer("JAX jit", "benchmark.jax_peer", "pip install jax"),
    "minidl-numpy": Peer(
        "minidl, NumPy alone",
        *MINIDL,
        environment={"MINIDL_COMPILER": "none"},
        mpi=True,
    ),
    "minidl": Peer("minidl", *MINIDL, mpi=True),
}
