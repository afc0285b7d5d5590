"""``python -m dlrm_jax COMMAND --flags``, and the console script ``dlrm-jax``."""

from __future__ import annotations

import importlib
import sys

from dlrm_jax.cli.allocator import restart_with_settings

COMMANDS = {
    "train": "trains and evaluates a model",
    "preprocess": "makes arrays of raw logs, out of core",
    "generate": "makes Criteo-shaped data of any size",
    "predict": "predicts with a trained model, and writes its tables as files",
    "plan": "plans where tables lie, for machines that needn't be there",
    "compile": "compiles a train step for machines that needn't be there",
}


def main(command: str | None = None) -> None:
    """Runs a command; the process ends with its exit code.

    Args:
        command: one of `COMMANDS`; None for the first argument of the command line.
    """
    restart_with_settings()
    argv = list(sys.argv)
    if command is None:
        command = argv.pop(1) if len(argv) > 1 else "--help"
        if command in ("--help", "-h", "help"):
            print(_usage())
            return
        if command not in COMMANDS:
            print(f"error: no command {command!r}\n{_usage()}", file=sys.stderr)
            sys.exit(2)
        argv[0] = f"{argv[0]} {command}"
    from dlrm_jax.cli.program import run  # here, since it imports JAX

    run(importlib.import_module(f"dlrm_jax.cli.{command}").main, argv)


def _usage() -> str:
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: python -m dlrm_jax COMMAND --flags", "", *lines])
