"""Kernel: its language, its three ways to run, and everything arrays can be."""

import math
import os
import shlex
import subprocess
import sys

import numpy
import pytest
from conftest import all_kernels, derived_kernels
from hypothesis import given
from hypothesis import strategies as st

from minidl.array import cache, choice, compiler, loops, ufunc
from minidl.array.arguments import signature
from minidl.array.device import bfloat16, to_numpy
from minidl.array.errors import DeviceError
from minidl.array.kernel import Kernel
from minidl.array.threads import get_num_threads, set_num_threads

EVERYTHING = Kernel(
    "test_everything",
    inputs="x y",
    outputs="z w",
    scalars="a b",
    body="""
        auto inside = (x > a) & ~(y <= b);  // a local truth
        auto t = where(inside, x * 0.5 + y, sqrt(abs(x)) / (y + 3));
        t += min(x, y) - max(t, 1e-3);
        w = isnan(t) | isinf(x) | (t > 1) ^ (y == 0);
        z = round(t) - floor(y) + ceil(x) * a / 3 - trunc(b * t);
        z += exp(-abs(x)) + log(abs(y) + 1) + log1p(abs(x)) + expm1(-abs(y));
        z += sin(x) * cos(y) + tan(a) + tanh(t) + erf(x) + pow(abs(x), b) + atan2(x, y);
    """,
)
EXACT = Kernel(  # only what IEEE 754 rounds in one way
    "test_exact",
    inputs="x y",
    outputs="z w",
    scalars="a b",
    body="""
        auto inside = (x > a) & ~(y <= b);
        auto t = where(inside, x * 0.5 + y, sqrt(abs(x)) / (y + 3));
        t += min(x, y) - max(t, 1e-3) + (1 - a) * x;
        w = isnan(t) | isinf(x) | (t > 1) ^ (y == 0);
        z += round(t) - floor(y) + ceil(x) * a / 3 - trunc(b * t);
    """,
)
AXPY = Kernel("test_axpy", "x", "y", "a", "y += a * x;")
PURE = Kernel(  # no output is read, nor the index: small arrays go to a ufunc
    "test_pure", "x y", "z w", "a", "z = exp(x) * a - y; w = (x / y) > tanh(a * y);"
)
PAIR = Kernel("test_pair", "x y", "s d", "", "s = x + y; d = x - y;")
MIX = Kernel(
    "test_mix",
    "x y",
    "z",
    "",
    "auto t = x * 2654435761; t ^= (t >> 15) | (y & 7); z = where(t < y, ~t, t << 3);",
)
FLOATS = [numpy.float32, numpy.float64, numpy.float16]
FLOATS += [] if bfloat16 is None else [bfloat16]


@pytest.fixture(autouse=True)
def registry():
    """Leave the registry as it was."""
    before = dict(Kernel.registry)
    yield
    for name in [name for name in Kernel.registry if name.startswith("test_")]:
        if name not in before:  # derivatives of the package's own stay
            del Kernel.registry[name]


def awkward(dtype, size, seed=0):
    """Normal numbers with NaN, infinities and zeros among them."""
    x = numpy.random.default_rng(seed).standard_normal(size) * 3
    x[seed :: 7 + seed] = 0
    x[2 + seed :: 11] = numpy.nan
    x[3::13] = numpy.inf
    x[4::17] = -numpy.inf
    return x.astype(dtype)


def in_numpy(kernel, *inputs, out, **scalars):
    """The kernel's NumPy form on the same arrays."""
    values = [scalars[name] for name in kernel.scalars]
    T, dtypes, _ = signature(kernel, inputs, out, values)
    loop = loops.NumpyLoop(kernel.body, T, dtypes)
    loop(out[0].size, [*inputs, *out], values)
    return out


def same_bits(a, b):
    a, b = (numpy.ascontiguousarray(x) for x in (a, b))
    nan = a != a  # which NaN it is may differ
    assert a.dtype == b.dtype and (nan == (b != b)).all()
    assert a[~nan].tobytes() == b[~nan].tobytes()


def run_python(code, **environment):
    """A fresh Python with these environment variables; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


AXPY_IN_PYTHON = """
import numpy
from minidl.array.kernel import Kernel
axpy = Kernel("axpy", "x", "y", "a", "y += a * x;")
y = numpy.ones(5)
axpy(numpy.arange(5.0), out=y, a=2)
assert y.tolist() == [1, 3, 5, 7, 9]
"""

# --- the three ways to run


@pytest.mark.parametrize("dtype", FLOATS)
def test_compiled_and_numpy_agree_bit_for_bit(dtype):
    size = 140_001  # several chunks and threads
    x, y, z = (awkward(dtype, size, seed) for seed in range(3))
    expected = in_numpy(
        EXACT, x, y, out=(z.copy(), numpy.empty(size, bool)), a=0.1, b=2
    )
    got = EXACT(x, y, out=(z, numpy.empty(size, bool)), a=0.1, b=2)
    same_bits(got[0], expected[0])
    same_bits(got[1], expected[1])


@pytest.mark.parametrize("dtype", FLOATS)
def test_functions_agree_within_rounding(xp, dtype):
    x, y = awkward(dtype, 2000), awkward(dtype, 2000, 1)
    out = (numpy.empty(2000, dtype), numpy.empty(2000, bool))
    expected = in_numpy(EVERYTHING, x, y, out=out, a=0.1, b=2.5)
    z, w = EVERYTHING(xp.asarray(x), xp.asarray(y), a=0.1, b=2.5)
    eps = float({2: 1e-2, 4: 1e-5, 8: 1e-14}[numpy.dtype(dtype).itemsize])
    wide = [to_numpy(a).astype(numpy.float64) for a in (z, expected[0])]
    numpy.testing.assert_allclose(*wide, rtol=eps, atol=10 * eps)


def test_integers_agree_and_wrap():
    x = numpy.random.default_rng(0).integers(0, 2**63, 1000).astype(numpy.uint64)
    y = x[::-1].copy()
    expected = in_numpy(MIX, x, y, out=(numpy.empty_like(x),))
    same_bits(MIX(x, y), expected[0])
    small = MIX(
        x.astype(numpy.int16), y.astype(numpy.int8), out=numpy.empty(1000, "i8")
    )
    assert small.dtype == numpy.int64


@pytest.mark.skipif(compiler.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["exp", "log", "expm1", "log1p", "tanh", "erf"])
def test_vector_functions_round_to_the_nearest_float(name):
    draw = numpy.random.default_rng(0)
    bits = draw.integers(0, 2**32, 200_000, dtype=numpy.uint64).astype(numpy.uint32)
    edges = [0.0, -0.0, numpy.inf, -numpy.inf, numpy.nan, 1, 88.8, -104, 1e-45, -1]
    x = numpy.concatenate(
        [bits.view("f4"), draw.standard_normal(100_000) * 9, edges], dtype="f4"
    )
    if name == "erf":
        exact = numpy.array([math.erf(value) for value in x])
    else:
        with numpy.errstate(all="ignore"):
            exact = getattr(numpy, name)(x.astype(numpy.float64))
    with numpy.errstate(over="ignore"):
        nearest = exact.astype(numpy.float32)
    got = Kernel(f"test_{name}", "x", "y", "", f"y = {name}(x);")(x)
    finite = numpy.isfinite(nearest)
    numpy.testing.assert_array_equal(got[~finite], nearest[~finite])
    unit = numpy.spacing(numpy.abs(nearest[finite])).astype(numpy.float64)
    assert (numpy.abs(got[finite] - exact[finite]) <= 0.52 * unit).all()
    assert (numpy.signbit(got[finite]) == numpy.signbit(nearest[finite])).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_results_do_not_depend_on_place_or_threads(dtype):
    x, y = awkward(dtype, 140_000), awkward(dtype, 140_000, 1)
    whole = EVERYTHING(x, y, a=0.1, b=2.5)[0]
    part = EVERYTHING(x[777:1003], y[777:1003], a=0.1, b=2.5)[0]
    same_bits(part, whole[777:1003])
    threads = get_num_threads()
    try:
        set_num_threads(3)
        same_bits(EVERYTHING(x, y, a=0.1, b=2.5)[0], whole)
    finally:
        set_num_threads(threads)


@pytest.mark.skipif(compiler.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mixed", [None, numpy.float32, numpy.int16])
def test_small_arrays_have_the_bits_of_large_ones(dtype, mixed):
    size = loops.PARALLEL_FROM + 30
    x, y = awkward(dtype, size), awkward(dtype, size, 1)
    if mixed is not None:
        y = numpy.nan_to_num(y.astype("f4"), posinf=9, neginf=9).astype(mixed)
    whole = PURE(x, y, a=0.25)
    for part in (slice(30), slice(0, 90, 3), slice(40, 10, -1), slice(7, 8), slice(0)):
        for got, wanted in zip(PURE(x[part], y[part], a=0.25), whole, strict=True):
            assert type(got) is numpy.ndarray
            same_bits(got, wanted[part])
    square = (x[:100].reshape(10, 10).T, y[:200:2].reshape(10, 10).T)
    for got, wanted in zip(PURE(*square, a=0.25), whole, strict=True):
        assert got.shape == (10, 10) and got.dtype == wanted.dtype
    for got in PURE(x[0:1].reshape(()), y[0:1].reshape(()), a=0.25):
        assert type(got) is numpy.ndarray and got.shape == ()


@pytest.mark.skipif(compiler.compiler() is None, reason="no C++ compiler")
def test_small_arrays_go_to_a_ufunc():
    x = numpy.ones(5, numpy.float32)
    PURE(x, x, a=1)
    called = PURE._ufuncs[x.dtype][x.dtype]
    assert isinstance(called, numpy.ufunc) and called.types == ["ffd->ff"]
    with numpy.errstate(all="raise"):  # as silent as the loops of large arrays
        z, _ = PURE(x * 1000, x * 0, a=1.5)
    assert numpy.isinf(z).all()
    for call in [
        lambda: PURE(x, x),
        lambda: PURE(x, x, b=1),
        lambda: PURE(x, x, a="1"),
        lambda: PURE(x, a=1),
        lambda: PURE(x, x, x, a=1),
        lambda: PURE(x, [1.0], a=1),
    ]:
        with pytest.raises(TypeError, match="kernel 'test_pure'"):
            call()
    with pytest.raises(ValueError, match="shapes do not fit"):
        PURE(x, x[:2], a=1)


def test_where_numpy_makes_no_ufunc_the_loop_is_called(monkeypatch):
    monkeypatch.setattr(ufunc, "_maker", lambda: None)
    kernel = Kernel("test_alone", "x", "y", "", "y = 2 * x;")
    assert kernel(numpy.arange(3.0)).tolist() == [0, 2, 4] and not kernel._ufuncs


@pytest.mark.parametrize("name", all_kernels())
def test_every_kernel_agrees_with_its_numpy_form(name):
    kernel = all_kernels()[name]
    whole = kernel.compute is not None and kernel.compute.kind in "iu"
    dtype = numpy.uint64 if whole or kernel.body.needs_integer else numpy.float64
    draw = numpy.random.default_rng(0)
    arrays = [(draw.random(999) * 50 + 0.5).astype(dtype) for _ in kernel.names]
    first = len(kernel.inputs)
    scalars = {scalar: 1 + k for k, scalar in enumerate(kernel.scalars)}
    scalars |= dict.fromkeys({"skip", "found"} & scalars.keys(), 0)  # else all stays
    copies = tuple(a.copy() for a in arrays[first:])
    expected = in_numpy(kernel, *arrays[:first], out=copies, **scalars)
    kernel(*arrays[:first], out=tuple(arrays[first:]), **scalars)
    for got, wanted in zip(arrays[first:], expected, strict=True):
        numpy.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_derivatives_name_their_arguments_apart():
    for name, kernel in derived_kernels().items():
        assert len(dict.fromkeys(kernel.names)) == len(kernel.names), name


# --- shapes, strides, aliases


def spaced(draw, shape, steps):
    """An array of this shape whose axes go by these steps."""
    pairs = zip(shape, steps, strict=True)
    whole = draw.standard_normal([n * abs(step) for n, step in pairs])
    return whole[tuple(slice(None, None, step) for step in steps)]


@given(
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from([1, 2, 9])] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.tuples(*[st.sampled_from([1, 1, -1, 2])] * 3),
)
def test_any_layout(order, shape, ones, steps):
    draw = numpy.random.default_rng(0)
    x = spaced(draw, [shape[k] for k in order], steps)
    x = x.transpose(numpy.argsort(order))
    narrow = [1 if one else n for n, one in zip(shape, ones, strict=True)]
    y = spaced(draw, narrow, steps[::-1])
    s, d = PAIR(x, y)
    numpy.testing.assert_array_equal(s, x + y)
    numpy.testing.assert_array_equal(d, x - y)
    out = spaced(draw, [shape[k] for k in order], steps[::-1])
    out = out.transpose(numpy.argsort(order))
    expected = out + 2 * y
    assert AXPY(y, out=out, a=2) is out
    numpy.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("shape", [(3, 5, 40, 30), (2, 2, 2, 2, 9), (70_000, 3)])
def test_broadcast_along_rows_and_columns(shape):
    x = numpy.random.default_rng(0).standard_normal(shape).astype(numpy.float32)
    for axis in range(len(shape)):
        row = x[(0,) * axis][(slice(None), *[slice(0, 1)] * (x.ndim - axis - 1))]
        same_bits(PAIR(x, row)[1], x - row)
        turned, row_turned = x.swapaxes(0, -1), (row + 0 * x)[:1].swapaxes(0, -1)
        same_bits(PAIR(turned, row_turned)[1], turned - row_turned)


def test_shapes_of_all_kinds(xp):
    for shape in [(), (0,), (3, 0, 2), (1,), (4, 3)]:
        x = xp.ones(shape, numpy.float32)
        s, d = PAIR(x, x)
        assert s.shape == d.shape == shape and s.dtype == numpy.float32
        assert bool((s == 2).all()) and bool((d == 0).all())


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0)])
def test_nothing_to_do_in_a_layout_of_its_own(shape, recwarn, xp):
    x, y = xp.ones((1, 3, 1), numpy.float32), xp.zeros(shape, numpy.float32)
    assert AXPY(x, out=y, a=2).shape == shape
    assert not recwarn.list


def test_inputs_broadcast(xp):
    x, y = xp.arange(3.0), xp.arange(4.0).reshape(4, 1)
    assert bool((PAIR(x, y)[1] == x - y).all())
    out = xp.ones((2, 4, 3))
    assert AXPY(x, out=out, a=2) is out
    assert bool((out == 1 + 2 * x).all())


def test_same_array_in_and_out(xp):
    x = xp.arange(100_000.0)
    y = x + 1
    PAIR(x, y, out=(x, y))
    assert bool((x == 2 * xp.arange(100_000.0) + 1).all()) and bool((y == -1).all())
    a = xp.arange(6.0).reshape(2, 3).T
    AXPY(a, out=a, a=1)
    assert bool((a == 2 * xp.arange(6.0).reshape(2, 3).T).all())


def test_overlapping_arrays(xp):
    for shift in (1, 3, 5000):
        base = xp.arange(100_000.0)
        AXPY(base[:-shift], out=base[shift:], a=1)
        n = xp.arange(100_000.0)
        assert bool((base[shift:] == n[shift:] + n[:-shift]).all())
    square = xp.arange(9.0).reshape(3, 3)
    before = square.copy()
    AXPY(square.T, out=square, a=1)
    assert bool((square == before + before.T).all())
    row = xp.arange(9.0).reshape(3, 3)
    AXPY(row[0], out=row, a=1)
    assert bool((row == before + before[0]).all())


def test_permuted_dense_arrays_run_flat_and_keep_their_layout():
    x = numpy.ones((2, 3, 4), numpy.float32).transpose(2, 0, 1)
    s, d = PAIR(x, x)
    assert s.strides == d.strides == x.strides


def test_dtypes_mix(xp):
    x = xp.asarray([1, 2, 300], numpy.int64)
    y = xp.asarray([0.5, 0.25, 0.125], numpy.float16)
    s, d = PAIR(y, x, out=(None, xp.empty(3, numpy.float64)))
    assert s.dtype == numpy.float16 and s.tolist() == [1.5, 2.25, 300.0]
    assert d.tolist() == [-0.5, -1.75, -299.875]
    assert PAIR(x, x)[0].dtype == numpy.int64


def test_low_precision_computes_in_float(xp):
    x = xp.full(4, 300, numpy.float16)
    kernel = Kernel("test_wide", "x", "y", "", "y = x * x / 300;")
    assert kernel(x).tolist() == [300.0] * 4  # 90000 is no float16


@pytest.mark.skipif(bfloat16 is None, reason="ml_dtypes is not installed")
def test_bfloat16_rounds_as_ml_dtypes_does():
    values = awkward(numpy.float32, 50_000) * numpy.float32(1e-3)
    copy = Kernel("test_copy", "x", "y", "", "y = x;")
    same_bits(copy(values, out=numpy.empty(50_000, bfloat16)), values.astype(bfloat16))


def test_scalars_may_be_arrays(xp):
    y = xp.zeros(4, numpy.float32)
    for a in [2, 2.0, numpy.float64(2), xp.asarray(2.0), xp.asarray([2], numpy.int32)]:
        AXPY(xp.ones(4, numpy.float32), out=y, a=a)
    assert y.tolist() == [10.0] * 4
    with pytest.raises(ValueError, match="one element as 'a'"):
        AXPY(xp.ones(4), out=xp.ones(4), a=xp.ones(2))


def test_min_and_max_pass_nan_on(xp):
    kernel = Kernel("test_minmax", "x y", "l h", "", "l = min(x, y); h = max(x, y);")
    x, y = xp.asarray([1, numpy.nan, 2]), xp.asarray([numpy.nan, 1, 3])
    low, high = kernel(x, y)
    assert to_numpy(xp.isnan(low)).tolist() == [True, True, False]
    assert to_numpy(xp.isnan(high)).tolist() == [True, True, False]
    assert (float(low[2]), float(high[2])) == (2, 3)


def test_index_is_the_position(xp):
    kernel = Kernel("test_index", "", "y", "", "y = 2 * index;")
    assert kernel(out=xp.empty((2, 3))).tolist() == [[0, 2, 4], [6, 8, 10]]
    assert kernel(out=xp.empty((3, 2)).T).tolist() == [[0, 2, 4], [6, 8, 10]]


def test_subclasses_of_arrays():
    x = numpy.arange(3.0).view(numpy.recarray)
    assert AXPY(x, out=x, a=1) is x and x.tolist() == [0, 2, 4]


# --- mistakes


@pytest.mark.parametrize(
    "body, message",
    [
        ("y = x", "semicolon"),
        ("y = x ** 2;", "outside the language"),
        ("y = x > 0 ? x : 0;", "not an expression"),
        ("y = 0 < x < 1;", "outside the language"),
        ("y = q;", "unknown name 'q'"),
        ("y = gamma(x);", "unknown function 'gamma'"),
        ("y = min(x);", "2 arguments"),
        ("x = 1; y = x;", "read only"),
        ("z = x; y = z;", "unknown name 'z'"),
        ("auto z = x;", "never assigned"),
        ("auto z = x; auto z = y; y = z;", "exists already"),
        ("y = (x > 0) * x;", "where a number is needed"),
        ("y = where(x, 1, 0);", "where a comparison is needed"),
        ("y = x & (x > 0);", "where a number is needed"),
        ("y = sqrt(x) + (x & 1);", "integer operators together with real"),
        ("y = x.T;", "outside the language"),
        ("y = __import__('os');", "outside the language|unknown function"),
        ("if (x) y = 1;", "not an assignment"),
        ("y = 0.5f * x;", "not an expression"),
        ("y = x if x else 1;", "outside the language"),
    ],
)
def test_bodies_outside_the_language(body, message):
    with pytest.raises(ValueError, match=message):
        Kernel("test_bad", "x", "y", "", body)
    assert "test_bad" not in Kernel.registry


def test_wrong_arguments_are_refused_before_anything_is_written():
    x, y = numpy.ones(3), numpy.ones(3)
    with pytest.raises(ValueError, match=r"test_axpy.*x \(4,\), y \(3,\)"):
        AXPY(numpy.ones(4), out=y, a=1)
    with pytest.raises(ValueError, match="shapes do not fit"):
        AXPY(numpy.ones((2, 3)), out=y, a=1)
    with pytest.raises(ValueError, match="read-only"):
        y.flags.writeable = False
        AXPY(x, out=y, a=1)
    with pytest.raises(ValueError, match="broadcast view"):
        view = numpy.lib.stride_tricks.as_strided(x, (4, 3), (0, 8))
        AXPY(x, out=view, a=1)
    with pytest.raises(ValueError, match="two outputs share memory"):
        PAIR(y, y, out=(x, x[::-1]))
    for call in [
        lambda: AXPY(x, a=1),
        lambda: AXPY(x, out=x),
        lambda: AXPY(x, out=x, a=1, b=2),
        lambda: AXPY(out=x, a=1),
        lambda: AXPY(x, out=(x, x), a=1),
        lambda: AXPY([1.0], out=x, a=1),
        lambda: AXPY(x, out=x, a="1"),
        lambda: AXPY(x.astype(complex), out=x, a=1),
        lambda: AXPY(x.astype(">f8"), out=x, a=1),
        lambda: EVERYTHING(numpy.arange(3), numpy.arange(3), a=1, b=1),
        lambda: MIX(x, x),
    ]:
        with pytest.raises(TypeError, match="kernel 'test_"):
            call()
    assert x.tolist() == y.tolist() == [1, 1, 1]


@pytest.mark.gpu
def test_arrays_on_two_devices_are_refused(xp):
    if xp is numpy:
        pytest.skip("needs CuPy's arrays")
    with pytest.raises(DeviceError, match="one device"):
        AXPY(xp.ones(3), out=numpy.ones(3), a=1)


def test_names_are_taken_once():
    again = Kernel("test_axpy", "x", "y", "a", "y += a * x;")
    assert repr(again) == "<Kernel test_axpy>"
    with pytest.raises(ValueError, match="another kernel of the name 'test_axpy'"):
        Kernel("test_axpy", "x", "y", "a", "y -= a * x;")


# --- the compiler and its cache


def test_without_a_compiler_numpy_runs_and_says_so_once():
    code = AXPY_IN_PYTHON + "axpy(y.astype('f4'), out=y.astype('f4'), a=1)"
    _, said = run_python(code, MINIDL_COMPILER="none")
    assert said.count("no C++ compiler") == 1
    _, said = run_python(AXPY_IN_PYTHON, MINIDL_COMPILER="/nope")
    assert said.count("MINIDL_COMPILER=/nope names a compiler that is not there") == 1


def test_a_compiler_that_fails_is_reported(tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'fatal error: no luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    _, said = run_python(AXPY_IN_PYTHON, MINIDL_COMPILER=str(broken))
    assert said.count("no luck") == 1


@pytest.mark.skipif(compiler.compiler() is None, reason="no C++ compiler")
class TestCache:
    @pytest.mark.slow
    def test_torn_and_foreign_files_are_compiled_again(self, tmp_path):
        run_python(AXPY_IN_PYTHON, MINIDL_CACHE_DIR=str(tmp_path))
        (library,) = tmp_path.glob("*.so")
        whole = library.read_bytes()
        for content in [whole[: len(whole) // 2], b"", b"x" * 9000]:
            library.write_bytes(content)
            _, said = run_python(AXPY_IN_PYTHON, MINIDL_CACHE_DIR=str(tmp_path))
            assert not said and len(library.read_bytes()) == len(whole)

    @pytest.mark.slow
    def test_a_full_cache_needs_no_compiler_run(self, tmp_path):
        code = AXPY_IN_PYTHON + f"import os; print(os.listdir({str(tmp_path)!r}))"
        first, _ = run_python(code, MINIDL_CACHE_DIR=str(tmp_path))
        (library,) = tmp_path.glob("*.so")
        stamp = library.stat().st_mtime_ns
        again, _ = run_python(code, MINIDL_CACHE_DIR=str(tmp_path))
        assert first == again and library.stat().st_mtime_ns == stamp

    @pytest.mark.slow
    def test_of_several_processes_that_start_at_once_one_compiles(self, tmp_path):
        counting, folder = tmp_path / "c++", tmp_path / "cache"
        real = shlex.join(compiler.compiler())
        counting.write_text(f'#!/bin/sh\necho >>"$0.runs"\nexec {real} "$@"\n')
        counting.chmod(0o755)
        environment = os.environ | {
            "MINIDL_CACHE_DIR": str(folder),
            "MINIDL_COMPILER": str(counting),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        started = [
            subprocess.Popen([sys.executable, "-c", AXPY_IN_PYTHON], env=environment)
            for _ in range(3)
        ]
        assert [process.wait(120) for process in started] == [0, 0, 0]
        assert len(list(folder.iterdir())) == 1
        assert (tmp_path / "c++.runs").read_text() == "\n"

    def test_a_directory_open_to_others_is_refused(self, tmp_path):
        tmp_path.chmod(0o777)
        _, said = run_python(AXPY_IN_PYTHON, MINIDL_CACHE_DIR=str(tmp_path))
        assert "can be written by other users" in said
        assert not list(tmp_path.iterdir())

    def test_a_user_without_a_home(self, tmp_path, monkeypatch):
        for name in ("MINIDL_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
        monkeypatch.chdir(tmp_path)
        with pytest.warns(RuntimeWarning, match="there is no home directory"):
            folder = cache.cache_directory.__wrapped__()
        assert folder.is_dir() and not list(tmp_path.iterdir())

    def test_a_new_directory_is_the_users_own(self, tmp_path):
        folder = tmp_path / "new" / "cache"
        run_python(AXPY_IN_PYTHON, MINIDL_CACHE_DIR=str(folder))
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8", "bool"])
def test_numpy_chooses_bit_by_bit(dtype):
    values = numpy.array([0.0, -0.0, 1.5, -2, numpy.inf, numpy.nan, 3, 250])
    with numpy.errstate(invalid="ignore"):
        a, b = values.astype(dtype), values[::-1].astype(dtype)
    truth = numpy.array([1, 0, 0, 1, 1, 1, 0, 0], bool)
    for first, second in ((a, b), (a[2], b), (a, b[1]), (a[3], b[4])):
        got = choice.where(truth, first, second)
        want = numpy.where(truth, first, second)
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes()
    assert choice.where(numpy.True_, a, b).tobytes() == a.tobytes()
    assert choice.where(truth[::2], a[::2], b[1::2]).tobytes() == (
        numpy.where(truth[::2], a[::2], b[1::2]).tobytes()
    )


def test_numpy_deals_chunks_to_threads(interpreted, monkeypatch):
    monkeypatch.setattr(loops, "CHUNK", 100)
    before, results = get_num_threads(), []
    kernel = Kernel("test_chunks", "x", "y", body="y = where(x > 0, x, index);")
    x = numpy.random.default_rng(0).normal(size=1234)
    try:
        for count in (1, 2, 5):
            set_num_threads(count)
            results.append(kernel(x))
    finally:
        set_num_threads(before)
    for y in results:
        numpy.testing.assert_array_equal(y, numpy.where(x > 0, x, numpy.arange(1234)))
