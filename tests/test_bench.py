"""scripts/bench.py, on tiny works, with peers that only pretend."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from ranks import why_no_ranks

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
bench = importlib.import_module("bench")
peers = importlib.import_module("benchmark.peers")
rounds = importlib.import_module("benchmark.rounds")
table = importlib.import_module("benchmark.table")
work = importlib.import_module("benchmark.work")
Gone = importlib.import_module("benchmark.process").Gone

# Adam and the chain of operations in float64, and other ways to behave.
FAKE = """
import os
import numpy as np
from benchmark import work

def versions():
    return "fake 1.0"

def build(job, wrong=False, dies=False):
    if dies:
        os._exit(7)
    if job.kind == "adam":
        return adam([g.astype(float) for g in work.gradients(job)])
    if job.kind != "chain":
        raise NotImplementedError("only pretends to chain")
    b = 1.01 + wrong

    def step():
        y, gradient = np.full(4, 0.5), np.full(4, 1.01)
        for _ in range(job.length // 4):
            y = np.tanh(y * b + b)
            gradient = gradient * -b * (1 - y * y)
            y = -y
        return [y, gradient]
    return step

def adam(gradients):
    parameters = [0 * g for g in gradients]
    t = 0
    def step():
        nonlocal t
        t += 1
        for p, g in zip(parameters, gradients):
            m, v = (1 - 0.9**t) * g, (1 - 0.999**t) * g * g
            p -= 1e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return parameters
    return step

def wait(result):
    pass

def to_numpy(job, result):
    return result
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Fake peers in the place of the real ones, except minidl."""
    (tmp_path / "fake_peer.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def fake(title, **options):
        return peers.Peer(title, "fake_peer", "pip install fake", options)

    there = {
        "fake": fake("Fake"),
        "wrong": fake("Wrong", wrong=True),
        "dies": fake("Dies", dies=True),
        "absent": peers.Peer("Absent", "no_such_peer", "pip install absent"),
        "minidl": peers.PEERS["minidl"],
    }
    monkeypatch.setattr(bench, "PEERS", there)
    return there


def run(*words):
    return bench.main(["--quick", "--rounds", "2", *words])


@pytest.mark.slow
def test_minidl_computes_what_numpy_does(fakes, capsys):
    chosen = ("--only", "adam", "engine", "mlp", "--peers", "fake", "minidl")
    assert run(*chosen) == 0
    out = capsys.readouterr().out
    assert "| work | Fake | minidl |" in out
    assert "fake 1.0; minidl 0.1.0" in out
    lines = {line.split("|")[1].strip(): line for line in out.splitlines()[:5]}
    assert "1 (" in lines["engine, an op forward and backward (made tiny)"]
    assert "GB/s" in lines["Adam, 25 M parameters (made tiny)"]
    assert "| — | 1 (" in lines["MLP step, batch 256 (made tiny)"]  # the only one
    assert "No number: mlp, Fake: only pretends to chain" in out


def test_a_missing_peer_is_named(fakes, capsys, tmp_path):
    given = ("--only", "engine", "--peers", "fake", "absent")
    assert run(*given, "--out", str(tmp_path / "table")) == 0
    out, err = capsys.readouterr()
    sentence = (
        "Absent: not installed (No module named 'no_such_peer'): pip install absent"
    )
    assert f"missing: {sentence}" in err and f"Missing: {sentence}" in out
    assert "| Absent" not in out
    assert (tmp_path / "table.md").read_text() == out.removesuffix("\n")
    told = json.loads((tmp_path / "table.json").read_text())
    assert list(told["missing"]) == ["absent"] and told["versions"] == {
        "fake": "fake 1.0"
    }
    assert len(told["works"]["engine"]["peers"]["fake"]["rounds"]) == 2
    assert told["works"]["engine"]["peers"]["fake"]["ratio"] == [1, 1, 1]


def test_a_peer_that_computes_something_else_is_not_timed(fakes, capsys):
    given = ("--only", "engine", "--peers", "fake", "wrong", "dies")
    assert run(*given) == 1
    out = capsys.readouterr().out
    assert "µs) | — | — |" in out
    assert "No number: engine, Wrong: computes something else: differs by" in out
    assert "No number: engine, Dies: ended without an answer" in out


def test_an_interrupted_run_shows_what_it_has(fakes, capsys, monkeypatch):
    measure = bench.measure

    def interrupted(name, *rest):
        if name == "engine":
            raise KeyboardInterrupt
        return measure(name, *rest)

    monkeypatch.setattr(bench, "measure", interrupted)
    assert run("--only", "adam", "engine", "--peers", "fake") == 1
    out, err = capsys.readouterr()
    assert "Adam, 25 M parameters (made tiny) | 1 (" in out
    assert "interrupted: the table holds" in err


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--rounds", "0"], "expected 1 or more, got 0"),
        (["--threads", "100000"], "--threads 100000: there are"),
        (["--only", "knitting"], "invalid choice: 'knitting'"),
        (["--python", "minidl=/nowhere/python"], "the path of its Python"),
        (["--out", "/nowhere/table"], "cannot write in /nowhere"),
    ],
)
def test_impossible_arguments(words, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(words)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def report_of(**results):
    """A report on two peers at an engine of 10 operations."""
    both = {"a": peers.Peer("A", "a", "-"), "b": peers.Peer("B", "b", "-")}
    report = table.Report("command", 2, 3, both, {})
    report.versions = {"a": "A 1", "b": "B 2"}
    report.loads = [0.5, 1.25]
    for name, (job, *seconds) in results.items():
        report.works[name] = job
        made = [rounds.Result(list(s)) for s in seconds]
        report.results[name] = dict(zip(both, made, strict=True))
        rounds.compare(report.results[name])
    return report


def test_ratios_are_medians_of_rounds():
    job = work.Work("ten", "chain", length=10)
    report = report_of(ten=(job, (1e-5, 2e-5, 4e-5), (2e-5, 2e-5, 2e-5)))
    # by rounds 2, 1 and 0.5: their median is 1, whatever the median times say
    lines = table.markdown(report).splitlines()
    assert lines[2] == "| ten | 1 (2 µs) | 1.00 (0.75–1.50) |"
    assert "load average 0.5 and 1.2 before and after" in lines[5]
    assert lines[6] == "- Command: `command`"
    assert lines[7] == "- Versions: A 1; B 2"
    assert "busy" not in table.markdown(report)
    report.loads[0] = 1.5
    assert "The machine was busy" in table.markdown(report)


def test_bandwidth_and_the_mean_of_convolutions():
    adam = work.Work("adam", "adam", shapes=((10, 10**6),))
    one = work.Work("one", "conv", conv=(1,) * 7)
    report = report_of(
        adam=(adam, (0.028,), (0.014,)), c1=(one, (1,), (0.5,)), c2=(one, (1,), (2,))
    )
    lines = table.markdown(report).splitlines()
    assert lines[2] == "| adam | 1 (28 ms, 10 GB/s) | 0.50 (0.50–0.50, 20 GB/s) |"
    assert lines[5] == "| the 2 convolutions, geometric mean | 1.00 | 1.00 |"


def test_the_largest_difference():
    assert rounds.difference([[1.0, 2.0]], [[1.0, 2.5]]) == pytest.approx(0.2)
    assert rounds.difference([[0.0]], [[0.0]]) == 0
    assert rounds.difference([[math.nan]], [[1.0]]) == math.inf
    assert rounds.difference([[1.0]], [[1.0], [1.0]]) == math.inf


def test_peers_take_turns_to_begin_and_one_that_dies_is_dropped(monkeypatch):
    monkeypatch.setattr(rounds, "REST", 0)
    order = []

    class Peer:
        def __init__(self, key):
            self.key = key

        def seconds(self, steps):
            order.append(self.key)
            if self.key == "b" and len(order) > 3:
                raise Gone("ended")
            return 1.0

    running = {key: Peer(key) for key in "abc"}
    results = {key: rounds.Result() for key in "abc"}

    def drop(key, why):
        results[key] = rounds.Result(why_not=str(why))
        del running[key]

    for number in range(3):
        rounds.play(running, drop, 1, number, results)
    assert "".join(order) == "abc" + "bca" + "ac"
    assert [len(result.seconds) for result in results.values()] == [3, 0, 3]


def test_the_works_are_those_of_their_titles():
    shapes = work.WORKS["adam"].shapes
    assert (len(shapes), work.WORKS["adam"].parameters) == (161, 25_557_032)
    count = sum(w.size for w in work.weights(work.MNIST))
    assert count == 320 + 18_496 + 1_605_760 + 1_290
    whole = work.batches(work.WORKS["mnist"])[0]
    halves = [work.batches(work.WORKS["ranks"], rank)[0] for rank in (0, 1)]
    for i in (0, 1):
        joined = np.concatenate([half[i] for half in halves])
        np.testing.assert_array_equal(joined, whole[i])


@pytest.mark.slow
def test_works_run_with_and_without_a_compiler(capsys):
    names = ["digits", "residual", "mlp", "adam", "conv5", "engine"]
    assert run("--only", *names, "--peers", "minidl", "minidl-numpy") == 0
    out = capsys.readouterr().out
    assert out.count("made tiny") == len(names) and "—" not in out


@pytest.mark.slow
def test_pytorch_computes_the_same(capsys):
    pytest.importorskip("torch")
    assert run("--only", "residual", "--peers", "torch-tuned", "minidl") == 0
    assert "—" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.mpi
def test_two_ranks(capsys):
    if why := why_no_ranks():
        pytest.skip(why)
    assert run("--only", "ranks", "--peers", "minidl") == 0
    assert "2 ranks of one thread each (made tiny) | 1 (" in capsys.readouterr().out
