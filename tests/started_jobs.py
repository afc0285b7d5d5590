"""Programs started as the processes of a run, each with its number."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from as_users import QUICKLY

from dlrm_jax.coordinator import free_address

ROOT = Path(__file__).parents[1]


class Processes:
    """Processes that run, or have ended."""

    def __init__(self, started: list[subprocess.Popen], logs: list[Path]):
        self.started, self._logs = started, logs

    def codes(self) -> list[int | None]:
        return [process.poll() for process in self.started]

    def logs(self) -> str:
        return "\n".join(log.read_text(encoding="utf-8")[-3000:] for log in self._logs)

    def wait(self, seconds: float) -> None:
        for process, log in zip(self.started, self._logs, strict=True):
            assert process.wait(seconds) == 0, log.read_text(encoding="utf-8")[-3000:]


@contextlib.contextmanager
def started(program: Path, count: int, directory: Path) -> Iterator[Processes]:
    """Starts a program with coordinator, count, number and directory; kills it at the end."""
    address = free_address()
    environment = os.environ | {
        "XLA_FLAGS": QUICKLY,  # compiling takes most of the time
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    with contextlib.ExitStack() as stack:
        processes, logs = [], [directory / f"{index}.log" for index in range(count)]
        for index, path in enumerate(logs):
            log = stack.enter_context(path.open("w", encoding="utf-8"))
            command = [sys.executable, program, address, str(count), str(index), directory]
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        yield Processes(processes, logs)
