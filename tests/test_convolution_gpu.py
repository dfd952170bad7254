"""Convolution on a GPU, on the stand-in: lowered to products, and by cuDNN."""

import sys
from unittest import mock

import cuda_on_cpu
import cudnn_stand_in
import numpy as np
import pytest
from test_cuda_compile import compile_together, nvrtc  # noqa: F401
from test_raw_convolution import direct, normal

import minidl as md
from minidl import nn, optim
from minidl.array import convolution_columns, cublas, cudnn, cudnn_plans
from minidl.array.convolution import (
    conv_forward,
    conv_input_gradient,
    conv_weight_gradient,
)
from minidl.array.device import bfloat16
from minidl.array.errors import DeviceError
from minidl.array.precision import set_float32_matmul_precision

TOLERANCE = {8: 1e-12, 4: 1e-6, 2: 1e-2}
CASES = {  # x, w, (stride, padding, dilation, groups)
    "1-d": ((3, 2, 9), (4, 2, 3), ((2,), (1,), (2,), 1)),
    "2-d": ((5, 3, 6, 5), (4, 3, 3, 2), ((1, 1), (1, 0), (1, 1), 1)),
    "strided, in groups": ((3, 4, 7, 6), (6, 2, 3, 3), ((2, 3), (1, 2), (1, 1), 2)),
    "one pixel": ((3, 4, 3, 4), (5, 4, 1, 1), ((1, 1), (0, 0), (1, 1), 1)),
    "3-d": ((2, 2, 4, 3, 5), (2, 2, 2, 3, 2), ((1, 2, 1), (1, 1, 0), (1, 1, 2), 1)),
}
FLOATS = ["float64", "float32", "float16", *([] if bfloat16 is None else ["bfloat16"])]
PAIRS = [("2-d", dtype) for dtype in FLOATS]
PAIRS += [(name, "float32") for name in CASES if name != "2-d"]


@pytest.fixture
def frontend(stand_in, monkeypatch):
    """cuDNN, or what stands in for it."""
    monkeypatch.setattr(cudnn_plans, "frontend", lambda: cudnn_stand_in)
    cudnn_stand_in.graphs.clear()
    yield cudnn_stand_in
    set_float32_matmul_precision("highest")


def operands(case, dtype):
    """x, w, b, gy, and y, gx, gw in float64."""
    x_shape, w_shape, geometry = case
    kind = bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    x, w, b = (normal(s).astype(kind) for s in (x_shape, w_shape, w_shape[:1]))
    y, gx, gw, gy = direct(
        x, w, b, lambda shape: (normal(shape) + 0.1).astype(kind), *geometry
    )
    return (x, w, b, gy), (y, gx, gw)


def assert_near(got, want):
    assert got.shape == want.shape
    error = np.abs(got.get().astype(float) - want).max()
    assert error <= TOLERANCE[got.dtype.itemsize] * np.abs(want).max()


def check(stand_in, case, dtype):
    inputs, (y, gx, gw) = operands(case, dtype)
    x, w, b, gy = map(stand_in.cupy.asarray, inputs)
    geometry = case[2]
    stand_in.syncs.clear()
    results = [
        conv_forward(x, w, b, *geometry),
        conv_input_gradient(gy, w, x.shape, *geometry),
        conv_weight_gradient(gy, x, w.shape, *geometry),
    ]
    assert not stand_in.syncs
    for got, want in zip(results, (y, gx, gw), strict=True):
        assert got.dtype == x.dtype
        assert_near(got, want)
    without = conv_forward(x, w, None, *geometry)
    column = inputs[2].astype(float).reshape(-1, *(1,) * (x.ndim - 2))
    assert_near(without, y - column)
    for bias, want in ((b, y), (None, y - column)):
        got = conv_forward(x, w, bias, *geometry, relu=True)
        assert_near(got, np.maximum(want, 0))


@pytest.mark.parametrize("name, dtype", PAIRS)
def test_products_of_columns(stand_in, name, dtype):
    for most in (1, 30 << 20):  # an image at a time, and all at once
        with mock.patch.object(convolution_columns, "COLUMN_BYTES", most):
            check(stand_in, CASES[name], dtype)
            check_gathering(stand_in, CASES[name], dtype)


def check_gathering(stand_in, case, dtype):
    """Input gradients that are not turned into a convolution."""
    (x, w, _, gy), (_, gx, _) = operands(case, dtype)
    gy, w = map(stand_in.cupy.asarray, (gy, w))
    got = convolution_columns.input_gradient(gy, w, x.shape, *case[2])
    assert_near(got, gx)


@pytest.mark.slow
def test_kernels_compile_for_gpus(nvrtc, monkeypatch):  # noqa: F811
    """The sources that ran on the CPU above."""
    import stand_in
    import stand_in_functions

    sources, run = {}, cuda_on_cpu.compiled_module

    def noted(source):
        sources.setdefault(source)
        return run(source)

    for module in (cuda_on_cpu, stand_in_functions):
        monkeypatch.setattr(module, "compiled_module", noted)
    stand_in.install()
    try:
        for name, dtype in PAIRS:
            check(stand_in, CASES[name], dtype)
            check_gathering(stand_in, CASES[name], dtype)
    finally:
        stand_in.remove()
    for name in ("minidl_columns", "minidl_images", "minidl_swap"):
        mine = [source for source in sources if f"{name}(" in source]
        assert len(mine) >= 4
        mine = [x.replace(f"{name}(", f"{name}_{k}(") for k, x in enumerate(mine)]
        for code in compile_together(mine):
            assert code[1:4] == b"ELF" and f"{name}_3".encode() in code


def test_one_product_a_chunk_and_none_by_cupy(stand_in):
    x, w = (
        stand_in.cupy.ones((32, 4, 8, 8), "f4"),
        stand_in.cupy.ones((6, 4, 3, 3), "f4"),
    )
    geometry = (1, 1), (1, 1), (1, 1), 1
    image = 4 * 9 * 64 * 4
    with mock.patch.object(convolution_columns, "COLUMN_BYTES", 19 * image):
        stand_in.launches.clear()
        conv_forward(x, w, None, *geometry)
        assert stand_in.launches == ["minidl_columns", "gemm", "minidl_swap"] * 2
        stand_in.launches.clear()
        conv_forward(x, w, w[:, 0, 0, 0].copy(), *geometry, relu=True)
    assert stand_in.launches[-6:] == ["minidl_columns", "gemm", "minidl_swap"] * 2


def test_a_gradient_is_written_where_it_is_wanted(stand_in):
    case = CASES["2-d"]
    (x, w, b, gy), (_, _, gw) = operands(case, "float32")
    x, gy = map(stand_in.cupy.asarray, (x, gy))
    out = stand_in.cupy.full(gw.shape, np.nan, "f4")
    assert conv_weight_gradient(gy, x, gw.shape, *case[2], out=out) is out
    assert_near(out, gw)
    turned = stand_in.cupy.full(gw.shape[::-1], np.nan, "f4").transpose(3, 2, 1, 0)
    conv_weight_gradient(gy, x, gw.shape, *case[2], out=turned)
    assert_near(turned, gw)


@pytest.mark.parametrize("name, dtype", PAIRS)
def test_cudnn(stand_in, frontend, name, dtype):
    stand_in.launches.clear()
    check(stand_in, CASES[name], dtype)
    kinds = [graph.kind for graph in frontend.graphs]
    wanted = ["forward", "input_gradient", "weight_gradient", *["forward"] * 2]
    assert kinds == (wanted if dtype != "float64" else [])
    assert ("gemm" in stand_in.launches) == (dtype == "float64")
    for graph in frontend.graphs:
        notes = ["NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION"]
        exact = ["TENSOR_CORE", "DOWN_CONVERT_INPUTS"] * (dtype == "float32")
        assert graph.deselected == notes + exact


def test_plans_are_made_once(stand_in, frontend):
    (x, w, b, gy), (y, _, _) = operands(CASES["2-d"], "float32")
    x, w, b = map(stand_in.cupy.asarray, (x, w, b))
    geometry = CASES["2-d"][2]
    for word, count in (("highest", 1), ("highest", 1), ("high", 2), ("highest", 2)):
        set_float32_matmul_precision(word)
        assert_near(conv_forward(x, w, b, *geometry), y)
        assert len(frontend.graphs) == count
    assert "TENSOR_CORE" not in frontend.graphs[1].deselected


def test_channels_stay_last(stand_in, frontend):
    case = CASES["strided, in groups"]
    inputs, (y, gx, gw) = operands(case, "float32")
    x, w, b, gy = map(stand_in.cupy.asarray, inputs)

    def last(array):
        turned = stand_in.cupy.ascontiguousarray(array.transpose(0, 2, 3, 1))
        return turned.transpose(0, 3, 1, 2)

    for x_here, gy_here in ((last(x), last(gy)), (x, last(gy)), (last(x), gy)):
        results = [
            conv_forward(x_here, w, b, *case[2]),
            conv_input_gradient(gy_here, w, x.shape, *case[2]),
            conv_weight_gradient(gy_here, x_here, w.shape, *case[2]),
        ]
        for got, want in zip(results, (y, gx, gw), strict=True):
            assert_near(got, want)
        for got, like in zip(results[:2], (x_here, gy_here), strict=True):
            assert got.flags.c_contiguous == like.flags.c_contiguous
    assert "gemm" not in stand_in.launches


def test_what_is_not_aligned_is_copied(stand_in, frontend):
    (x, w, b, _), (y, _, gw) = operands(CASES["2-d"], "float32")
    geometry = CASES["2-d"][2]
    whole = stand_in.cupy.empty(x.size + 1, "f4")
    whole[1:] = stand_in.cupy.asarray(x.ravel())
    x = whole[1:].reshape(x.shape)
    w, b = map(stand_in.cupy.asarray, (w, b))
    assert_near(conv_forward(x, w, b, *geometry), y)


def test_a_graph_captures_plans_that_are_made(stand_in, frontend):
    (x, w, b, gy), (y, _, gw) = operands(CASES["2-d"], "float32")
    x, w, b, gy = map(stand_in.cupy.asarray, (x, w, b, gy))
    geometry = CASES["2-d"][2]
    cuda = stand_in.cupy.cuda
    cuda.Device().synchronize()
    stream, pool = cuda.Stream(non_blocking=True), stand_in.cupy.cuda.MemoryPool()
    out = stand_in.cupy.empty(w.shape, "f4")

    def step():
        conv_weight_gradient(gy, x, w.shape, *geometry, out=out)
        return conv_forward(x, w, b, *geometry)

    with stream, cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="convolution of new shapes"):
            step()
        stream.end_capture()
        step()
        stream.begin_capture()
        got = step()
        graph = stream.end_capture()
        x *= 2
        graph.launch()
        column = b.get().astype(float).reshape(-1, 1, 1)
        assert_near(got, 2 * (y - column) + column)
        assert_near(out, 2 * gw)


def test_columns_do_what_cudnn_cannot(stand_in, frontend, monkeypatch):
    monkeypatch.setattr(frontend, "refused", True)
    stand_in.launches.clear()
    check(stand_in, CASES["2-d"], "float32")
    assert "cudnn" not in stand_in.launches and "gemm" in stand_in.launches
    asked = len(frontend.graphs)
    check(stand_in, CASES["2-d"], "float32")
    assert len(frontend.graphs) == asked > 3  # that there is no plan is remembered


def test_failures_of_cudnn_are_named(stand_in, frontend, monkeypatch):
    (x, w, b, _), _ = operands(CASES["2-d"], "float32")
    x, w = map(stand_in.cupy.asarray, (x, w))

    def fails(*arguments, **named):
        raise RuntimeError("out of order")

    monkeypatch.setattr(frontend.pygraph, "execute", fails)
    with pytest.raises(DeviceError, match="cuDNN's convolution failed: out of order"):
        conv_forward(x, w, None, *CASES["2-d"][2])


def test_cudnn_can_be_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", cudnn_stand_in)
    cudnn_plans.frontend.cache_clear()
    assert cudnn.version() == "9.19.0 (frontend 1.22.1)"
    monkeypatch.setenv("MINIDL_CUDNN", "0")
    cudnn_plans.frontend.cache_clear()
    assert cudnn.version() is None
    monkeypatch.delenv("MINIDL_CUDNN")
    monkeypatch.setitem(sys.modules, "cudnn", None)
    cudnn_plans.frontend.cache_clear()
    assert cudnn.version() is None
    cudnn_plans.frontend.cache_clear()


def test_an_empty_batch(stand_in, frontend):
    cupy, geometry = stand_in.cupy, ((1, 1), (0, 0), (1, 1), 1)
    x, w = cupy.ones((0, 2, 4, 4), "f4"), cupy.ones((3, 2, 2, 2), "f4")
    assert conv_forward(x, w, None, *geometry).shape == (0, 3, 3, 3)
    gy = cupy.ones((0, 3, 3, 3), "f4")
    assert not conv_weight_gradient(gy, x, w.shape, *geometry).get().any()
    assert conv_input_gradient(gy, w, x.shape, *geometry).shape == x.shape
    assert not cublas.library().calls


def test_a_step_of_layers_is_captured(stand_in):
    md.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
        nn.Flatten(),
        nn.Linear(2 * 4 * 4, 3),
    ).to("cuda")
    optim.SGD(model.parameters(), lr=1)  # flat storage
    x = md.tensor(normal((5, 1, 8, 8)).astype("f4"), device="cuda")
    cuda = stand_in.cupy.cuda

    def step():
        for p in model.parameters():
            p.grad = None
        model(x).square().sum().backward()

    cuda.Device().synchronize()
    stream, pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()
    with stream, cuda.using_allocator(pool.malloc):
        step()
        want = [p.grad.numpy().copy() for p in model.parameters()]
        stand_in.syncs.clear()
        stream.begin_capture()
        step()
        graph = stream.end_capture()
        assert not stand_in.syncs
        for p in model.parameters():
            p.gradient_view.fill(np.nan)
        graph.launch(stream)
        for p, gradient in zip(model.parameters(), want, strict=True):
            np.testing.assert_array_equal(p.gradient_view.get(), gradient)
