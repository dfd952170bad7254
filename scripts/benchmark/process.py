"""A peer at one work, in processes of its own: started, asked for steps, ended."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmark.peers import Peer

SCRIPTS = Path(__file__).resolve().parent.parent
PATIENCE = 300  # seconds, for compilers above all
GRACE = 5  # seconds to end in
THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")
LAUNCHERS = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_", "HYD", "SLURM_", "MV2_")


class Gone(Exception):
    """The peer takes no part, and why."""

    failed = False


class Failed(Gone):
    """It should have been able to."""

    failed = True


class Process:
    """The ranks of a peer at a work; `versions` and `seen` are what they tell first.

    Raises Gone with a sentence where the peer is not installed or cannot do the work,
    Failed where it fails. Several ranks have one thread each.
    """

    def __init__(
        self,
        peer: Peer,
        python: str | None,
        work: str | None,
        ranks: int,
        threads: int,
        small: bool = False,
    ):
        self.peer, self.python = peer, python or sys.executable
        task = {"module": peer.module, "options": peer.options}
        task |= {"work": work, "small": small}
        self.folder = tempfile.TemporaryDirectory(prefix="bench-")
        self.started: list[subprocess.Popen] = []
        self.ranks: list = []
        path = os.path.join(self.folder.name, "socket")
        self.log = open(os.path.join(self.folder.name, "log"), "w+")  # noqa: SIM115
        try:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(path)
                listening.listen()
                self.start(path, ranks, threads, json.dumps(task))
                self.ranks = self.accept(listening, ranks)
            told = [self.answer(rank) for rank in self.ranks][0]
        except BaseException:
            self.end()
            raise
        self.versions, self.seen = told["versions"], told["seen"]

    def start(self, path: str, ranks: int, threads: int, task: str) -> None:
        worker = [self.python, str(SCRIPTS / "benchmark" / "worker.py"), path]
        env = environment(self.peer, threads if ranks == 1 else 1)
        cores = str(max(threads, ranks))
        if ranks > 1 and self.peer.mpi:
            command = [mpiexec(self.python), "-n", str(ranks), *worker]
            self.launch([*command, "0", cores, task], env)
            return
        env |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        env["MASTER_PORT"] = str(free_port())
        for rank in range(ranks):
            env = env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.launch([*worker, str(rank), cores, task], env)

    def launch(self, command: list[str], env: dict[str, str]) -> None:
        self.started.append(
            subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,  # so that a launcher's ranks end with it
            )
        )

    def accept(self, listening: socket.socket, ranks: int) -> list:
        """A connection to each rank, in their order."""
        found, until = {}, time.monotonic() + PATIENCE
        listening.settimeout(0.2)
        while len(found) < ranks:
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                if any(p.poll() is not None for p in self.started):
                    words = self.last_words()
                    raise Failed(f"ended before it began: {words}") from None
                if time.monotonic() > until:
                    raise Failed(f"did not begin within {PATIENCE} s") from None
                continue
            connection.settimeout(PATIENCE)
            lines = connection.makefile("rw")
            connection.close()  # once `lines` is
            found[self.answer(lines)["rank"]] = lines
        return [found[rank] for rank in range(ranks)]

    def answer(self, rank) -> dict:
        try:
            line = rank.readline()
        except TimeoutError:
            raise Failed(f"gave no answer within {PATIENCE} s") from None
        except OSError as error:
            raise Failed(f"ended: {error}") from None
        if not line:
            raise Failed(f"ended without an answer: {self.last_words()}")
        told = json.loads(line)
        if "missing" in told:
            raise Gone(f"not installed ({told['missing']}): {self.peer.install}")
        if "cannot" in told:
            raise Gone(told["cannot"])
        if "failed" in told:
            raise Failed(told["failed"])
        return told

    def seconds(self, steps: int) -> float:
        """Seconds that one of so many steps took, on the slowest rank."""
        try:
            for rank in self.ranks:
                rank.write(f"{steps}\n")
                rank.flush()
        except OSError:
            raise Failed(f"ended: {self.last_words()}") from None
        return max([self.answer(rank)["seconds"] for rank in self.ranks])

    def last_words(self) -> str:
        self.log.flush()
        text = Path(self.log.name).read_text(errors="replace")
        return ([line for line in text.splitlines() if line.strip()] or ["-"])[-1]

    def end(self) -> None:
        """End all ranks: by themselves, as nobody speaks to them, or by force."""
        for rank in self.ranks:
            with suppress(OSError):  # what it never read
                rank.close()
        for process in self.started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.log.close()
        self.folder.cleanup()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        self.end()


def environment(peer: Peer, threads: int) -> dict[str, str]:
    """This one's, without what a launcher left in it, and with so many threads."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)}
    env |= {f"{name}_NUM_THREADS": str(threads) for name in THREADS}
    paths = [str(SCRIPTS), str(SCRIPTS.parent), env.get("PYTHONPATH")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return env | peer.environment


def mpiexec(python: str) -> str:
    """The one beside this Python, or the one on PATH."""
    beside = Path(python).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise Gone('no mpiexec was found: pip install "minidl[mpi]"')
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
