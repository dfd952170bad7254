"""Matrix products on a GPU, on a stand-in for cuBLAS, against float64."""

import ctypes
from unittest import mock

import numpy as np
import pytest
from cublas_stand_in import PROTOTYPES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minidl as md
from minidl import nn, optim
from minidl.array import cublas
from minidl.array.device import bfloat16
from minidl.array.errors import DependencyError, DeviceError
from minidl.array.matmul import matmul
from minidl.nn import functional as F

TOLERANCE = {"float64": 1e-13, "float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
FLOATS = ["float64", "float32", "float16", *([] if bfloat16 is None else ["bfloat16"])]
with_fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
ORDERS = ["rows", "columns", "part", "backwards", "every second", "one for all"]


@pytest.fixture
def exact():
    """float32 products as they are by default, whatever a test sets."""
    before = md.get_float32_matmul_precision()
    yield
    md.set_float32_matmul_precision(before)


def lying(xp, array, order):
    """The same numbers as another layout of memory has them."""
    *stack, m, n = array.shape
    if order == "columns":
        return xp.asarray(np.ascontiguousarray(array.swapaxes(-1, -2))).swapaxes(-1, -2)
    if order == "part":
        whole = np.full((*stack, m + 2, n + 3), np.nan, array.dtype)
        whole[..., 1:-1, 2:-1] = array
        return xp.asarray(whole)[..., 1:-1, 2:-1]
    if order == "backwards":
        return xp.asarray(np.ascontiguousarray(array[..., ::-1]))[..., ::-1]
    if order == "every second":
        whole = np.full((*stack, 2 * m, 2 * n), np.nan, array.dtype)
        whole[..., ::2, ::2] = array
        return xp.asarray(whole)[..., ::2, ::2]
    if order == "one for all":
        return xp.asarray(np.ascontiguousarray(array[(0,) * len(stack)]))
    return xp.asarray(array)


def numbers(seed, shape, dtype):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def near(got, want, dtype):
    assert got.shape == want.shape
    error = np.abs(got.get().astype(float) - want).max(initial=0)
    return error <= TOLERANCE[str(dtype)] * (1 + np.abs(want).max(initial=0))


@pytest.mark.parametrize("dtype", FLOATS)
@with_fixtures
@given(
    st.sampled_from([(), (3,), (2, 3), (1, 4), (0,)]),
    st.tuples(*[st.integers(0, 5) | st.sampled_from([1, 17])] * 3),
    st.sampled_from(ORDERS),
    st.sampled_from(ORDERS),
    st.sampled_from([None, "rows", "columns", "part", "every second"]),
    st.booleans(),
    st.booleans(),
)
def test_products(
    stand_in, dtype, stack, sizes, first, second, given_out, wide, accumulate
):
    m, k, n = sizes
    if 0 in stack and "one for all" in (first, second):
        return
    kind = bfloat16 if dtype == "bfloat16" else dtype
    a, b = numbers(0, (*stack, m, k), kind), numbers(1, (*stack, k, n), kind)
    a, b = lying(stand_in.cupy, a, first), lying(stand_in.cupy, b, second)
    want = np.matmul(a.get().astype(float), b.get().astype(float))
    if given_out is None:
        got = matmul(a, b)
        assert got.dtype == kind and near(got, want, dtype)
        return
    made = np.float32 if wide and np.dtype(kind).itemsize == 2 else kind
    before = numbers(2, want.shape, made)
    if not accumulate:
        before[...] = np.nan
    else:
        want = want + before.astype(float)
    out = lying(stand_in.cupy, before, given_out)
    got = matmul(a, b, out, accumulate=accumulate)
    assert got is out and near(out, want, dtype if made == kind else "float32")


def test_stacks_broadcast_without_copies(stand_in):
    a, b = numbers(0, (4, 3, 5, 2), "f8"), numbers(1, (3, 2, 6), "f8")
    x, y = stand_in.cupy.asarray(a), stand_in.cupy.asarray(b)
    assert near(matmul(x, y), a @ b, "float64")
    with mock.patch.object(stand_in.cupy, "ascontiguousarray", None):  # no copies
        one = matmul(x, stand_in.cupy.asarray(b[0]))
        turned = matmul(x.swapaxes(2, 3), x)
        vectors = matmul(x[:, :, :, :1], x[:, :, :1])
    assert near(one, a @ b[0], "float64")
    assert near(turned, a.swapaxes(2, 3) @ a, "float64")
    assert near(vectors, a[:, :, :, :1] @ a[:, :, :1], "float64")
    assert [call[0] for call in cublas.library().calls] == ["stack"] * 4


def test_an_operand_may_be_the_result(stand_in):
    a = numbers(0, (4, 4), "f8")
    x, want = stand_in.cupy.asarray(a), a @ a
    assert matmul(x, x, x) is x and near(x, want, "float64")


def test_rows_and_types_of_a_call(stand_in, exact):
    def compute(dtype):
        cublas.library().calls.clear()
        x = stand_in.cupy.ones((2, 2), dtype)
        matmul(x, x)
        ((name, kind, _),) = cublas.library().calls
        assert name == "single"
        return kind

    assert [compute(t) for t in ("f8", "f4", "f2")] == [70, 68, 68]
    for word, kind in [("high", 77), ("medium", 77), ("highest", 68)]:
        md.set_float32_matmul_precision(word)
        assert md.get_float32_matmul_precision() == word
        assert [compute(t) for t in ("f8", "f4", "f2")] == [70, kind, 68]
    with pytest.raises(RuntimeError, match="'highest', 'high', 'medium', got 'tf32'"):
        md.set_float32_matmul_precision("tf32")


def test_integers_are_left_to_cupy(stand_in):
    x = stand_in.cupy.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(matmul(x, x.T).get(), [[5, 14], [14, 50]])
    assert not cublas.library().calls


def test_a_handle_for_each_stream(stand_in):
    x = stand_in.cupy.ones((2, 2), "f4")
    matmul(x, x)
    other = stand_in.cupy.cuda.Stream(non_blocking=True)
    stand_in.cupy.cuda.Device().synchronize()
    with other:
        matmul(x, x)
        matmul(x, x)
    matmul(x, x)
    first, second = cublas.library().handles.values()
    assert [call[2] for call in cublas.library().calls] == [
        first.stream,
        other.ptr,
        other.ptr,
        first.stream,
    ]
    assert first.stream != second.stream == other.ptr
    assert first.workspace == second.workspace == cublas.WORKSPACE_BYTES
    assert first.mode == second.mode == 16


def test_a_graph_captures_products(stand_in):
    a, b = numbers(0, (3, 4), "f4"), numbers(1, (4, 5), "f4")
    x, y = stand_in.cupy.asarray(a), stand_in.cupy.asarray(b)
    stream = stand_in.cupy.cuda.Stream(non_blocking=True)
    stand_in.cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="run the step once on this stream"):
            matmul(x, y)
        stream.end_capture()
        matmul(x, y)
        stream.begin_capture()
        z = matmul(x, y)
        matmul(z, y.T, x)
        graph = stream.end_capture()
        stand_in.syncs.clear()
        graph.launch()
        graph.launch()
        assert not stand_in.syncs
        want = a @ b
        assert near(z, want @ b.T @ b, "float32")
        assert near(x, want @ b.T @ b @ b.T, "float32")


def test_failures_are_named(stand_in):
    x = stand_in.cupy.ones((2, 2), "f4")
    matmul(x, x)
    for known in cublas.library().handles.values():
        known.workspace = None
    with pytest.raises(DeviceError, match="cublasGemmEx_64 .*NOT_INITIALIZED"):
        matmul(x, x)
    for a, b, out in [((2, 3), (2, 3), None), ((2, 3), (3, 2), (2, 3))]:
        a, b = stand_in.cupy.ones(a), stand_in.cupy.ones(b)
        out = None if out is None else stand_in.cupy.ones(out)
        with pytest.raises(ValueError, match="they do not fit"):
            matmul(a, b, out)


def test_arrays_on_two_devices_are_refused():
    stand_in = pytest.importorskip("stand_in")
    stand_in.install(devices=2)
    try:
        with stand_in.cupy.cuda.Device(1):
            there = stand_in.cupy.ones((2, 2))
        here = stand_in.cupy.ones((2, 2))
        assert matmul(there, there).device.id == 1
        with pytest.raises(DeviceError, match="cuda:0 and cuda:1; .* current one"):
            matmul(here, there)
    finally:
        stand_in.remove()


def test_types_are_those_of_the_header():
    assert cublas._ARGUMENTS.keys() == PROTOTYPES.keys()
    for name, ours in cublas._ARGUMENTS.items():
        theirs = PROTOTYPES[name]
        assert [ctypes.sizeof(t) for t in ours] == [ctypes.sizeof(t) for t in theirs]
        pointers = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        assert [t in pointers for t in ours] == [t in pointers for t in theirs]


def test_a_library_that_is_missing():
    cublas.library.cache_clear()
    with mock.patch.dict("sys.modules", {"cuda.pathfinder": None}):
        with pytest.raises(DependencyError, match="minidl.cuda12."):
            cublas.library()


def test_functions_of_the_library():
    """Where cuBLAS is installed it has them all; loading it needs no device."""
    cublas.library.cache_clear()
    try:
        library = cublas.library()
    except DependencyError:
        pytest.skip("cuBLAS is not installed")
    for name in (*PROTOTYPES, "cublasGetStatusName"):
        assert getattr(library, name)
    library.cublasGetStatusName.restype = ctypes.c_char_p
    assert library.cublasGetStatusName(7) == b"CUBLAS_STATUS_INVALID_VALUE"
    cublas.library.cache_clear()


def test_gradients_are_added_up_where_they_lie(stand_in):
    weight = nn.Parameter(numbers(0, (3, 4), "f4"))
    on_gpu = nn.Parameter(stand_in.cupy.asarray(weight.data))
    for p in (weight, on_gpu):
        optim.SGD([p], lr=1)
        x = md.tensor(numbers(1, (5, 4), "f4")).to(p.device)
        stand_in.launches.clear()
        for times in (1, 2):
            F.linear(x, p).sum().backward()
            want = times * x.numpy().astype(float).sum(0)
            assert near(
                stand_in.cupy.asarray(p.grad.numpy()),
                want + 0 * weight.numpy(),
                "float32",
            )
            assert p.grad.data is p.gradient_view
    assert stand_in.launches.count("gemm") == 4
    assert "add" not in stand_in.launches
