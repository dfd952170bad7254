"""What gpu_check compares and measures, with NumPy in CuPy's place or on the stand-in.

What reads a device's clock, name or memory is checked against CuPy's names alone.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from minidl.array import cudnn_plans
from minidl.array.device import bfloat16
from minidl.array.kernel import Kernel

# --- the checks, on NumPy


def test_errors_are_seen(scripts):
    wanted = np.array([1, np.nan, np.inf, 1e-3, -5])
    assert scripts.checks.largest_error(wanted.copy(), wanted) == 0
    for index, value, error in [(0, 1.5, 0.25), (1, 1, np.nan), (2, 1, np.nan)]:
        got = wanted.copy()
        got[index] = value
        found = scripts.checks.largest_error(got, wanted)
        np.testing.assert_equal(found, error)
        assert not scripts.checks.verdict("x", found, 0.1)["ok"]
    assert scripts.checks.norm_error(np.ones(3), np.ones(4)) == np.inf
    assert scripts.checks.largest_error(np.ones(3, "f4"), np.ones(3)) == np.inf


@pytest.mark.slow
def test_kernels_are_compared(scripts):
    known, derived = scripts.checks.all_kernels()
    names = [kernel.name for kernel in known + derived]
    assert "adam" in names and "gelu_x_x" in names and len(set(names)) == len(names)
    for name, dtype in [("sgd", "float32"), ("sgd", "float16"), ("random_bits", "u8")]:
        kernel, dtype = Kernel.registry[name], np.dtype(dtype)
        assert scripts.checks.compare_kernel(np, kernel, dtype)["ok"]
    ill = Kernel.registry["gelu_tanh_x_x"]  # its 1 - tanh(x)^2 loses digits
    assert scripts.checks.compare_kernel(np, ill, np.dtype("float32"))["ok"]
    for kernel in (ill, Kernel.registry["sgd"]):
        other = SimpleNamespace(array=lambda x: x * x.dtype.type(1.1))
        row = scripts.checks.compare_kernel(other, kernel, np.dtype("float32"))
        assert not row["ok"] and 1e-2 < row["error"] < 1e2
    broken = SimpleNamespace(array=lambda x: x.tolist())
    row = scripts.checks.compare_kernel(broken, Kernel.registry["sgd"], dtype)
    assert not row["ok"] and row["error"].startswith("TypeError")


def test_convolution_and_pooling_are_compared(scripts):
    checks, dtype = scripts.checks, np.dtype("float16")
    case = checks.CONVOLUTIONS["strided, in groups"]
    rows = list(checks.compare_convolution(np, "c", dtype, *case))
    rows += checks.compare_pooling(np, "p", dtype, *checks.POOLINGS["1-d"])
    assert len(rows) == 8 and all(row["ok"] for row in rows)
    assert any(row["error"] > 0 for row in rows)


@pytest.mark.slow
def test_training_is_compared(scripts, monkeypatch):
    rows = list(scripts.training.training(np, True))
    assert len(rows) == 40 and all(row["ok"] for row in rows)
    step = scripts.training.train_step

    def forgetful(model, optimizer, images, labels):
        step(model, optimizer, images, labels)
        if images.dtype == np.float32:
            model.parameters().__next__().data[...] *= 1.001

    monkeypatch.setattr(scripts.training, "train_step", forgetful)
    assert not all(row["ok"] for row in scripts.training.training(np, True))


# --- the measurements, on NumPy


def test_benchmarks_run(scripts, monkeypatch):
    networks = {"digits CNN": scripts.steps.NETWORKS["digits CNN"]}
    for module in (scripts.steps, scripts.networks):
        monkeypatch.setattr(module, "NETWORKS", networks)
    monkeypatch.setattr(scripts.benchmarks, "STREAMED", ("sgd",))
    for section in ("adam", "elementwise", "steps"):
        rows = list(scripts.check.SECTIONS[section][0](np, True))
        assert all(row.get("ok") is not False for row in rows)
        measured = [row["ms"] for row in rows if "ms" in row]
        assert measured and all(0 < ms < 1e4 for ms in measured)
        assert "ms " in scripts.report.summary(section, rows)


@pytest.mark.slow
def test_adam_is_measured_on_a_device(scripts, monkeypatch, stand_in):
    sizes = {"Adam, 160": [10, 150], "Adam, 1003": [1003]}
    monkeypatch.setattr(scripts.adam, "parameter_sizes", lambda xp, quick: sizes)
    monkeypatch.setattr(scripts.adam, "copy_rate", lambda xp, quick: 1.0)
    rows = list(scripts.adam.adam(stand_in.cupy, True))
    assert [row["ok"] for row in rows if row["ok"] is not None] == [True, True]
    assert len(rows) >= 7 + (bfloat16 is not None)
    assert ("bfloat16" in rows[-1]["name"]) == (bfloat16 is not None)


@pytest.mark.slow
def test_rows_are_compared_and_measured(scripts, monkeypatch):
    gpu_rows = scripts.rows
    few = dict([*gpu_rows.NORMALISED.items()][:3])
    monkeypatch.setattr(gpu_rows, "NORMALISED", few)
    rows = list(gpu_rows.rows(np, True))
    assert sum(row["ok"] is True for row in rows) == 4 * 8 + 3 * 5 + 2 * 4
    assert all(0 < row["ms"] < 1e4 for row in rows if row["ok"] is None)
    assert "share_of_copy" in scripts.report.summary("rows", rows)
    monkeypatch.setattr(gpu_rows, "softmax", lambda x, dim: x)
    rows = gpu_rows.compare_scores(np, np.dtype("float16"), (9, 10))
    assert [row["ok"] for row in rows][1:] == [True] * 7


@pytest.mark.slow
def test_rows_are_measured_on_a_device(scripts, stand_in):
    gpu_rows = scripts.rows
    rows = list(gpu_rows.compare_norm(np, "n", np.dtype("f4"), (9, 5), (1,), (5,)))
    cases = gpu_rows.cases(stand_in.cupy, 1 << 16, "float32")
    for name, (function, _) in cases.items():
        stand_in.reset()
        function()
        assert len(stand_in.launches) <= (3 if "norm" in name else 1)
        assert not stand_in.syncs and not stand_in.uploads
    assert len(rows) == 5 and len(cases) > 20


def test_time_between_events(scripts):
    told = []

    class Event:
        def record(self):
            self.calls = len(told)

        def synchronize(self):
            pass

    cuda = SimpleNamespace(
        Event=Event,
        get_current_stream=lambda: Event(),
        get_elapsed_time=lambda start, stop: 7.0 * (stop.calls - start.calls),
    )
    device = SimpleNamespace(cuda=cuda)
    ms = scripts.benchmarks.milliseconds(device, lambda: told.append(1), inner=4)
    assert ms == 7.0 and len(told) == 3 + (1 + 4) * 11


def test_names_of_cupy():
    cupy = pytest.importorskip("cupy")
    for name in (
        "cuda.Event.record cuda.Event.synchronize cuda.get_elapsed_time "
        "cuda.get_current_stream cuda.Stream.synchronize cuda.runtime.memGetInfo "
        "cuda.runtime.getDevice cuda.runtime.getDeviceProperties cuda.nvrtc.getVersion "
        "cuda.runtime.driverGetVersion cuda.runtime.runtimeGetVersion "
        "get_default_memory_pool"
    ).split():
        value = cupy
        for part in name.split("."):
            value = getattr(value, part)
        assert callable(value), name


@pytest.fixture
def few_products(scripts, monkeypatch):
    """gpu_products, with little to do."""
    gpu_products = scripts.products
    kept = {name: gpu_products.CONVOLUTIONS[name] for name in ("1x1", "dilated, 1-d")}
    monkeypatch.setattr(gpu_products, "CONVOLUTIONS", kept)
    monkeypatch.setattr(gpu_products, "QUICK_SIDE", 8)
    monkeypatch.setattr(gpu_products, "CONV", (2, 2, 4))
    return gpu_products


def all_well(scripts, rows) -> None:
    assert [row for row in rows if row["ok"] is False] == []
    assert sum(row["ok"] is True for row in rows) > 40
    assert all(row["tflop_per_s"] > 0 for row in rows if "ms" in row)
    assert "tflop_per_s" in scripts.report.summary("products", rows)


def test_products_are_compared(scripts, few_products, monkeypatch):
    all_well(scripts, list(few_products.products(np, True)))
    product = few_products.matmul
    monkeypatch.setattr(few_products, "matmul", lambda *a, **k: product(*a, **k) * 1.1)
    dtype, shapes = np.dtype("float16"), few_products.PRODUCTS["stacks"]
    rows = few_products.compare_product(np, "p", dtype, *shapes)
    assert not any(row["ok"] for row in rows)


def test_products_are_measured_beside_pytorch(few_products, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(few_products, "torch_or_none", lambda xp: torch)
    rows = list(few_products.product_rates(np, True))
    rows += few_products.convolution_rates(np, True)
    beside = [row for row in rows if "torch_ms" in row]
    assert len(beside) == 3 + 2 + 2 * (bfloat16 is not None)
    assert all(row["times_torch"] > 0 for row in beside)


@pytest.mark.slow
def test_products_are_compared_on_a_gpu(scripts, few_products, stand_in, monkeypatch):
    import cudnn_stand_in

    monkeypatch.setattr(cudnn_plans, "frontend", lambda: cudnn_stand_in)
    rows = list(few_products.products(stand_in.cupy, True))
    all_well(scripts, rows)
    names = [row["name"] for row in rows]
    for path in ("products", "cuDNN"):
        assert f"a graph of products and convolutions by {path}, bit for bit" in names
        assert sum(f" by {path}" in name for name in names) > 10
