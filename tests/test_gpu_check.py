"""scripts/gpu_check.py as far as a machine without a GPU can run it.

NumPy stands in CuPy's place where a section takes the array module; what reads a
device's clock, name or memory is checked against CuPy's names alone.
"""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ranks import why_no_ranks

import minidl
from minidl import nn, optim
from minidl.array import cudnn_plans
from minidl.array.device import bfloat16, gpu_available
from minidl.array.kernel import Kernel
from minidl.array.precision import get_float32_matmul_precision
from minidl.autograd import Tensor
from minidl.distributed import Alone, DataParallel
from minidl.nn import functional as F
from minidl.train import CapturedStep, train_step

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """The modules of gpu_check."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    import gpu_adam
    import gpu_benchmarks
    import gpu_check
    import gpu_checks
    import gpu_communication
    import gpu_report
    import gpu_steps
    import gpu_tests

    return SimpleNamespace(
        check=gpu_check,
        checks=gpu_checks,
        adam=gpu_adam,
        communication=gpu_communication,
        benchmarks=gpu_benchmarks,
        report=gpu_report,
        steps=gpu_steps,
        tests=gpu_tests,
    )


@pytest.mark.skipif(gpu_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_2(tmp_path):
    line = [sys.executable, SCRIPTS / "gpu_check.py", "--out", tmp_path / "out"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "nothing to check" in done.stderr
    assert not list(tmp_path.iterdir())


# --- a section in a process of its own


def collect(scripts, code, limit=60):
    prepare = "import sys, json, time; file = open(sys.argv[-1], 'w')\n"
    prepare += "say = lambda text: (file.write(text), file.flush())\n"
    return scripts.check.collect([sys.executable, "-c", prepare + code], limit)


def test_rows_of_a_section_come_back(scripts):
    rows = [{"name": "a", "ok": True}, {"name": "b", "ok": None, "ms": 1.5}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert collect(scripts, f"say({text!r})") == rows


@pytest.mark.parametrize(
    "code, message",
    [
        ("say(first + '{\"na'); print('last words'); sys.exit(3)", "exit status 3"),
        ("say(first); import os; os.abort()", "exit status -6"),
        ("say(first); time.sleep(60)", "not done after 1 s"),
    ],
)
def test_a_section_that_fails_keeps_its_rows(scripts, code, message):
    first = json.dumps({"name": "a", "ok": True}) + "\n"
    start = time.monotonic()
    done, failure = collect(scripts, f"first = {first!r}; {code}", limit=1)
    assert time.monotonic() - start < 30
    assert done == {"name": "a", "ok": True}
    assert failure["ok"] is False and message in failure["error"]
    assert ("last words" in code) == ("last words" in failure["error"])


def test_a_section_without_rows_has_failed(scripts):
    (row,) = collect(scripts, "pass")
    assert row["ok"] is False and row["error"] == "no results"


def test_an_exception_in_a_section_is_its_last_row(scripts, tmp_path):
    def section():
        yield {"name": "a", "ok": True}
        raise ArithmeticError("on the way")

    scripts.check.write_rows(section(), tmp_path / "rows")
    first, second = map(json.loads, (tmp_path / "rows").read_text().splitlines())
    assert first["ok"] and not second["ok"] and "on the way" in second["error"]


def test_an_exception_ends_the_rows_of_one_attempt(scripts):
    def rows():
        yield {"name": "a", "ok": True}
        raise ArithmeticError("on the way")

    first, second = scripts.report.attempt("part", rows())
    assert first["ok"] and second["name"] == "part" and not second["ok"]
    assert "on the way" in second["error"]
    assert scripts.report.asked(lambda: 1 / 0).startswith("ZeroDivisionError")


# --- communication


@pytest.mark.mpi
@pytest.mark.slow
def test_ranks_communicate(scripts):
    if reason := why_no_ranks():
        pytest.skip(reason)
    rows = list(scripts.communication.communication(np, True))
    assert len(rows) > 40 and all(row["ok"] is not False for row in rows)
    assert {row["name"].partition(":")[0] for row in rows} == {"MPI, 2 ranks"}


def test_a_job_that_fails_is_a_row(scripts, monkeypatch):
    arguments = "mpi", "cpu", True
    launcher = [sys.executable, "-c", 'print(\'{"name": "a"}\'); 1 / 0']
    first, last = scripts.communication.job("job", launcher, *arguments)
    assert first["name"] == "job: a" and last["ok"] is False
    assert "ZeroDivisionError" in last["error"]
    monkeypatch.setattr(scripts.communication, "SECONDS", 0.5)
    launcher = [sys.executable, "-c", "import time; time.sleep(60)"]
    (last,) = scripts.communication.job("job", launcher, *arguments)
    assert "not done after 0.5 s" in last["error"]


# --- the report

ENVIRONMENT = {
    "gpu": "NVIDIA H200 (test)",
    "driver": "1.2",
    "cuda_runtime": "13.0",
    "date": "2030-01-02T03:04+00:00",
    "commit": "abc",
    **dict.fromkeys(["cupy", "numpy", "ml_dtypes", "pytest", "hypothesis"], "1"),
    **dict.fromkeys(["mpi4py", "torch", "jax"]),
}
GOOD = {"name": "relu", "ok": True, "error": 1e-7, "tolerance": 1e-5}
BAD = {"name": "gelu", "ok": False, "error": "nan", "tolerance": 1e-5}
WRONG = {"name": "bits", "ok": False, "error": 1.0, "tolerance": 0.0}
TIME = {"name": "Adam", "ok": None, "ms": 0.1634567, "share_of_copy": 0.91}


def test_the_report(scripts, tmp_path):
    sections = {"kernels": [GOOD], "adam": [TIME, {"name": "more", "note": "no room"}]}
    files = scripts.report.write(tmp_path / "new", ENVIRONMENT, sections)
    assert [file.name for file in files] == [
        "nvidia-h200-test-2030-01-02.json",
        "nvidia-h200-test-2030-01-02.md",
    ]
    assert sorted(files[0].parent.iterdir()) == sorted(files)
    content = json.loads(files[0].read_text())
    assert content["passed"] and content["sections"] == sections
    text = files[1].read_text()
    assert "All checks passed." in text and "1 of 1 checks passed" in text
    assert "| Adam | 0.1635 | 0.91 |  |" in text and "no room" in text
    assert "passed over: mpi4py, torch, jax" in scripts.report.headline(ENVIRONMENT)


@pytest.mark.parametrize("failure", [BAD, WRONG])
def test_a_report_of_a_failure(scripts, tmp_path, failure):
    sections = {"kernels": [GOOD, failure]}
    assert not scripts.report.passed(sections)
    assert f"FAILED {failure['name']}" in scripts.report.summary("kernels", [failure])
    _, file = scripts.report.write(tmp_path, ENVIRONMENT, sections)
    assert "Some checks FAILED." in file.read_text()
    assert f"FAILED: {failure['name']}" in file.read_text()


def test_the_whole_run(scripts, tmp_path, monkeypatch, capsys):
    rows = {"kernels": [GOOD], "windows": [BAD], "adam": [TIME]}
    monkeypatch.setattr(scripts.check, "canonical_device", lambda name: "cuda:0")
    monkeypatch.setattr(scripts.report, "environment", lambda root: ENVIRONMENT)
    monkeypatch.setattr(scripts.check, "run_section", lambda name, quick: rows[name])
    out = ["--out", str(tmp_path), "--only"]
    assert scripts.check.main([*out, "kernels", "adam"]) == 0
    said = capsys.readouterr().out
    assert "kernels: 1 of 1 checks passed" in said and "ms 0.1635" in said
    assert scripts.check.main([*out, "kernels", "windows", "adam"]) == 1
    said = capsys.readouterr().out
    assert "FAILED gelu: nan" in said and "ms 0.1635" in said
    (file,) = tmp_path.glob("*.json")
    assert list(json.loads(file.read_text())["sections"]) == list(rows)


def test_what_is_measured_runs_alone(scripts):
    check, tests = scripts.check, scripts.tests
    together, *alone = check.turns(list(check.SECTIONS))
    assert together == list(check.AT_ONCE) and all(len(names) == 1 for names in alone)
    assert check.turns(["adam", "kernels"]) == [["kernels"], ["adam"]]
    seconds = {name: limit for name, (_, limit) in check.SECTIONS.items()}
    longest = max(seconds[name] for name in together)
    assert longest + sum(seconds[name] for (name,) in alone) < 8 * 60
    assert tests.SECONDS < seconds["tests"]


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
    rows = list(scripts.checks.training(np, True))
    assert len(rows) == 40 and all(row["ok"] for row in rows)
    step = scripts.checks.train_step

    def forgetful(model, optimizer, images, labels):
        step(model, optimizer, images, labels)
        if images.dtype == np.float32:
            model.parameters().__next__().data[...] *= 1.001

    monkeypatch.setattr(scripts.checks, "train_step", forgetful)
    assert not all(row["ok"] for row in scripts.checks.training(np, True))


def test_what_pytest_says_is_understood(scripts):
    output = "..F\nFAILED tests/test_a.py::test_b[cupy] - assert 1 == 2\n"
    output += "ERROR tests/test_c.py\n1 failed, 2 passed, 3 deselected in 0.12s\n"
    closing, *failures = scripts.tests.outcome(output, 1)
    assert not closing["ok"] and "2 passed" in closing["name"]
    assert [row["name"] for row in failures] == [
        "tests/test_a.py::test_b[cupy]",
        "tests/test_c.py",
    ]
    (row,) = scripts.tests.outcome("2 passed, 9 deselected in 61.00s (0:01:01)\n", 0)
    assert row["ok"]
    for nothing in ("9 deselected in 0.10s", "7 skipped in 0.10s", ""):
        (row,) = scripts.tests.outcome(nothing, 0)
        assert not row["ok"]
    output = (
        "tests/test_a.py::test_b PASSED [ 3%]\ntests/test_a.py::test_c FAILED [ 6%]"
    )
    closing, failure = scripts.tests.outcome(output, None)
    assert not closing["ok"] and "1 passed, not done" in closing["name"]
    assert failure["name"] == "tests/test_a.py::test_c"


def test_pytest_runs_in_several_processes(scripts, monkeypatch):
    def line(code):
        return [sys.executable, "-c", code]

    good, none = line("print('1 passed in 0.1s')"), line("raise SystemExit(5)")
    (row,) = scripts.tests.run([good, none])
    assert row["ok"]
    (row,) = scripts.tests.run([none])
    assert not row["ok"]
    monkeypatch.setattr(scripts.tests, "SECONDS", 1)
    start = time.monotonic()
    hangs = line("print('a PASSED', flush=True); import time; time.sleep(60)")
    first, second = scripts.tests.run([good, hangs])
    assert first["ok"] and not second["ok"] and "1 passed, not" in second["name"]
    assert time.monotonic() - start < 30


# --- the measurements, on NumPy


def test_benchmarks_run(scripts, monkeypatch):
    networks = {"digits CNN": scripts.steps.NETWORKS["digits CNN"]}
    monkeypatch.setattr(scripts.steps, "NETWORKS", networks)
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
    assert len(rows) >= 8 and "bfloat16" in rows[-1]["name"]


def test_rows_are_compared_and_measured(scripts, monkeypatch):
    import gpu_rows

    monkeypatch.setattr(
        gpu_rows, "NORMALISED", dict([*gpu_rows.NORMALISED.items()][:3])
    )
    rows = list(gpu_rows.rows(np, True))
    assert sum(row["ok"] is True for row in rows) == 4 * 6 + 3 * 5
    assert all(0 < row["ms"] < 1e4 for row in rows if row["ok"] is None)
    assert "share_of_copy" in scripts.report.summary("rows", rows)
    monkeypatch.setattr(gpu_rows, "softmax", lambda x, dim: x)
    rows = gpu_rows.compare_scores(np, np.dtype("float16"), (9, 10))
    assert [row["ok"] for row in rows][1:] == [True] * 5


def test_rows_are_measured_on_a_device(scripts, stand_in):
    import gpu_rows

    rows = list(gpu_rows.compare_norm(np, "n", np.dtype("f4"), (9, 5), (1,), (5,)))
    cases = gpu_rows.cases(stand_in.cupy, 1 << 16, "float32")
    for name, (function, _) in cases.items():
        stand_in.reset()
        function()
        assert len(stand_in.launches) <= (3 if "norm" in name else 1)
        assert not stand_in.syncs and not stand_in.uploads
    assert len(rows) == 5 and len(cases) > 20


@pytest.mark.slow
def test_peers_run(scripts):
    torch = pytest.importorskip("torch")
    build, shape = scripts.steps.NETWORKS["digits CNN"]
    images, labels = np.ones((4, *shape[1:]), "f4"), np.arange(4)
    assert scripts.adam.torch_adam(np, torch, [1000, 10]) > 0
    for layout in ({}, {"memory_format": torch.channels_last}):
        data = build, images, labels, 1, layout, None
        for precision in ("fp32", "tf32", "bf16"):
            assert scripts.steps.torch_time(np, torch, *data, precision) > 0
    assert not torch.backends.cudnn.allow_tf32


@pytest.fixture
def fake_peers(scripts, monkeypatch):
    """gpu_steps with times that are given, and a PyTorch that compiles nothing."""
    steps = scripts.steps

    def torch_time(xp, torch, build, images, labels, inner, layout, mode, precision):
        if mode is not None:
            raise RuntimeError("no\nC compiler")
        return 6.0 if layout else 8.0

    torch = SimpleNamespace(channels_last="last")
    monkeypatch.setattr(steps, "torch_or_none", lambda xp: torch)
    monkeypatch.setattr(steps, "torch_time", torch_time)
    monkeypatch.setattr(steps, "minidl_time", lambda *rest: 2.0)
    return steps


def test_what_cannot_be_compiled_is_passed_over(fake_peers, monkeypatch):
    monkeypatch.setattr(fake_peers, "bfloat16", np.float16)
    rows = list(fake_peers.steps(np, True))
    assert not [row for row in rows if row["ok"] is False]
    notes = [row["note"] for row in rows if "note" in row]
    assert len(notes) == 4 + 2 * 2 and "no C compiler" in notes[0]
    ratios = [row["times_torch"] for row in rows if "torch_ms" in row]
    assert ratios == [3.0] * 4 + [4.0, 3.0] * 2  # one channel: not channels last
    for precision in ("bf16", "tf32"):
        found = [row for row in rows if row["name"].endswith(f", {precision}")]
        assert len(found) == 2 * 3 and sum("ms" in row for row in found) == 4


def test_what_takes_too_long_costs_only_itself(fake_peers, monkeypatch):
    def jax_time(*arguments):
        raise TimeoutError("not done after 5 s")

    monkeypatch.setattr(fake_peers, "has_jax", lambda xp: True)
    monkeypatch.setattr(fake_peers, "jax_time", jax_time)
    rows = list(fake_peers.steps(np, True))
    notes = [row["note"] for row in rows if "JAX" in row["name"]]
    assert len(notes) == 2 and all("not done after 5 s" in note for note in notes)
    assert "note" in rows[-2] and "ms" in rows[-1]
    monkeypatch.setattr(fake_peers, "SECONDS", -1)
    late = list(fake_peers.steps(np, True))
    assert [row["name"] for row in late] == [row["name"] for row in rows]
    assert all("no time" in row["note"] for row in late if "note" in row)


def test_peers_begin_in_time_to_end_in_it(scripts):
    steps, (_, limit) = scripts.steps, scripts.check.SECTIONS["steps"]
    assert steps.SECONDS + steps.GRACE < limit


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_steps_are_measured_in_a_precision(scripts, monkeypatch, precision):
    if precision == "bf16" and bfloat16 is None:
        pytest.skip("no ml_dtypes")
    seen = []
    build, shape = scripts.steps.NETWORKS["digits CNN"]
    data = build, np.ones((4, *shape[1:]), "f4"), np.arange(4), 1

    def step(model, loss_fn, *rest):
        storage = next(model.parameters()).storage
        seen.append((get_float32_matmul_precision(), storage.low is not None))
        return train_step(model, loss_fn, *rest)

    assert scripts.steps.minidl_time(np, step, *data, precision) > 0
    wanted = ("high", False) if precision == "tf32" else ("highest", True)
    assert set(seen) == {wanted} and get_float32_matmul_precision() == "highest"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_steps_are_captured_in_a_precision(scripts, stand_in, precision):
    if precision == "bf16" and bfloat16 is None:
        pytest.skip("no ml_dtypes")
    build, shape = scripts.steps.NETWORKS["digits CNN"]
    data = build, np.ones((4, *shape[1:]), "f4"), np.arange(4), 1
    step = CapturedStep(required=True)
    scripts.steps.minidl_time(stand_in.cupy, step, *data, precision)
    assert len(step.graphs) == 1


# --- JAX


@pytest.mark.slow
def test_jax_trains_the_same_networks(scripts):
    jax = pytest.importorskip("jax")
    import gpu_jax
    import gpu_networks

    for name in gpu_networks.NETWORKS:
        build, images, labels, _ = gpu_networks.work_of(np, True, name)
        theirs = gpu_jax.step_of(name, build, images, labels)
        model = DataParallel(gpu_networks.model_of(build), Alone())
        adam = optim.Adam(model.parameters())
        x, y = minidl.tensor(images), minidl.tensor(labels)
        for _ in range(2):
            ours = train_step(model, F.cross_entropy, adam, x, y)
            np.testing.assert_allclose(
                ours.item(), jax.device_get(theirs()[0]), rtol=2e-3
            )
    assert jax.config.jax_default_matmul_precision == "highest"


def test_jax_is_measured_in_a_process(scripts, monkeypatch):
    steps, now = scripts.steps, time.monotonic()
    if importlib.util.find_spec("jax") is None:
        with pytest.raises(RuntimeError, match="No module named 'jax'"):
            steps.jax_time(np, True, "digits CNN", now + 60)
        return
    assert steps.jax_time(np, True, "digits CNN", now + 60) > 0
    with pytest.raises(TimeoutError, match="not done after"):
        steps.jax_time(np, True, "digits CNN", now - steps.GRACE + 0.1)


@pytest.mark.slow
def test_the_networks_of_both_are_the_same(scripts):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype("f4")
    for name in ("residual CNN", "ResNet18, CIFAR"):
        build, _ = scripts.steps.NETWORKS[name]
        ours, theirs = build(nn), build(torch.nn)
        state = ours.state_dict()
        theirs.load_state_dict(
            {k: torch.from_numpy(v.numpy()) for k, v in state.items()}
        )
        got, wanted = ours(Tensor(x)).numpy(), theirs(torch.from_numpy(x))
        np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=2e-4, atol=2e-4)


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
    import gpu_products

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
