"""Checkpoints on disk: whole, checked and few.

A checkpoint is two files, the arrays as .safetensors and everything else as JSON:

    step-00000120.safetensors
    step-00000120.json          {"format", "arrays", "state", "sha256"}

Each appears whole or not at all, the JSON last: without it there is no checkpoint.
"sha256" is that of the JSON without it, which holds, under "arrays", that of the other
file, so that a change to either is seen. Nothing is ever unpickled.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from minidl.array.device import to_numpy
from minidl.array.errors import CheckpointError
from minidl.autograd.tensor import Tensor
from minidl.train.checkpoint import safetensors
from minidl.train.files import make_directory, replace_file

FORMAT = "minidl checkpoint 1"
ARRAY = "array"  # {"array": name} stands in the JSON where an array was


class Store:
    """The checkpoints in a directory, of which the last `keep` remain."""

    def __init__(self, directory: Path, keep: int = 3):
        self.directory, self.keep = Path(directory), keep
        self.own: list[int] = []  # the steps of this training's checkpoints

    def save(self, step: int, state) -> Path:
        """Write nested dicts and lists of arrays, Tensors and what JSON knows.

        Others than the last `keep` of this training are deleted afterwards. Raises
        OutputError, with all earlier checkpoints still there.
        """
        arrays: dict[str, np.ndarray] = {}
        content = {"format": FORMAT, "state": without_arrays(state, "", arrays)}
        data = safetensors().numpy.save(arrays)
        content["arrays"] = hashlib.sha256(data).hexdigest()
        content["sha256"] = digest(content)
        text = json.dumps(content, indent=1)
        path = self.path(step)
        make_directory(self.directory)
        path.unlink(missing_ok=True)  # one of this name is none while it changes
        replace_file(path.with_suffix(".safetensors"), data)
        replace_file(path, text.encode() + b"\n")
        self.own = [other for other in self.own if other < step] + [step]
        self.own = self.own[-self.keep :]
        self.prune()
        return path

    def adopt(self, path: Path) -> None:
        """Go on from a checkpoint: if it is here, it and those before may be kept."""
        if path.parent.resolve() == self.directory.resolve():
            names = [other.stem for other in self.found() if other.stem <= path.stem]
            self.own = self.steps_of(names)

    def path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}.json"

    def prune(self) -> None:
        """Delete what is no checkpoint of this training, torn files included."""
        kept = [self.path(step).stem for step in self.own]
        arrays = self.directory.glob("step-*.safetensors")
        torn = self.directory.glob(".step-*.part")
        for path in [*sorted(self.found(), reverse=True), *arrays, *torn]:
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """The steps with a checkpoint, whole or damaged, in order."""
        return self.steps_of([path.stem for path in self.found()])

    @staticmethod
    def steps_of(stems: list[str]) -> list[int]:
        numbers = [stem.removeprefix("step-") for stem in stems]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def found(self) -> list[Path]:
        return list(self.directory.glob("step-*.json"))

    def latest(self, tell) -> tuple[Path, dict] | None:
        """The newest whole checkpoint and its state, or None where there is none.

        `tell(sentence)` hears of each damaged one that is passed over. Raises
        CheckpointError where all are damaged.
        """
        steps, damaged = self.steps(), []
        while steps:
            path = self.path(steps[-1])
            try:
                state = read(path)
            except CheckpointError as error:
                tell(str(error))
                damaged.append(steps.pop())
                continue
            return path, state
        if damaged:
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} is whole: delete them to "
                "train from the start"
            )
        return None


def read(path: Path) -> dict:
    """The state in one checkpoint; its name may end in .json or .safetensors.

    Raises CheckpointError for a file that is missing, damaged, or something else.
    """
    path = Path(path).with_suffix(".json")
    weights = path.with_suffix(".safetensors")
    try:
        content = json.loads(path.read_bytes())
        data = weights.read_bytes()
    except OSError as error:
        name = error.filename or path
        raise CheckpointError(
            f"cannot read the checkpoint {name}: {error.strerror or error}"
        ) from error
    except ValueError as error:  # neither JSON nor text
        raise CheckpointError(
            f"the checkpoint {path} is damaged: it is no whole JSON file"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f'{path} is no checkpoint: it lacks "format": "{FORMAT}"')
    stated = content.pop("sha256", None)
    if digest(content) != stated:
        raise CheckpointError(
            f"the checkpoint {path} is damaged: its content is not what its checksum "
            "was taken of"
        )
    if hashlib.sha256(data).hexdigest() != content["arrays"]:
        raise CheckpointError(
            f"the checkpoint {weights} is damaged: its {len(data)} bytes are not those "
            f"whose checksum {path.name} holds"
        )
    return with_arrays(content["state"], safetensors().numpy.load(data))


def digest(content: dict) -> str:
    """The SHA-256 of a value, whatever the spaces and the order in its JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def without_arrays(value, name: str, arrays: dict):
    """The value with names for its arrays, which are put into `arrays`."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == ARRAY:
                raise TypeError(f"a checkpoint cannot hold {name}[{key!r}]")
        return {k: without_arrays(v, join(name, k), arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_arrays(v, join(name, i), arrays) for i, v in enumerate(value)]
    if isinstance(value, Tensor):
        value = value.data
    if hasattr(value, "dtype"):
        arrays[name] = np.array(to_numpy(value), order="C")
        return {ARRAY: name}
    return value


def with_arrays(value, arrays: dict):
    """What `without_arrays` was given; tuples have become lists."""
    if isinstance(value, dict):
        if ARRAY in value:
            return arrays[value[ARRAY]]
        return {k: with_arrays(v, arrays) for k, v in value.items()}
    if isinstance(value, list):
        return [with_arrays(v, arrays) for v in value]
    return value


def join(name: str, key) -> str:
    return f"{name}/{key}" if name else str(key)
