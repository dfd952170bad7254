"""The directory in which compiled kernels are kept."""

import atexit
import os
import shutil
import tempfile
import warnings
from errno import ENOENT
from functools import cache
from pathlib import Path


@cache
def cache_directory() -> Path:
    """A directory of the user's own: nobody else can put code into it."""
    path = cache_path()
    problem = cache_problem(path)
    if problem is None:
        return path
    warn_once(
        f"the cache directory {path} {problem}, so kernels are compiled anew in each "
        "process: choose another one with MINIDL_CACHE_DIR"
    )
    private = tempfile.mkdtemp(prefix="minidl-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return Path(private)


def cache_path() -> Path:
    """Where the cache should be: $MINIDL_CACHE_DIR, or ~/.cache/minidl."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("MINIDL_CACHE_DIR") or os.path.join(base, "minidl"))


def cache_problem(path: Path) -> str | None:
    """Make the directory; why it cannot be the cache, or None."""
    try:
        if path.parts[:1] == ("~",):  # this user has no home
            raise FileNotFoundError(ENOENT, "there is no home directory")
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            return "belongs to another user"
        if status.st_mode & 0o022:
            return "can be written by other users"
        if not os.access(path, os.W_OK | os.X_OK):
            return "cannot be written"
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    return None


@cache
def warn_once(message: str) -> None:
    """Say it once in this process."""
    warnings.warn(message, RuntimeWarning, stacklevel=2)
