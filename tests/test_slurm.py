"""scripts/train.slurm, with an srun and an scontrol that only pretend."""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ranks import ROOT, environment, find_mpiexec, why_no_ranks

from minidl.train.checkpoint import load_model
from minidl.train.resume import SIGNALS
from minidl.train.store import Store

SCRIPT = ROOT / "scripts" / "train.slurm"
DIRECTIVE = "#SBATCH "
TRAINING = "--dataset digits --model mlp --batch-size 40 --device cpu --save-every 30"

# srun gives its options to nobody, and starts as many ranks as the job has tasks
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "srun $1" >>calls; shift; done
echo $$ >srun.pid
exec {mpiexec} -n "$SLURM_NTASKS" "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>calls
"""
MINIDL = """#!/bin/bash
echo "threads $OMP_NUM_THREADS" >>calls
exec {python} -m minidl "$@"
"""


def directives(text: str) -> list[str]:
    """The options that sbatch finds: in the comments before the first command."""
    found = []
    for line in text.splitlines()[1:]:
        if line.startswith(DIRECTIVE):
            found += shlex.split(line.removeprefix(DIRECTIVE))
        elif line and not line.startswith("#"):
            break
    return found


def sbatch(options: list[str]) -> argparse.Namespace:
    """The options as sbatch reads them; those that it does not have are an error."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-J", "--job-name", required=True)
    parser.add_argument("-N", "--nodes", type=int, required=True)
    parser.add_argument("--ntasks-per-node", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int)
    parser.add_argument("-c", "--cpus-per-task", type=int)
    parser.add_argument("-t", "--time", required=True)
    parser.add_argument("--signal", required=True)
    parser.add_argument("--requeue", action="store_true")
    parser.add_argument("--open-mode", choices=("append", "truncate"))
    parser.add_argument("-o", "--output")
    return parser.parse_args(options)


def test_what_sbatch_reads():
    text = SCRIPT.read_text()
    job = sbatch(directives(text))
    assert text.count("\n#SBATCH") == 2 and "#SBATCH" not in text.split("set -euo")[1]
    assert job.gpus_per_node == job.ntasks_per_node  # a rank a GPU
    assert re.fullmatch(r"(\d+-)?\d\d:\d\d:\d\d", job.time)
    name, seconds = re.fullmatch(r"([A-Z0-9]+)@(\d+)", job.signal).groups()
    assert getattr(signal, f"SIG{name}") in SIGNALS and int(seconds) >= 60
    assert job.requeue and job.open_mode == "append"
    assert "%j" in job.output


def test_the_shell_reads_it_too():
    checks = [["bash", "-n"]]
    if shutil.which("shellcheck"):
        checks.append(["shellcheck", "-e", "SC1091"])  # .venv is not there
    for check in checks:
        done = subprocess.run([*check, SCRIPT], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


class Cluster:
    """A directory from which jobs are submitted, on a cluster of this machine."""

    def __init__(self, home):
        self.home = home
        commands = home / ".venv" / "bin"
        commands.mkdir(parents=True)
        (commands / "activate").write_text(f"PATH={shlex.quote(str(commands))}:$PATH\n")
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("minidl", MINIDL)):
            command = commands / name
            command.write_text(
                text.format(mpiexec=find_mpiexec(), python=sys.executable)
            )
            command.chmod(0o755)

    def submit(self, training: str, ranks: int = 2) -> subprocess.Popen:
        """Start the script, its two lines edited, as a job of two nodes."""
        text, job = SCRIPT.read_text(), f"-J digits -N {ranks} --ntasks-per-node=1"
        edits = {
            r"^#SBATCH -J .*$": f"#SBATCH {job} --gpus-per-node=1 -c 1 -t 00:10:00",
            r"^training=\(.*\)$": f"training=({training})",
        }
        for line, new in edits.items():
            text, count = re.subn(line, new, text, flags=re.M)
            assert count == 1, line
        options = sbatch(directives(text))
        script = self.home / "slurm_script"  # a copy somewhere, as slurmd makes
        script.write_text(text)
        variables = {
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NAME": options.job_name,
            "SLURM_NTASKS": str(options.nodes * options.ntasks_per_node),
            "SLURM_CPUS_PER_TASK": str(options.cpus_per_task),
        }
        (self.home / "calls").write_text("")
        (self.home / "srun.pid").unlink(missing_ok=True)
        return subprocess.Popen(
            ["bash", script],
            cwd=self.home,
            env=environment(OMP_NUM_THREADS="9", **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def signal_when_saved(self, number) -> None:
        """Once there is a checkpoint, what slurmctld does when time is running out."""
        store, begin = Store(self.home / "runs" / "digits" / "checkpoints"), time.time()
        while not store.steps():
            assert time.time() < begin + 60
            time.sleep(0.005)
        os.kill(int((self.home / "srun.pid").read_text()), number)

    def calls(self) -> list[str]:
        return (self.home / "calls").read_text().splitlines()

    def results(self):
        return self.home / "runs" / "digits" / "model.safetensors"


@pytest.fixture
def cluster(tmp_path):
    if reason := why_no_ranks():
        pytest.skip(reason)
    return Cluster(tmp_path)


@pytest.mark.mpi
@pytest.mark.slow
def test_a_job_that_runs_out_of_time_goes_on(cluster, tmp_path):
    job = cluster.submit(f"{TRAINING} --epochs 15")
    cluster.signal_when_saved(signal.SIGUSR1)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert "go on with --resume auto" in said
    assert not cluster.results().exists()
    first = cluster.calls()
    assert first[-1] == "scontrol requeue 77" and first.count("threads 1") == 2
    assert "srun --cpus-per-task=1" in first

    job = cluster.submit(f"{TRAINING} --epochs 15")
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert "resuming " in said and "epoch  15 " in said
    assert not [call for call in cluster.calls() if call.startswith("scontrol")]

    (tmp_path / "whole").mkdir()
    other = Cluster(tmp_path / "whole")
    job = other.submit(f"{TRAINING} --epochs 15")
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    ours, theirs = (load_model(c.results())[0] for c in (cluster, other))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.mpi
@pytest.mark.slow
def test_a_job_that_fails_is_not_queued_again(cluster):
    job = cluster.submit("--data nowhere")
    said, _ = job.communicate(timeout=60)
    assert job.returncode != 0 and "no such directory" in said
    assert not [call for call in cluster.calls() if call.startswith("scontrol")]
