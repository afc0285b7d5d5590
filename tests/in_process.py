"""A command of ``dlrm_jax``, run in the process of the test."""

from __future__ import annotations

import importlib
import sys

import pytest

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.flags import FLAGS, own_flags
from dlrm_jax.cli.main import as_flags
from dlrm_jax.mesh import make_mesh


def run_command(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """Runs a command; its flags are known only meanwhile."""
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


def forget_flags() -> None:
    """Forgets the flags of this project's commands."""
    for flag in own_flags():
        delattr(FLAGS, flag.name)
