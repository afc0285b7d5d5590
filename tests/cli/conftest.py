from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from in_process import imported, run_command
from main_job import SMALL, succeed


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    succeed("--mesh=2x4", *SMALL, "--steps=40", f"--workdir={workdir}")
    return workdir


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """See `imported`."""
    with imported(request.param) as module:
        yield module


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """A function that runs a command in this process."""
    return functools.partial(run_command, monkeypatch)
