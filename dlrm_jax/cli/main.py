"""``python -m dlrm_jax COMMAND --flags``, and the console script ``dlrm-jax``."""

from __future__ import annotations

import gc
import sys

from dlrm_jax.cli.allocator import restart_with_settings
from dlrm_jax.signals import end_at_once

COMMANDS = {
    "train": "trains and evaluates a model",
    "days": "trains day after day, and tests each model on the next day",
    "search": "searches the settings of a model, and writes the best ones as a file",
    "preprocess": "makes arrays from raw logs, out of core",
    "join": "gives rows the labels that come later, before they are trained on",
    "report": "describes prepared data or a run on a page with pictures",
    "tables": "shows the health of a run's tables",
    "prune": "takes away the rows of ids that a model can do without",
    "generate": "makes Criteo-shaped data of any size",
    "predict": "predicts with a trained model, and writes its tables as files",
    "evaluate": "evaluates a trained model, also with features that are faded",
    "export": "makes one directory of a trained model, for serving anywhere",
    "verify": "checks every file of an exported model, and its predictions",
    "serve": "serves an exported model over HTTP",
    "convert": "converts models from and to PyTorch, and to ONNX",
    "plan": "plans the placement of tables, on any machine",
    "compile": "compiles a train step for a large machine, on any machine",
    "doctor": "says what this machine has, and what it lacks",
}

_DIRECTORIES = {"verify": "artifact", "serve": "artifact"}
"""Commands of one directory, which may be given without the name of its flag."""


def as_flags(command: str, arguments: list[str]) -> list[str]:
    """The arguments of a command, all as flags: ``verify DIR`` is ``verify --artifact=DIR``."""
    if command in _DIRECTORIES and arguments and not arguments[0].startswith("-"):
        return [f"--{_DIRECTORIES[command]}={arguments[0]}", *arguments[1:]]
    return arguments


def begin() -> None:
    """Signals and the allocator of a program, before the imports that take seconds."""
    end_at_once()
    restart_with_settings()


def main(command: str | None = None) -> None:
    """Runs a command, by default the first argument; the process ends with its exit code."""
    begin()
    # Here and below, since it takes time in which a signal may come.
    import difflib
    import importlib

    argv = list(sys.argv)
    if command is None:
        command = argv.pop(1) if len(argv) > 1 else "--help"
        if command in ("--help", "-h", "help"):
            print(_usage())
            return
        if command not in COMMANDS:
            close = difflib.get_close_matches(command, COMMANDS)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            print(f"error: there is no command {command!r}{hint}\n\n{_usage()}", file=sys.stderr)
            sys.exit(2)
        argv = [f"{argv[0]} {command}", *as_flags(command, argv[1:])]
    gc.disable()  # imports leave no garbage, and looking for it takes a tenth of their time
    from dlrm_jax.cli.run import run

    module = importlib.import_module(f"dlrm_jax.cli.{command}")
    gc.freeze()
    gc.enable()
    run(module.main, argv)


def _usage() -> str:
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m dlrm_jax COMMAND --flags", "", *lines, "",
         "python -m dlrm_jax COMMAND --help lists the flags of a command."]
    )  # fmt: skip
