"""A program, run in the process of the test."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.flags import FLAGS, own_flags
from dlrm_jax.cli.main import as_flags
from dlrm_jax.mesh import make_mesh


def run_command(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """Runs a command of ``dlrm_jax``; its flags are known only meanwhile."""
    with imported(f"dlrm_jax.cli.{name}") as program:
        monkeypatch.setattr(program, "start", lambda mesh, **_: make_mesh(mesh))
        cli_flags.parse([name, *as_flags(name, [*map(str, arguments)])])
        program.main()


@contextlib.contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """Context of a module whose flags alone are defined, as in a process of its own."""
    forget_flags()
    known = sys.modules.pop(name, None)
    try:
        yield importlib.import_module(name)
    finally:
        forget_flags()
        sys.modules.pop(name, None)
        if known:
            sys.modules[name] = known


def forget_flags() -> None:
    """Forgets the flags of this project's commands."""
    for flag in own_flags():
        delattr(FLAGS, flag.name)
