"""`minidl bench --collectives`: what it measures, and what it makes of it."""

import re

import pytest
from ranks import run_ranks

from minidl.distributed import Alone, Simulated
from minidl.distributed.cost import Link, ring
from minidl.train import collective_bench
from minidl.train.command_line import main

LINK = ["--alpha-us", "5", "--gb-per-s", "25"]


def rows(text):
    """The lines of numbers alone, with or without brackets."""
    lines = [line.split() for line in re.sub("[()]", " ", text).splitlines()]
    return [
        [float(word) for word in line]
        for line in lines
        if line and all(re.fullmatch(r"[\d.e+-]+", word) for word in line)
    ]


def test_the_step_on_many_ranks(capsys):
    flags = ["--parameters", "25e6", "--step-ms", "100"]
    assert main(["bench", "--collectives", *LINK, *flags]) == 0
    out = capsys.readouterr().out
    assert "25,000,000 parameters, 100 MB of gradients" in out
    assert "alpha 5 us, beta 0.04 ns/byte (25 GB/s)" in out
    table = [row for row in rows(out) if len(row) == 6]
    assert [row[0] for row in table] == [8, 64, 512]
    # of 8 ranks, halving and doubling: 2 log2 8 messages and 2 * 7/8 of the bytes
    together = 6 * 5e-6 + 2 * 7 / 8 * 1e8 / 25e9
    assert table[0][1] == pytest.approx(1e3 * together, rel=1e-2)
    for _, reduce_ms, hidden, exposed, most, least in table:
        assert hidden == 100 and exposed == pytest.approx(100 + reduce_ms, abs=1)
        assert most == 100 and least == pytest.approx(1e4 / (100 + reduce_ms), abs=0.1)


def test_the_step_is_measured_and_the_model_counted(capsys):
    assert main(["bench", "--collectives", *LINK, "--batch-size", "8"]) == 0
    assert "9,930 parameters, 0.0397 MB" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "mpirun -n 2 minidl bench --collectives"),
        (LINK[:2], "describe a link together"),
        ([*LINK, "--parameters", "1e6"], "give its --step-ms too"),
    ],
)
def test_what_cannot_be_answered(flags, words, capsys):
    assert main(["bench", "--collectives", *flags]) == 2
    assert words in capsys.readouterr().err


def test_one_of_what_there_is_must_be_chosen(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["bench"])
    assert exit.value.code == 2 and "--collectives" in capsys.readouterr().err


def test_ranks_in_one_process_are_measured_too(monkeypatch):
    monkeypatch.setattr(collective_bench, "SIZES", [8, 4096])
    monkeypatch.setattr(collective_bench.timed, "__defaults__", (0.01,))

    def run(communicator):
        lines, link = collective_bench.measured(communicator, "cpu")
        return "\n".join(lines), link

    (text, link), *others = Simulated(3).run(run)
    assert isinstance(link, Link) and min(link) > 0
    assert all(other[1] == link for other in others)  # all ranks know the same
    messages = [row for row in rows(text) if len(row) == 4]
    reductions = [row for row in rows(text) if len(row) == 9]
    assert [row[0] for row in messages] == [row[0] for row in reductions] == [8, 4096]
    predicted = 1e6 * ring(3, 4096).seconds(link)
    assert reductions[1][2] == pytest.approx(predicted, abs=0.06)


def test_the_quickest_call_counts():
    calls = []

    def function(array):
        assert array[0] == 1  # each call starts from the same
        array += 1
        calls.append(None)

    array = collective_bench.np.ones(3)
    seconds = collective_bench.timed(Alone(), function, array, budget=1e-9)
    assert 0 < seconds < 0.1 and len(calls) == 11  # one before, and at least ten


def bench(communicator):
    """What a rank of the MPI test runs."""
    collective_bench.SIZES = [8, 4096, 262144]
    main(["bench", "--collectives", "--step-ms", "10"])


@pytest.mark.mpi
@pytest.mark.slow
def test_under_mpirun():
    run = run_ranks(2, bench)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("2 ranks, mpi")
    assert len([row for row in rows(run.stdout) if len(row) == 9]) == 3
    assert run.stdout.count("a step of one rank takes 10 ms") == 1
