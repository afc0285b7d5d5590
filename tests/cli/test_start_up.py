"""The imports of a program: which there are, and a signal that comes meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from main_job import ROOT

from dlrm_jax.cli import launch
from dlrm_jax.signals import Interrupted, handled

PROGRAMS = ["dlrm_jax plan", "experiments.criteo", "experiments.movielens"]
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture
def slow_jax(tmp_path: Path) -> dict[str, str]:
    """An environment in which the import of JAX says so, and takes ten seconds.

    It sleeps for short times: a signal just before a sleep would be handled after it.
    """
    (tmp_path / "jax").mkdir()
    slow = "import time\nprint('importing', flush=True)\nfor _ in range(1000): time.sleep(0.01)\n"
    (tmp_path / "jax" / "__init__.py").write_text(slow)
    own = {x: y for x, y in os.environ.items() if x != "GLIBC_TUNABLES"}
    return own | {"PYTHONPATH": str(tmp_path)}


def signalled(command: list[str], numbers: list[int], **options) -> tuple[int, str]:
    """Sends signals to a program once it has printed something; its exit code and its errors."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        for number in numbers:
            process.send_signal(number)
        return (process.wait(30), process.stderr.read() if process.stderr else "")


@BOTH
@pytest.mark.parametrize("program", PROGRAMS)
def test_it_ends_the_program_with_one_line(program: str, number: int, slow_jax: dict[str, str]):
    found = signalled([sys.executable, "-m", *program.split()], [number], env=slow_jax)
    assert found == (128 + number, f"stopped by {signal.Signals(number).name}\n")


def test_an_ignored_one_stays_ignored(slow_jax: dict[str, str]):
    command = ["sh", "-c", f"trap '' INT; exec {sys.executable} -m dlrm_jax plan"]
    found = signalled(command, [signal.SIGINT, signal.SIGTERM], env=slow_jax)
    assert found == (143, "stopped by SIGTERM\n")


def test_a_library_has_no_handlers_and_imports_no_other_that_it_may_never_use():
    """Orbax comes with the first checkpoint, Polars with a raw file; each takes long to import."""
    check = (
        "import signal, sys, dlrm_jax.signals, dlrm_jax.cli.main, dlrm_jax.cli.train, experiments\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "found = {'orbax', 'polars', 'pyarrow', 'torch', 'onnx'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


STARTING = """
import sys, time
print("a line", file=sys.stderr, flush=True)
time.sleep(0.1)
from dlrm_jax.signals import end_at_once
end_at_once()
for _ in range(1000):
    time.sleep(0.01)
"""


@BOTH
def test_a_process_of_several_gets_what_came_before_its_imports(
    number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with launch._started([[sys.executable, "-c", STARTING]]) as (process,):
        assert process.stderr is not None
        assert process.stderr.readline() == "a line\n"
        os.kill(os.getpid(), number)
        assert launch._follow([process]).get(timeout=60) == launch.Ended(0, 128 + number, False)
    assert capsys.readouterr().err == f"stopped by {signal.Signals(number).name}\n"


def test_one_that_comes_between_two_starts_ends_all(monkeypatch: pytest.MonkeyPatch):
    processes: list[subprocess.Popen[str]] = []
    start = launch._start

    def commands() -> Iterator[list[str]]:
        yield ["sleep", "60"]
        os.kill(os.getpid(), signal.SIGTERM)
        yield ["sleep", "60"]

    def kept(command: Sequence[str], is_shown: bool) -> subprocess.Popen[str]:
        processes.append(start(command, is_shown))
        return processes[-1]

    monkeypatch.setattr(launch, "_start", kept)
    with pytest.raises(Interrupted), handled(), launch._started(commands()):
        pytest.fail("it goes on")
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    for process in processes:
        process.communicate()
