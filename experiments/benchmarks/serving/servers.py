"""Servers as processes: their start, their memory, their end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from dlrm_jax.errors import UserError
from experiments.benchmarks.peers.contestant import _ROOT, _RUN
from experiments.benchmarks.peers.workers.http_bodies import MODEL

_START_SECONDS = 300


class Server:
    """A server that is ready; a context manager.

    Args:
        name: name in messages.
        command: command that starts it on a port.
        port: port.

    Attributes:
        ready_seconds: seconds from its start until it said that it is ready.

    Raises:
        UserError: it ends, or isn't ready within five minutes.
    """

    def __init__(self, name: str, command: Sequence[str | Path], port: int):
        self.name, self.port = name, port
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._said = ""
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self._wait(begun + _START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        self.ready_seconds = time.perf_counter() - begun

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def log(self) -> str:
        """What it has said so far."""
        if not self._log.closed:
            self._log.seek(0)
            self._said = self._log.read()
        return self._said

    def is_running(self) -> bool:
        """Whether it hasn't ended."""
        return self._process.poll() is None

    def _wait(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            if not self.is_running():
                said = self.log().strip().splitlines() or ["nothing"]
                raise UserError(f"{self.name} ended, code {self._process.returncode}: {said[-1]}")
            with contextlib.suppress(OSError, HTTPException):
                connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
                with contextlib.closing(connection):
                    connection.request("GET", "/v2/health/ready")
                    if connection.getresponse().status == 200:
                        return
            time.sleep(0.01)
        raise UserError(f"{self.name} isn't ready after {_START_SECONDS} seconds")

    def pause(self) -> None:
        """Stops it while others are measured: OpenMP's threads would spin."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends a pause."""
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.log()
        self._log.close()


def ours(directory: Path, *flags: str) -> Server:
    """This project's server, of an artifact or a directory of them."""
    port = free_port()
    arguments = ["serve", directory.absolute(), f"--port={port}", f"--name={MODEL}", *flags]
    return Server("ours", [sys.executable, "-m", "dlrm_jax", *arguments], port)


def fastapi(python: Path, artifact: Path, part: str, sizes: Sequence[int]) -> Server:
    """FastAPI's around FBGEMM's operator."""
    port = free_port()
    module = "experiments.benchmarks.peers.workers.torch_fastapi"
    flags = [f"--artifact={artifact}", f"--port={port}", f"--part={part}"]
    sizes_flag = ["--sizes", *map(str, sizes)]
    command = [python, "-c", _RUN, _ROOT, module, *flags, *sizes_flag]
    return Server("FastAPI", command, port)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def read_files(directory: Path) -> int:
    """Reads all files, so that they are in the page cache; returns their bytes."""
    size = 0
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while chunk := file.read(1 << 24):
                    size += len(chunk)
    return size


def memory(pid: int, directory: Path) -> dict[str, int]:
    """Resident bytes of a process.

    Returns:
        ``anonymous`` ones, which it has written; ``files``, mapped ones of all files, most of them
        libraries'; and ``artifact``, those among them of files in the directory.
    """
    found: dict[str, int] = {"anonymous": 0, "files": 0, "artifact": 0}
    is_own, rss = False, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if " " in key or "-" in key:  # the head of a mapping
            is_own = str(directory.absolute()) in line
        elif key == "Rss":
            rss = int(rest.split()[0]) * 1024
        elif key == "Anonymous":
            anonymous = int(rest.split()[0]) * 1024
            found["anonymous"] += anonymous
            found["files"] += rss - anonymous
            found["artifact"] += (rss - anonymous) * is_own
    return found
