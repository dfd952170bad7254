"""scripts/train and scripts/test, with a Python and a pip that only pretend."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("scripts/environment", "scripts/train", "scripts/test", ".ci/run")
TOOLS = "bash cat chmod cksum cp cut dirname env flock mkdir mv readlink rm rmdir "
TOOLS += "sleep tail"

# Stands for the machine's Python and, copied into .venv, for the environment's.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in
*libcuda.so.1*cuDeviceGetCount*) echo "$FAKE_GPUS" ;;
*libcuda.so.1*) echo "$FAKE_PROBE"; [ "${FAKE_PROBE%% *}" != 3.9 ] ;;
*"import ensurepip"*) [ -z "$FAKE_NO_VENV" ] ;;
"-I -m venv "*)
    mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
    printf '#!/usr/bin/env bash\nprintf "[%%s]" "$@"\n' >"$4/bin/mpirun"
    chmod +x "$4/bin/mpirun" ;;
*" pip install "*)
    sleep "${FAKE_SECONDS:-0}"
    echo "${@: -1}" >>"$FAKE_LOG"
    if [ -n "$FAKE_PIP_FAILS" ]; then echo "ERROR: no such wheel"; exit 1; fi ;;
"-m pytest"*) printf '[%s]' "$PWD" "$@"; exit "${FAKE_STATUS:-0}" ;;
*) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


class Checkout:
    """A copy of the scripts, on a machine whose commands are TOOLS and the fake."""

    def __init__(self, home: Path) -> None:
        self.root = home / "a check out"
        self.log = home / "log"
        self.bin = home / "bin"
        for name in (*SCRIPTS, "setup.cfg", "pyproject.toml"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        for tool in TOOLS.split():
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)
        self.python("python3")

    def python(self, name: str) -> None:
        (self.bin / name).write_text(PYTHON)
        (self.bin / name).chmod(0o755)

    def start(self, script: str, *arguments: str, **fake: str) -> subprocess.Popen:
        environment = {"PATH": str(self.bin), "FAKE_LOG": str(self.log)}
        environment |= {"FAKE_PROBE": "3.11 none", "FAKE_GPUS": "0"} | fake
        return subprocess.Popen(
            [self.root / script, *arguments],
            cwd="/",
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, script: str, *arguments: str, **fake: str):
        process = self.start(script, *arguments, **fake)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def installs(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_accepts_it(name):
    subprocess.run(["bash", "-n", ROOT / name], check=True)
    assert name == "scripts/environment" or os.access(ROOT / name, os.X_OK)


def test_a_second_run_reuses_the_environment(checkout):
    assert checkout.run("scripts/train")[0] == 0
    started = time.monotonic()
    status, _, err = checkout.run("scripts/train")
    assert status == 0 and "install" not in err
    assert time.monotonic() - started < 2
    assert checkout.installs() == [".[mpi,plot]"]


def test_each_script_adds_only_what_is_missing(checkout):
    for script in ("scripts/train", "scripts/test", "scripts/train", ".ci/run"):
        assert checkout.run(script)[0] == 0
    assert checkout.installs() == [".[mpi,plot]", ".[mpi,plot,test,nvrtc]"]


def test_every_extra_installed_is_in_setup_cfg(checkout):
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    known = settings["options.extras_require"]
    for probe in ("3.11 none", "3.11 cuda12", "3.11 cuda13"):
        assert checkout.run("scripts/test", FAKE_PROBE=probe)[0] == 0
    installed = ",".join(re.findall(r"\[(.*)\]", "".join(checkout.installs())))
    assert set(re.findall(r"\w+", installed)) <= set(known)
    assert "cuda12" in installed and "cuda13" in installed


def test_the_driver_decides_which_cupy_there_is_and_there_is_one(checkout):
    for probe in ("3.11 none", "3.11 cuda13", "3.11 none"):
        assert checkout.run("scripts/test", FAKE_PROBE=probe)[0] == 0
    assert checkout.installs() == [".[mpi,plot,test,nvrtc]", ".[mpi,plot,test,cuda13]"]


def test_arguments_are_passed_on_unchanged(checkout):
    _, out, _ = checkout.run("scripts/train", "--epochs", "3", "a  b", '$"*')
    assert out.endswith('[-n][2][minidl][train][--epochs][3][a  b][$"*]')
    _, out, _ = checkout.run("scripts/test", "-m", "not slow")
    two = "[-n][2][--dist][loadfile][--no-loadscope-reorder]"
    assert out == f"[{checkout.root}][-m][pytest]{two}[-m][not slow]"


def test_the_exit_status_is_pytests(checkout):
    assert checkout.run(".ci/run", FAKE_STATUS="1")[0] == 1
    assert checkout.run(".ci/run", FAKE_STATUS="5")[0] == 5


def test_the_number_of_ranks(checkout):
    assert "[-n][2]" in checkout.run("scripts/train")[1]
    assert "[-n][3]" in checkout.run("scripts/train", FAKE_GPUS="3")[1]
    assert "[-n][4]" in checkout.run("scripts/train", FAKE_GPUS="3", RANKS="4")[1]


@pytest.mark.parametrize("ranks", ["0", "two", "-1", "1.5"])
def test_an_impossible_number_of_ranks(checkout, ranks):
    status, _, err = checkout.run("scripts/train", RANKS=ranks)
    assert status == 2
    assert err.startswith(f"minidl: RANKS={ranks} is not") and err.count("\n") == 1
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("script", ["scripts/train", "scripts/test"])
def test_no_python_that_is_new_enough(checkout, script):
    status, _, err = checkout.run(script, FAKE_PROBE="3.9 none")
    assert status == 1 and err.count("\n") == 1
    assert "found no Python 3.10 or newer" in err
    (checkout.bin / "python3").unlink()
    assert checkout.run(script)[::2] == (1, err)


def test_another_python_is_found(checkout):
    (checkout.bin / "python3").rename(checkout.bin / "python3.12")
    assert checkout.run("scripts/train")[0] == 0
    (checkout.bin / "python3.12").rename(checkout.bin / "mine")
    shutil.rmtree(checkout.root / ".venv")
    assert checkout.run("scripts/train")[0] == 1
    assert checkout.run("scripts/train", PYTHON=str(checkout.bin / "mine"))[0] == 0


def test_a_python_without_venv(checkout):
    status, _, err = checkout.run("scripts/train", FAKE_NO_VENV="1")
    assert status == 1 and err.count("\n") == 1
    assert "python3 cannot make virtual environments: install" in err


def test_a_failed_install_shows_pips_reason_and_is_begun_again(checkout):
    status, _, err = checkout.run("scripts/train", FAKE_PIP_FAILS="1")
    assert status == 1 and "ERROR: no such wheel" in err
    left_over = checkout.root / ".venv" / "left over"
    left_over.touch()
    assert checkout.run("scripts/train")[0] == 0
    assert not left_over.exists()


def test_an_interrupted_install_is_begun_again(checkout):
    process = checkout.start("scripts/train", FAKE_SECONDS="0.3")
    while not (checkout.root / ".venv" / "install.log").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert checkout.run("scripts/train")[0] == 0
    assert checkout.run("scripts/train")[0] == 0
    assert (checkout.root / ".venv/minidl-setup").read_text().endswith("mpi plot\n")


@pytest.mark.skipif(not shutil.which("flock"), reason="flock is not installed")
def test_two_at_once_install_once(checkout):
    both = [checkout.start("scripts/train", FAKE_SECONDS="0.4") for _ in range(2)]
    errors = [process.communicate(timeout=30)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert checkout.installs() == [".[mpi,plot]"]
    assert sum("waiting for another" in err for err in errors) == 1


def test_changed_requirements_are_installed(checkout):
    checkout.run("scripts/train")
    with (checkout.root / "setup.cfg").open("a") as settings:
        settings.write("\n")
    checkout.run("scripts/train")
    assert checkout.installs() == [".[mpi,plot]"] * 2


def test_a_new_python_or_a_moved_checkout_begins_again(checkout):
    checkout.run("scripts/train")
    checkout.run("scripts/train", FAKE_PROBE="3.12 none")
    checkout.root = checkout.root.rename(checkout.root.parent / "elsewhere")
    _, _, err = checkout.run("scripts/train", FAKE_PROBE="3.12 none")
    assert f"made {checkout.root}/.venv with Python 3.12" in err
    assert len(checkout.installs()) == 3


def test_an_environment_of_another_making_is_left_alone(checkout):
    (checkout.root / ".venv").mkdir()
    mine = checkout.root / ".venv" / "mine"
    mine.touch()
    status, _, err = checkout.run("scripts/train")
    assert status == 1 and "was not made by this script" in err
    assert mine.exists()


@pytest.mark.parametrize(
    "version, extra", [(11080, "none"), (12040, "cuda12"), (13020, "cuda13")]
)
def test_the_driver_is_asked_for_its_version(tmp_path, version, extra):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a driver library with")
    driver = f"int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", tmp_path / "libcuda.so.1"],
        input=driver.encode(),
        check=True,
    )
    out = subprocess.run(
        ["bash", "-c", 'source "$0"; probe "$1"', ROOT / SCRIPTS[0], sys.executable],
        env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(tmp_path)},
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    assert out == "{}.{} {}\n".format(*sys.version_info[:2], extra)
