"""Traces: what is in them, by one clock, and what waiting costs."""

import json
import time
from dataclasses import replace
from time import perf_counter_ns

import numpy as np
import pytest

import minidl as md
from minidl import nn, optim, train
from minidl.distributed import Alone, DataParallel, Simulated
from minidl.nn import functional as F
from minidl.train import hooks, train_step
from minidl.train.recorder import Range
from minidl.train.trace import Record, clock_offset
from minidl.train.trace_table import (
    REPLAY,
    Averages,
    communication,
    exposed_sentence,
)


def model_of(communicator, device="cpu"):
    md.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)).to(device)
    model = DataParallel(network, communicator, bucket_cap_mb=1e-4)
    return model, optim.Adam(model.parameters())


def batch_of(device="cpu"):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 6)).astype("f4")
    return md.Tensor(images).to(device), md.Tensor(rng.integers(0, 4, 5)).to(device)


def steps(model, optimizer, profile, count=3, step=train_step):
    device = next(model.parameters()).device
    for _ in range(count):
        step(model, F.cross_entropy, optimizer, *batch_of(device))
        profile.step()


def lanes_of(events) -> dict:
    """The complete events of each process and thread."""
    lanes: dict = {}
    for event in events:
        if event["ph"] == "X":
            lanes.setdefault((event["pid"], event["tid"]), []).append(event)
    return lanes


def assert_nested(events) -> None:
    """Of two events, one lies in the other, or they do not meet."""
    ends = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        end = event["ts"] + event["dur"]
        while ends and ends[-1] <= event["ts"] + 0.002:  # rounding of microseconds
            ends.pop()
        assert event["dur"] >= 0 and (not ends or end <= ends[-1] + 0.002), event
        ends.append(end)


def test_a_trace_of_two_ranks(tmp_path):
    def rank(communicator):
        model, optimizer = model_of(communicator)
        options = dict(record_shapes=True, device="cpu", communicator=communicator)
        with train.profile(**options) as profile:
            steps(model, optimizer, profile)
        profile.export_chrome_trace(tmp_path / "trace.json")

    Simulated(2).run(rank)
    content = json.loads((tmp_path / "trace.json").read_text())
    assert content["displayTimeUnit"] == "ms"
    events = content["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert [name[:6] for name in names] == ["rank 0", "rank 1"]
    lanes = lanes_of(events)
    assert list(lanes) == [(0, 0), (1, 0)]
    for lane in lanes.values():
        assert_nested(lane)
        found = [e["name"] for e in lane]
        assert [n for n in found if n.startswith("step")] == [
            f"step {k}" for k in "123"
        ]
        for name, count in (
            *(("Linear", 6), ("Linear.backward", 6), ("gelu", 6), ("gelu.backward", 3)),
            *(("forward", 3), ("backward", 3), ("exchange", 3), ("Adam.step", 3)),
        ):
            assert found.count(name) == count, name
        assert "all_reduce" in found and "wait for all_reduce" in found
        shapes = [e["args"]["shapes"] for e in lane if e["name"] == "Linear"]
        assert shapes[:2] == [[[5, 6], [8, 6], [8]], [[5, 8], [4, 8], [4]]]
        assert min(e["ts"] for e in lane) >= 0
    begun = {e["id"]: e for e in events if e["ph"] == "b"}
    ended = {e["id"]: e for e in events if e["ph"] == "e"}
    assert begun and begun.keys() == ended.keys()
    for key, event in begun.items():
        assert event["name"] == ended[key]["name"] == "all_reduce"
        assert event["ts"] <= ended[key]["ts"] and event["pid"] == int(key[0])


def profiled(communicator, work):
    """What `work()` is to a profile, as one step."""
    with train.profile(device="cpu", communicator=communicator) as profile:
        work()
    return profile


def test_waiting_for_a_rank_is_exposed():
    def rank(communicator):
        def work():
            time.sleep(0.15 * communicator.rank)
            communicator.all_reduce(np.ones(3))

        return profiled(communicator, work).records()

    early, late = map(communication, Simulated(2).run(rank)[0])
    assert 0.12e9 < early.exposed <= early.under_way <= early.steps < 0.4e9
    assert early.percent > 95 and late.exposed < 0.05e9


def test_communication_beside_work_is_not_exposed():
    def rank(communicator):
        def work():
            started = communicator.all_reduce(np.ones(3), async_op=True)
            time.sleep(0.15)
            started.wait()

        return profiled(communicator, work).records()

    for found in map(communication, Simulated(2).run(rank)[0]):
        assert found.under_way > 0.14e9 and found.exposed < 0.3 * found.under_way


def test_uneven_clocks_are_corrected():
    hour = 3_600 * 10**9

    def rank(communicator):
        ahead = (0, hour, -2 * hour)[communicator.rank]

        def clock():
            return perf_counter_ns() + ahead

        offset = clock_offset(communicator, clock)
        assert abs(offset + ahead) < 0.05e9
        options = dict(device="cpu", communicator=communicator, clock=clock)
        with train.profile(**options) as profile:
            communicator.barrier()
        return profile.records()

    for records in Simulated(3).run(rank):
        assert [record.rank for record in records] == [0, 1, 2]
        ends = [r.end for record in records for r in record.host if r.name == "barrier"]
        assert len(ends) == 3 and max(ends) - min(ends) < 0.1e9


def test_a_profile_leaves_nothing_behind():
    before = [vars(owner)[name] for owner, name, _ in hooks.hooks()]
    model, optimizer = model_of(Alone())
    with pytest.raises(ZeroDivisionError), train.profile(device="cpu") as profile:
        during = [vars(owner)[name] for owner, name, _ in hooks.hooks()]
        assert not any(a is b for a, b in zip(before, during, strict=True))
        with pytest.raises(RuntimeError, match="profile under way"):
            train.profile(device="cpu").start()
        with pytest.raises(RuntimeError, match="call stop"):
            profile.key_averages()
        _ = 1 / 0
    after = [vars(owner)[name] for owner, name, _ in hooks.hooks()]
    assert all(a is b for a, b in zip(before, after, strict=True))
    count = len(profile.record().host)
    steps(model, optimizer, profile)
    profile.stop()
    assert len(profile.record().host) == count
    with pytest.raises(RuntimeError, match="call stop"):
        train.profile(device="cpu").record()


def test_the_numbers_are_the_same():
    def trained(profile):
        model, optimizer = model_of(Alone())
        steps(model, optimizer, profile)
        return [p.numpy() for p in model.parameters()]

    plain = trained(train.profile(device="cpu"))
    with train.profile(device="cpu", record_shapes=True) as profile:
        for a, b in zip(plain, trained(profile), strict=True):
            np.testing.assert_array_equal(a, b)


def test_ranges_of_ones_own():
    @train.record_function("twice")
    def twice(x):
        with train.record_function("inside"):
            return 2 * x

    assert twice(3) == 6
    with train.profile(device="cpu") as profile:
        assert twice(4) == 8
        with pytest.raises(KeyError), train.record_function("failing"):
            raise KeyError
    names = [r.name for r in profile.record().host]
    assert names == ["inside", "twice", "failing", "step 1"]


def range_of(name, start, end, category="op"):
    return Range(name, category, start * 10**6, end * 10**6)


def record_of(*ranges, rank=0, flights=()):
    return Record(rank, "here", list(ranges), [], list(flights))


def test_the_table():
    record = record_of(
        range_of("a", 1, 4),
        range_of("a", 2, 3),  # inside the other: once in its total
        range_of("b", 5, 7),
        range_of("step 1", 0, 8, "step"),
        range_of("a", 10, 11),
        range_of("step 2", 8, 12, "step"),
    )
    averages = Averages(record)
    assert averages == [("a", "op", 3, 4e6, 4e6), ("b", "op", 1, 2e6, 2e6)]
    lines = averages.table(row_limit=1).splitlines()
    assert lines[0].split() == ["calls", "own", "ms", "share", "total", "ms"]
    assert lines[1].split() == ["op", "a", "1.5", "2.000", "33.3", "%", "2.000"]
    assert lines[2:] == ["a step of 2: 6.000 ms"]


def test_what_is_exposed():
    def record(rank, flight, *waits):
        return record_of(
            *(range_of("wait", *wait, "wait") for wait in waits),
            range_of("step 1", 0, 10, "step"),
            rank=rank,
            flights=[range_of("all_reduce", *flight)],
        )

    # the wait inside another counts once, and what is outside the steps not at all
    first = record(0, (2, 6), (5, 6), (5, 6), (11, 13))
    assert communication(first) == (10e6, 4e6, 1e6)
    second = record(1, (2, 6), (3, 7))
    assert communication(second) == (10e6, 5e6, 4e6)
    assert exposed_sentence([first, second]) == (
        "communication: 52 % of it exposed (25 to 80 % on 2 ranks), 25 % of a step"
    )
    assert "one rank" in exposed_sentence([first])
    replayed = replace(first, host=[*first.host, Range(REPLAY, "kernel", 0, 1)])
    assert "within graph replays" in exposed_sentence([replayed, second])
