"""Rows added up by their number: the compiled loop, NumPy, and the same bits twice."""

import numpy as np
import pytest

from minidl.array import rows
from minidl.array.rows import add_rows

rng = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("count", "number"), [(0, 3), (1, 1), (200, 7), (50, 100)])
def test_sums(dtype, count, number, xp):
    index = rng.integers(0, number, count)
    values = rng.standard_normal((count, 5)).astype(dtype)
    expected = np.zeros((number, 5))
    np.add.at(expected, index, values.astype(np.float64))
    out = xp.full((number, 5), 7, dtype)
    add_rows(out, xp.asarray(index), xp.asarray(values))
    again = xp.empty_like(out)
    add_rows(again, xp.asarray(index), xp.asarray(values))
    assert out.tobytes() == again.tobytes()
    found = out if xp is np else out.get()
    accuracy = {"float16": 0.1, "float32": 1e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(found, expected, rtol=accuracy, atol=accuracy)


def test_the_loop_has_the_bits_of_numpy(monkeypatch):
    index = rng.integers(0, 9, 300).astype(np.int32)
    values = rng.standard_normal((300, 8)).astype(np.float32)[:, ::2]
    loop, plain = np.empty((9, 4), np.float32), np.empty((9, 4), np.float32)
    add_rows(loop, index, values)
    monkeypatch.setattr(rows, "_compiled", lambda dtype: None)
    add_rows(plain, index, values)
    assert loop.tobytes() == plain.tobytes()
