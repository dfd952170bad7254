"""Traces of GPUs, on stand-ins for CuPy and NCCL."""

import json

import numpy as np
import pytest
from gpu_ranks import passed, ranks, run
from test_profiler import assert_nested, batch_of, lanes_of, model_of, steps

import minidl as md
from minidl import optim, train
from minidl.array.device import gpu_available
from minidl.distributed import Alone
from minidl.nn import functional as F
from minidl.train import CapturedStep
from minidl.train.trace import chrome_trace
from minidl.train.trace_table import communication


def test_the_gpus_own_times(stand_in, tmp_path, monkeypatch):
    pushed = []
    nvtx = stand_in.cupy.cuda.nvtx
    monkeypatch.setattr(nvtx, "RangePush", pushed.append)
    monkeypatch.setattr(nvtx, "RangePop", lambda: pushed.append(None))
    model, optimizer = model_of(Alone(), "cuda")
    with train.profile(record_shapes=True) as profile:
        stand_in.reset()
        steps(model, optimizer, profile)
        assert stand_in.syncs == []  # nothing is waited for while it records
        own = {n[7:] for n in stand_in.launches if n.startswith("minidl_")}
    profile.export_chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    lanes = lanes_of(events)
    assert list(lanes) == [(0, 0), (0, 1)]
    for lane in lanes.values():
        assert_nested(lane)
    host, gpu = ([e["name"] for e in lane] for lane in lanes.values())
    assert host == gpu
    assert {"cublas.matmul", "gelu", "Linear", "Linear.backward", "step 3"} <= set(gpu)
    assert own <= {e["name"] for e in lanes[0, 1] if e["cat"] == "kernel"}
    assert {"gelu", "adam"} <= own and "by_count" not in own
    for before, after in zip(*lanes.values(), strict=True):  # the stand-in runs at once
        assert abs(before["ts"] - after["ts"]) < 20_000
    assert pushed.count(None) * 2 == len(pushed) > 100
    assert sorted(filter(None, pushed)) == sorted(n for n in gpu if n[:5] != "step ")
    assert "cublas.matmul" in profile.key_averages().table(row_limit=100)


def test_every_kernel_of_a_step_is_in_its_trace(stand_in):
    from test_machine_code import network

    model, x = network(), md.randn(4, 4, 32, 32, device="cuda")
    optimizer, labels = optim.Adam(model.parameters()), md.arange(4, device="cuda")
    with train.profile() as profile:
        stand_in.reset()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        launched = {name.removeprefix("minidl_") for name in stand_in.launches}
    traced = {r.name for r in profile.record().gpu if r.category == "kernel"}
    of_cupy = {name for name in launched if hasattr(stand_in.cupy, name)}
    assert launched - traced - of_cupy <= {"gemm", "setitem", "fill"}
    assert {"totals", "moments", "add_bias", "dropout", "cross_entropy"} <= traced


def test_captured_steps(stand_in):
    """One that is recorded has no times on the GPU; one that is replayed is whole."""
    model, optimizer = model_of(Alone(), "cuda")
    step = CapturedStep()
    with train.profile() as profile:
        steps(model, optimizer, profile, 5, step)
    record = profile.record()
    kernels = [
        [r.name for r in lane].count("Linear") for lane in (record.host, record.gpu)
    ]
    assert kernels == [2 * 4, 2 * 3]
    assert [r.name for r in record.gpu].count("graph replay") == 2
    losses = [step(model, F.cross_entropy, optimizer, *batch_of("cuda"))]
    assert np.isfinite(losses[0].item())


@pytest.mark.gpu
def test_a_real_gpu():
    if not gpu_available():
        pytest.skip("no CUDA device")
    model, optimizer = model_of(Alone(), "cuda")
    steps(model, optimizer, train.profile())
    with train.profile() as profile:
        steps(model, optimizer, profile)
    record = profile.record()
    lanes = lanes_of(json.loads(chrome_trace([record]))["traceEvents"])
    for lane in lanes.values():
        assert_nested(lane)
    assert [r.name for r in record.gpu] == [r.name for r in record.host]
    assert 0 < sum(r.end - r.start for r in record.gpu if r.category == "kernel")


def nccl_in_a_trace(c):
    model, optimizer = model_of(c, "cuda")
    steps(model, optimizer, train.profile())
    with train.profile(communicator=c) as profile:
        steps(model, optimizer, profile)
    records = profile.records()
    assert [record.rank for record in records] == [0, 1]
    for record in records:
        found = communication(record)
        assert record.flights and found.steps > 0
        assert 0 <= found.exposed <= found.under_way <= found.steps
        assert any(r.name == "wait for all_reduce" for r in record.gpu)


@ranks
@pytest.mark.parametrize("way", ["nccl", "mpi"])
def test_collectives_of_gpus(way):
    passed(run(2, nccl_in_a_trace, way), 2)
