"""Training by captured steps: the command, the trainer, when it looks at the loss."""

import os
import signal

import numpy as np
import pytest
import trainings

import minidl as md
from minidl import data, nn, optim
from minidl.array.errors import UsageError
from minidl.distributed import Alone, DataParallel, Simulated
from minidl.train import CapturedStep, DivergedError, Progress, Trainer, train_step
from minidl.train.captured import step_for
from minidl.train.command_line import main
from minidl.train.progress import LOOK_EVERY, Tally
from minidl.train.recipe import Settings
from minidl.train.report import Reporter
from minidl.train.resume import Stopped

pytestmark = pytest.mark.usefixtures("quickly")


def trained(out, graph: str, **more) -> tuple[dict, list]:
    """The weights, and the metrics but for times."""
    flags = {"model": "mlp", "batch_size": 100, "epochs": 2, "device": "gpu", **more}
    trainings.run(Settings(graph=graph, out=str(out), **flags))
    return trainings.weights(out), trainings.metrics(out)


@pytest.mark.slow
def test_the_recipe_gives_the_same_either_way(stand_in, tmp_path, capsys):
    weights, metrics = trained(tmp_path / "off", "off")
    stand_in.reset()
    for graph in ("on", "auto"):
        again, others = trained(tmp_path / graph, graph)
        assert metrics == others and weights.keys() == again.keys()
        assert all(np.array_equal(weights[k], again[k]) for k in weights)
    assert stand_in.launches.count("graph") == 2 * (2 * 14 - 3)  # not the last of 37
    assert "not captured" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_stops_a_captured_training(stand_in, tmp_path, monkeypatch):
    weights, metrics = trained(tmp_path / "whole", "on")
    look = Trainer.look

    def send(self):
        if self.progress.total_steps == 14 and self.step.graphs:
            os.kill(os.getpid(), signal.SIGUSR1)
        return look(self)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "look", send)
        trained(tmp_path / "parts", "on")
    again, others = trained(tmp_path / "parts", "on", resume="auto")
    assert metrics == others
    assert all(np.array_equal(weights[k], again[k]) for k in weights)


class Losses(Reporter):
    def __init__(self):
        self.seen = []

    def step(self, loss):
        self.seen.append(loss)


def trainer_of(step=None, lr=0.1, size=70):
    """A trainer on the device, and a loader of batches of one."""
    md.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(size, 1, 2, 2)).astype("f4")
    dataset = data.Dataset(images, rng.integers(0, 3, size), ("a", "b", "c"))
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to("cuda")
    model = DataParallel(network, Alone())
    reporter = Losses()
    optimizer = optim.SGD(model.parameters(), lr=lr)
    trainer = Trainer(model, optimizer, reporters=[reporter], step=step)
    return trainer, data.DataLoader(dataset, 1, device="cuda"), reporter


@pytest.mark.parametrize("step", [train_step, CapturedStep()])
def test_an_epoch_waits_now_and_then(stand_in, step):
    trainer, loader, reporter = trainer_of(step)
    stand_in.reset()
    loss, samples = trainer.train_epoch(loader)
    looks = len({1, 1 + LOOK_EVERY, 1 + 2 * LOOK_EVERY, 70}) + 1
    assert stand_in.syncs == ["get"] * looks and samples == 70
    assert len(set(reporter.seen)) == looks - 1  # as of the last look
    assert reporter.seen[-1] == loss and np.isfinite(loss)


def test_an_evaluation_waits_once(stand_in):
    trainer, loader, _ = trainer_of()
    from minidl.train import evaluate

    stand_in.reset()
    loss, accuracy = evaluate(trainer.model, loader)
    assert stand_in.syncs == ["get"] and loss > 0 and 0 < accuracy < 1


def test_a_loss_that_is_no_number_is_told_later_and_never_saved(stand_in):
    trainer, loader, _ = trainer_of(lr=1e38)
    with pytest.raises(DivergedError, match=f"by step {1 + LOOK_EVERY} of epoch 1"):
        trainer.train_epoch(loader)
    with pytest.raises(DivergedError):
        trainer.state_dict()


def test_a_tally_on_a_cpu_is_always_known():
    tally = Tally()
    for n in (1, 2, 3):
        tally.add(md.tensor(0.5), n, 10)
        assert tally.due and tally.found.tolist() == [n / 2, n * (n + 1) / 2, 10 * n]
    assert Progress().sums.look().tolist() == [0, 0, 0]


# --- where it cannot be


def test_the_flag_on_a_cpu(tmp_path, capsys):
    flags = ["train", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*flags, "--graph", "on"]) == 2
    assert "--graph on: CUDA graphs need a GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "graph, device, kind",
    [("auto", "cpu", False), ("off", "cuda:0", False), ("auto", "cuda:0", True)],
)
def test_what_the_flag_chooses(graph, device, kind):
    model = DataParallel(nn.Linear(1, 1), Alone())
    step = step_for(graph, model, optim.SGD(model.parameters()), device)
    assert isinstance(step, CapturedStep) if kind else step is None


def test_a_flag_that_is_none(tmp_path):
    with pytest.raises(UsageError, match="one of on, off, auto, not 'maybe'"):
        trainings.run(Settings(graph="maybe", out=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_ranks_that_meet_on_the_host_are_not_captured():
    def rank(communicator):
        model = DataParallel(nn.Linear(1, 1), communicator)
        rule = optim.SGD(model.parameters())
        with pytest.raises(UsageError, match="gradients of 2 ranks meet on the host"):
            step_for("on", model, rule, "cuda:0")

    Simulated(2).run(rank)


def test_an_optimizer_of_the_host_is_not_captured():
    class Other:
        pass

    model = DataParallel(nn.Linear(1, 1), Alone())
    with pytest.raises(UsageError, match="Other keeps what a step changes on the host"):
        step_for("on", model, Other(), "cuda:0")
