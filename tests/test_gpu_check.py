"""scripts/gpu_check.py as far as a machine without a GPU can run it: its sections as
processes, and its report."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import SCRIPTS
from ranks import why_no_ranks

from minidl.array.device import gpu_available


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


def test_an_mpi_that_is_missing_is_named(scripts, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    (row,) = scripts.communication.communication(np, True)
    assert row["ok"] is None and "passed over" in row["note"]
    assert "mpi4py" in row["note"]


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
    copy = ENVIRONMENT | {"commit": None, "minidl": "0.1 (a code)"}
    assert "minidl 0.1 (a code)" in scripts.report.headline(copy)
    nothing = [{"name": "ranks", "ok": None, "note": "no MPI"}]
    assert "x: passed over\n" in scripts.report.summary("x", nothing)


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
    monkeypatch.setattr(scripts.check, "check_kernels", lambda: None)
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


def test_a_cupy_that_compiles_nothing_is_no_failure_of_minidl(
    scripts, stand_in, monkeypatch, capsys
):
    scripts.check.check_kernels()
    monkeypatch.setattr(scripts.check, "canonical_device", lambda name: "cuda:0")

    def arange(*arguments, **options):
        raise RuntimeError("Failed to find\nCUDA headers")

    monkeypatch.setattr(stand_in.cupy, "arange", arange)
    assert scripts.check.main(["--only", "adam"]) == 2
    said = capsys.readouterr().err
    assert "nothing to check: CuPy cannot run a kernel here: RuntimeError" in said
    assert said.count("\n") == 1 and "Failed to find CUDA headers" in said


def test_what_is_measured_runs_alone(scripts):
    check, tests = scripts.check, scripts.tests
    together, *alone = check.turns(list(check.SECTIONS))
    assert together == list(check.AT_ONCE) and all(len(names) == 1 for names in alone)
    assert check.turns(["adam", "kernels"]) == [["kernels"], ["adam"]]
    seconds = {name: limit for name, (_, limit) in check.SECTIONS.items()}
    longest = max(seconds[name] for name in together)
    assert longest + sum(seconds[name] for (name,) in alone) < 8 * 60
    assert tests.SECONDS < seconds["tests"]


# --- the tests as a section


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


def test_what_pytest_had_done_is_counted(scripts, tmp_path):
    file = tmp_path / "test_it.py"
    file.write_text("import pytest\n@pytest.mark.gpu\ndef test_it(): pass\n")
    line = [*scripts.tests.PYTEST, "-c", scripts.tests.ROOT / "setup.cfg", file]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    (row,) = scripts.tests.outcome(done.stdout, None)
    assert "1 passed, not done" in row["name"], done.stdout


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
