"""MNIST and Fashion-MNIST from their mirrors, once, into a cache directory.

A file is kept whole and with the right MD5 or not at all: it is read into
memory, verified, written beside its place and renamed. Of several processes
that start at once one downloads and the others wait for it.
"""

import contextlib
import hashlib
import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from minidl.array.errors import DataError
from minidl.array.turns import alone

# mirrors and MD5 of the compressed files as torchvision and Keras list them
MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
}
MD5 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}
TIMEOUT = 10  # seconds without a byte until the next mirror is tried
CHUNK = 1 << 16


def cache_directory() -> Path:
    """`MINIDL_DATA_DIR`, or `minidl/datasets` in the user's cache directory."""
    if os.environ.get("MINIDL_DATA_DIR"):
        return Path(os.environ["MINIDL_DATA_DIR"])
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):
        raise DataError(
            "there is no home directory to keep data sets in: set MINIDL_DATA_DIR to "
            "a directory"
        )
    return Path(cache) / "minidl" / "datasets"


def download(name: str) -> Path:
    """The directory that holds the four verified files of `name`.

    What is missing from the cache, or is not what it should be, is downloaded.
    Raises DataError where no mirror delivers it or the cache cannot be written.
    """
    directory = cache_directory() / name
    if not _missing(name, directory):
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with alone(directory / "lock"):
            for file in _missing(name, directory):  # another process may have been here
                _write(directory / file, _fetch(name, file))
    except OSError as error:
        raise DataError(
            f"the cache directory {directory} cannot be written ({error.strerror}); "
            f"set MINIDL_DATA_DIR to another one, or give the directory that holds "
            f"{name} (--data DIR, directory=DIR)"
        ) from None
    return directory


def _missing(name: str, directory: Path) -> list[str]:
    def good(file: str, md5: str) -> bool:
        try:
            return _md5((directory / file).read_bytes()) == md5
        except OSError:
            return False

    return [file for file, md5 in MD5[name].items() if not good(file, md5)]


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _write(path: Path, content: bytes) -> None:
    owner = f"{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}"
    part = path.with_name(f"{path.name}.{owner}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _fetch(name: str, file: str) -> bytes:
    tried = []
    for mirror in MIRRORS[name]:
        url = mirror + file
        try:
            content = _read(url)
        except (OSError, http.client.HTTPException) as error:
            if not isinstance(error, urllib.error.HTTPError):  # that names its status
                error = getattr(error, "reason", error)
            tried.append(f"{url} ({error})")
            continue
        if _md5(content) == MD5[name][file]:
            return content
        tried.append(f"{url} (MD5 {_md5(content)}, expected {MD5[name][file]})")
    raise DataError(
        f"{name} could not be downloaded: tried {', '.join(tried)}; give the directory "
        f"that holds {', '.join(MD5[name])} (--data DIR, directory=DIR)"
    )


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
        size = reply.headers.get("Content-Length")
        total = int(size) if size and size.isdigit() else None
        content = bytearray()
        with _progress(url.rsplit("/", 1)[1], total) as advance:
            while chunk := reply.read(CHUNK):
                content += chunk
                advance(len(chunk))
    if total is not None and len(content) < total:
        raise http.client.IncompleteRead(bytes(content), total - len(content))
    return bytes(content)


@contextlib.contextmanager
def _progress(title: str, total: int | None) -> Iterator:
    """A progress bar's `update`, on a terminal that has tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda size: None
        return
    with tqdm(
        desc=title, total=total, unit="B", unit_scale=True, disable=None, leave=False
    ) as bar:
        yield bar.update
