"""`minidl bench --exchange`: what it measures, and what it makes of it."""

import re
from math import isfinite

import numpy as np
import pytest
from ranks import run_ranks

from minidl.distributed import Simulated
from minidl.train import exchange_bench
from minidl.train.command_line import main

TIMES = {  # three rounds each
    ("none", "step"): np.array([0.2, 0.1, 0.1]),
    ("naive", "step"): np.array([0.3, 0.16, 0.15]),
    ("naive", "alone"): np.array([0.05, 0.06, 0.04]),
    ("bucketed", "step"): np.array([0.21, 0.1, 0.11]),
    ("bucketed", "alone"): np.array([0.04, 0.05, 0.09]),
}


def test_the_share_that_a_step_waits_for():
    naive, bucketed = (exchange_bench.exposed(TIMES, x) for x in ("naive", "bucketed"))
    np.testing.assert_allclose(naive, [200, 120, 100])
    np.testing.assert_allclose(bucketed, [20, 0, 20], atol=1e-9)
    assert exchange_bench.cell(naive, 0) == "120 (110 to 160)"


def small(monkeypatch):
    monkeypatch.setattr(exchange_bench, "WIDTH", 12)
    monkeypatch.setattr(exchange_bench, "LAYERS", 3)


def test_every_way_is_measured_in_every_round(monkeypatch):
    small(monkeypatch)

    def run(communicator):
        times = exchange_bench.measured(communicator, "cpu", 4, 3)
        return times, "\n".join(exchange_bench.table(communicator, 4, times))

    (times, text), *others = Simulated(2).run(run)
    assert times.keys() == TIMES.keys()
    assert all(len(t) == 3 and (t > 0).all() for t in times.values())
    for other, _ in others:  # all ranks know the same
        assert all(np.array_equal(other[name], times[name]) for name in times)
    assert text.startswith("468 parameters, 0.00187 MB of gradients; 2 ranks")
    for way in ("naive", "bucketed"):
        number = r"-?[\d.]+"
        cells = rf"( +{number} \({number} to {number}\)){{3}}"
        assert re.search(rf"^{way}{cells}$", text, re.M)


def test_both_exchanges_leave_the_mean_of_all_ranks(monkeypatch):
    small(monkeypatch)

    def run(communicator):
        found = {}
        for way, options in exchange_bench.WAYS.items():
            model, step = exchange_bench.trainee(way, options, communicator, "cpu", 4)
            step()
            found[way] = [p.grad.numpy().copy() for p in model.parameters()]
        return found

    first, second = Simulated(2).run(run)
    for g, h, naive, bucketed in zip(
        first["none"], second["none"], first["naive"], first["bucketed"], strict=True
    ):
        np.testing.assert_allclose(naive, (g + h) / 2, atol=1e-6)
        np.testing.assert_allclose(bucketed, (g + h) / 2, atol=1e-6)
        assert isfinite(g.sum()) and g.any()


def test_one_rank_has_nobody(capsys):
    assert main(["bench", "--exchange"]) == 2
    assert "mpirun -n 2 minidl bench --exchange" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--exchange", "--collectives"])
    assert "not allowed with" in capsys.readouterr().err


def bench(communicator):
    """What a rank of the MPI test runs."""
    exchange_bench.WIDTH = 64
    main(["bench", "--exchange", "--rounds", "2", "--batch-size", "7"])


@pytest.mark.mpi
@pytest.mark.slow
def test_under_mpirun():
    run = run_ranks(2, bench)
    assert run.returncode == 0, run.stderr
    assert "2 ranks, mpi, 4 samples each\n2 rounds" in run.stdout
    assert run.stdout.count("naive step / bucketed step") == 1
