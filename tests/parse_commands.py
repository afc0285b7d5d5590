"""Parses command lines as their programs would; run as a program of its own.

Reads a JSON object from standard input: by module, the argument lists of ``python -m MODULE``.
Prints one: by module, its flags, and a message for each command line that doesn't parse. Every
module is imported in a process of its own, since programs define flags of the same names.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback

import preloaded  # noqa: F401
from absl import flags

from dlrm_jax.cli.main import as_flags


def entry(module: str) -> str:
    """The module that defines a command's flags."""
    top, _, command = module.partition(" ")
    if command:
        return f"{top}.cli.{command}"
    if top == "experiments.criteo":
        return "dlrm_jax.cli.train"
    spec = importlib.util.find_spec(top)
    assert spec, f"there is no module {top}"
    return f"{top}.__main__" if spec.submodule_search_locations is not None else top


def parsed(module: str, lines: list[list[str]]) -> dict[str, list[str]]:
    """The flags of a module, and what is wrong with its command lines."""
    name, errors = entry(module), []
    if not any(lines):  # without flags, a module may do its work when it is imported
        return {"errors": [] if importlib.util.find_spec(name) else [f"no {name}"], "flags": []}
    importlib.import_module(name)
    for line in lines:
        flags.FLAGS.unparse_flags()
        try:
            _, *rest = flags.FLAGS([module, *as_flags(module.partition(" ")[2], line)])
            if rest:
                errors.append(f"{module} {' '.join(line)}: {' '.join(rest)} is no flag")
        except flags.Error as error:
            errors.append(f"{module} {' '.join(line)}: {error}")
    return {"errors": errors, "flags": list(flags.FLAGS)}


def main() -> None:
    """One child for each module."""
    answers = {}
    for module, lines in json.load(sys.stdin).items():
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                answer = parsed(module, lines)
            except BaseException:
                answer = {"errors": [f"{module}: {traceback.format_exc()}"], "flags": []}
            with os.fdopen(writer, "w") as pipe:
                json.dump(answer, pipe)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            answers[module] = json.load(pipe)
        os.waitpid(child, 0)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
