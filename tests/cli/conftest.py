from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from in_process import forget_flags, run_command
from main_job import SMALL, succeed


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    succeed("--mesh=2x4", *SMALL, "--steps=40", f"--workdir={workdir}")
    return workdir


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A module whose flags alone are defined, as in a process of its own."""
    forget_flags()
    known = sys.modules.pop(request.param, None)
    yield importlib.import_module(request.param)
    forget_flags()
    del sys.modules[request.param]
    if known:
        sys.modules[request.param] = known


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """A function that runs a command in this process."""
    return functools.partial(run_command, monkeypatch)
