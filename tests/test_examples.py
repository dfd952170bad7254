"""The examples do what they show, and stay short enough to be read."""

import difflib
import re
import sys
from functools import cache

import pytest
from ranks import ROOT, run_job, run_ranks

EXAMPLES = ROOT / "examples"
FIRST = ("adam_by_hand.py", "train_cnn.py", "train_cnn_mpi.py", "train_gpt.py")


def source(name: str) -> str:
    return (EXAMPLES / name).read_text()


@cache
def alone(name: str) -> str:
    """What an example prints on one process."""
    run = run_job([sys.executable, str(EXAMPLES / name)])
    assert run.returncode == 0, run.stderr
    return run.stdout


def epochs(printed: str) -> list[tuple[int, float, float]]:
    """(epoch, test loss, test accuracy in %) of each line; there are no others."""
    line = re.compile(r"epoch +(\d+)  test loss (\d\.\d+)  test accuracy (\d+\.\d+)%")
    found = [line.fullmatch(text) for text in printed.splitlines()]
    assert all(found), printed
    return [(int(m[1]), float(m[2]), float(m[3])) for m in found]


def same(printed: str, other: str) -> bool:
    """Whether two trainings went the same way, but for rounding and what it turns."""
    pairs = list(zip(epochs(printed), epochs(other), strict=True))
    return all(
        a[0] == b[0] and abs(a[1] - b[1]) < 0.005 and abs(a[2] - b[2]) < 0.6
        for a, b in pairs
    )


@pytest.mark.parametrize("name", FIRST)
def test_at_most_50_lines(name):
    assert len(source(name).splitlines()) <= 50


def test_every_example_is_tested():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(FIRST)


@pytest.mark.slow
def test_adam_by_hand():
    *_, last = alone("adam_by_hand.py").splitlines()
    step, single, double = last.split()
    assert step == "1000"
    # weights near 1: rounding errors of 1000 updates, and no more
    assert 0 < float(single) < 1e-4
    assert float(double) < 1e-13


@pytest.mark.slow
def test_train_cnn():
    history = epochs(alone("train_cnn.py"))
    assert [epoch for epoch, *_ in history] == list(range(1, len(history) + 1))
    assert history[-1][1] < history[0][1] / 2
    assert history[-1][2] >= 98


@pytest.mark.slow
@pytest.mark.mpi
def test_train_cnn_mpi():
    run = run_ranks(2, EXAMPLES / "train_cnn_mpi.py")
    assert run.returncode == 0, run.stderr
    assert same(run.stdout, alone("train_cnn.py"))


@pytest.mark.slow
def test_train_cnn_mpi_alone():
    assert same(alone("train_cnn_mpi.py"), alone("train_cnn.py"))


@pytest.mark.slow
def test_train_gpt():
    text = re.search('"""(The Tyger.*?)"""', source("train_gpt.py"), re.DOTALL)[1]
    report, title, poem = alone("train_gpt.py").partition("The Tyger\n")
    losses = [float(x) for x in re.findall(r"^step +\d+  loss (\S+)$", report, re.M)]
    assert len(losses) == 5 and losses[-1] < 0.15 < losses[0] / 3
    # drawn at random: on another processor a letter may be another one
    assert difflib.SequenceMatcher(None, title + poem, text).ratio() > 0.9


def test_few_lines_make_it_parallel():
    one, many = (
        source(name).splitlines() for name in ("train_cnn.py", "train_cnn_mpi.py")
    )
    changes = [x[0] for x in difflib.ndiff(one, many) if x[0] in "+-"]
    assert changes.count("-") <= 7
    assert changes.count("+") <= 13
