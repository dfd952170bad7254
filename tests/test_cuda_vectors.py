"""Kernels that move 16 bytes at a time: the same results, by the instructions meant."""

import re

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidl.array import cuda_vectors, philox, random
from minidl.array.arguments import signature
from minidl.array.cuda import OPTIONS
from minidl.array.device import bfloat16
from minidl.array.kernel import Kernel
from minidl.optim.adam import adam

pytest.importorskip("cupy", reason="CuPy is not installed")
from test_cuda_compile import (  # noqa: E402, F401
    FLOATS,
    all_kernels,
    compile_cuda,
    compile_together,
    nvrtc,
    signatures,
)

blend = Kernel(
    "test_blend",
    inputs="x y",
    outputs="z m",
    scalars="a b",
    body="m = m * b + x; z = a * x + y * m + index;",
)
MIXTURES = [
    ["float32"] * 4,
    ["bool", "float64", "float32", "float16"],
    ["float16", "int32", bfloat16 or "float16", "float32"],
]


def vector_source(kernel, dtypes, values):
    """The CUDA C++ for arrays of these dtypes."""
    arrays = [numpy.empty(1, dtype) for dtype in dtypes]
    first = len(kernel.inputs)
    T, types, kinds = signature(kernel, arrays[:first], arrays[first:], values)
    return cuda_vectors.source(kernel, T, types, kinds, kernel.body.cpp)


def ptx(source):
    text = compile_cuda(source, "compute_90", "ptx", OPTIONS)
    return text if isinstance(text, str) else text.decode()


@pytest.mark.slow
@given(st.integers(0, 5000), st.sampled_from(MIXTURES), st.booleans())
def test_results_are_those_of_the_cpu(size, dtypes, on_device):
    import stand_in

    draw = numpy.random.default_rng(size)
    x, y, z, m = (draw.normal(size=size).astype(dtype) for dtype in dtypes)
    want = z.copy(), m.copy()
    blend(x, y, out=want, a=0.5, b=-2)
    stand_in.install()
    try:
        device = [stand_in.cupy.asarray(array) for array in (x, y, z, m)]
        a = stand_in.cupy.full(1, 0.5) if on_device else 0.5
        stand_in.reset()
        blend(*device[:2], out=tuple(device[2:]), a=a, b=-2)
        assert stand_in.launches == ["minidl_test_blend"] * bool(size)
        assert not stand_in.syncs and not stand_in.uploads
        got = [array.get() for array in device[2:]]
    finally:
        stand_in.remove()
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        wide = numpy.promote_types(ours.dtype, "float32")
        numpy.testing.assert_allclose(
            ours.astype(wide), theirs.astype(wide), rtol=1e-2, atol=1e-2
        )


def test_layouts(stand_in):
    cupy = stand_in.cupy
    square = Kernel("test_square", "x", "y", body="y = x * x;")
    x = numpy.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype("float32")
    whole = cupy.asarray(x)
    last = whole.transpose(0, 3, 1, 2)  # channels last in memory
    for view, want in ((whole, x), (last, x.transpose(0, 3, 1, 2))):
        y = square(view)
        assert y.strides == view.strides and y.shape == view.shape
        assert (y.get() == want * want).all()
    apart = {type(launch).__name__ for launch in square.launches.values()}
    assert apart == {"function"}
    for view, want in (  # misaligned, strided, broadcast
        (whole.reshape(-1)[1:], x.reshape(-1)[1:]),
        (whole[..., ::2], x[..., ::2]),
        (cupy.broadcast_to(whole[:1], x.shape), numpy.broadcast_to(x[:1], x.shape)),
    ):
        assert (square(view).get() == want * want).all()
    assert len(square.launches) == 2
    out = whole.copy()
    assert square(out, out=out) is out and (out.get() == x * x).all()
    del Kernel.registry["test_square"]


def test_a_second_launch_is_the_first_with_other_arrays(stand_in):
    cupy = stand_in.cupy
    add = Kernel("test_add", "x y", "z", "a", "z = x + a * y;")
    make = numpy.random.default_rng(0).normal
    one, other = (make(size=20).astype("float32") for _ in "xy")
    x, y = cupy.asarray(one), cupy.asarray(other)
    for a in (2.0, 3.0, 4, numpy.float32(5), cupy.full((), 6.0)):
        for _ in range(2):
            assert numpy.allclose(add(x, y, a=a).get(), one + float(a) * other)
    assert len(add.launches) == 2 and len(add.again) == 4
    stand_in.reset()
    assert add(x, y, out=x, a=1.0) is x and stand_in.launches == ["minidl_test_add"]
    assert numpy.allclose(x.get(), one + other)
    whole = cupy.asarray(one)  # an input that overlaps the output is read first
    add(whole[:16], whole[:16], out=whole[4:], a=1.0)
    assert numpy.allclose(whole.get()[4:], 2 * one[:16])
    add(whole[1:17], whole[1:17], out=whole[:16], a=1.0)  # no multiple of 16 bytes
    with pytest.raises(ValueError, match="shapes do not fit"):
        add(x, y[:7], a=1.0)
    with pytest.raises(ValueError, match="one element"):
        add(x, y, a=cupy.ones(2))
    assert add(x[:5], y[:1], a=1.0).shape == (5,)
    both = Kernel("test_both", "x", "y z", body="y = x; z = x;")
    both(x, out=(y, whole))
    with pytest.raises(ValueError, match="two outputs share memory"):
        both(x, out=(y, y))
    del Kernel.registry["test_add"], Kernel.registry["test_both"]


def test_one_element_needs_no_alignment(stand_in):
    twice = Kernel("test_twice", "x", "y", body="y = 2 * x;")
    x = stand_in.cupy.asarray(numpy.arange(4.0))
    assert twice(x[1:2]).get() == [2.0]
    assert {type(launch).__name__ for launch in twice.launches.values()} == {"function"}
    del Kernel.registry["test_twice"]


def test_random_words_are_those_of_the_cpu(stand_in):
    for size in (1, 7, 4096, 5001):
        got = random.uniform((size,), device="cuda", generator=random.Generator(3))
        want = random.uniform((size,), generator=random.Generator(3))
        assert (got.get() == want).all()
    seed = numpy.uint64(2**63 + 5)
    got, want = stand_in.cupy.empty(9, "uint64"), numpy.empty(9, "uint64")
    for out in (got, want):
        philox.random_bits(out=out, shift=3, seed=int(seed), draw=2, start=2**33)
    assert (got.get() == want).all()


def moves(text, kind) -> int:
    """How often 16 bytes are loaded (ld) or stored (st)."""
    return len(re.findall(rf"{kind}\.global\S*\.v4\.[fu]32", text))


@pytest.mark.parametrize("on_device", [False, True])
def test_adam_moves_16_bytes_at_a_time(nvrtc, on_device):  # noqa: F811
    values = [numpy.ones(1) if on_device else 1.0] * len(adam.update.scalars)
    text = ptx(vector_source(adam.update, ["float32"] * 4, values))
    assert moves(text, "ld") == 4 and moves(text, "st") == 3
    assert ".local" not in text


@pytest.mark.skipif(bfloat16 is None, reason="ml_dtypes is not installed")
def test_mixed_types_move_16_bytes_at_a_time(nvrtc):  # noqa: F811
    kernel = adam.update_low
    dtypes = [bfloat16, "float32", "float32", "float32", bfloat16]
    text = ptx(vector_source(kernel, dtypes, [1.0] * len(kernel.scalars)))
    assert moves(text, "ld") == 3 and moves(text, "st") == 3  # and 8 of bfloat16
    assert len(re.findall(r"(?:ld|st)\.global\S*\.v4\.u16", text)) == 2
    assert ".local" not in text


@pytest.mark.slow
def test_every_kernel_compiles(nvrtc):  # noqa: F811
    """For older GPUs; test_machine_code.py has newer ones."""
    texts = []
    for kernel in all_kernels().values():
        values, dtype = [1] * len(kernel.scalars), signatures(kernel)[0]
        texts.append(vector_source(kernel, [dtype] * len(kernel.names), values))
    for first in range(0, len(texts), 60):
        (code,) = compile_together(texts[first : first + 60], ["sm_80"], raw=True)
        assert code[1:4] == b"ELF"
