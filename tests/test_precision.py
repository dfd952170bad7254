"""Training in every precision: the command, resuming, ranks, a GPU, a lost loss."""

import json
from copy import deepcopy

import numpy as np
import pytest
import trainings
from trainings import same_bits, weights

import minidl as md
from minidl import data, nn, optim
from minidl.array.device import bfloat16
from minidl.array.errors import DependencyError, UsageError
from minidl.distributed import Alone, DataParallel
from minidl.train import DivergedError, Trainer
from minidl.train.command_line import main
from minidl.train.evaluation import evaluate_checkpoint
from minidl.train.precision import START, Precision
from minidl.train.progress import LOOK_EVERY
from minidl.train.recipe import Settings
from minidl.train.store import read
from minidl.train.trainer import PATIENCE

pytestmark = pytest.mark.usefixtures("quickly")
needs_bfloat16 = pytest.mark.skipif(bfloat16 is None, reason="no ml_dtypes")
LOW = [pytest.param("bf16", marks=needs_bfloat16), "fp16"]
SETTINGS = {"model": "mlp", "batch_size": 100, "epochs": 2, "device": "cpu"}


def run(out, ranks: int = 1, **more) -> list:
    """Train; the metrics but for times."""
    trainings.run(Settings(**{**SETTINGS, "out": str(out), **more}), ranks)
    return trainings.metrics(out)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The metrics of fp32."""
    return run(tmp_path_factory.mktemp("exact") / "fp32", epochs=4)


@pytest.mark.parametrize("precision", LOW)
def test_it_learns_what_fp32_learns(tmp_path, exact, precision):
    out = tmp_path / "out"
    found = run(out, precision=precision, epochs=4)
    assert found != exact
    assert abs(found[-1]["test_accuracy"] - exact[-1]["test_accuracy"]) < 0.02
    assert abs(found[-1]["test_loss"] - exact[-1]["test_loss"]) < 0.02
    assert {array.dtype for array in weights(out).values()} == {np.dtype("float32")}
    assert json.loads((out / "config.json").read_text())["precision"] == precision


@pytest.mark.parametrize("precision", LOW)
def test_an_evaluation_computes_as_the_training_did(tmp_path, precision, capsys):
    last = run(tmp_path / "out", precision=precision)[-1]
    path = str(tmp_path / "out" / "model.safetensors")
    plain = {"dataset": None, "device": "cpu", "batch_size": 100}
    loss, accuracy, _ = evaluate_checkpoint(path, Settings(**plain), Alone())
    assert (loss, accuracy) == (last["test_loss"], last["test_accuracy"])
    other = Settings(**plain, precision="fp32")
    assert 0 < abs(evaluate_checkpoint(path, other, Alone())[0] - loss) < 1e-2
    flags = ["evaluate", "--checkpoint", path, "--device", "cpu", "--batch-size", "100"]
    capsys.readouterr()
    assert main([*flags, "--precision", "fp32"]) == 0 == main(flags)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] != printed[1] and f"test loss {loss:.6f}" in printed[1]


@pytest.mark.parametrize("precision", LOW)
def test_resuming_gives_the_same_bits(tmp_path, precision):
    whole = run(tmp_path / "whole", precision=precision, save_every=10, keep=9)
    path = tmp_path / "whole" / "checkpoints" / "step-00000010.json"
    scaler = read(path)["training"]["scaler"]
    assert bool(scaler) == (precision == "fp16")
    assert not scaler or scaler["scale"] == START and scaler["_growth_tracker"] == 10
    parts = run(tmp_path / "parts", precision=precision, resume=str(path))
    assert parts == whole
    assert same_bits(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("precision", LOW)
def test_ranks_agree(tmp_path, precision):
    one = run(tmp_path / "one", precision=precision)
    two = run(tmp_path / "two", ranks=2, precision=precision)
    assert abs(one[-1]["train_loss"] - two[-1]["train_loss"]) < 0.01
    assert abs(one[-1]["test_accuracy"] - two[-1]["test_accuracy"]) < 0.02


def test_a_copy_of_a_model_computes_with_its_own_weights():
    model = nn.Linear(2, 2)
    Precision("fp16", "cpu").apply(model)
    copy = deepcopy(model)
    copy.weight.data[...] = copy.bias.data[...] = 0
    assert copy(md.ones(1, 2)).dtype == np.float16
    assert not copy(md.ones(1, 2)).numpy().any() and model(md.ones(1, 2)).numpy().any()


# --- on a GPU -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOW)
def test_a_gpu_computes_what_a_cpu_does(stand_in, tmp_path, precision):
    here = run(tmp_path / "cpu", precision=precision)
    found = {}
    for graph in ("off", "on"):
        out = tmp_path / graph
        found[graph] = run(out, precision=precision, device="gpu", graph=graph)
    assert found["off"] == found["on"]
    assert same_bits(weights(tmp_path / "off"), weights(tmp_path / "on"))
    assert abs(found["on"][-1]["test_loss"] - here[-1]["test_loss"]) < 0.01


@pytest.mark.parametrize("precision", LOW)
def test_a_step_casts_no_weights_and_waits_for_nothing(stand_in, precision):
    trainer, loader = trainer_of("cuda", precision)
    storage = next(trainer.model.parameters()).storage
    storage.keep_low(trainer.precision.dtype)
    looked = []
    look = Trainer.look
    trainer.look = lambda: looked.append(len(stand_in.syncs)) or look(trainer)
    stand_in.reset()
    trainer.train_epoch(loader)
    assert stand_in.syncs == ["get"] * len(looked) and len(looked) < 6
    assert np.array_equal(
        storage.low.get(), storage.data.get().astype(trainer.precision.dtype)
    )


def test_tf32_is_a_switch_of_products(stand_in, tmp_path, monkeypatch):
    seen = []
    fit = Trainer.fit

    def watched(*arguments):
        seen.append(md.get_float32_matmul_precision())
        return fit(*arguments)

    monkeypatch.setattr(Trainer, "fit", watched)
    for precision in ("tf32", "fp32"):
        run(tmp_path / precision, precision=precision, device="gpu", epochs=1)
    assert seen == ["high", "highest"]
    assert md.get_float32_matmul_precision() == "highest"
    path = str(tmp_path / "tf32" / "model.safetensors")  # on a CPU this is float32
    evaluate_checkpoint(path, Settings(dataset=None, device="cpu"), Alone())


# --- what is refused ------------------------------------------------------------------


def test_what_cannot_be_is_refused(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    flags = ["train", "--device", "cpu", "--out", str(out), "--precision"]
    assert main([*flags, "tf32"]) == 2
    assert "on a CPU choose fp32" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*flags, "int8"])
    with pytest.raises(UsageError, match="fp32, tf32, bf16, fp16"):
        Precision("int8", "cpu")
    monkeypatch.setitem(Precision.__init__.__globals__["NARROW"], "bf16", None)
    with pytest.raises(DependencyError, match="ml_dtypes"):
        Precision("bf16", "cuda:0")
    assert not out.exists()


# --- a loss that is no number ---------------------------------------------------------


def trainer_of(device: str, precision: str, size: int = 70):
    """A trainer of a small network, and a loader of batches of one."""
    md.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(size, 1, 2, 2)).astype("f4")
    dataset = data.Dataset(images, rng.integers(0, 3, size), ("a", "b", "c"))
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to(device)
    chosen = Precision(precision, device)
    chosen.apply(network)
    model = DataParallel(network, Alone())
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, chosen.loss_fn, scaler=chosen.scaler)
    trainer.precision = chosen
    return trainer, data.DataLoader(dataset, 1, device=device)


def spoil(trainer, wrong) -> list:
    """Make the losses of these steps infinite; the list fills with the others."""
    fine, loss_fn, steps = [], trainer.loss_fn, iter(range(10**6))

    def spoiled(scores, labels):
        bad = next(steps) in wrong
        loss = loss_fn(scores * float("inf") if bad else scores, labels)
        if not bad:
            fine.append(loss.total.item())
        return loss

    trainer.loss_fn = spoiled
    return fine


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp16_leaves_out_a_step_whose_loss_is_no_number(stand_in, device):
    trainer, loader = trainer_of(device, "fp16")
    fine = spoil(trainer, {0, 5, 6, 50})
    loss, samples = trainer.train_epoch(loader)
    assert samples == 70 and len(fine) == 66
    assert loss == pytest.approx(np.mean(fine), rel=1e-5)
    assert all(np.isfinite(p.numpy()).all() for p in trainer.model.parameters())
    assert trainer.scaler.get_scale() == START / 2**4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("device, told", [("cpu", 40), ("cuda", 65)])
def test_fp16_too_diverges(stand_in, device, told):
    trainer, loader = trainer_of(device, "fp16")
    spoil(trainer, range(8, 70))
    assert LOOK_EVERY == PATIENCE == 32
    with pytest.raises(DivergedError, match=f"in a row, by step {told} of epoch 1"):
        trainer.train_epoch(loader)


@needs_bfloat16
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bf16_diverges_at_once():
    trainer, loader = trainer_of("cpu", "bf16")
    spoil(trainer, {5})
    with pytest.raises(DivergedError, match="in step 6|by step 6"):
        trainer.train_epoch(loader)
