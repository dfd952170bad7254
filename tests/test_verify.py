"""verify says that N ranks train as one exactly when they do, and otherwise why not."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks

import minidl as md
import minidl.nn.functional as F
from minidl import nn, optim
from minidl.array.errors import DistributedError, UsageError
from minidl.data import DataLoader, Dataset, Sampler
from minidl.distributed import (
    DataParallel,
    Simulated,
    SyncBatchNorm,
    causes,
    init,
    verify,
)
from minidl.distributed.faults import FAULTS, MissingDivision
from minidl.train.command_line import main

SAMPLES, BATCH = 31, 8  # batches of 8, 8, 8 and an uneven 7
rng = np.random.default_rng(0)
INPUTS = rng.standard_normal((SAMPLES, 6)).astype(np.float32)
LABELS = rng.integers(0, 4, SAMPLES)


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def check(
    ranks=2, model=mlp, loss=F.cross_entropy, dataset=(INPUTS, LABELS), **options
):
    return verify(model, loss, dataset, BATCH, ranks=ranks, **options)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_that_agree(ranks):
    report = check(ranks)
    assert report.agrees and report.cause is None
    assert report.steps == 6 and report.difference < 1e-13
    assert f"{ranks} ranks train as one: over 6 steps" in str(report)


def test_ignored_labels_and_ranks_without_samples_agree():
    labels = np.where(np.arange(SAMPLES) % 3, LABELS, -100)
    assert check(3, dataset=(INPUTS, labels)).agrees
    assert check(8, dataset=(INPUTS[:19], labels[:19])).agrees  # 3 are left in the end


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_named(name, ranks):
    report = check(ranks, plant=name)
    assert not report.agrees
    assert report.cause == FAULTS[name][1], str(report)
    least = 1e-5 if name == "compression" else 1e-3  # which is no mistake
    assert report.difference > least and report.finding.parameter is not None
    assert f"likely cause: {report.cause}: " in str(report)


def test_the_faults_that_must_be_among_them():
    wanted = "missing-division skipped-bucket stale-gradients different-shuffling "
    wanted += "forgotten-last-batch batch-norm mean-of-means rank-seed"
    assert set(wanted.split()) <= set(FAULTS)


@pytest.mark.parametrize(
    "name, step, parameter, quantity",
    [
        ("missing-division", 1, "0.weight", "gradient"),
        ("skipped-bucket", 1, "2.weight", "gradient"),
        ("stale-gradients", 2, "0.weight", "gradient"),
        ("mean-of-means", 4, "0.weight", "gradient"),  # until then shares are equal
        ("forgotten-last-batch", 4, "0.weight", "gradient"),
        ("padded-batch", 4, "0.weight", "gradient"),
        ("rank-seed", 0, "0.weight", "weight"),
    ],
)
def test_the_first_step_and_parameter_that_differ(name, step, parameter, quantity):
    finding = check(2, plant=name).finding
    found = finding.step, finding.parameter, finding.quantity
    assert found == (step, parameter, quantity)


class Changed(DataParallel):
    """Right, and then something is done to what came out."""

    def backward(self, loss):
        super().backward(loss)
        self.change(dict(self.module.named_parameters()))


def changed(change):
    return type("Changed", (Changed,), {"change": staticmethod(change)})


def scale_all(factor):
    def change(parameters):
        for p in parameters.values():
            p.grad.data[...] *= factor

    return change


def zero_last(parameters):
    parameters["2.bias"].grad.data[...] = 0


def add_noise(parameters):
    parameters["0.bias"].grad.data[...] += np.arange(8)


def shrink_weights(parameters):
    parameters["2.weight"].data[...] *= 0.9


@pytest.mark.parametrize(
    "change, cause, parameter, words",
    [
        (scale_all(3), causes.DIVISION, "0.weight", "3 times that of the global batch"),
        (scale_all(0.5), causes.TWICE, "0.weight", "0.5 times"),
        (zero_last, causes.SKIPPED, "2.bias", "2.bias is zero on every rank"),
        (add_noise, causes.UNKNOWN, "0.bias", "fits no cause"),
        (shrink_weights, causes.UPDATE, "2.weight", "gradients agree"),
    ],
)
def test_an_exchange_of_ones_own(change, cause, parameter, words):
    report = check(2, make_exchange=changed(change))
    assert report.cause == cause and words in report.finding.why
    assert report.finding.parameter == parameter


class Rounded:
    """An all-reduce of numbers of fewer digits: right but for their rounding."""

    sent = np.float32

    def __init__(self, module, communicator):
        self.module, self.communicator = module, communicator

    def __call__(self, inputs):
        return self.module(inputs)

    def backward(self, loss):
        loss.total.backward()
        total = self.communicator.all_reduce(np.array([loss.count], float))[0]
        for p in self.module.parameters():
            sent = p.grad.data.astype(self.sent)
            p.grad.data[...] = self.communicator.all_reduce(sent) / total


def test_an_exchange_that_is_no_dataparallel_and_a_tolerance():
    assert check(3, make_exchange=Rounded).cause == causes.ROUNDING
    assert check(3, make_exchange=Rounded, tolerance=1e-5).agrees


class Half(Rounded):
    sent = np.float16


class HalfTwice(Half):
    """Rounds, and doubles two of the gradients."""

    def backward(self, loss):
        super().backward(loss)
        for p in list(self.module.parameters())[:2]:
            p.grad.data[...] *= 2


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_compression_is_named(ranks, half):
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    report = check(ranks, make_exchange=partial(DataParallel, compression=half))
    assert report.cause == causes.COMPRESSION and f" in {half}, " in str(report)
    assert report.finding.step == 1 and report.finding.parameter == "0.weight"


def test_compression_of_ones_own_and_what_is_more_than_it():
    assert check(3, make_exchange=Half).cause == causes.COMPRESSION
    assert check(3, make_exchange=Half, tolerance=1e-2).agrees
    assert check(3, make_exchange=HalfTwice).cause == causes.UNKNOWN


def test_an_overflow_of_what_is_sent():
    def huge(scores, labels):
        return F.mse_loss(1e5 * scores, scores.detach() * 0)

    exchange = partial(DataParallel, compression="float16")
    report = check(2, loss=huge, lr=1e-12, make_exchange=exchange)
    assert report.cause == causes.COMPRESSION and "its overflow alone" in str(report)


def synchronised():
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)]
    return SyncBatchNorm.convert(nn.Sequential(*layers))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", [None, *FAULTS])
def test_synchronised_batch_norm_hides_no_fault(name, ranks):
    report = check(ranks, model=synchronised, plant=name)
    assert report.cause == (FAULTS[name][1] if name else None), str(report)


def test_a_loss_that_couples_samples():
    def spread(scores, labels):
        return F.mse_loss(scores, scores.mean(0, keepdim=True) * md.ones_like(scores))

    assert check(2, loss=spread).cause == causes.COUPLED


@pytest.mark.parametrize(
    "options, cause",
    [({}, None), ({"seed": 5}, causes.SHUFFLE), ({"drop_last": True}, "last batch")],
)
def test_a_loader_of_ones_own(options, cause):
    def make_loader(communicator):
        own = options if communicator.rank or "drop_last" in options else {}
        own = own if communicator.size > 1 else {}
        place = communicator.size, communicator.rank
        sampler = Sampler(range(SAMPLES), *place, **own)
        dataset = Dataset(INPUTS, LABELS)
        return DataLoader(dataset, BATCH, sampler=sampler, transform=lambda x: 2 * x)

    report = check(3, make_loader=make_loader)
    assert report.agrees if cause is None else cause in report.cause


def test_a_rank_that_alone_forgets_its_last_batch():
    def make_loader(communicator):
        place = communicator.size, communicator.rank
        sampler = Sampler(range(SAMPLES), *place, drop_last=communicator.rank == 1)
        return DataLoader(Dataset(INPUTS, LABELS), BATCH, sampler=sampler)

    report = check(3, make_loader=make_loader)
    assert report.cause == causes.LAST_BATCH and report.finding.step == 4
    assert "rank 1 starts epoch 2" in report.finding.why


def test_images_convolutions_and_float32_data():
    images = rng.standard_normal((SAMPLES, 1, 4, 4)).astype(np.float32)

    def cnn():
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4))

    assert check(2, model=cnn, dataset=Dataset(images, LABELS)).agrees


def test_a_job_that_has_ranks_already():
    def run(communicator):
        return check(None)

    assert all(report.ranks == 3 for report in Simulated(3).run(run))

    def ask_for_more(communicator):
        check(5)

    with pytest.raises(ValueError, match="this job has 3 ranks, not 5"):
        Simulated(3).run(ask_for_more)


def test_what_cannot_be_verified():
    with pytest.raises(DistributedError, match="smaller lr"):
        check(2, loss=lambda s, t: F.mse_loss(s * s, s * 0), lr=1e9)
    with pytest.raises(DistributedError, match="another model on rank 1 than on one"):
        check(2, model=lambda: nn.Linear(6, 4 + init().rank))
    with pytest.raises(ValueError, match="gives no batch"):
        check(2, make_loader=lambda communicator: [])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        check(2, steps=0)
    with pytest.raises(UsageError, match="no fault is called 'x'; known: missing-d"):
        check(2, plant="x")


def test_adam_would_hide_a_missing_division():
    def run(communicator, kind):
        md.manual_seed(0)
        model = mlp()
        parallel = kind(model, communicator)
        optimizer = optim.Adam(model.parameters(), lr=1e-3)
        share = slice(communicator.rank * 15, communicator.rank * 15 + 15)
        for _ in range(5):
            optimizer.zero_grad()
            scores = parallel(md.tensor(INPUTS[share]))
            parallel.backward(F.cross_entropy(scores, md.tensor(LABELS[share])))
            optimizer.step()
        return model[0].weight.numpy()

    right, wrong = (
        Simulated(2).run(run, kind)[0] for kind in (DataParallel, MissingDivision)
    )
    np.testing.assert_allclose(wrong, right, atol=1e-6)
    assert check(2, plant="missing-division").difference > 0.99


# The command ----------------------------------------------------------------------


def test_the_command_agrees_and_finds_what_is_planted(capsys):
    assert main(["verify", "--model", "mlp"]) == 0
    assert "2 ranks train as one: over 7 steps" in capsys.readouterr().out
    status = main(
        ["verify", "--ranks", "3", "--batch-size", "9", "--plant", "rank-seed"]
    )
    assert status == 1
    assert "likely cause: rank-dependent seed" in capsys.readouterr().out
    for flags in (["--plant", "nothing"], ["--ranks", "1"]):
        with pytest.raises(SystemExit) as exit:
            main(["verify", *flags])
        assert exit.value.code == 2


def test_the_command_does_not_agree_where_a_planted_fault_cannot_show(capsys):
    flags = ["--model", "mlp", "--plant", "stale-gradients", "--steps"]
    assert main(["verify", *flags, "1"]) == 2
    said = capsys.readouterr()
    assert "take more steps" in said.err and not said.out
    assert main(["verify", *flags, "2"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_command_finds_every_fault(name, capsys):
    options = ["--model", "mlp", "--ranks", "4"]
    assert main(["verify", *options, "--plant", name]) == 1
    assert f"likely cause: {FAULTS[name][1]}: " in capsys.readouterr().out


def verify_under_mpi(communicator):
    """What a rank of the MPI test runs."""
    reports = {"": check(None)}
    reports |= {name: check(None, plant=name) for name in FAULTS}
    if communicator.rank == 0:
        print(json.dumps({name: report.cause for name, report in reports.items()}))


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_ranks_of_mpi(n):
    run = run_ranks(n, verify_under_mpi)
    assert run.returncode == 0, run.stderr
    expected = {"": None} | {name: cause for name, (_, cause) in FAULTS.items()}
    assert json.loads(run.stdout) == expected


@pytest.mark.mpi
@pytest.mark.slow
def test_the_command_under_mpirun():
    command = Path(md.__file__).parent / "__main__.py"
    run = run_ranks(2, command, "verify", "--plant", "mean-of-means")
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr
    assert run.stdout.count("likely cause: uneven batch") == 1
    run = run_ranks(2, command, "verify", "--ranks", "3")
    assert run.returncode == 2, run.stderr
    assert "mpirun has started 2" in run.stderr
