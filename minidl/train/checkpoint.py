"""A trained model in one file: weights under PyTorch's names, and what else it takes
to use them."""

import hashlib
import json
from pathlib import Path

import numpy as np

from minidl.array.errors import CheckpointError, DependencyError
from minidl.data import Standardize
from minidl.nn.module import Module
from minidl.train.files import replace_file
from minidl.train.flags import DATASETS, MODELS


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
    texts = {
        "format": "minidl",
        "config": json.dumps(config),
        "standardize": json.dumps(scaling),
    }
    replace_file(path, save(state, {**texts, "sha256": digest(state, texts)}))


def digest(state: dict, texts: dict) -> str:
    """The SHA-256 of tensors, with their names, shapes and types, and of texts."""
    found = hashlib.sha256()
    for name, array in sorted(state.items()):
        kind = array.dtype.newbyteorder("<")  # as in the file
        found.update(json.dumps([name, list(array.shape), kind.str]).encode())
        found.update(np.ascontiguousarray(array, kind).tobytes())
    found.update(json.dumps(texts, sort_keys=True).encode())
    return found.hexdigest()


def load_model(path: Path) -> tuple[dict, dict, Standardize]:
    """(state dict, config, standardization) of a file that `save_model` wrote.

    Raises CheckpointError where the file is missing, damaged, or something else.
    """
    state, texts = read(path)
    if texts.get("format") != "minidl":
        raise CheckpointError(
            f"{path} has weights but not how they were trained: it was not written by "
            "minidl train (load_state_dict can use it, minidl evaluate cannot)"
        )
    if texts.pop("sha256", None) != digest(state, texts):
        raise CheckpointError(
            f"{path} is damaged: its content is not what its checksum was taken of"
        )
    try:
        config = json.loads(texts["config"])
        scaling = json.loads(texts["standardize"])
        check_config(config)
        standardize = Standardize()
        standardize.load_state_dict(scaling)
        if len(standardize.mean) != config["image_shape"][0]:
            raise ValueError("mean and std should be one of each channel")
    except KeyError as error:
        raise CheckpointError(
            f"{path} does not say how it was trained: {error.args[0]} is missing"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} does not say how it was trained: {error}"
        ) from error
    return state, config, standardize


def read(path: Path) -> tuple[dict, dict]:
    """(tensors, texts) of a .safetensors file; raises CheckpointError."""
    library = safetensors()
    try:
        path.open("rb").close()  # whose errors are plainer than the library's
        with library.safe_open(path, framework="numpy") as file:
            texts = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except library.SafetensorError as error:
        raise CheckpointError(
            f"{path} is no whole .safetensors file: {error}"
        ) from error
    except OSError as error:  # a directory, or closed
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {error.strerror or error}"
        ) from error
    except (AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds tensors of a type that NumPy does not have: {error}"
        ) from error
    return state, texts


def check_config(config) -> None:
    """Raise a ValueError or KeyError unless a model can be built from it."""
    if not isinstance(config, dict):
        raise ValueError("config should be an object")
    for name, known in (("model", MODELS), ("dataset", DATASETS)):
        if config[name] not in known:
            raise ValueError(
                f"{name} is {config[name]!r}, known are {', '.join(known)}"
            )
    sizes = [*config["image_shape"], config["classes"]]
    if len(sizes) != 4 or not all(type(n) is int and 0 < n < 2**16 for n in sizes):
        raise ValueError(
            "image_shape should be three whole numbers, and classes one, "
            f"got {config['image_shape']} and {config['classes']}"
        )


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
