"""Biases on a GPU: added in one launch; and their gradients, sums over all else."""

import numpy as np
import pytest

from minidl.array import cuda_bias
from minidl.array.bias import add_bias
from minidl.array.convolution import conv_bias_gradient, conv_rectified_gradient
from minidl.array.device import bfloat16
from minidl.array.matmul import bias_gradient

pytest.importorskip("cupy", reason="CuPy is not installed")
TOLERANCE = {8: 1e-13, 4: 1e-5, 2: 1e-2}
SHAPES = [(5, 3), (70, 12), (300, 33), (4, 3, 7, 7), (2, 4, 6, 5), (3, 2, 40, 60)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", bfloat16 or "float16"])
def test_a_bias_is_added_in_one_launch(stand_in, dtype, relu):
    cupy, draw = stand_in.cupy, np.random.default_rng(0)
    for shape in (*SHAPES, (1, 1), (2, 3, 1), (0, 3)):
        y, b = draw.normal(size=shape).astype(dtype), draw.normal(size=shape[1])
        y.reshape(-1)[:1] = np.nan
        b = b.astype("float64" if dtype == "float64" else "float32")
        want = y.astype(float) + b.reshape(-1, *[1] * (len(shape) - 2))
        want = np.where(want <= 0, 0, want) if relu else want
        there, bias = cupy.asarray(y), cupy.asarray(b)
        whole = cupy.empty(y.size + 1, dtype)
        beside = whole[1:].reshape(shape)  # not aligned
        beside[...] = there
        stand_in.reset()
        assert add_bias(there, bias, relu) is there
        assert not y.size or stand_in.launches == ["add_bias"]
        add_bias(beside, bias, relu)
        for got in (there, beside):
            np.testing.assert_allclose(
                got.get().astype(float), want, *[TOLERANCE[y.itemsize]] * 2
            )
    last = cupy.moveaxis(cupy.asarray(np.ones((2, 4, 3), "float32")), -1, 1)
    add_bias(last, cupy.asarray(np.arange(3.0)))
    assert last.get()[1, :, 2].tolist() == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64", bfloat16 or "float16"])
def test_sums_over_all_but_the_channels(stand_in, shape, dtype):
    cupy, draw = stand_in.cupy, np.random.default_rng(shape[0])
    g, y = (draw.normal(size=shape).astype(dtype) for _ in "gy")
    y.reshape(-1)[:3] = 0, np.nan, -0.0
    exact, gate = g.astype(float), y.astype(float)
    kept = np.where(gate <= 0, 0, exact)
    dims = (0, *range(2, len(shape)))
    for last in (False, True)[: len(shape) - 1]:
        there = [cupy.asarray(a) for a in (g, y)]
        if last:
            there = [
                cupy.moveaxis(cupy.ascontiguousarray(cupy.moveaxis(a, 1, -1)), -1, 1)
                for a in there
            ]
        stand_in.reset()
        results = [
            (cuda_bias.bias_gradient(there[0]), exact),
            (cuda_bias.bias_gradient(*there), kept),
        ]
        assert len(stand_in.launches) <= 4
        assert not stand_in.syncs and not stand_in.uploads
        for (whole, sums), want in results:
            assert whole.strides == there[0].strides and whole.dtype == dtype
            assert (whole.get().astype(float) == want).all()
            scale = np.abs(want).sum(dims).max()
            error = np.abs(sums.get() - want.sum(dims)).max() / scale
            assert error < TOLERANCE[sums.dtype.itemsize]


def test_they_are_written_where_they_belong(stand_in):
    cupy = stand_in.cupy
    g = cupy.asarray(np.arange(24, dtype="float32").reshape(2, 3, 4))
    out = cupy.empty(3, "float32")
    assert conv_bias_gradient(g, out) is out
    assert out.get().tolist() == [60, 92, 124]
    y = cupy.asarray(np.tile([1, 0, 2, -1], (2, 3, 1)).astype("float32"))
    kept, sums = conv_rectified_gradient(g, y, out)
    assert sums is out and out.get().tolist() == [28, 44, 60]
    assert kept.get()[0, 0].tolist() == [0, 0, 2, 0]
    matrix = g.reshape(8, 3)
    assert bias_gradient(matrix, None, out)[1] is out
    assert out.get().tolist() == [84, 92, 100]
    nothing = conv_bias_gradient(cupy.empty((0, 3, 4), "float32"))
    assert nothing.get().tolist() == [0, 0, 0]
    half = cupy.asarray(np.ones((2, 3, 4), "float16"))
    assert conv_bias_gradient(half).dtype == "float16"
