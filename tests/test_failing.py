"""When a rank fails, all ranks end: soon, non-zero, and saying who failed and why."""

import re
import sys
import time

import numpy as np
import pytest
from ranks import run_job, run_ranks

from minidl.array.errors import DataError
from minidl.distributed import Alone, Simulated, init


def mpi(test):
    return pytest.mark.mpi(pytest.mark.slow(test))


def raise_on_one(communicator):
    if communicator.rank == 1:
        print("a line before the end")
        raise ValueError("wrong on purpose")
    communicator.all_reduce(np.zeros(5))


@mpi
def test_an_exception_ends_the_ranks_that_wait():
    run = run_ranks(3, raise_on_one)
    assert run.returncode != 0 and run.seconds < 10
    assert re.search(r"^rank 1 of 3 on host \S+:\nTraceback", run.stderr, re.M)
    assert run.stderr.count("Traceback") == 1 and "in raise_on_one" in run.stderr
    assert "ValueError: wrong on purpose" in run.stderr
    assert "a line before the end" in run.stdout


def raise_while_others_compute(communicator):
    work = communicator.all_reduce(np.zeros(5), async_op=True)
    if communicator.rank == 2:
        raise KeyError("wrong on purpose")
    work.wait()
    time.sleep(60)


@mpi
def test_an_exception_ends_the_ranks_that_compute():
    run = run_ranks(3, raise_while_others_compute)
    assert run.returncode != 0 and run.seconds < 10
    assert "rank 2 of 3" in run.stderr and run.stderr.count("Traceback") == 1


def raise_in_a_thread(communicator):
    import threading

    def load():
        raise OSError("no more data")

    if communicator.rank == 1:
        threading.Thread(target=load).start()
    communicator.all_gather_object(None) if communicator.rank else time.sleep(60)


@mpi
def test_an_exception_in_a_thread_ends_all_ranks():
    run = run_ranks(2, raise_in_a_thread)
    assert run.returncode != 0 and run.seconds < 10
    assert "rank 1 of 2" in run.stderr and "OSError: no more data" in run.stderr


def raise_everywhere(communicator):
    raise DataError("train.gz: no such file")


@mpi
def test_a_mistake_that_all_ranks_find_is_one_sentence():
    run = run_ranks(3, raise_everywhere)
    assert run.returncode == 1 and run.seconds < 10
    assert run.stderr.count("train.gz: no such file") == 1
    assert run.stderr.startswith("rank 0 of 3") and "Traceback" not in run.stderr


def leave_early(communicator):
    communicator.barrier()
    if communicator.rank != 1:
        communicator.all_reduce(np.zeros(5, "float32"))
        communicator.all_reduce(np.zeros(6, "float32"))


@mpi
def test_a_rank_that_ends_while_others_wait_for_it_is_named():
    run = run_ranks(3, leave_early)
    assert run.returncode == 1 and run.seconds < 10
    assert re.search(
        r"rank 1 on host \S+ has ended without joining "
        r"all_reduce\(sum, float32, shape \(5,\)\), in which rank 0 waits",
        run.stderr,
    )


def disagree(communicator):
    from minidl.distributed import peers

    peers.STALL = 0.3
    communicator.barrier()
    if communicator.rank == 1:
        communicator.all_gather(np.zeros(200_000), np.zeros(100_000))
    else:
        communicator.broadcast(np.zeros(100_000), src=1)


@mpi
def test_ranks_that_call_different_collectives_are_told_which():
    run = run_ranks(2, disagree)
    assert run.returncode == 1 and run.seconds < 10
    assert re.search(
        r"rank 0 on host \S+ waits in broadcast\(src 1, float64, shape \(100000,\)\), "
        r"and rank 1 on host \S+ in all_gather\(float64, shape \(100000,\)\)",
        run.stderr,
    )


def stall(communicator):
    from minidl.distributed import peers

    peers.STALL, peers.WARN = 0.2, 0.6
    if communicator.rank == 2:
        time.sleep(1.5)
    communicator.barrier()


@mpi
def test_a_stalled_collective_names_the_missing_rank():
    run = run_ranks(3, stall)
    assert run.returncode == 0
    assert re.fullmatch(
        r"rank 0 has waited 1 s in barrier\(\), without news of rank 2 on host \S+\n",
        run.stderr,
    )


TIMEOUT = """
import os, signal, sys, time
import numpy as np
from minidl.distributed import init

communicator = init(timeout=1.5)
for step in range(4):
    communicator.doing = f"step {step} of epoch 1"
    communicator.all_reduce(np.zeros(2))
if communicator.rank == 1:
    if sys.argv[1] == "sleeps":
        time.sleep(60)
    if sys.argv[1] == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
communicator.doing = "step 4 of epoch 1"
if sys.argv[1] == "does not send":
    if communicator.rank == 1:
        time.sleep(60)
    if communicator.rank == 0:
        communicator.recv(np.zeros(2), src=1)
    communicator.barrier()
elif sys.argv[1] != "does not end":
    communicator.barrier()
elif communicator.rank == 1:
    time.sleep(60)
"""


@mpi
@pytest.mark.parametrize(
    "how", ["sleeps", "is stopped", "does not end", "does not send"]
)
def test_a_rank_that_does_not_come_ends_all_after_the_timeout(how):
    run = run_ranks(3, TIMEOUT, how)
    assert run.returncode == 1 and 1.5 < run.seconds < 15
    assert "Traceback" not in run.stderr
    if how == "does not end":
        said = r"rank 0 has waited 1.5 s at the end for rank 1 on host \S+"
    else:
        call = r"barrier\(\)"
        if how == "does not send":
            call = r"send_receive\(from rank 1\)"
        said = (
            rf"rank 0 has waited 1.5 s in {call} for rank 1 on host \S+; "
            r"the last thing that all ranks did together: "
            r"all_reduce\(sum, float64, shape \(2,\)\) in step 3 of epoch 1$"
        )
    where = r"^rank 0 of 3 on host \S+, in step 4 of epoch 1: "
    assert len(re.findall(where + said, run.stderr, re.M)) == 1, run.stderr


def run_out_of_memory(communicator):
    communicator.barrier()
    communicator.doing = "step 1 of epoch 1"
    if communicator.rank == 2:
        np.empty(2**50)
    communicator.all_reduce(np.zeros(3))


def run_out_of_device_memory(communicator):
    memory = pytest.importorskip("cupy.cuda.memory")
    communicator.barrier()
    communicator.doing = "step 1 of epoch 1"
    if communicator.rank == 2:
        raise memory.OutOfMemoryError(2**40, 2**30, 2**37)
    communicator.all_reduce(np.zeros(3))


@mpi
@pytest.mark.parametrize("function", [run_out_of_memory, run_out_of_device_memory])
def test_a_rank_without_memory_ends_all(function):
    if function is run_out_of_device_memory:
        pytest.importorskip("cupy")
    run = run_ranks(3, function)
    assert run.returncode == 1 and run.seconds < 15
    where = r"^rank 2 of 3 on host \S+, in step 1 of epoch 1: "
    assert re.search(where + "out of memory: use a smaller batch", run.stderr, re.M)
    assert run.stderr.count("Traceback") == 1 and "killed" not in run.stderr


def exit_on_one(communicator):
    communicator.barrier()
    if communicator.rank == 1:
        sys.exit(3)
    communicator.barrier()


@mpi
def test_sys_exit_on_one_rank_ends_all():
    run = run_ranks(3, exit_on_one)
    assert run.returncode != 0 and run.seconds < 10
    assert "rank 1 on host" in run.stderr and "joining barrier()" in run.stderr


def exit_inside_with(communicator):
    with communicator:
        if communicator.rank == 1:
            sys.exit(3)
        time.sleep(60)


@mpi
def test_sys_exit_inside_with_ends_all_at_once():
    run = run_ranks(2, exit_inside_with)
    assert run.returncode == 3 and run.seconds < 10


def interrupt_one(communicator):
    if communicator.rank == 1:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)
    communicator.barrier() if communicator.rank == 0 else time.sleep(60)


@mpi
def test_an_interrupt_of_one_rank_ends_all():
    run = run_ranks(2, interrupt_one)
    assert run.returncode == 130 and run.seconds < 10
    assert "rank 1 of 2" in run.stderr and "interrupted" in run.stderr


def kill_one(communicator):
    if communicator.rank == 1:
        import os
        import signal

        communicator.doing = "step 7 of epoch 2"
        os.kill(os.getpid(), signal.SIGKILL)
    communicator.barrier()


@mpi
def test_a_killed_rank_ends_all_and_is_named():
    run = run_ranks(3, kill_one)
    assert run.returncode != 0 and run.seconds < 10
    killed = r"^(rank \d) of 3 on host \S+ \(process \d+\) was killed or has crashed; "
    killed += r"the last thing it did: (.*)$"
    assert re.findall(killed, run.stderr, re.M) == [("rank 1", "step 7 of epoch 2")]


def test_a_file_that_a_job_has_left_does_not_silence_the_next(tmp_path):
    text = (
        "import os, signal, tempfile, time\n"
        "from pathlib import Path\n"
        "from minidl.distributed.witness import Witness\n"
        "name = f'minidl-{os.getuid()}-{os.getppid()}'\n"
        "left = Path(tempfile.gettempdir(), name)\n"
        "left.touch()\n"
        "os.utime(left, (time.time() - 60,) * 2)\n"
        "Witness(1, 2).note('step 3')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = run_job([sys.executable, "-c", text], TMPDIR=str(tmp_path))
    assert "rank 1 of 2" in run.stderr and "did: step 3" in run.stderr


def end_one_later(communicator):
    """Rank 0 has more to do than the others, which wait at the door."""
    with communicator:
        communicator.all_reduce(np.zeros(3))
        if communicator.rank == 0:
            time.sleep(1)
            print("saved", flush=True)


@mpi
def test_ranks_may_end_at_different_times():
    run = run_ranks(3, end_one_later)
    assert (run.returncode, run.stdout, run.stderr) == (0, "saved\n", "")


def test_simulated_raises_the_exception_and_names_the_rank():
    def work(communicator):
        if communicator.rank == 1:
            raise KeyError("wrong on purpose")
        communicator.all_reduce(np.zeros(3))

    with pytest.raises(KeyError, match="wrong on purpose") as caught:
        Simulated(3).run(work)
    assert caught.value.__notes__ == ["raised by rank 1 of 3"]


def test_simulated_releases_a_rank_that_polls():
    def work(communicator):
        if communicator.rank == 1:
            raise KeyError("wrong on purpose")
        work = communicator.all_reduce(np.zeros(3), async_op=True)
        while not work.is_completed():
            pass

    with pytest.raises(KeyError):
        Simulated(2).run(work)


def test_simulated_names_a_rank_that_returns_early():
    def work(communicator):
        if communicator.rank != 1:
            communicator.all_reduce(np.zeros(3, "float32"), "max")

    with pytest.raises(
        RuntimeError,
        match=r"rank 1 has returned without joining "
        r"all_reduce\(max, float32, shape \(3,\)\), in which rank \d waits",
    ):
        Simulated(3).run(work)


@pytest.mark.parametrize(
    "zero, two",
    [
        (lambda c: c.barrier(), "barrier()"),
        (lambda c: c.all_reduce(np.zeros(4)), "all_reduce(sum, float64, shape (4,))"),
        (lambda c: c.broadcast(np.zeros(3)), "broadcast(src 0, float64, shape (3,))"),
    ],
    ids=["another collective", "another shape", "another kind"],
)
def test_simulated_names_both_calls_when_ranks_disagree(zero, two):
    def work(communicator):
        communicator.barrier()
        if communicator.rank == 2:
            zero(communicator)
        else:
            communicator.all_reduce(np.zeros(3))

    message = (
        f"rank 0 calls all_reduce(sum, float64, shape (3,)) while rank 2 calls {two}"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        Simulated(3).run(work)


def test_simulated_ranks_have_a_context_each():
    from contextvars import ContextVar

    variable = ContextVar("variable", default=0)
    variable.set(7)

    def work(communicator):
        assert init() is communicator and variable.get() == 7
        variable.set(communicator.rank)
        communicator.barrier()
        return variable.get()

    assert Simulated(3).run(work) == [0, 1, 2]
    assert variable.get() == 7


def test_a_simulated_job_has_ranks():
    with pytest.raises(ValueError, match="at least 1 rank, not 0"):
        Simulated(0)


def test_alone_lets_exceptions_pass():
    with pytest.raises(KeyError), Alone():
        raise KeyError
    with pytest.raises(SystemExit):
        Alone().abort(2)
