from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from main_job import SMALL, succeed

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.flags import FLAGS, own_flags
from dlrm_jax.cli.main import as_flags
from dlrm_jax.mesh import make_mesh


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    succeed("--mesh=2x4", *SMALL, "--steps=40", f"--workdir={workdir}")
    return workdir


def forget_flags() -> None:
    for flag in own_flags():
        delattr(FLAGS, flag.name)


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

    def run(name: str, *arguments: object) -> None:
        forget_flags()
        known = sys.modules.pop(f"dlrm_jax.cli.{name}", None)
        program = importlib.import_module(f"dlrm_jax.cli.{name}")
        monkeypatch.setattr(program, "start", make_mesh)
        try:
            cli_flags.parse([name, *as_flags(name, [*map(str, arguments)])])
            program.main()
        finally:
            forget_flags()
            sys.modules.pop(f"dlrm_jax.cli.{name}")
            if known:
                sys.modules[f"dlrm_jax.cli.{name}"] = known

    return run
