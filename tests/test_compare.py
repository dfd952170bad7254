"""`minidl compare`: every combination is trained as `minidl train` trains it."""

import csv
import json

import numpy as np
import pytest
from ranks import run_ranks

from minidl.distributed import Alone
from minidl.train import comparison
from minidl.train.command_line import main
from minidl.train.progress import Metrics
from minidl.train.recipe import Settings, train
from minidl.train.resume import Stopped
from minidl.train.side_by_side import Run, as_csv, draw, grouped, table

QUICK = ["--model", "mlp", "--batch-size", "200", "--epochs", "2", "--device", "cpu"]


def metrics(epoch: int, accuracy: float) -> Metrics:
    return Metrics(epoch, 0.5, 0.25, accuracy, 10, 2.0, 5.0, 0.1)


def run(optimizer="adam", ranks=1, seed=0, accuracies=(0.5, 0.75)) -> Run:
    history = [metrics(n, value) for n, value in enumerate(accuracies, 1)]
    return Run(optimizer, ranks, seed, tuple(history))


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("minidl.train.recipe.draw_curves", lambda *_: None)


def test_means_and_ranges_over_seeds():
    runs = [run(), run(seed=1, accuracies=(0.5, 0.25)), run("sgd", 4)]
    assert list(grouped(runs)) == [("adam", 1), ("sgd", 4)]
    _, adam, sgd = table(runs)
    assert adam.split() == "adam 1 2 0.5000 0.2500 50.00 (25.00 to 75.00) 5".split()
    assert sgd.split() == "sgd 4 1 0.5000 0.2500 75.00 5".split()


def test_a_line_an_epoch_in_the_csv():
    lines = list(csv.DictReader(as_csv([run(), run("sgd")]).decode().splitlines()))
    assert [line["optimizer"] for line in lines] == ["adam", "adam", "sgd", "sgd"]
    assert [line["epoch"] for line in lines] == ["1", "2", "1", "2"]
    assert float(lines[1]["test_accuracy"]) == 0.75


def test_a_picture_of_two_seeds(tmp_path):
    pytest.importorskip("matplotlib")
    draw([run(), run(seed=1), run("sgd")], tmp_path / "x.png", "title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_are_those_of_train(tmp_path, capsys, no_pictures):
    pytest.importorskip("matplotlib")
    flags = ["--optimizers", "sgd, adam,sgd", "--ranks", "1,2", "--out", str(tmp_path)]
    assert main(["compare", *QUICK, *flags]) == 0
    out = capsys.readouterr().out
    assert "not their speed" in out and (tmp_path / "compare.png").exists()
    with (tmp_path / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    combinations = [(x["optimizer"], x["ranks"], x["epoch"]) for x in lines]
    assert combinations == [
        (name, ranks, epoch)
        for name in ("sgd", "adam")
        for ranks in "12"
        for epoch in "12"
    ]
    settings = Settings(
        model="mlp",
        batch_size=200,
        epochs=2,
        optimizer="sgd",
        device="cpu",
        out=str(tmp_path / "alone"),
    )
    history = train(settings, Alone())
    for ours, theirs in zip(lines[:2], history, strict=True):
        assert float(ours["train_loss"]) == theirs.train_loss
        assert float(ours["test_accuracy"]) == theirs.test_accuracy
    one, two = ([x for x in lines if x["ranks"] == n] for n in "12")
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(
            float(a["train_loss"]), float(b["train_loss"]), rtol=1e-4
        )
    config = json.loads((tmp_path / "adam-ranks2-seed0" / "config.json").read_text())
    assert config["optimizer"] == "adam" and config["ranks"] == 2


def test_what_came_before_a_stop_is_kept(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")

    def train(settings, communicator):
        if settings.seed == 2:
            raise Stopped("stopped")
        return [metrics(1, 0.5)]

    monkeypatch.setattr(comparison, "train", train)
    assert main(["compare", *QUICK, "--seeds", "1,2,3", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "stopped\n" in out and "50.00" in out
    assert len((tmp_path / "compare.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--optimizers", "adam,lion"], "no optimizer is called 'lion'; known: adam"),
        (["--ranks", "2,0"], "a whole number above 0, got '0'"),
        (["--seeds", "1,"], "a whole number of at least 0, got ''"),
        (["--epochs", "0"], "a whole number above 0"),
    ],
)
def test_impossible_flags(flags, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", *flags])
    assert words in capsys.readouterr().err


@pytest.mark.mpi
@pytest.mark.slow
def test_under_mpirun(tmp_path):
    pytest.importorskip("matplotlib")
    script = (
        "import sys; from minidl.train.command_line import main; sys.exit(main({}))"
    )
    flags = ["compare", *QUICK, "--optimizers", "adam,sgd", "--out", str(tmp_path)]
    run = run_ranks(2, script.format(flags))
    assert run.returncode == 0, run.stderr
    lines = (tmp_path / "compare.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[1].startswith("adam,2,0,1,")
    run = run_ranks(2, script.format([*flags, "--ranks", "1,2"]))
    assert run.returncode == 2 and "--ranks 1,2: mpirun has started 2" in run.stderr
