"""A contestant as a process that answers requests."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.errors import UserError

_ROOT = Path(__file__).parents[3]

# The environment's own packages come before this package, and its modules are run as they
# would be with -m.
_RUN = (
    "import runpy, sys; root, module = sys.argv[1:3]; del sys.argv[1:3]; sys.path.append(root); "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


@dataclasses.dataclass(frozen=True)
class Worker:
    """The command of a contestant; variables of its environment are set unless they are already."""

    name: str
    python: Path
    module: str
    flags: Sequence[str] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def command(worker: Worker) -> list[str | Path]:
    """The command line of a worker's process."""
    return [worker.python, "-c", _RUN, _ROOT, worker.module, *worker.flags]


class Contestant:
    """The process of a worker; a context manager.

    It is stopped between requests: OpenMP's threads would spin in the time of others.

    Raises:
        UserError: every request raises it if the process ends instead of answering.
    """

    def __init__(self, worker: Worker):
        self.name = worker.name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command(worker),
            # The peers are on the CPU, also on machines with an accelerator.
            env={**worker.environment, **os.environ, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to one request of `workers.protocol`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended(do) from None
        answer = self._process.stdout.readline()
        if not answer:
            raise self._ended(do)
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def _ended(self, do: str) -> UserError:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended, code {code},"
        self._errors.seek(0)
        return UserError(
            f"{self.name} {how} when asked for {do!r}; --peers can leave it out. It said: "
            f"{_essence(self._errors.read())}"
        )

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *error: object) -> None:
        # It owns nothing but memory.
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def _essence(text: str) -> str:
    """The line of the last exception, or else the last line: PyTorch's traces are long."""
    lines = [line for line in text.splitlines() if line.strip()]
    traces = [i for i, line in enumerate(lines) if line.startswith("Traceback ")]
    after = lines[traces[-1] + 1 :] if traces else []
    return next((line for line in after if not line.startswith(" ")), lines[-1] if lines else "-")
