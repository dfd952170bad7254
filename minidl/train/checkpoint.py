"""A trained model in one file: weights under PyTorch's names, and what else it takes
to use them."""

import json
from pathlib import Path

import numpy as np

from minidl.array.errors import CheckpointError, DependencyError
from minidl.data import Standardize
from minidl.nn.module import Module
from minidl.train.files import replace_file


def save_model(
    path: Path, model: Module, config: dict, standardize: Standardize
) -> None:
    """Write a .safetensors file: the state dict, and as metadata config and scaling."""
    save = safetensors().numpy.save
    state = {
        name: np.ascontiguousarray(tensor.numpy())
        for name, tensor in model.state_dict().items()
    }
    scaling = {k: np.asarray(v).tolist() for k, v in standardize.state_dict().items()}
    metadata = {
        "format": "minidl",
        "config": json.dumps(config),
        "standardize": json.dumps(scaling),
    }
    replace_file(path, save(state, metadata))


def load_model(path: Path) -> tuple[dict, dict, Standardize]:
    """(state dict, config, standardization) of a file that `save_model` wrote.

    Raises CheckpointError where the file is missing, damaged, or something else.
    """
    library = safetensors()
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with library.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (library.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no whole .safetensors file: {error}"
        ) from error
    if metadata.get("format") != "minidl":
        raise CheckpointError(
            f"{path} has weights but not how they were trained: it was not written by "
            "minidl train (load_state_dict can use it, minidl evaluate cannot)"
        )
    standardize = Standardize()
    standardize.load_state_dict(json.loads(metadata["standardize"]))
    return state, json.loads(metadata["config"]), standardize


def safetensors():
    """The library; raises DependencyError where it is missing."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise DependencyError(
            "checkpoints need safetensors: pip install safetensors"
        ) from error
    return safetensors
