"""A training that was stopped and resumed is the training that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trainings
from ranks import ROOT, environment, find_mpiexec, why_no_ranks
from trainings import metrics, same_bits, weights

from minidl import Tensor, nn
from minidl.array.errors import CheckpointError, DistributedError, UsageError
from minidl.array.random import uniform
from minidl.array.sampling import Sampler
from minidl.distributed import Alone, DataParallel
from minidl.optim import SGD, GradScaler
from minidl.train import trainer
from minidl.train.command_line import main
from minidl.train.recipe import Settings
from minidl.train.resume import Stopped
from minidl.train.store import Store, read

pytestmark = pytest.mark.usefixtures("quickly")
STEPS = 15  # an epoch: 1437 samples in batches of 100, the last one of 37
SETTINGS = Settings(model="mlp", batch_size=100, epochs=2, device="cpu")


def run(ranks: int, out, **more) -> None:
    """`train` on one rank, or on several simulated ones."""
    trainings.run(replace(SETTINGS, out=str(out), **more), ranks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """By their ranks, the directories of trainings that nothing has interrupted."""
    directories = {n: tmp_path_factory.mktemp(f"whole{n}") for n in (1, 2)}
    for ranks, out in directories.items():
        run(ranks, out, save_every=4, keep=99)
    return directories


@pytest.mark.parametrize("ranks, step", [(1, 4), (2, 12), (1, 16), (2, 28)])
def test_from_any_checkpoint_on_the_end_is_the_same(whole, tmp_path, ranks, step):
    out = whole[ranks]
    checkpoint = out / "checkpoints" / f"step-{step:08d}.json"
    run(ranks, tmp_path, resume=str(checkpoint))
    assert same_bits(weights(tmp_path), weights(out))
    assert metrics(tmp_path) == metrics(out)


class Noise(nn.Module):
    """Training adds random numbers, and evaluation the mean of this rank's so far."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", Tensor(np.zeros((1, 32), np.float32)))

    def forward(self, x):
        if self.training:
            noise = uniform(x.shape, device=x.device)
            self.mean.data[...] += 0.1 * (x.data.mean(0) - self.mean.data)
            return x + Tensor(noise)
        return x + self.mean


@pytest.mark.parametrize("ranks", [1, 2])
def test_random_numbers_and_running_statistics_go_on(tmp_path, monkeypatch, ranks):
    def model(*_):
        layers = [nn.Flatten(), nn.Linear(64, 32), Noise(), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(32, 10))

    monkeypatch.setattr("minidl.train.recipe.build_model", model)
    run(ranks, tmp_path / "whole", save_every=6, keep=99)
    path = tmp_path / "whole" / "checkpoints" / "step-00000018.json"
    run(ranks, tmp_path / "resumed", resume=str(path))
    assert same_bits(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_scale_of_the_loss_goes_on(tmp_path, monkeypatch, ranks):
    def scaled(*arguments, **options):  # overflows at first, then after each growth
        options["scaler"] = GradScaler(init_scale=2.0**126, growth_interval=3)
        return trainer.Trainer(*arguments, **options)

    monkeypatch.setattr("minidl.train.recipe.Trainer", scaled)
    run(ranks, tmp_path / "whole", save_every=7, keep=99)
    checkpoints = tmp_path / "whole" / "checkpoints"
    scales = []
    for step in (7, 14, 21):
        state = read(checkpoints / f"step-{step:08d}.json")["training"]
        steps = state["optimizer"]["state"]["1.weight"]["step"]
        scales.append(state["scaler"])
        assert steps < step and 0 < state["scaler"]["scale"] < 2.0**126
        out = tmp_path / f"from{step}"
        run(ranks, out, resume=str(checkpoints / f"step-{step:08d}.json"))
        assert same_bits(weights(out), weights(tmp_path / "whole"))
        assert metrics(out) == metrics(tmp_path / "whole")
    assert any(state["_growth_tracker"] for state in scales)


def test_a_scale_that_was_not_saved_is_missed():
    model = DataParallel(nn.Linear(2, 2), Alone())
    optimizer = SGD(model.parameters(), lr=0.1)
    state = trainer.Trainer(model, optimizer).state_dict()
    before = model.module.weight.numpy().copy()
    model.module.weight.data[...] += 1
    scaled = trainer.Trainer(model, optimizer, scaler=GradScaler())
    with pytest.raises(RuntimeError, match="GradScaler that was not enabled"):
        scaled.load_state_dict(state)
    np.testing.assert_array_equal(model.module.weight.numpy(), before + 1)


def stop_at(monkeypatch, step, act) -> None:
    """Call act(model) in that step of each rank, counted from now."""
    real, done = trainer.train_step, Counter()

    def step_and_act(model, *rest):
        done[model.communicator.rank] += 1
        if done[model.communicator.rank] == step:
            act(model)
        return real(model, *rest)

    monkeypatch.setattr(trainer, "train_step", step_and_act)


@pytest.mark.parametrize(
    "number, step",
    [(signal.SIGTERM, 1), (signal.SIGUSR1, STEPS), (signal.SIGTERM, STEPS + 3)],
)
def test_a_signal_stops_and_saves(tmp_path, monkeypatch, whole, number, step):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_at(patch, step, lambda model: os.kill(os.getpid(), number))
        with pytest.raises(Stopped, match=f"step-{step:08d}.json"):
            run(1, tmp_path)
    assert signal.getsignal(number) is before
    assert not (tmp_path / "model.safetensors").exists()
    run(1, tmp_path, resume="auto")
    assert same_bits(weights(tmp_path), weights(whole[1]))
    assert metrics(tmp_path) == metrics(whole[1])


@pytest.mark.parametrize("before, after", [(2, 3), (3, 1), (1, 2)])
def test_another_number_of_ranks_sees_every_sample_once(
    tmp_path, monkeypatch, whole, before, after
):
    seen = []  # (epoch, index)
    batches = Sampler.batches

    def watched(self, batch_size, device):
        for batch in batches(self, batch_size, device):
            if self.shuffle:  # the training's
                seen.extend((self.epoch, index) for index in batch.tolist())
            yield batch

    def ask(model):  # one rank alone
        model.exchange.stop_wanted = model.communicator.rank == before - 1

    monkeypatch.setattr(Sampler, "batches", watched)
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 7, ask)
        with pytest.raises(Stopped):
            run(before, tmp_path)
    run(after, tmp_path, resume="auto")
    assert Counter(seen) == Counter((e, i) for e in (0, 1) for i in range(1437))
    ours, theirs = weights(tmp_path), weights(whole[1])
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)
    ours, theirs = metrics(tmp_path), metrics(whole[1])
    assert [line["samples"] for line in ours] == [1437, 1437]
    for a, b in zip(ours, theirs, strict=True):
        assert a["epoch"] == b["epoch"] and a["lr"] == b["lr"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_says_where_it_stands(whole, ranks):
    out = whole[ranks]
    state = read(out / "checkpoints" / "step-00000016.json")
    assert state["config"]["batch_size"] == 100 and state["config"]["ranks"] == ranks
    assert state["standardize"]["mean"].shape == (1,)
    training = state["training"]
    assert " ".join(training) == "model optimizer scheduler scaler progress ranks"
    assert training["scaler"] == {}
    assert training["progress"]["epoch"] == 2 and training["progress"]["steps"] == 1
    assert len(training["progress"]["history"]) == 1
    assert len(training["ranks"]) == ranks
    assert sum(own["sums"][2] for own in training["ranks"]) == 100
    assert training["scheduler"]["last_epoch"] == 16
    moments = training["optimizer"]["state"]["1.weight"]
    assert moments["step"] == 16 and moments["exp_avg_sq"].min() >= 0


def test_what_is_damaged_is_passed_over(whole, tmp_path, capsys):
    ranks, out = 1, whole[1]
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for path in out.glob("checkpoints/step-000000[12]*"):
        (checkpoints / path.name).write_bytes(path.read_bytes())
    torn = checkpoints / "step-00000028.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    run(ranks, tmp_path, resume="auto")
    said = capsys.readouterr()
    assert "step-00000028.safetensors is damaged" in said.err
    assert "step-00000024.json (after step 9 of epoch 2)" in said.out
    assert same_bits(weights(tmp_path), weights(out))
    with pytest.raises(CheckpointError, match="cannot read the checkpoint .*28"):
        run(ranks, tmp_path, resume=str(torn))


def test_a_directory_to_resume_from(whole, tmp_path):
    for directory in (whole[1], whole[1] / "checkpoints"):
        run(1, tmp_path, resume=str(directory))
        assert same_bits(weights(tmp_path), weights(whole[1]))
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        run(1, tmp_path, resume=str(ROOT))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": "cnn"}, r"--model mlp \(now cnn\)"),
        ({"batch_size": 99, "seed": 1}, r"--batch-size 100 \(now 99\), --seed 0"),
        ({"precision": "fp16"}, r"--precision fp32 \(now fp16\)"),
        ({"epochs": 3}, r"--epochs 2 \(now 3\)"),
        ({"optimizer": "sgd"}, r"--optimizer adam \(now sgd\), --lr 0.004 \(now 0.05"),
    ],
    ids=["model", "batch size and seed", "precision", "epochs", "optimizer"],
)
def test_other_settings_are_refused(whole, tmp_path, change, words):
    with pytest.raises(UsageError, match=words):
        run(1, tmp_path, resume=str(whole[1]), **change)
    assert list(tmp_path.iterdir()) == []


def test_other_data_are_refused(whole, tmp_path, monkeypatch):
    from minidl.data import load

    def other(*_):
        training, test = load("digits")
        images = training.images.copy()
        images[0] = 255 - images[0]
        return type(training)(images, training.labels), test

    monkeypatch.setattr("minidl.train.recipe.load", other)
    with pytest.raises(UsageError, match="on other data than those found now"):
        run(1, tmp_path, resume=str(whole[1]))


def test_auto_begins_where_there_is_nothing_and_ends_where_all_is_done(tmp_path):
    run(1, tmp_path, resume="auto")
    first = weights(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    run(1, tmp_path, resume="auto")
    assert same_bits(weights(tmp_path), first) and len(metrics(tmp_path)) == 2


def test_a_training_anew_replaces_the_checkpoints(tmp_path):
    run(1, tmp_path, epochs=3)
    run(1, tmp_path, seed=1)
    assert Store(tmp_path / "checkpoints").steps() == [STEPS, 2 * STEPS]


@pytest.mark.parametrize("every, found", [(4, 8), (None, STEPS)])
def test_ranks_whose_weights_part_are_found(tmp_path, monkeypatch, every, found):
    def spoil(model):
        if model.communicator.rank == 1:
            dict(model.module.named_parameters())["3.weight"].data[0, 0] += 1e-6

    stop_at(monkeypatch, 6, spoil)
    with pytest.raises(
        DistributedError,
        match=rf"after step {found} the model of rank 0 differs from that of rank 1 "
        r"\(first in 3\.weight\)",
    ):
        run(3, tmp_path, check_every=every)


# --- processes --------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "minidl", "train", "--model", "mlp", "--batch-size"]
COMMAND += ["40", "--epochs", "3", "--save-every", "7", "--resume", "auto"]


def start(ranks, out, *flags):
    if ranks > 1 and (reason := why_no_ranks()):
        pytest.skip(reason)
    launcher = [find_mpiexec(), "-n", str(ranks)] if ranks > 1 else []
    return subprocess.Popen(
        [*launcher, *COMMAND, "--out", str(out), *flags],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def when_saved(process, out, count: int) -> None:
    """Wait until another `count` checkpoints are there, or the process has ended."""
    store, seen = Store(out / "checkpoints"), []
    start = time.monotonic()
    while len(seen) <= count and process.poll() is None:
        assert time.monotonic() < start + 30
        if (steps := store.steps()) and steps[-1] not in seen:
            seen.append(steps[-1])
        time.sleep(0.001)


def kill_rank(process, ranks, out, dice) -> None:
    """kill -9 for the process, or for one of its ranks."""
    victims = [process.pid]
    if ranks > 1:
        commands = {
            int(path.parent.name): path.read_bytes()
            for path in Path("/proc").glob("[0-9]*/cmdline")
        }
        victims = [
            pid
            for pid, command in commands.items()
            if bytes(out) in command and b"mpiexec" not in command
        ]
    os.kill(dice.choice(victims), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_kill_9_at_any_moment(tmp_path, ranks):
    process = start(ranks, tmp_path / "whole")
    assert process.wait(60) == 0
    dice, out = random.Random(ranks), tmp_path / "killed"
    for _ in range(3):
        process = start(ranks, out)
        when_saved(process, out, dice.randrange(1, 4))
        time.sleep(dice.random() * 0.05)
        if process.poll() is None:
            begin = time.monotonic()
            kill_rank(process, ranks, out, dice)
            _, stderr = process.communicate(timeout=15)
            assert process.returncode != 0 and time.monotonic() < begin + 15
            if ranks > 1:
                assert stderr.count("killed or has crashed; the last thing it") == 1
    process = start(ranks, out)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "resuming " in stdout
    assert same_bits(weights(out), weights(tmp_path / "whole"))
    assert metrics(out) == metrics(tmp_path / "whole")
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_signals_to_the_command(tmp_path, ranks):
    for number, status in (
        (signal.SIGTERM, 0),
        (signal.SIGUSR1, 0),
        (signal.SIGINT, 130),
    ):
        process = start(ranks, tmp_path, "--epochs", "60")
        when_saved(process, tmp_path, 2)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
        assert process.returncode == status, stderr
        assert "Traceback" not in stderr
        if status == 0:
            assert stdout.count("go on with --resume auto\n") == 1
            assert "stopped after step" in stdout
        else:
            assert stderr.rstrip().count("interrupted") >= 1
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "model.safetensors").exists()


def test_impossible_flags(capsys):
    for flags in (["--save-every", "0"], ["--keep", "0"], ["--check-every", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(["train", *flags])
        assert "a whole number above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--timeout", "0"])
    assert "--timeout" in capsys.readouterr().err
    assert main(["train", "--resume", "nowhere/step-00000001.json"]) == 1
    assert "cannot read the checkpoint nowhere" in capsys.readouterr().err
