"""The command `minidl`, as a user meets it: what it writes, and what it refuses."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ranks import ROOT, environment, find_mpiexec, run_job, why_no_ranks
from safetensors.numpy import save

import minidl as md
from minidl import nn
from minidl.array.errors import CheckpointError
from minidl.data import Dataset, Standardize, load
from minidl.distributed import Alone
from minidl.train.checkpoint import digest, load_model, read
from minidl.train.command_line import main
from minidl.train.recipe import Settings, train

QUICK = ["train", "--epochs", "2", "--batch-size", "64"]
RESULTS = [
    "checkpoints",
    "config.json",
    "curves.png",
    "metrics.jsonl",
    "model.safetensors",
]
METRICS = (
    "epoch train_loss test_loss test_accuracy samples seconds samples_per_second lr"
).split()


def run(*arguments, ranks=1, timeout=60, **env):
    """Run `minidl` with these arguments; a finished process, or the Run of a job."""
    command = [sys.executable, "-m", "minidl", *map(str, arguments)]
    if ranks > 1:
        if reason := why_no_ranks():
            pytest.skip(reason)
        return run_job([find_mpiexec(), "-n", str(ranks), *command], timeout, **env)
    return subprocess.run(
        command,
        env=environment(**env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a short training, and what the command printed."""
    out = tmp_path_factory.mktemp("run") / "deep" / "down"
    result = run(*QUICK, "--seed", 3, "--out", out)
    assert result.returncode == 0, result.stderr
    return out, result


def test_train_writes_its_results_and_says_where(trained):
    out, result = trained
    assert sorted(p.name for p in out.iterdir()) == RESULTS
    assert str(out / "model.safetensors") in result.stdout
    assert str(out / "curves.png") in result.stdout
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert [list(line) for line in lines] == [METRICS, METRICS]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["samples"] == 1437 and lines[1]["lr"] < lines[0]["lr"]
    assert f"{100 * lines[1]['test_accuracy']:.2f} %" in result.stdout
    assert lines[1]["test_loss"] < lines[0]["test_loss"] < 2.3
    config = json.loads((out / "config.json").read_text())
    assert (config["seed"], config["batch_size"], config["ranks"]) == (3, 64, 1)
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "epoch 2/2" in result.stderr  # the progress bar


def test_the_checkpoint_has_pytorchs_names_and_the_scaling(trained):
    state, config, scaling = load_model(trained[0] / "model.safetensors")
    model = nn.SmallCNN(1, 8, 10, (16, 32), 0)
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert "0.weight" in state and "6.bias" in state
    assert config["model"] == "cnn" and config["dataset"] == "digits"
    train, _ = load("digits")
    fitted = Standardize().fit(train.images)
    assert np.array_equal(scaling.mean, fitted.mean)
    assert np.array_equal(scaling.std, fitted.std)


@pytest.mark.parametrize(
    "ranks", [1, pytest.param(3, marks=[pytest.mark.mpi, pytest.mark.slow])]
)
def test_evaluate_is_exact_on_any_number_of_ranks(trained, ranks):
    out, _ = trained
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    result = run("evaluate", "--checkpoint", out / "model.safetensors", ranks=ranks)
    assert result.returncode == 0, result.stderr
    right = round(last["test_accuracy"] * 360)
    assert f"({right} of 360)" in result.stdout
    assert f"test loss {last['test_loss']:.6f}" in result.stdout

    state, _, scaling = load_model(out / "model.safetensors")
    model = nn.SmallCNN(1, 8, 10, (16, 32), 0)
    model.load_state_dict(state)
    _, test = load("digits")
    with md.no_grad():
        scores = model(md.tensor(scaling(test.images))).numpy()
    assert (scores.argmax(1) == test.labels).sum() == right


def weights(directory):
    return load_model(directory / "model.safetensors")[0]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_the_same_seed_ends_in_the_same_bits(tmp_path, ranks):
    for name in ("a", "b"):
        result = run(*QUICK, "--out", tmp_path / name, ranks=ranks)
        assert result.returncode == 0, result.stderr
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.slow
@pytest.mark.mpi
def test_ranks_do_not_change_what_is_learnt(tmp_path, trained):
    result = run(*QUICK, "--seed", 3, "--out", tmp_path, ranks=2)
    assert result.returncode == 0, result.stderr
    alone, together = weights(trained[0]), weights(tmp_path)
    for name in alone:
        np.testing.assert_allclose(together[name], alone[name], atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--model", "mlp", "--optimizer", "adamw", "--weight-decay", "0.01"),
        ("--optimizer", "sgd", "--lr", "0.03", "--device", "cpu"),
    ],
    ids=["mlp-adamw", "cnn-sgd"],
)
def test_other_models_and_rules_learn(tmp_path, flags):
    result = run(*QUICK[:1], "--epochs", 4, *flags, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["test_accuracy"] > 0.9


# --- refusals: (arguments, exit status, what the one sentence says) --------------

REFUSALS = {
    "no command": ([], 2, "command"),
    "no batch": (["train", "--batch-size", "0"], 2, "above 0, got '0'"),
    "half an epoch": (["train", "--epochs", "1.5"], 2, "whole number"),
    "lr": (["train", "--lr", "nan"], 2, "--lr: expected a finite number above 0"),
    "infinite lr": (["train", "--lr", "1e400"], 2, "a finite number above 0, got"),
    "long seed": (["train", "--seed", "9" * 23], 2, f"at most {2**64 - 1}, got"),
    "verify's seed": (["verify", "--seed", str(2**64)], 2, f"at most {2**64 - 1}"),
    "no number": (["train", "--seed", "9" * 5000], 2, "a whole number of at least 0"),
    "epochs": (["train", "--epochs", "1" + "0" * 30], 2, f"at most {2**63 - 1}"),
    "negative decay": (["train", "--weight-decay", "-1"], 2, "at least 0"),
    "seed": (["train", "--seed", "-1"], 2, "--seed"),
    "data set": (["train", "--dataset", "cifar"], 2, "'digits', 'mnist'"),
    "model": (["train", "--model", "vgg"], 2, "'cnn', 'mlp'"),
    "optimizer": (["train", "--optimizer", "lion"], 2, "'adam', 'adamw', 'sgd'"),
    "device": (["train", "--device", "tpu"], 2, "'cpu', 'gpu', 'auto'"),
    "unknown flag": (["train", "--fast"], 2, "--fast"),
    "directory": (["train", "--dataset", "mnist", "--data", "/nowhere"], 2, "/nowhere"),
    "unreadable": (["train", "--data", "x" * 300], 2, "cannot be read: File name"),
    "verify's": (["verify", "--data", "x" * 300], 2, "cannot be read: File name"),
    "digits from a directory": (["train", "--data", "."], 2, "inside the package"),
    "no checkpoint named": (["evaluate"], 2, "--checkpoint"),
    "no checkpoint there": (["evaluate", "--checkpoint", "x"], 1, "no checkpoint x"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name, capsys, tmp_path, monkeypatch):
    arguments, status, words = REFUSALS[name]
    monkeypatch.chdir(tmp_path)
    try:
        assert main(arguments) == status
    except SystemExit as exit:
        assert exit.code == status
    stdout, stderr = capsys.readouterr()
    assert words in stderr and stderr.count("\n") == 1 and not stdout
    assert not list(tmp_path.iterdir())


def test_a_directory_below_a_closed_one(capsys, monkeypatch):
    def closed(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", closed)
    assert main(["train", "--dataset", "mnist", "--data", "closed/mnist"]) == 2
    expected = "minidl train: --data closed/mnist cannot be read: Permission denied\n"
    assert capsys.readouterr().err == expected


def test_the_largest_seed(tmp_path):
    settings = Settings(seed=2**64 - 1, epochs=1, batch_size=360, out=str(tmp_path))
    assert len(train(settings, Alone())) == 1


def images(monkeypatch, height, width):
    """Let every data set be a few images of this size."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, height, width))
    some = Dataset(pixels.astype(np.uint8), np.arange(40) % 10)
    monkeypatch.setattr("minidl.train.recipe.load", lambda *_: (some, some))
    monkeypatch.setattr("minidl.train.verification.load", lambda *_: (some, some))


@pytest.mark.parametrize("size", [(5, 40), (28, 1), (1, 28), (1, 1)])
def test_images_that_the_model_does_not_take(tmp_path, monkeypatch, capsys, size):
    images(monkeypatch, *size)
    out = tmp_path / "out"
    short = ["train", "--epochs", "1", "--out", str(out), "--model"]
    words = f"these have {size[0]} x {size[1]}: choose --model mlp\n"
    for arguments in ([*short, "cnn"], ["verify", "--batch-size", "8"]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.endswith(words) and said.count("\n") == 1
    assert not out.exists()
    assert main([*short, "mlp"]) == 0


def test_the_smallest_images(tmp_path, monkeypatch):
    images(monkeypatch, 2, 2)
    assert main(["train", "--epochs", "1", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize("package", ["safetensors", "tqdm", "matplotlib"])
def test_a_missing_package_is_told_before_anything_is_written(
    tmp_path, monkeypatch, capsys, package
):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out"
    assert main(["train", "--epochs", "1", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert package in said and "pip install" in said and said.count("\n") == 1
    assert not out.exists()


def old_results(out):
    """Let `out` hold the results of an earlier training, one killed while it wrote."""
    (out / "checkpoints").mkdir(parents=True)
    for name in (*RESULTS[1:], "mine.txt", ".model.safetensors.a1.part"):
        (out / name).write_text("old")
    (out / "checkpoints" / ".step-00000004.json.x.part").write_text("torn")


def test_what_an_aborted_training_leaves_belongs_together(tmp_path):
    old_results(tmp_path)
    flags = ["--optimizer", "sgd", "--lr", "1e7", "--out", str(tmp_path)]
    assert main(["train", *flags]) == 1  # diverges
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["checkpoints", "config.json", "mine.txt"]
    assert not list((tmp_path / "checkpoints").iterdir())
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"] == "sgd"


@pytest.mark.parametrize("flags, width", [(["--resume", "x"], 8), ([], 40)])
def test_a_refused_training_leaves_old_results_alone(
    tmp_path, monkeypatch, flags, width
):
    old_results(tmp_path)
    before = sorted((p, p.is_file() and p.read_text()) for p in tmp_path.rglob("*"))
    images(monkeypatch, 8, width)
    assert main(["train", *flags, "--out", str(tmp_path)]) in (1, 2)
    after = sorted((p, p.is_file() and p.read_text()) for p in tmp_path.rglob("*"))
    assert after == before


def test_directories_where_results_should_be(tmp_path, capsys):
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "curves.png").mkdir()
    short = ["train", "--epochs", "1", "--out", str(tmp_path)]
    assert main(short) == 1
    assert "curves.png: it is a directory" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "old"
    (tmp_path / "curves.png").rmdir()
    (tmp_path / "checkpoints").write_text("a file")
    assert main(short) == 2
    assert "cannot write into" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "old"


def test_a_resumed_training_keeps_its_own_results_alone(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    short = ["train", "--epochs", "1", "--batch-size", "360", "--out"]
    assert main([*short, str(first)]) == 0
    metrics = (first / "metrics.jsonl").read_text()
    assert main([*short, str(first), "--resume", "auto"]) == 0  # has no epoch left
    assert (first / "metrics.jsonl").read_text() == metrics
    old_results(second)
    assert main([*short, str(second), "--resume", str(first)]) == 0
    assert not (second / "metrics.jsonl").exists()


def shell(line, *arguments):
    """Run a line in which "$@" is `minidl` with these arguments; status and output."""
    command = [sys.executable, "-m", "minidl", *map(str, arguments)]
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, "bash", *command],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
def test_output_that_goes_away(tmp_path):
    short = ["train", "--epochs", 2, "--batch-size", 360, "--out", tmp_path]
    head = shell('"$@" | true; exit ${PIPESTATUS[0]}', *short)
    assert head.returncode == 141 and "minidl train:" not in head.stderr
    assert "Traceback" not in head.stderr and "Exception" not in head.stderr
    full = shell('"$@" >/dev/full', *short)
    assert full.returncode == 1 and full.stderr.endswith(
        "minidl train: cannot write to standard output: No space left on device\n"
    )
    assert "Traceback" not in full.stderr


@pytest.mark.slow
@pytest.mark.parametrize("where", [">&- 2>&-", "2>/dev/full"])
def test_no_output_at_all(tmp_path, where):
    short = ["train", "--epochs", 1, "--batch-size", 360, "--out", tmp_path]
    result = shell(f'"$@" {where}', *short)
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == RESULTS


@pytest.mark.mpi
@pytest.mark.slow
def test_ranks_without_output(tmp_path):
    if reason := why_no_ranks():
        pytest.skip(reason)
    line = f"{sys.executable} -m minidl train --epochs 1 --out {tmp_path} >&- 2>&-"
    assert run_job([find_mpiexec(), "-n", "2", "bash", "-c", line]).returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == RESULTS


def test_help_and_version_into_a_full_disk():
    for flag in ("--help", "--version"):
        result = shell('"$@" >/dev/full', flag)
        assert result.returncode == 1 and result.stderr.count("\n") == 1
        assert "cannot write to standard output" in result.stderr


def test_memory_that_does_not_suffice(tmp_path, capsys, monkeypatch):
    def full(*_):
        np.empty(2**50)

    monkeypatch.setattr("minidl.train.command_line.train", full)
    assert main(["train", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("minidl train: out of memory: use a smaller batch, or more")
    assert "Unable to allocate 8.00 PiB" in said and said.count("\n") == 1


def test_a_gpu_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr("minidl.array.device.gpu_available", lambda: False)
    assert main(["train", "--device", "gpu"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_directory_one_may_not_write_into(capsys):
    assert main(["train", "--out", "/proc/run"]) == 2  # not even root may
    assert "cannot write into /proc/run" in capsys.readouterr().err


def test_a_file_where_the_directory_should_be(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert main(["train", "--out", str(tmp_path / "file")]) == 2
    assert "cannot write into" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("lr, threads", [(1e7, 1), (1e30, 2)])
def test_a_loss_that_is_no_number_ends_the_training(tmp_path, lr, threads):
    flags = ["--optimizer", "sgd", "--lr", lr, "--out", tmp_path]
    result = run("train", *flags, OMP_NUM_THREADS=str(threads))
    assert result.returncode == 1
    assert "training has diverged; try a smaller learning rate" in result.stderr
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda b: b[: len(b) // 2], "no whole .safetensors file"),
        (lambda b: b[:4], "no whole .safetensors file"),
        (lambda b: b"", "no whole .safetensors file"),
        (
            lambda b: b.replace(b'"format":"minidl"', b'"format":"others"'),
            "not written by",
        ),
    ],
    ids=["half", "four bytes", "empty", "another program's"],
)
def test_damaged_checkpoints(tmp_path, trained, damage, words, capsys):
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage((trained[0] / "model.safetensors").read_bytes()))
    assert main(["evaluate", "--checkpoint", str(path)]) == 1
    assert words in capsys.readouterr().err


def rewrite(source, path, change, checksum=True):
    """Write a checkpoint after `change(state, texts)`, with its checksum or without."""
    state, texts = read(source)
    del texts["sha256"]
    change(state, texts)
    if checksum:
        texts["sha256"] = digest(state, texts)
    path.write_bytes(save(state, texts))


def configured(**others):
    """A change to the config; None takes a name away."""

    def change(state, texts):
        config = json.loads(texts["config"]) | others
        config = {k: v for k, v in config.items() if v is not None}
        texts["config"] = json.dumps(config)

    return change


def scaled(text):
    return lambda state, texts: texts.update(standardize=text)


STRANGE = {
    "no config": (lambda s, t: t.pop("config"), "config is missing"),
    "no scaling": (lambda s, t: t.pop("standardize"), "standardize is missing"),
    "broken JSON": (lambda s, t: t.update(config="{"), "does not say how it was"),
    "deep JSON": (lambda s, t: t.update(config="[" * 100_000), "does not say how"),
    "empty": (lambda s, t: t.update(config="{}"), "model is missing"),
    "a list": (lambda s, t: t.update(config="[]"), "config should be an object"),
    "model": (configured(model="vgg"), "model is 'vgg', known are cnn, mlp"),
    "data set": (configured(dataset=[1]), "known are digits, mnist, fashion_mnist"),
    "no classes": (configured(classes=None), "classes is missing"),
    "many classes": (configured(classes=10**12), "classes one, got"),
    "a shape": (configured(image_shape=7), "does not say how it was trained"),
    "half a shape": (configured(image_shape=[8, 8]), "three whole numbers"),
    "another model": (configured(model="mlp"), "other weights than its model mlp"),
    "11 classes": (configured(classes=11), "6.bias has shape (11,) here"),
    "no numbers": (scaled('{"mean": "a"}'), "should hold numbers under mean and std"),
    "two channels": (scaled('{"mean": [0, 0], "std": [1, 1]}'), "one of each channel"),
    "a number": (scaled("3"), "does not say how it was trained"),
    "renamed": (lambda s, t: s.update(a=s.pop("6.bias")), "6.bias is missing; a is"),
    "cut": (lambda s, t: s.update({"6.bias": s["6.bias"][:3]}), "6.bias has shape"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_checkpoints_that_are_whole_and_strange(tmp_path, trained, capsys, name):
    change, words = STRANGE[name]
    path = tmp_path / "model.safetensors"
    rewrite(trained[0] / "model.safetensors", path, change)
    assert main(["evaluate", "--checkpoint", str(path)]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and str(path) in said
    rewrite(trained[0] / "model.safetensors", path, change, checksum=False)
    assert main(["evaluate", "--checkpoint", str(path)]) == 1
    assert "not what its checksum was taken of" in capsys.readouterr().err


def test_any_flipped_bit_is_seen(tmp_path, trained):
    whole = (trained[0] / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, header, 150), *rng.integers(header, len(whole), 30)]
    for place in [*range(8), header, len(whole) - 1, *places]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            load_model(path)


def test_checkpoints_one_may_not_read(tmp_path, capsys, monkeypatch):
    for path, words in ((tmp_path, "Is a directory"), ("x" * 300, "File name too")):
        assert main(["evaluate", "--checkpoint", str(path)]) == 1
        said = capsys.readouterr().err
        assert "cannot be read: " + words in said and said.count("\n") == 1
    assert main(["train", "--resume", "x" * 300, "--out", str(tmp_path / "out")]) == 1
    assert "cannot be read: File name too" in capsys.readouterr().err

    def closed(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "glob", closed)
    assert main(["train", "--resume", "auto", "--out", str(tmp_path / "out")]) == 1
    assert "out/checkpoints cannot be read: Permission" in capsys.readouterr().err
    monkeypatch.setattr(Path, "open", closed)
    assert main(["evaluate", "--checkpoint", "x"]) == 1
    expected = "minidl evaluate: the checkpoint x cannot be read: Permission denied\n"
    assert capsys.readouterr().err == expected


@pytest.mark.mpi
@pytest.mark.slow
def test_strange_checkpoints_on_two_ranks(tmp_path, trained):
    path = tmp_path / "model.safetensors"
    for name in ("broken JSON", "renamed"):
        change, words = STRANGE[name]
        rewrite(trained[0] / "model.safetensors", path, change)
        result = run("evaluate", "--checkpoint", path, ranks=2)
        assert result.returncode == 1 and result.stderr.count(words) == 1
        assert "Traceback" not in result.stderr and result.seconds < 10


def test_a_checkpoint_for_other_images(tmp_path, trained, capsys, monkeypatch):
    _, test = load("digits")
    wide = type(test)(np.zeros((3, 1, 9, 9), np.uint8), np.arange(3))
    monkeypatch.setattr("minidl.train.evaluation.load", lambda *_: (wide, wide))
    path = str(trained[0] / "model.safetensors")
    assert main(["evaluate", "--checkpoint", path]) == 2
    assert "trained on images of shape (1, 8, 8)" in capsys.readouterr().err


@pytest.mark.mpi
@pytest.mark.slow
def test_the_version_is_said_once():
    result = run("--version", ranks=2)
    assert (result.returncode, result.stdout) == (0, f"minidl {md.__version__}\n")


@pytest.mark.mpi
@pytest.mark.slow
def test_refusals_on_several_ranks_are_said_once():
    for arguments, status, words in (
        (["train", "--batch-size", "0"], 2, "above 0, got '0'"),
        (["train", "--batch-size", "2"], 2, "leaves some of 3 ranks"),
        (["evaluate", "--checkpoint", "x"], 1, "there is no checkpoint x"),
    ):
        result = run(*arguments, ranks=3)
        assert result.returncode == status
        assert result.stderr.count(words) == 1
        assert "Traceback" not in result.stderr and result.seconds < 10


@pytest.mark.mpi
@pytest.mark.slow
def test_ranks_without_mpi4py(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('not here')")
    result = run(*QUICK, ranks=2, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert result.returncode != 0  # it ends by a signal: MPI has not started
    assert result.stderr.count('pip install "minidl[mpi]"') == 1
    assert "Traceback" not in result.stderr
