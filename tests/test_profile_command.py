"""minidl train --profile N."""

import json

import numpy as np
import pytest
from ranks import run_ranks, why_no_ranks
from test_profiler import assert_nested, lanes_of

from minidl.train import hooks
from minidl.train.checkpoint import load_model
from minidl.train.command_line import main

pytestmark = pytest.mark.usefixtures("quickly")
FLAGS = ["train", "--model", "mlp", "--batch-size", "200", "--epochs", "1"]


def names_of(lane) -> list[str]:
    return [event["name"] for event in lane]


def test_a_trace_of_some_steps(tmp_path, capsys):
    flags = [*FLAGS, "--device", "cpu", "--out"]
    assert main([*flags, str(tmp_path / "plain")]) == 0
    capsys.readouterr()
    assert main([*flags, str(tmp_path / "out"), "--profile", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    path = tmp_path / "out" / "trace.json"
    (lane,) = lanes_of(json.loads(path.read_text())["traceEvents"]).values()
    assert_nested(lane)
    found = names_of(lane)
    assert [n for n in found if n[:5] == "step "] == ["step 1", "step 2", "step 3"]
    assert found.count("Adam.step") == 3 and found.count("Linear.backward") == 9
    assert found.count("gather a batch") == found.count("standardize a batch") == 2
    assert any(line.startswith("op       Linear ") for line in lines)
    assert any(line.startswith("a step of 3: ") for line in lines)
    assert "communication: none, on one rank" in lines
    assert f"trace       {path}" in lines
    weights, others = (
        load_model(tmp_path / name / "model.safetensors")[0]
        for name in ("plain", "out")
    )
    assert all(np.array_equal(weights[k], others[k]) for k in weights)
    assert hooks.active.recorder is None and not hooks._installed
    assert main([*flags, str(tmp_path / "out")]) == 0  # an old trace is not this one's
    assert not path.exists()


def test_more_steps_than_there_are(tmp_path, capsys):
    flags = [*FLAGS, "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*flags, "--profile", "8"]) == 2
    said = capsys.readouterr().err
    assert "--profile 8 takes 9 steps" in said and "8 are left" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main([*flags, "--profile", "0"])
    assert "above 0, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize("graph, replayed", [("auto", 0), ("on", 2)])
def test_on_a_gpu(stand_in, tmp_path, graph, replayed):
    out = str(tmp_path / "out")
    flags = [*FLAGS, "--batch-size", "100", "--graph", graph, "--device", "gpu"]
    assert main([*flags, "--out", out, "--profile", "2"]) == 0
    lanes = lanes_of(
        json.loads((tmp_path / "out/trace.json").read_text())["traceEvents"]
    )
    assert list(lanes) == [(0, 0), (0, 1)]
    gpu = names_of(lanes[0, 1])
    assert gpu.count("graph replay") == replayed
    assert gpu.count("Linear.backward") == (0 if replayed else 6)
    assert gpu.count("step 2") == 1 and "standardize a batch" in gpu


@pytest.mark.mpi
@pytest.mark.slow
def test_ranks_share_a_trace(tmp_path):
    if reason := why_no_ranks():
        pytest.skip(reason)
    program = "import sys; from minidl.train.command_line import main; sys.exit(main())"
    flags = [*FLAGS, "--device", "cpu", "--out", str(tmp_path), "--profile", "4"]
    job = run_ranks(2, program, *flags)
    assert job.returncode == 0, job.stderr
    assert "% of it exposed" in job.stdout and "on 2 ranks" in job.stdout
    lanes = lanes_of(json.loads((tmp_path / "trace.json").read_text())["traceEvents"])
    assert list(lanes) == [(0, 0), (1, 0)]
    spans = []
    for lane in lanes.values():
        assert_nested(lane)
        assert names_of(lane).count("exchange") == 4
        (last,) = (e for e in lane if e["name"] == "step 4")
        spans.append((last["ts"], last["ts"] + last["dur"]))
    assert max(start for start, _ in spans) < min(end for _, end in spans)  # together
