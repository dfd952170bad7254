"""Files appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from minidl.array.errors import UsageError
from minidl.train.output import OutputError


def replace_file(path: Path, content: bytes | Callable) -> None:
    """Write bytes, or what `content(file)` writes, under another name; then rename.

    Raises OutputError, leaving what was there, where that is not possible.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part"
        )
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def replace_json(path: Path, value) -> None:
    """Write a value as JSON, readable."""
    replace_file(path, json.dumps(value, indent=2).encode() + b"\n")


def remove_files(directory: Path, names: tuple[str, ...]) -> None:
    """Delete files of these names; raises OutputError, first, where one is none."""
    paths = [directory / name for name in names]
    for path in paths:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a directory")
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot replace {path}: {error.strerror or error}"
            ) from error


def remove_torn(directory: Path, names: tuple[str, ...]) -> None:
    """Delete what `replace_file` left of these names, or patterns, when killed."""
    for name in names:
        torn = directory.glob(f".{name}.*.part")
        remove_files(directory, tuple(path.name for path in torn))


def umask() -> int:
    """The bits that new files must not have."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_directory(path: Path) -> None:
    """Make a directory, and see that one can write there; raises UsageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write into {path}: {error.strerror or error}; choose another --out"
        ) from error
