"""What the README says is so: its programs run, what it names exists."""

import configparser
import os
import re
import subprocess
import sys

import pytest
from ranks import ROOT, environment, find_mpiexec, why_no_ranks

from minidl.distributed.launch import LAUNCHERS
from minidl.train.command_line import parser

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def run(command, directory, **env):
    """The output of a command that must succeed, in a directory of its own."""
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment(**env),
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_network_in_twenty_lines(tmp_path):
    program = blocks("python")[0]
    assert len(program.splitlines()) == 20
    (tmp_path / "program.py").write_text(program)
    last = run([sys.executable, "program.py"], tmp_path).splitlines()[-1]
    promised = re.search(r"ends with `(\d+) test accuracy (\S+)%`", README)
    epoch, accuracy = re.fullmatch(r"(\d+) test accuracy (\S+)%", last).groups()
    assert epoch == promised[1]
    assert abs(float(accuracy) - float(promised[2])) < 0.6  # two images of 360


@pytest.mark.parametrize("number", range(1, len(blocks("python"))))
def test_other_programs_run(number, tmp_path):
    (tmp_path / "program.py").write_text(blocks("python")[number])
    assert run([sys.executable, "program.py"], tmp_path)


@pytest.mark.slow
@pytest.mark.mpi
def test_the_commands_train_and_evaluate(tmp_path):
    if reason := why_no_ranks():
        pytest.skip(reason)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, command in (
        ("minidl", f"'{sys.executable}' -m minidl"),
        ("mpirun", f"'{find_mpiexec()}'"),
    ):
        (commands / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (commands / name).chmod(0o755)
    (block,) = (block for block in blocks("bash") if "minidl evaluate" in block)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    printed = run(["bash", "-ec", block], tmp_path, PATH=path).splitlines()
    names = (
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
    )
    out = sorted(file.name for file in (tmp_path / "runs/try").iterdir())
    assert out == [name for name in names if name in README]
    assert sum(line.startswith("epoch ") for line in printed) == 5
    one_rank, two_ranks = printed[-2:]
    shown = re.search(r"^test loss .*$", README, re.M)[0]
    for line in one_rank, two_ranks:
        assert re.sub(r"\d+", "0", line) == re.sub(r"\d+", "0", shown)
    assert one_rank.split("accuracy")[1] == two_ranks.split("accuracy")[1]


def test_bash_accepts_every_command():
    for block in blocks("bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_every_file_it_names_exists():
    named = re.findall(r"`((?:minidl|examples|tests|scripts)/[\w./]*)", README)
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def test_the_map_is_true():
    (text,) = (block for block in blocks("text") if block.startswith("minidl/"))
    places, files = {}, []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        places[depth] = name
        files.append("/".join(places[d].rstrip("/") for d in range(depth + 1)))
    assert [file for file in files if not (ROOT / file).exists()] == []
    rooms = {path.parent.name for path in (ROOT / "minidl").glob("*/__init__.py")}
    assert rooms <= {file.split("/")[-1] for file in files}


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_every_flag_is_explained(command, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert flags and flags <= set(re.findall(r"--[a-z-]+", README))


def test_every_extra_is_explained():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    table = re.findall(r"^\| (`.*`) \| ", README, re.M)
    named = re.findall(r"`(\w+)`", " ".join(table))
    assert set(settings["options.extras_require"]) <= set(named)


def test_every_launcher_is_named():
    for variables in LAUNCHERS.values():
        assert all(f"`{variable}`" in README for variable in variables)
