"""IDX files, the format of MNIST: unsigned bytes in an array of any rank.

A file is two zero bytes, a type byte, the number of dimensions, each dimension
as a big-endian 32-bit number, and the values; it may be compressed with gzip.
Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from minidl.array.errors import DataError

TYPES = {
    0x08: "unsigned bytes",
    0x09: "signed bytes",
    0x0B: "16-bit integers",
    0x0C: "32-bit integers",
    0x0D: "32-bit floats",
    0x0E: "64-bit floats",
}


def read_images(path: str | Path) -> np.ndarray:
    """The images of an IDX file, uint8 of shape (N, 1, H, W).

    Raises DataError, naming the file and its fault, for anything else.
    """
    images = read_idx(path)
    if images.ndim != 3:
        raise DataError(
            f"{path} should hold images in 3 dimensions (count, height, width), "
            f"but has {images.ndim}: shape {images.shape}"
        )
    return images[:, None]


def read_labels(path: str | Path, classes: int = 10) -> np.ndarray:
    """The labels of an IDX file, int64 of shape (N,), each below `classes`.

    Raises DataError, naming the file and its fault, for anything else.
    """
    labels = read_idx(path)
    if labels.ndim != 1:
        raise DataError(
            f"{path} should hold labels in 1 dimension, "
            f"but has {labels.ndim}: shape {labels.shape}"
        )
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        raise DataError(
            f"{path} holds the label {labels[wrong[0]]} at position {wrong[0]}; "
            f"labels are 0 to {classes - 1}"
        )
    return labels.astype(np.int64)


def read_idx(path: str | Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, gzip or plain by its content."""
    content = _decompressed(path)
    if len(content) < 4:
        raise DataError(f"{path} is truncated: {len(content)} bytes, too few for IDX")
    if content[:2] != b"\0\0" or content[2] not in TYPES:
        raise DataError(
            f"{path} is not an IDX file: its first bytes are {content[:4].hex(' ')}"
        )
    if content[2] != 0x08:
        raise DataError(
            f"{path} holds {TYPES[content[2]]} (type byte 0x{content[2]:02x}); "
            "expected unsigned bytes (0x08)"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(
            f"{path} is truncated: it ends within the header, after {len(content)} "
            f"of {start} bytes"
        )
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    values, promised = len(content) - start, math.prod(shape)
    if values < promised:
        raise DataError(
            f"{path} is truncated: {values} values, but its header promises "
            f"{promised}, shape {shape}"
        )
    if values > promised:
        raise DataError(
            f"{path} has {values - promised} bytes after the {promised} values "
            f"that its header promises, shape {shape}"
        )
    if promised == 0:
        raise DataError(f"{path} is empty: its header gives shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _decompressed(path: str | Path) -> bytes:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except EOFError:
        raise DataError(f"{path} is truncated: the gzip stream has no end") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is corrupt: gzip says {error}") from None
