"""All-reduce written out, its cost model, and messages between two ranks."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks

from minidl.distributed import Alone, Simulated, cost
from minidl.distributed.algorithms import ALGORITHMS
from minidl.distributed.cost import Link

ALL = pytest.mark.parametrize("name", list(ALGORITHMS))


def array_of(rank, length):
    return np.random.default_rng([rank, length]).standard_normal(length)


@ALL
@given(n=st.integers(1, 9), length=st.integers(0, 40))
def test_every_rank_gets_the_sum_in_the_same_bits(name, n, length):
    def run(communicator):
        array = array_of(communicator.rank, length).reshape(1, length)
        assert ALGORITHMS[name](communicator, array) is array
        return array

    results = Simulated(n).run(run)
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    expected = np.sum([array_of(rank, length) for rank in range(n)], axis=0)
    np.testing.assert_allclose(results[0][0], expected, rtol=1e-12, atol=1e-14)


def print_differences(communicator):
    """What a rank of the MPI test runs: each algorithm against MPI's own."""
    worst = {}
    for name, algorithm in ALGORITHMS.items():
        for length in (1, 5, 100_003):  # the last is too long to be sent eagerly
            mine = array_of(communicator.rank, length)
            theirs = communicator.all_reduce(mine.copy())
            algorithm(communicator, mine)
            worst[f"{name} {length}"] = np.abs(mine - theirs).max()
    everyone = communicator.all_gather_object(worst)
    if communicator.rank == 0:
        print(json.dumps(everyone))


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 4])
def test_each_is_what_mpi_gives(n):
    run = run_ranks(n, print_differences)
    assert run.returncode == 0, run.stderr
    everyone = json.loads(run.stdout)
    assert len(everyone) == n
    assert all(worst < 1e-13 for each in everyone for worst in each.values())


def count(name, size, length):
    """(messages, bytes, bytes added) of each rank, counted as they are sent."""

    def run(communicator):
        tally = [0, 0, 0]
        plain = communicator._send_receive

        def counted(call, outgoing, dst, incoming, src):
            tally[0] += 1
            tally[1] += (outgoing if dst is not None else incoming).nbytes
            plain(call, outgoing, dst, incoming, src)

        communicator._send_receive = counted
        ALGORITHMS[name](communicator, np.ones(length))
        return tally

    return Simulated(size).run(run)


@ALL
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_the_model_counts_what_is_sent(name, size):
    length = 120  # a multiple of every size
    tallies = count(name, size, length)
    model = cost.MODELS[name](size, 8 * length)
    assert max(messages for messages, *_ in tallies) == model.messages
    assert max(nbytes for _, nbytes, _ in tallies) == model.bytes


def test_costs_of_the_paper():
    n = 1e6
    assert cost.ring(4, n) == (6, 1.5e6, 0.75e6)
    assert cost.tree(4, n) == (4, 4e6, 2e6)
    assert cost.tree(5, n) == (6, 6e6, 3e6)
    assert cost.recursive_doubling(8, n) == (3, 3e6, 3e6)
    assert cost.recursive_doubling(6, n) == (4, 4e6, 3e6)
    assert cost.rabenseifner(8, n) == (6, 1.75e6, 0.875e6)
    assert cost.ring(4, n).seconds(Link(1e-5, 1e-9, 1e-10)) == pytest.approx(1.635e-3)
    for model in (*cost.MODELS.values(), cost.rabenseifner):
        assert model(1, n) == (0, 0, 0)


def test_the_fit_finds_the_line_it_was_made_from():
    nbytes = np.array([8, 1e3, 1e5, 1e7])
    rng = np.random.default_rng(0)
    noise = 1 + 0.01 * rng.standard_normal(4)
    alpha, beta = cost.fit(nbytes, (2e-6 + 5e-10 * nbytes) * noise)
    assert alpha == pytest.approx(2e-6, rel=0.05)
    assert beta == pytest.approx(5e-10, rel=0.05)
    for seconds in ([3.0, 2.0, 1.0], [1.0, 3.0, 9.0]):  # no line above 0 fits these
        alpha, beta = cost.fit([1, 2, 3], seconds)
        assert alpha > 0 and beta > 0
        sizes = np.arange(1, 4)
        error = np.square(np.log((alpha + beta * sizes) / seconds)).sum()
        for a, b in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99)):
            nearby = np.square(np.log((a * alpha + b * beta * sizes) / seconds)).sum()
            assert nearby > error - 1e-9


def test_steps_of_many_ranks():
    link = Link(1e-5, 1e-9)
    hidden, exposed = cost.step_seconds(8, 1e6, link, 0.1)
    assert hidden == 0.1 and exposed == 0.1 + cost.best(8, 1e6, link)
    hidden, exposed = cost.step_seconds(8, 1e9, link, 0.1)
    assert hidden == pytest.approx(exposed - 0.2 / 3)
    assert cost.step_seconds(1, 1e9, link, 0.1) == (0.1, 0.1)


def test_messages_come_in_order_and_of_the_length_that_is_expected():
    def run(communicator):
        if communicator.rank == 0:
            communicator.send(np.arange(3), 1)
            communicator.send(np.arange(3, 6), 1)
            communicator.send(np.arange(2), 1)
            return None
        first, second = np.empty(3, int), np.empty(3, int)
        communicator.recv(first, 0)
        communicator.recv(second, 0)
        with pytest.raises(RuntimeError, match="sent 16 bytes, and .* has 24"):
            communicator.recv(first, 0)
        return [*first, *second]

    assert Simulated(2).run(run)[1] == [0, 1, 2, 3, 4, 5]


def print_refusals(communicator):
    """What a rank of the MPI test runs: messages of wrong lengths."""
    for length in (2, 4, 100_000):
        if communicator.rank == 0:
            communicator.send(np.arange(length), 1)
            continue
        with pytest.raises(RuntimeError) as refusal:
            communicator.recv(np.empty(3, int), 0)
        print(refusal.value)


@pytest.mark.mpi
@pytest.mark.slow
def test_messages_of_wrong_lengths_under_mpi():
    run = run_ranks(2, print_refusals)
    assert run.returncode == 0, run.stderr
    short, *long = run.stdout.splitlines()
    assert "sent 16 bytes" in short and len(long) == 2
    assert all("sent more bytes than the 24 of the array" in line for line in long)


def test_a_message_that_never_comes_is_told():
    def run(communicator):
        if communicator.rank == 1:
            communicator.recv(np.empty(3), 0)

    with pytest.raises(RuntimeError, match="rank 0 has returned without sending"):
        Simulated(2).run(run)


WAITS_FOR_NOTHING = """
import numpy as np
from minidl.distributed import init
communicator = init()
if communicator.rank == 1:
    communicator.recv(np.empty(3), 0)
"""


@pytest.mark.mpi
@pytest.mark.slow
def test_a_message_of_a_rank_that_has_ended():
    run = run_ranks(2, WAITS_FOR_NOTHING)
    assert run.returncode != 0
    assert "has ended without sending or receiving what rank 1 waits for" in run.stderr


def test_wrong_ranks_and_arrays_are_refused():
    alone = Alone()
    with pytest.raises(ValueError, match="send to rank 1, of ranks 0 to 0"):
        alone.send(np.ones(2), 1)
    with pytest.raises(ValueError, match="recv from rank -1"):
        alone.recv(np.ones(2), -1)
    with pytest.raises(TypeError, match="recv takes a NumPy or CuPy array"):
        alone.recv([1, 2], 0)
    with pytest.raises(RuntimeError, match="a lone rank"):
        alone.send(np.ones(2), 0)
