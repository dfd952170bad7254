"""Arrays in another number type: the bits of NumPy, without its warnings."""

import numpy as np
import pytest

from minidl.array.casting import cast
from minidl.array.device import bfloat16
from minidl.array.kernel import Kernel

HALVES = [np.float16, *([] if bfloat16 is None else [bfloat16])]


def floats() -> np.ndarray:
    """float32 of every kind, small, large, infinite and NaN."""
    bits = np.random.default_rng(0).integers(0, 2**32, 1 << 16, dtype=np.uint64)
    edges = [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1]
    return np.append(edges, bits).astype(np.uint32).view(np.float32)


def same(a, b) -> None:
    nan = np.isnan(b.astype("f4"))
    assert a.dtype == b.dtype and np.array_equal(nan, np.isnan(a.astype("f4")))
    assert np.array_equal(a[~nan].view(np.uint8), b[~nan].view(np.uint8))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kept", ["convert", "where"])
def test_all_bits_are_numpys(dtype, kept):
    x = floats()
    with np.errstate(all="ignore"):
        wanted = x.astype(dtype)
    if kept == "convert":
        rounded = cast(x, dtype)
    else:  # a choice, which compilers like to leave as branches
        choose = Kernel("test_choose", "x", "y", body="y = where(x <= 0, 0, x);")
        rounded, wanted = choose(x, out=np.empty_like(wanted)), wanted.copy()
        wanted[x <= 0] = 0
    same(rounded, wanted)
    same(cast(wanted, np.float32), wanted.astype(np.float32))


@pytest.mark.filterwarnings("error")
def test_what_becomes_infinite_is_no_warning_and_views_are_read_in_their_order():
    x = np.array([[1e9, 1], [2, 3]], "f4")
    assert cast(x.T, np.float16).tolist() == [[np.inf, 2], [1, 3]]
    y = cast(x, np.float32)
    assert y is not x and not np.shares_memory(x, y)
    assert cast(np.arange(3), np.float16).dtype == np.float16
